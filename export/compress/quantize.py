"""Static int8: an fp32 ONNX file of `Deployed` becomes one of uint8 activations and int8 weights."""

from __future__ import annotations

import contextlib
import io
import logging
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnx

from ...runtime.contract import Contract
from ...runtime.files import temporary_folder
from ..formats.onnx import last_layer

CALIBRATION_IMAGES = 1_000
"""The int8 ranges are taken from so many images, held-out ones first."""

CALIBRATORS = ("MinMax", "Percentile", "Entropy")
"""These ways of onnxruntime to choose a range are tried; the one with the best held-out accuracy is taken."""


def quantize(
    source: Path, images: np.ndarray, contract: Contract, calibrator: str, reduce_range: bool = True
) -> onnx.ModelProto:
    """Return the static int8 form of an ONNX file of `Deployed`: QDQ, uint8 activations, int8 weights per channel.

    Args:
        source: the fp32 file.
        images: uint8 [N, size, size, 3], held out from training, that the activations' ranges are taken from.
        contract: names the input and the logits.
        calibrator: one of `CALIBRATORS`.
        reduce_range: whether weights use 7 of their 8 bits: on x86 without VNNI, products of two full-range bytes
            saturate the 16-bit sums of `vpmaddubsw`, so that only this form gives the same answers on every processor.
    """
    with _quiet():
        from onnxruntime import quantization
        from onnxruntime.quantization.shape_inference import quant_pre_process

        class Reader(quantization.CalibrationDataReader):
            def __init__(self) -> None:
                # All of one size, or the histograms of Percentile and Entropy cannot be made.
                size = next(size for size in range(50, 0, -1) if len(images) % size == 0)
                self.batches = (images[start : start + size] for start in range(0, len(images), size))

            def get_next(self) -> Any:
                batch = next(self.batches, None)
                return None if batch is None else {contract.input_name: batch}

        with temporary_folder() as folder:
            prepared, result = folder / "prepared.onnx", folder / "int8.onnx"
            # Symbolic shapes, which are of no use here, cannot be inferred of every graph.
            quant_pre_process(str(source), str(prepared), skip_symbolic_shape=True)
            model = onnx.load(prepared)
            pixels = next(node.output[0] for node in model.graph.node if node.op_type == "Cast")
            read_last = last_layer(model, contract).input[0]
            # So few weights are not worth logits in steps of a 256th; nor is the familiarity's layer.
            last = [node.name for node in model.graph.node if node.op_type == "Gemm" and node.input[0] == read_last]
            unscaled = {"scale": np.array(1, np.float32), "zero_point": np.array(0, np.uint8)}
            quantization.quantize_static(
                str(prepared),
                str(result),
                Reader(),
                quant_format=quantization.QuantFormat.QDQ,
                op_types_to_quantize=["Conv", "Gemm", "MaxPool", "Relu", "Reshape"],
                nodes_to_exclude=last,
                per_channel=True,
                reduce_range=reduce_range,
                activation_type=quantization.QuantType.QUInt8,
                weight_type=quantization.QuantType.QInt8,
                calibrate_method=getattr(quantization.CalibrationMethod, calibrator),
                extra_options={"TensorQuantOverrides": {pixels: [unscaled]}},
            )
            model = onnx.load(result)
    _enter_as_uint8(model.graph, pixels)
    return model


def _enter_as_uint8(graph: onnx.GraphProto, pixels: str) -> None:
    """Let the uint8 pictures be conv1's quantized input, scale 1, instead of casting to float and quantizing again."""
    cast = next(node for node in graph.node if node.output[0] == pixels)
    quantizer = next(node for node in graph.node if node.op_type == "QuantizeLinear" and node.input[0] == pixels)
    for node in graph.node:
        if node.op_type == "DequantizeLinear" and node.input[0] == quantizer.output[0]:
            node.input[0] = cast.input[0]
    graph.node.remove(cast)
    graph.node.remove(quantizer)


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Keep the quantizer's progress bars, log lines and warnings from the user."""
    level = logging.root.level
    logging.root.setLevel(logging.ERROR)
    try:
        sink = io.StringIO()
        with warnings.catch_warnings(), contextlib.redirect_stdout(sink), contextlib.redirect_stderr(sink):
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.root.setLevel(level)
