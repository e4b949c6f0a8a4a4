"""The `.pt2` format: torch.export's program, the successor of TorchScript."""

from __future__ import annotations

from pathlib import Path

import torch

from ..runtime.contract import INPUT_NAME, SIDE
from .graph import Deployed


def write(model: Deployed, path: Path) -> None:
    """Write `model` as an exported program whose batch dimension is free."""
    example = torch.zeros(2, SIDE, SIDE, 3, dtype=torch.uint8)  # a batch of 1 would be frozen into the program
    program = torch.export.export(model, (example,), dynamic_shapes={INPUT_NAME: {0: torch.export.Dim("batch")}})
    torch.export.save(program, path)


def read(path: Path) -> torch.nn.Module:
    """Load an exported program as a module."""
    return torch.export.load(path).module()
