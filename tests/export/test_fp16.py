"""The half-precision variant: what in it is float16, that it says what the net says, and the gate before it."""

from __future__ import annotations

import json

import numpy as np
import onnx
import pytest
from onnx import TensorProto

from edgecifar.export import build, variants
from edgecifar.export.formats import fp16
from edgecifar.export.formats import onnx as onnx_format
from edgecifar.export.options import ExportOptions
from edgecifar.runtime.bundle import Bundle
from edgecifar.runtime.choice import choose
from edgecifar.runtime.errors import ParityError
from edgecifar.runtime.session import Session
from edgecifar.train.inference import in_batches

BOTH = ExportOptions(variants=("fp16", "fp32"))


@pytest.fixture(scope="module")
def half(plain_onnx) -> onnx.ModelProto:
    return fp16.halve(plain_onnx("model.onnx"), "logits")


@pytest.fixture(scope="module")
def session(half, small) -> Session:
    return Session(half.SerializeToString(), contract=small.contract, provider="cpu", threads=1)


def softmax(logits: np.ndarray) -> np.ndarray:
    powers = np.exp(logits - logits.max(1, keepdims=True))
    return powers / powers.sum(1, keepdims=True)


def test_weights_are_half_up_to_the_last_layer(half):
    kinds = {tensor.name: tensor.data_type for tensor in half.graph.initializer}
    whole = {name for name, kind in kinds.items() if kind == TensorProto.FLOAT}
    last = next(node for node in half.graph.node if node.output[0] == "logits")
    divide = next(node for node in half.graph.node if node.op_type == "Div")
    assert whole == {*last.input[1:], divide.input[1]}
    halves = [name for name, kind in kinds.items() if kind == TensorProto.FLOAT16]
    assert len(halves) == 2 * 8  # weight and bias of six convolutions and two linear layers


def test_pixels_become_half_at_once_and_only_the_last_features_single(half):
    casts = {node.attribute[0].i for node in half.graph.node if node.op_type == "Cast"}
    assert casts == {TensorProto.FLOAT16, TensorProto.FLOAT}
    assert [node.op_type for node in half.graph.node].count("Cast") == 2
    assert [node.op_type for node in half.graph.node][-4:] == ["Cast", "Gemm", "Div", "Softmax"]


def test_half_as_large_and_the_same_bytes_each_time(bundle, plain_onnx, small, tmp_path):
    for name in ("a", "another"):
        halved = fp16.halve(plain_onnx("model.onnx"), "logits")
        onnx_format.save(halved, tmp_path / name, small.contract, {"seed": 1})
    assert (tmp_path / "a").read_bytes() == (tmp_path / "another").read_bytes()
    assert (tmp_path / "a").stat().st_size == pytest.approx(bundle.variant("fp32").bytes / 2, rel=0.01)


def test_it_says_what_the_net_says(session, small, eager):
    logits = in_batches(session.logits, small.test_images)
    assert logits.dtype == np.float32
    assert (logits.argmax(1) == eager.argmax(1)).all()
    assert 0 < np.abs(logits - eager).max() < 0.05
    probabilities = in_batches(session.probabilities, small.test_images)
    np.testing.assert_allclose(probabilities, softmax(logits / 1.7), atol=1e-6)  # not rounded to half precision


def test_so_it_does_where_sums_are_rounded_too(half, small, eager):
    """As ONNX defines it, every result in float16: on x86, onnxruntime computes in float32 in between."""
    from onnx.reference import ReferenceEvaluator

    images = np.concatenate([small.test_images[:1], np.full((1, 32, 32, 3), 255, np.uint8)])
    logits, probabilities = ReferenceEvaluator(half).run(["logits", "probabilities"], {"images": images})
    assert logits.dtype == probabilities.dtype == np.float32
    tolerance = variants.FP16_MAX_PROBABILITY_DIFFERENCE
    np.testing.assert_allclose(probabilities[:1], softmax(eager[:1] / 1.7), atol=tolerance)
    assert np.isfinite(logits).all()


@pytest.mark.usefixtures("quick_onnx")
class TestExport:
    def test_the_variant_in_the_bundle(self, run, small, tmp_path):
        made, results = build.export(run, tmp_path / "new", small, BOTH)
        assert [variant.name for variant in made.manifest.variants] == ["fp32", "fp16"]
        assert made.manifest.default_variant == "fp32"
        variant = made.variant("fp16")
        assert (variant.file, variant.precision) == ("model.fp16.onnx", "fp16")
        assert variant.golden_tolerance == 0.02
        assert results["fp16"].passed
        assert 0 < variant.parity["max_probability_difference"] < 0.02
        assert variant.accuracy == pytest.approx(made.variant("fp32").accuracy, abs=0.001)
        entries = {entry.key: entry.value for entry in onnx.load(made.folder / variant.file).metadata_props}
        assert json.loads(entries["io.github.edgecifar.provenance"])["variant"] == "fp16"
        assert [check for check in made.verify() if not check.passed] == []
        assert choose(made, "cuda")[0] == variant
        assert choose(made, "cpu")[0].name == "fp32"

    def test_one_that_is_too_coarse_is_no_bundle(self, run, small, tmp_path, monkeypatch):
        halve = fp16.halve

        def coarse(model: onnx.ModelProto, logits: str) -> onnx.ModelProto:
            made = halve(model, logits)
            weights = next(tensor for tensor in made.graph.initializer if tensor.name == "fc2.weight")
            values = np.frombuffer(weights.raw_data, np.float16)
            weights.raw_data = (np.round(values * 32) / 32).astype(np.float16).tobytes()
            return made

        monkeypatch.setattr(fp16, "halve", coarse)
        with pytest.raises(ParityError, match=r"fp16 moves a probability by 0\.\d+, more than 0\.02\.$"):
            build.export(run, tmp_path / "new", small, BOTH)
        assert not (tmp_path / "new").exists()


def test_alone_it_is_the_default(edgecifar, run, tmp_path, quick_onnx, synthetic_is_small):
    out = tmp_path / "new"
    result = edgecifar("export", run.folder, "--data", "synthetic", "--variant", "fp16", "--out", out)
    assert result.exit_code == 0
    assert "pass  fp16" in result.stderr
    made = Bundle.open(out)
    assert [variant.name for variant in made.manifest.variants] == [made.manifest.default_variant] == ["fp16"]
    assert choose(made, "cpu")[0].name == "fp16"
