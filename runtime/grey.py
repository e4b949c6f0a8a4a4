"""Grey of more than 8 bits becomes 8; Pillow's own conversion would clip it."""

from __future__ import annotations

import numpy as np


def to_grey(values: np.ndarray, bits: int = 16) -> np.ndarray:
    """Scale numbers to 8 bits.

    Of unsigned integers that fill `bits`, the highest eight remain. Of others, the least white that no number exceeds
    becomes 255: of floats 1, 255, 65535 or their own maximum, of integers 65535 or their maximum. Negative numbers and
    NaN become 0, infinity 255.

    Args:
        values: [height, width]; uint16, int32, uint32 or float32.
        bits: how many bits uint16 uses.

    Returns:
        uint8 [height, width].
    """
    if values.dtype.kind == "u" and values.dtype.itemsize == 2:
        return np.minimum(values >> (bits - 8), 255).astype(np.uint8)
    is_float = values.dtype.kind == "f"
    grey = values.astype(np.float32)
    top = float(grey.max(where=np.isfinite(grey), initial=0))
    white = next((white for white in ((1.0, 255.0, 65535.0) if is_float else (65535.0,)) if top <= white), top)
    np.nan_to_num(grey, copy=False, posinf=white)  # first: arithmetic on a signalling NaN warns
    np.clip(grey, 0, white, out=grey)
    if not is_float and white == 65535:
        return (grey.astype(np.uint16) >> 8).astype(np.uint8)
    grey *= 255 / white
    return np.rint(grey, out=grey).astype(np.uint8)
