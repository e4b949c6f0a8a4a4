"""The ONNX format: torch's exporter, then names and metadata that make the file self-describing."""

from __future__ import annotations

import json
import logging
import warnings
from collections.abc import Generator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import onnx
import torch
from torch import nn

from ...runtime.contract import METADATA_PREFIX, Contract

OPSET = 18


@contextmanager
def _quiet() -> Generator[None]:
    """Keep torch's exporter from warning about its own internals."""
    log = logging.getLogger("torch.onnx")
    before = log.level
    log.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        log.setLevel(before)


def write(model: nn.Module, path: Path, contract: Contract, provenance: Mapping[str, Any]) -> None:
    """Write `model` as one self-contained ONNX file whose batch dimension is free.

    Args:
        model: a `Deployed`, or any module of its signature, in eval mode on the CPU.
        path: where to.
        contract: names the input and the outputs; it goes into the file's metadata.
        provenance: JSON values that go into the file's metadata.
    """
    example = torch.zeros(2, *contract.picture_shape, dtype=torch.uint8)  # a batch of 1 would be frozen into the graph
    with _quiet():
        program = torch.onnx.export(
            model,
            (example,),
            dynamo=True,
            opset_version=OPSET,
            input_names=[contract.input_name],
            output_names=list(contract.output_names),
            dynamic_shapes=({0: torch.export.Dim("batch")},),
            external_data=False,
            verbose=False,
        )
    proto = program.model_proto  # pyright: ignore[reportOptionalMemberAccess]: with dynamo never None
    save(proto, path, contract, provenance)


def last_layer(model: onnx.ModelProto, contract: Contract) -> onnx.NodeProto:
    """Return the linear layer that the logits are computed with: the nearest before them, which inputs lead to."""
    makers = {output: node for node in model.graph.node for output in node.output}
    names = [contract.logits_name]
    for name in names:
        if node := makers.get(name):
            if node.op_type == "Gemm":
                return node
            names += node.input
    raise ValueError("it has no linear layer")


def save(
    model: onnx.ModelProto,
    path: Path,
    contract: Contract,
    provenance: Mapping[str, Any],
    more: Mapping[str, Any] | None = None,
) -> None:
    """Name, describe, check and write an ONNX model; the same model gives the same bytes.

    Args:
        model: changed in place.
        path: where to.
        contract: names the input and the outputs; it goes into the file's metadata.
        provenance: JSON values that go into the file's metadata.
        more: JSON values that go there too, each under its name.
    """
    model.producer_name, model.producer_version = "edgecifar", str(provenance.get("edgecifar", ""))
    model.domain, model.model_version, model.doc_string = "", 1, "Image classifier: uint8 pictures to probabilities."
    model.graph.name, model.graph.doc_string = "edgecifar", ""
    for node in model.graph.node:
        del node.metadata_props[:]  # source lines of the exporter's machine
        node.doc_string = ""
    for value in (*model.graph.value_info, *model.graph.input, *model.graph.output, *model.graph.initializer):
        del value.metadata_props[:]
        value.doc_string = ""
    del model.graph.metadata_props[:], model.metadata_props[:]
    own = provenance.get("dataset", {}).get("origin")  # a net of somebody's own pictures is not ours to license
    described = {
        **({} if own else {"model_author": "the edgecifar developers", "model_license": "MIT"}),
        METADATA_PREFIX + "contract": json.dumps(contract.as_json()),
        METADATA_PREFIX + "provenance": json.dumps(provenance, sort_keys=True),
        **{METADATA_PREFIX + name: json.dumps(value, sort_keys=True) for name, value in (more or {}).items()},
    }
    onnx.helper.set_model_props(model, described)
    onnx.checker.check_model(model, full_check=True)
    path.write_bytes(model.SerializeToString(deterministic=True))
