"""The variant `fp16`: weights and arithmetic in half precision, for GPU providers; input and outputs as in fp32."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import onnx
from onnx import TensorProto, helper
from torch import nn

from ...runtime.contract import Contract
from ...runtime.files import temporary_folder
from . import onnx as onnx_format


def write(model: nn.Module, path: Path, contract: Contract, provenance: Mapping[str, Any]) -> None:
    """Write the float16 form of `model` as an ONNX file; the arguments are those of `formats.onnx.write`."""
    with temporary_folder() as folder:
        source = folder / "float.onnx"
        onnx_format.write(model, source, contract, provenance)
        onnx_format.save(halve(onnx.load(source), contract.logits_name), path, contract, provenance)


def halve(model: onnx.ModelProto, logits: str) -> onnx.ModelProto:
    """Return `model`, an ONNX file of `Deployed`, in float16; it is changed in place.

    Pixels, 0 to 255, are exact in float16. The layer that gives the logits, and all after it, stays in float32: its
    few weights are not worth logits in steps of a 128th, nor probabilities in steps of a 2,048th.

    Args:
        model: an fp32 ONNX model.
        logits: the name of the output with the logits.
    """
    from onnxruntime.transformers.float16 import convert_float_to_float16

    graph = model.graph
    last = next(index for index, node in enumerate(graph.node) if node.output[0] == logits)
    tail, outputs = list(graph.node[last:]), list(graph.output)
    del graph.node[last:], graph.output[:], graph.value_info[:]
    graph.output.append(helper.make_tensor_value_info(tail[0].input[0], TensorProto.FLOAT, None))
    half = convert_float_to_float16(model, keep_io_types=True, disable_shape_infer=True)
    half.graph.node.extend(tail)
    del half.graph.output[:], half.graph.value_info[:]
    half.graph.output.extend(outputs)
    return half
