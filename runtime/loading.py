"""Temporary: `load_picture` as it will be in pictures.py, on top of the one that is there."""

from __future__ import annotations

import io
from typing import Any

import numpy as np

from .contract import Contract
from .errors import InputError


def load_picture(source: Any, contract: Contract, fit: str | None = None, name: str | None = None) -> np.ndarray:
    """As BRIEF says; only 32 pixels until pictures.py lands."""
    from PIL import Image

    from .pictures import load_picture as load

    if contract.size != 32:
        raise InputError("Pictures are read at 32 pixels only, so far.")
    if isinstance(source, np.ndarray):
        if source.dtype != np.uint8 or source.ndim != 3 or source.shape[2] != 3 or not source.size:
            raise InputError(f"An array of a picture is uint8 [H, W, 3], not {source.dtype} {list(source.shape)}.")
        source = Image.fromarray(source)
    if isinstance(source, Image.Image):
        file = io.BytesIO()
        source.save(file, "png")
        source = file.getvalue()
    return load(source, fit or contract.fit, name)
