"""The variant `fp16`: weights and arithmetic in half precision, for GPU providers; in and out goes what always does."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

import onnx
from onnx import TensorProto, helper

from ..runtime.contract import LOGITS
from . import to_onnx
from .graph import Deployed

MADE_BY = "the net itself, normalisation and batch norm folded in, half precision up to the last layer"


def write(model: Deployed, path: Path, provenance: dict[str, Any]) -> str:
    """Write the float16 form of `model` as an ONNX file and return a sentence on how it was made.

    Args:
        model: in eval mode on the CPU.
        path: where to.
        provenance: JSON values that go into the file's metadata.
    """
    with tempfile.TemporaryDirectory() as folder:
        source = Path(folder) / "float.onnx"
        to_onnx.write(model, source, provenance)
        to_onnx.save(halve(onnx.load(source)), path, provenance)
    return MADE_BY


def halve(model: onnx.ModelProto) -> onnx.ModelProto:
    """Return `model`, an ONNX file of `Deployed`, in float16; it is changed.

    Pixels, 0 to 255, are exact in float16. What makes the logits, and all after it, stays in float32: 2,570 weights are
    not worth logits in steps of a 128th, nor probabilities in steps of a 2,048th.
    """
    from onnxruntime.transformers.float16 import convert_float_to_float16

    graph = model.graph
    last = next(index for index, node in enumerate(graph.node) if node.output[0] == LOGITS)
    tail, outputs = list(graph.node[last:]), list(graph.output)
    del graph.node[last:], graph.output[:], graph.value_info[:]
    graph.output.append(helper.make_tensor_value_info(tail[0].input[0], TensorProto.FLOAT, None))
    half = convert_float_to_float16(model, keep_io_types=True, disable_shape_infer=True)
    half.graph.node.extend(tail)
    del half.graph.output[:], half.graph.value_info[:]
    half.graph.output.extend(outputs)
    return half
