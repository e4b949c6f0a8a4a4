"""The TorchScript format: deprecated by torch in favour of `.pt2`, but asked for by programs that embed libtorch."""

from __future__ import annotations

import io
import warnings
from pathlib import Path

import torch

from .graph import Deployed


def write(model: Deployed, path: Path) -> None:
    """Write `model`, scripted and frozen, so that the batch dimension stays free."""
    buffer = io.BytesIO()  # torch's own file writer hides why it failed, and puts the file's name into the file
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # torch.jit is deprecated as a whole: known, see above
        warnings.simplefilter("ignore", FutureWarning)
        torch.jit.save(torch.jit.freeze(torch.jit.script(model)), buffer)
    path.write_bytes(buffer.getvalue())


def read(path: Path) -> torch.nn.Module:
    """Load a TorchScript file. Its code runs: only files from a trusted source may be loaded."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        warnings.simplefilter("ignore", FutureWarning)
        return torch.jit.load(path, map_location="cpu")
