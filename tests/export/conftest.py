"""What the tests of `export` share."""

from __future__ import annotations

import json
import os
import shutil
from dataclasses import replace

import pytest


@pytest.fixture(scope="session", autouse=True)
def _one_thread():
    import torch

    torch.set_num_threads(1)  # the nets are small: more threads cost more than they give


@pytest.fixture
def tmp_path(tmp_path):
    """pytest's own, emptied after each test: an exported net can be large."""
    yield tmp_path
    shutil.rmtree(tmp_path, ignore_errors=True)


@pytest.fixture(scope="session")
def eager(net, small):
    """The net's own logits of the small test images, float32 [130, 10]."""
    from edgecifar.export.parity import in_batches
    from edgecifar.train.inference import logits_with

    return in_batches(logits_with(net), small.test_images)


@pytest.fixture(scope="session")
def deployed(net):
    """The graph that is exported; it is shared and must not be changed."""
    from edgecifar.export.graph import Deployed

    return Deployed(net, 1.7)


@pytest.fixture(scope="session", autouse=True)
def _quickly_learnt():
    from edgecifar.export import familiarity

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(familiarity, "STEPS", 60)
        patch.setattr(familiarity, "OUTLIERS", 100)
        yield


@pytest.fixture(scope="session")
def plain_onnx(bundle):
    """An ONNX model of the bundle as it is before the familiarity is added: `plain_onnx("model.onnx")`."""
    import onnx

    from edgecifar.runtime.contract import METADATA_PREFIX

    def load(file: str) -> onnx.ModelProto:
        model = onnx.load(bundle.folder / file)
        added = model.graph.output[2].name
        for part in (model.graph.node, model.graph.initializer, model.graph.output):
            for entry in [entry for entry in part if entry.name.startswith(added)]:
                part.remove(entry)
        contract = replace(bundle.contract, familiarity_name=None)
        described = {entry.key: entry.value for entry in model.metadata_props}
        described[METADATA_PREFIX + "contract"] = json.dumps(contract.as_json())
        onnx.helper.set_model_props(model, described)
        return model

    return load


@pytest.fixture
def quick_onnx(plain_onnx, monkeypatch):
    """Let the ONNX exporter, which takes seconds, give what it wrote of the same net before."""
    from edgecifar.export.formats import onnx as onnx_format

    def write(model, path, contract, provenance):
        onnx_format.save(plain_onnx("model.onnx"), path, contract, provenance)

    monkeypatch.setattr(onnx_format, "write", write)


@pytest.fixture
def lines(caplog):
    """The lines that were logged; `lines()` returns those since the last call."""
    caplog.set_level("INFO", logger="edgecifar")

    def call() -> list[str]:
        found = [record.getMessage() for record in caplog.records if record.name == "edgecifar"]
        caplog.clear()
        return found

    return call


@pytest.fixture
def linked(run, tmp_path):
    """Make a run folder of the same weights with another record; what is changed to None is left out."""
    from edgecifar.train.run import Run

    def make(**changes):
        folder = tmp_path / "other-run"
        folder.mkdir(exist_ok=True)
        if not (folder / "weights.safetensors").exists():
            os.link(run.folder / "weights.safetensors", folder / "weights.safetensors")
        changed = {**json.loads((run.folder / "run.json").read_text()), **changes}
        (folder / "run.json").write_text(json.dumps({k: v for k, v in changed.items() if v is not None}))
        return Run(folder)

    return make
