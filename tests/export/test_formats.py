"""Each format: what was written is loaded back from the disk, agrees at every batch size, and says what it is."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import asdict, replace
from pathlib import Path

import narrow_net
import numpy as np
import onnx
import pytest

from edgecifar.export import models
from edgecifar.export.formats import onnx as onnx_format
from edgecifar.export.formats import pt2, torchscript
from edgecifar.runtime.contract import METADATA_PREFIX, Contract
from edgecifar.train.inference import in_batches

FILES = {"onnx": "model.onnx", "torchscript": "model.torchscript.pt", "pt2": "model.pt2"}
FP32 = ("fp32", "torchscript", "pt2")


@pytest.fixture(scope="module")
def loaded(bundle):
    return {kind: models.load(bundle.folder / file, provider="cpu") for kind, file in FILES.items()}


@pytest.fixture(scope="module")
def graph(bundle):
    return onnx.load(bundle.folder / "model.onnx")


@pytest.mark.parametrize("kind", FILES)
@pytest.mark.parametrize("size", [1, 2, 7, 64])
def test_agrees_with_eager_at_every_batch_size(loaded, eager, small, kind, size):
    images = small.test_images[: 2 * size]
    logits = in_batches(loaded[kind].logits, images, size)
    probabilities = in_batches(loaded[kind].probabilities, images, size)
    assert logits.dtype == probabilities.dtype == np.float32
    np.testing.assert_allclose(logits, eager[: len(images)], atol=3e-5, rtol=1e-5)
    exponentials = np.exp(logits.astype(np.float64) / 1.7)
    np.testing.assert_allclose(probabilities, exponentials / exponentials.sum(1, keepdims=True), atol=1e-5)


def test_the_temperature_reaches_the_file_and_leaves_the_logits(loaded, small):
    probabilities, logits = loaded["onnx"].probabilities(small.test_images), loaded["onnx"].logits(small.test_images)
    at_one = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
    assert np.abs(probabilities - at_one).max() > 0.01


class TestOnnx:
    @pytest.mark.parametrize("file", ["model.onnx", "model.edge.onnx"])
    def test_passes_the_full_checker(self, bundle, file):
        onnx.checker.check_model(bundle.folder / file, full_check=True)

    def test_opset_and_domains(self, graph):
        assert [(entry.domain, entry.version) for entry in graph.opset_import] == [("", onnx_format.OPSET)]

    @pytest.mark.parametrize("file", ["model.onnx", "model.edge.onnx"])
    def test_contract(self, bundle, file):
        model = onnx.load(bundle.folder / file)
        values = {value.name: value.type.tensor_type for value in (*model.graph.input, *model.graph.output)}
        shapes = {name: [dim.dim_param or dim.dim_value for dim in tensor.shape.dim] for name, tensor in values.items()}
        assert [value.name for value in model.graph.input] == ["images"]
        scores = {"probabilities": ["batch", 10], "logits": ["batch", 10], "familiarity": ["batch"]}
        assert shapes == {"images": ["batch", 32, 32, 3], **scores}
        assert values["images"].elem_type == onnx.TensorProto.UINT8
        assert values["probabilities"].elem_type == values["logits"].elem_type == onnx.TensorProto.FLOAT

    def test_identities_and_training_layers_are_gone(self, graph):
        kinds = [node.op_type for node in graph.graph.node]
        assert not {"BatchNormalization", "Dropout", "Identity"} & set(kinds)
        assert kinds.count("Conv") == 6
        assert kinds.count("MaxPool") == 1
        (pool,) = (node for node in graph.graph.node if node.op_type == "MaxPool")
        attributes = {attribute.name: list(attribute.ints) for attribute in pool.attribute}
        assert attributes["kernel_shape"] == [2, 2]

    @pytest.mark.parametrize(("file", "variant"), [("model.onnx", "fp32"), ("model.edge.onnx", "edge")])
    def test_metadata_is_complete(self, bundle, run, file, variant):
        entries = {entry.key: entry.value for entry in onnx.load(bundle.folder / file).metadata_props}
        assert entries.pop("model_author") == "the edgecifar developers"
        assert entries.pop("model_license") == "MIT"
        assert METADATA_PREFIX.count(".") >= 2  # reverse DNS, as ONNX asks
        values = {key.removeprefix(METADATA_PREFIX): json.loads(value) for key, value in entries.items()}
        assert all(key.startswith(METADATA_PREFIX) for key in entries)
        assert set(values) == {"contract", "provenance"}
        assert Contract.parse(values["contract"]) == bundle.contract
        provenance = values["provenance"]
        assert provenance["variant"] == variant
        assert provenance["checkpoint_sha256"] == run.record.weights_sha256
        assert provenance["temperature"] == 1.7
        assert provenance["dataset"]["name"] == "synthetic"
        assert provenance["recipe"] == asdict(run.record.recipe)

    @pytest.mark.parametrize("file", ["model.onnx", "model.edge.onnx"])
    def test_is_one_file(self, bundle, file):
        tensors = onnx.load(bundle.folder / file, load_external_data=False).graph.initializer
        assert not any(tensor.data_location == onnx.TensorProto.EXTERNAL for tensor in tensors)
        assert not list(bundle.folder.glob("*.data"))

    def test_openvino_gives_the_same_arg_maxes(self, bundle, small, eager):
        openvino = pytest.importorskip("openvino")
        compiled = openvino.Core().compile_model(
            bundle.folder / "model.onnx", "CPU", {"INFERENCE_PRECISION_HINT": "f32"}
        )
        logits = compiled({"images": small.test_images})["logits"]
        assert (logits.argmax(1) == eager.argmax(1)).all()
        np.testing.assert_allclose(logits, eager, atol=1e-3)

    def test_onnxs_reference_evaluator_gives_the_same_arg_maxes(self, bundle, small, eager):
        from onnx.reference import ReferenceEvaluator

        logits, probabilities = ReferenceEvaluator(str(bundle.folder / "model.onnx")).run(
            ["logits", "probabilities"], {"images": small.test_images[:3]}
        )
        np.testing.assert_allclose(logits, eager[:3], atol=1e-4)
        assert (probabilities.argmax(1) == eager[:3].argmax(1)).all()


@pytest.mark.parametrize("file", ["model.onnx", "model.edge.onnx", "model.pt2"])
def test_names_no_path_of_the_exporting_machine(bundle, file):
    content = (bundle.folder / file).read_bytes()
    for path in (Path(onnx_format.__file__), Path(onnx_format.__file__).parent, Path(os.__file__).parent, Path.cwd()):
        assert str(path).encode() not in content
    assert b"stack_trace" not in content


WRITERS = {
    "onnx": lambda model, path, contract: onnx_format.write(model, path, contract, {"seed": 1}),
    "pt2": pt2.write,
}


@pytest.mark.slow
@pytest.mark.parametrize("kind", WRITERS)
def test_the_same_net_gives_the_same_bytes_whatever_the_file_is_called(deployed, small, tmp_path, kind):
    for name in ("a", "another"):
        WRITERS[kind](deployed, tmp_path / name, small.contract)
    assert (tmp_path / "a").read_bytes() == (tmp_path / "another").read_bytes()


@pytest.mark.slow
def test_torchscript_of_two_processes_has_the_same_bytes(run, tmp_path):
    # In one process torch numbers the types that it makes, so that a second file has other names in it.
    script = (
        "import sys; from pathlib import Path; import narrow_net; from edgecifar.train.run import Run;"
        "from edgecifar.export import graph; from edgecifar.export.formats import torchscript;"
        "run = Run(Path(sys.argv[1]));"
        "torchscript.write(graph.Deployed(run.net(), 1.7), Path(sys.argv[2]), run.record.contract)"
    )
    environment = {**os.environ, "PYTHONPATH": str(Path(narrow_net.__file__).parent)}
    for name in ("a", "another"):
        subprocess.run([sys.executable, "-c", script, run.folder, tmp_path / name], check=True, env=environment)
    assert (tmp_path / "a").read_bytes() == (tmp_path / "another").read_bytes()


@pytest.mark.parametrize("write", [torchscript.write, pt2.write])
def test_writing_to_a_place_that_is_not_there_is_an_os_error(deployed, small, tmp_path, write):
    with pytest.raises(FileNotFoundError):  # torch's own writers raise RuntimeError, which says nothing of the disk
        write(deployed, tmp_path / "missing" / "file", small.contract)


@pytest.mark.parametrize("file", ["model.torchscript.pt", "model.pt2", "model.onnx", "model.edge.onnx"])
def test_a_file_alone_says_its_contract(bundle, file):
    contract = bundle.contract if file.endswith(".onnx") else replace(bundle.contract, familiarity_name=None)
    assert models.load(bundle.folder / file, provider="cpu").contract == contract
