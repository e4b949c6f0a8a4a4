"""The `.pt2` format: torch.export's program, the successor of TorchScript."""

from __future__ import annotations

import io
import logging
import os
from pathlib import Path

import torch

from ..runtime.contract import INPUT_NAME, SIDE
from .graph import Deployed

WEIGHTS_ONLY = "TORCH_FORCE_WEIGHTS_ONLY_LOAD"
"""Makes `torch.load` refuse all but tensors, though torch's own reader of .pt2 asks for more."""


def write(model: Deployed, path: Path) -> None:
    """Write `model` as an exported program whose batch dimension is free."""
    example = torch.zeros(2, SIDE, SIDE, 3, dtype=torch.uint8)  # a batch of 1 would be frozen into the program
    program = torch.export.export(model, (example,), dynamic_shapes={INPUT_NAME: {0: torch.export.Dim("batch")}})
    for node in program.graph.nodes:
        node.meta.pop("stack_trace", None)  # file paths of the exporter's machine
    buffer = io.BytesIO()  # torch's own file writer hides why it failed, and puts the file's name into the file
    torch.export.save(program, buffer)
    path.write_bytes(buffer.getvalue())


def read(path: Path) -> torch.nn.Module:
    """Load an exported program as a module; pickles in it that hold more than tensors are refused."""
    logger = logging.getLogger("torch.export")
    level = logger.level
    logger.setLevel(logging.ERROR)  # of a damaged file it logs a traceback beside the error that it raises
    before = os.environ.get(WEIGHTS_ONLY)
    os.environ[WEIGHTS_ONLY] = "1"  # torch would otherwise run whatever pickle the archive names as a weight
    try:
        return torch.export.load(path).module()
    finally:
        logger.setLevel(level)
        if before is None:
            del os.environ[WEIGHTS_ONLY]
        else:
            os.environ[WEIGHTS_ONLY] = before
