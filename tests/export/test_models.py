"""Every kind of model loads behind one face, and whatever is not one says so in a sentence."""

from __future__ import annotations

import contextlib
import io
import pickle
import shutil
import warnings
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch

from edgecifar.export import models
from edgecifar.runtime.errors import ModelError, RunError, VariantError
from edgecifar.train.run import Run

KINDS = {
    "onnx": "model.onnx",
    "torchscript": "model.torchscript.pt",
    "pt2": "model.pt2",
    "bundle": "",
}


@pytest.mark.parametrize("kind", [*KINDS, "run"])
def test_loads(bundle, run, small, eager, kind):
    path = run.folder if kind == "run" else bundle.folder / KINDS[kind]
    model = models.load(path, variant="fp32" if kind == "bundle" else None)
    assert model.kind == kind
    assert model.provider == ("cpu" if kind in ("onnx", "bundle") else "torch, cpu")
    images = small.test_images[:9]
    np.testing.assert_allclose(model.logits(images), eager[:9], atol=3e-5, rtol=1e-5)
    exponentials = np.exp(eager[:9] / 1.7)
    np.testing.assert_allclose(
        model.probabilities(images), exponentials / exponentials.sum(1, keepdims=True), atol=1e-5
    )


def test_a_run_computes_its_outputs_once(run, small, monkeypatch):
    passes, make = [], Run.net

    def counted(self):
        net = make(self)
        net.register_forward_hook(lambda *_: passes.append(1))
        return net

    monkeypatch.setattr(Run, "net", counted)
    model = models.load(run.folder)
    probabilities, logits = model.outputs(small.test_images[:9])
    assert len(passes) == 1
    np.testing.assert_array_equal(probabilities, model.probabilities(small.test_images[:9]))
    np.testing.assert_array_equal(logits, model.logits(small.test_images[:9]))


def test_a_bundles_default_variant(bundle, small):
    images = small.test_images[:9]
    default, edge = models.load(bundle.folder), models.load(bundle.folder, "edge")
    np.testing.assert_array_equal(default.logits(images), edge.logits(images))


def message(path, kind=ModelError, **options) -> str:
    with pytest.raises(kind) as caught:
        models.load(path, **options)
    text = str(caught.value)
    assert text.endswith(".")
    assert "\n" not in text
    assert len(text) < 600
    return text


@pytest.mark.parametrize("name", ["model.onnx", "model.pt", "model.pt2", "folder", "model.h5"])
def test_a_missing_path(tmp_path, name):
    assert f"{tmp_path / name} is not there" in message(tmp_path / name)


def test_a_folder_that_is_neither(tmp_path):
    assert "neither a run folder nor a bundle" in message(tmp_path)


@pytest.mark.parametrize("name", ["model.h5", "model", "weights.safetensors"])
def test_an_unknown_ending(tmp_path, name):
    (tmp_path / name).write_text("x")
    assert "unknown ending" in message(tmp_path / name)


@pytest.mark.parametrize(
    "content", [b"", b"this is a text\n", b"\0" * 1000, b"PK\3\4"], ids=["empty", "text", "nul", "zip"]
)
@pytest.mark.parametrize("name", ["model.onnx", "model.pt", "model.pt2"])
def test_what_is_no_model(tmp_path, name, content):
    path = tmp_path / name
    path.write_bytes(content)
    assert message(path).startswith(f"{path} is ")


@pytest.mark.parametrize("kind", ["onnx", "torchscript", "pt2"])
@pytest.mark.parametrize("share", [0.3, 0.999])
def test_a_truncated_file(bundle, tmp_path, kind, share):
    content = (bundle.folder / KINDS[kind]).read_bytes()
    path = tmp_path / KINDS[kind]
    path.write_bytes(content[: int(share * len(content))])
    assert message(path).startswith(f"{path} is ")


def script(module: torch.nn.Module) -> bytes:
    buffer = io.BytesIO()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch.jit is deprecated as a whole
        torch.jit.save(torch.jit.script(module), buffer)
    return buffer.getvalue()


class OtherInput(torch.nn.Module):
    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        raise ValueError("expected 224 x 224")


class OneOutput(torch.nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x.float().flatten(1)[:, :10]


class OutputsDiffer(torch.nn.Module):
    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        x = x.float().flatten(1)
        return x[:, :10], x[:, :9]


class Earlier(torch.nn.Module):
    """Gives what exports of before the contract gave."""

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        logits = x.float().flatten(1)[:, :10]
        return logits.softmax(1), logits


def test_torchscript_of_an_earlier_version_lacks_a_contract_and_loads(tmp_path, small):
    path = tmp_path / "model.pt"
    path.write_bytes(script(Earlier()))
    model = models.load(path)
    assert model.contract is None
    assert model.logits(small.test_images[:3]).shape == (3, 10)


@pytest.mark.parametrize("other", [OtherInput, OneOutput, OutputsDiffer])
def test_torchscript_of_another_net(tmp_path, other):
    path = tmp_path / "model.pt"
    path.write_bytes(script(other()))
    assert message(path).startswith(f"{path} is not a model that 'edgecifar export' made, or it is damaged (")


def test_a_pt2_file_of_another_net(tmp_path):
    path = tmp_path / "model.pt2"
    torch.export.save(torch.export.export(torch.nn.Linear(3, 10), (torch.zeros(2, 3),)), path)
    assert message(path).startswith(f"{path} is not a model that 'edgecifar export' made, or it is damaged (")


def test_a_checkpoint_of_torch_is_not_torchscript(tmp_path):
    path = tmp_path / "model.pt"
    torch.save({"weight": torch.zeros(3)}, path)
    assert message(path).startswith(f"{path} is not a model")


class Evil:
    """Runs when it is unpickled: it makes a folder."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self):
        return Path.mkdir, (self.path,)


@pytest.mark.parametrize("name", ["model.onnx", "model.pt", "model.pt2"])
@pytest.mark.parametrize("pack", [pickle.dump, torch.save])
def test_a_pickle_is_never_run(tmp_path, name, pack):
    trap, path = tmp_path / "executed", tmp_path / name
    with path.open("wb") as file:
        pack(Evil(trap), file)
    assert message(path).startswith(f"{path} is not a model")
    assert not trap.exists()
    with path.open("rb") as file:  # the trap is armed
        torch.load(file, weights_only=False) if pack is torch.save else pickle.load(file)  # noqa: S301
    assert trap.exists()


def test_a_pickle_inside_a_pt2_file_is_never_run(tmp_path):
    """Its configuration says that a weight is a pickle: torch's reader, left alone, runs it."""
    trap, path = tmp_path / "executed", tmp_path / "model.pt2"
    whole, evil = io.BytesIO(), io.BytesIO()
    torch.export.save(torch.export.export(torch.nn.Linear(3, 10), (torch.zeros(2, 3),)), whole)
    torch.save(Evil(trap), evil)
    with zipfile.ZipFile(whole) as archive, zipfile.ZipFile(path, "w") as target:
        for name in archive.namelist():
            content = archive.read(name)
            if name.endswith("weights_config.json"):
                assert b'"use_pickle": false' in content
                content = content.replace(b'"use_pickle": false', b'"use_pickle": true')
            target.writestr(name, evil.getvalue() if "/weights/weight_" in name else content)
    assert message(path).startswith(f"{path} is not a model")
    assert not trap.exists()
    with contextlib.suppress(Exception), warnings.catch_warnings():  # the trap is armed
        warnings.simplefilter("ignore")
        torch.export.load(path)
    assert trap.exists()


def test_an_onnx_file_of_another_net(tmp_path):
    from onnx import TensorProto, helper, save

    path = tmp_path / "model.onnx"
    value = helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", 3])
    out = helper.make_tensor_value_info("y", TensorProto.FLOAT, ["n", 3])
    graph = helper.make_graph([helper.make_node("Relu", ["x"], ["y"])], "other", [value], [out])
    save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10), path)
    assert "name a model that 'edgecifar export' made" in message(path)


def test_an_unknown_variant(own_bundle):
    assert "tiny: choose one of edge" in message(own_bundle, VariantError, variant="tiny")


def test_a_variant_that_needs_torch(bundle):
    text = message(bundle.folder, VariantError, variant="pt2")
    assert f"'edgecifar evaluate {bundle.folder / 'model.pt2'}'" in text


def test_a_run_without_weights(run, tmp_path):
    shutil.copy(run.folder / "run.json", tmp_path)
    assert "has lost its weights.safetensors" in message(tmp_path, RunError)


def test_a_run_of_another_net(run, tmp_path):
    from safetensors.torch import save_file

    shutil.copy(run.folder / "run.json", tmp_path)
    save_file({"layer.weight": torch.zeros(2, 2)}, tmp_path / "weights.safetensors")
    assert "is the checkpoint of another net (conv1.bias is missing)" in message(tmp_path, RunError)
