"""What the tests of `export` share."""

from __future__ import annotations

import json
import os
import shutil

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
    from edgecifar.train.inference import in_batches, logits_with

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
