"""The `.pt2` format: torch.export's program, the successor of TorchScript."""

from __future__ import annotations

import io
import json
import logging
import os
from pathlib import Path

import torch
from torch import nn

from ...runtime.contract import Contract
from .torchscript import CONTRACT, parse_contract

WEIGHTS_ONLY = "TORCH_FORCE_WEIGHTS_ONLY_LOAD"
"""This environment variable makes `torch.load` refuse all but tensors, though torch's reader of .pt2 asks for more."""


def write(model: nn.Module, path: Path, contract: Contract) -> None:
    """Write `model` as an exported program whose batch dimension is free, with the contract as an extra file in it."""
    example = torch.zeros(2, *contract.picture_shape, dtype=torch.uint8)  # a batch of 1 would be frozen into it
    program = torch.export.export(model, (example,), dynamic_shapes=({0: torch.export.Dim("batch")},))
    for node in program.graph.nodes:
        node.meta.pop("stack_trace", None)  # file paths of the exporter's machine
    buffer = io.BytesIO()  # torch's own file writer hides why it failed, and puts the file's name into the file
    torch.export.save(program, buffer, extra_files={CONTRACT: json.dumps(contract.as_json())})
    path.write_bytes(buffer.getvalue())


def read(path: Path) -> tuple[nn.Module, Contract | None]:
    """Load an exported program as a module, and its contract; pickles in it that hold more than tensors are refused.

    The contract is None in files of earlier versions, which had none.

    Raises:
        ValueError: the contract is not one that this version knows.
        Exception: torch's reader raises whatever a damaged file leads it to.
    """
    logger = logging.getLogger("torch.export")
    level = logger.level
    logger.setLevel(logging.ERROR)  # of a damaged file it logs a traceback beside the error that it raises
    before = os.environ.get(WEIGHTS_ONLY)
    os.environ[WEIGHTS_ONLY] = "1"  # torch would otherwise run whatever pickle the archive names as a weight
    try:
        extra = {CONTRACT: ""}
        module = torch.export.load(path, extra_files=extra).module()
        return module, parse_contract(extra[CONTRACT])
    finally:
        logger.setLevel(level)
        if before is None:
            del os.environ[WEIGHTS_ONLY]
        else:
            os.environ[WEIGHTS_ONLY] = before
