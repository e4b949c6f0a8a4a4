"""Static int8: pictures enter as uint8, weights keep to seven bits, and the logits are near those in fp32."""

from __future__ import annotations

import narrow_net
import numpy as np
import onnx
import pytest
import torch
from onnx import numpy_helper

from edgecifar.export.compress import low_rank, search
from edgecifar.export.compress.quantize import CALIBRATORS, quantize
from edgecifar.export.formats import onnx as onnx_format
from edgecifar.runtime.session import Session


@pytest.fixture
def graph(bundle):
    return onnx.load(bundle.folder / "model.edge.onnx").graph


class TestQuantize:
    def test_pictures_enter_as_uint8(self, graph):
        by_input = {}
        for node in graph.node:
            for name in node.input:
                by_input.setdefault(name, []).append(node)
        assert "Cast" not in {node.op_type for node in graph.node}
        (pairs,) = by_input["images"]
        assert pairs.op_type == "Reshape"
        (first,) = by_input[pairs.output[0]]
        assert first.op_type == "Transpose"
        (second,) = by_input[first.output[0]]
        assert second.op_type == "DequantizeLinear"
        values = {tensor.name: numpy_helper.to_array(tensor) for tensor in graph.initializer}
        scale, zero_point = (values[name] for name in second.input[1:])
        assert scale == 1
        assert zero_point == 0
        assert zero_point.dtype == np.uint8
        assert by_input[second.output[0]][0].op_type == "Conv"

    def test_weights_are_int8_within_seven_bits(self, graph):
        weights = {
            tensor.name: numpy_helper.to_array(tensor)
            for tensor in graph.initializer
            if tensor.name.endswith("weight_quantized")
        }
        assert len(weights) == 3 + 2 * 4 + 1  # conv1 to conv3, two factors of four layers, fc2; fc3 stays as it is
        for name, weight in weights.items():
            assert weight.dtype == np.int8
            assert 60 <= np.abs(weight.astype(int)).max() <= 64, name

    def test_weights_have_a_scale_per_channel(self, graph):
        scales = {tensor.name: tensor.dims for tensor in graph.initializer if tensor.name.endswith("weight_scale")}
        assert list(scales["conv6.1.weight_scale"]) == [narrow_net.WIDTHS["conv6"]]
        assert list(scales["fc2.weight_scale"]) == [narrow_net.WIDTHS["fc2"]]

    def test_logits_are_near_those_of_the_same_rank_in_fp32(self, deployed, bundle, small):
        trained_on, _ = small.hold_out(0.4)
        reduced = deployed
        for name, principal in low_rank.principal_outputs(deployed, small.train_images[trained_on]).items():
            reduced, _ = low_rank.split(reduced, name, principal, search.LOST_VARIANCE[0])
        with torch.inference_mode():
            _, before = reduced(torch.from_numpy(small.test_images))
        after = bundle.load(bundle.variant("edge"), "cpu").logits(small.test_images)
        spread = before.std().item()
        assert np.abs(after - before.numpy()).mean() < 0.2 * spread
        assert np.corrcoef(after.ravel(), before.numpy().ravel())[0, 1] > 0.95
        assert (after.argmax(1) == before.numpy().argmax(1)).mean() > 0.7

    def test_the_file_is_small(self, bundle):
        assert bundle.variant("edge").bytes < bundle.variant("fp32").bytes / 5

    @pytest.mark.slow
    @pytest.mark.parametrize("calibrator", CALIBRATORS)
    def test_every_calibrator_gives_a_model(self, deployed, small, tmp_path, calibrator):
        onnx_format.write(deployed, tmp_path / "fp32.onnx", small.contract, {})
        images = small.train_images[:70]  # no multiple of its batches
        quantized = quantize(tmp_path / "fp32.onnx", images, small.contract, calibrator)
        session = Session(quantized.SerializeToString(), contract=small.contract, provider="cpu")
        with torch.inference_mode():
            _, exact = deployed(torch.from_numpy(small.test_images))
        agree = (session.logits(small.test_images).argmax(1) == exact.numpy().argmax(1)).mean()
        assert agree > 0.6
