"""Turns any picture a person has into the RGB array that a model takes, as its contract says; it knows no model.

docs/pictures.md is the rule: which pixels are right, for every format, depth, orientation and transparency.
"""

from __future__ import annotations

import os
import re
import sys
from io import RawIOBase
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO

import numpy as np
from PIL import Image

from .contract import FITS
from .decoding import decode, to_rgb, upright
from .errors import PictureError, shown
from .formats import TooLarge, Unsupported, recognise

if TYPE_CHECKING:
    from .contract import Contract, Preprocessing

__all__ = ["MAX_BYTES", "MAX_PIXELS", "Source", "load_picture", "make_square"]

Source = str | Path | bytes | BinaryIO | Image.Image | np.ndarray
"""What a picture is taken from: a path, "-" for standard input, a file's content, a stream, or a picture in memory."""

MAX_BYTES = 256 * 2**20
"""The longest file or stream that is read, in bytes."""

MAX_PIXELS = 64_000_000
"""The largest picture that is decoded, width times height; decoding takes about 8 bytes of memory per pixel."""

_BLOCK = 2**16
"""Bytes that are asked for at once where the length is not known: what a pipe holds. Memory for so many is taken first,
and where that is a million or more, the C library gives it back to the system each time and has it cleared anew."""

_DRAFT = 4
"""A JPEG is decoded at a fraction of its size while each side stays this many times as long as the model's."""


def load_picture(
    source: Source,
    contract: Contract,
    fit: str | None = None,
    name: str | None = None,
    *,
    max_pixels: int = MAX_PIXELS,
) -> np.ndarray:
    """Load a picture as the input of a model: docs/pictures.md has the rule, `contract` size, fit and background.

    Reads PNG, JPEG, WebP, GIF, BMP, TIFF, AVIF, JPEG 2000, ICO, TGA, PPM, PGM, PBM and PFM, and with pillow-heif HEIC;
    of animations the first frame. An RGB picture of the right size passes bit for bit.

    Args:
        source: a file's path, "-" for standard input, the file's content, a binary stream, read to its end, a Pillow
            picture, or an array, uint8 [height, width, 3] RGB.
        contract: of the model that the picture is for.
        fit: "crop" takes the centre square, "squash" ignores the aspect ratio, "pad" scales the longer side to the
            size and fills the rest; None: as the contract says.
        name: what messages call the picture; by default its path, or in words what it was read from.
        max_pixels: width times height of what is decoded, at most `MAX_PIXELS`.

    Returns:
        uint8 [size, size, 3]: height, width, RGB from 0 to 255; C-contiguous and writable.

    Raises:
        PictureError: the picture cannot be read, is damaged, of a kind that is not read, or exceeds `MAX_BYTES` or
            `max_pixels`, or `fit` is unknown; the message names the picture and says what to do.
    """
    fit = contract.fit if fit is None else fit
    if fit not in FITS:
        raise PictureError(f"There is no fit {fit!r}: choose one of {', '.join(FITS)}.")
    name = name or _name(source)
    background = contract.preprocessing.transparency
    kind = "picture"
    try:
        if isinstance(source, Image.Image):
            image = _of_pillow(source, background)
        elif isinstance(source, np.ndarray):
            image = _of_array(source)
        else:
            data = _read(source, name)
            kind = recognise(data)
            image = decode(data, kind, _DRAFT * contract.size, min(max_pixels, MAX_PIXELS), background)
        return np.array(make_square(upright(image), contract, fit))
    except PictureError:
        raise
    except Unsupported as error:
        raise _refusal(name, str(error)) from error
    except (TooLarge, Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        limit = f"{min(max_pixels, MAX_PIXELS) / 1e6:g} million"
        raise _refusal(name, f"it has more than {limit} pixels; scale it down first") from error
    except MemoryError as error:
        raise _refusal(name, "decoding it takes more memory than is free; scale it down first") from error
    except Exception as error:  # Pillow's parsers meet hostile bytes with nearly every built-in exception: whatever
        # they raise means that these bytes are no good, or of a kind that Pillow does not know.
        raise _refusal(name, f"its {kind} data is damaged or incomplete; save or download it again") from error


def make_square(image: Image.Image, contract: Contract, fit: str | None = None) -> Image.Image:
    """Scale an upright RGB picture to the contract's size, by `fit` or as the contract says."""
    width, height = image.size
    size, steps = contract.size, contract.preprocessing
    fit = contract.fit if fit is None else fit
    if fit == "pad":
        longer = max(width, height)
        inner = max(1, round(size * width / longer)), max(1, round(size * height / longer))
        square = Image.new("RGB", (size, size), steps.padding)
        square.paste(_scale(image, inner, steps), ((size - inner[0]) // 2, (size - inner[1]) // 2))
        return square
    if fit == "crop" and width != height:
        shorter = min(width, height)
        left, top = (width - shorter) // 2, (height - shorter) // 2
        image = image.crop((left, top, left + shorter, top + shorter))
    return _scale(image, (size, size), steps)


def _refusal(name: str, reason: str) -> PictureError:
    return PictureError(f"Could not read {shown(name)}: {reason}.")


def _name(source: Source) -> str:
    """Say in words what `source` is."""
    if isinstance(source, bytes):
        return "the given bytes"
    if isinstance(source, np.ndarray):
        return "the given array"
    if isinstance(source, str | Path):
        return "standard input" if source == "-" else str(source) or "a file without a name"
    if isinstance(source, Image.Image):
        return str(getattr(source, "filename", "")) or "the given picture"
    name = getattr(source, "name", None)
    return "standard input" if name == "<stdin>" else name if isinstance(name, str) else "the given stream"


def _read(source: str | Path | bytes | BinaryIO, name: str) -> bytes:
    """Return all bytes of `source`, at least one and at most `MAX_BYTES`."""
    try:
        if isinstance(source, bytes):
            data = source
        elif source == "-":
            if sys.stdin is None:  # pyright: ignore[reportUnnecessaryComparison]: a shell may close it
                raise _refusal(name, "it is closed; name a file, or pipe one in")
            data = read_bounded(sys.stdin.buffer)
        elif isinstance(source, str | Path):
            data = read_file(source)
        else:
            data = read_bounded(source)
    except FileNotFoundError as error:
        url = re.match(r"https?:/", name)
        reason = "it is a URL; download it first" if url else "there is no such file; check the path"
        raise _refusal(name, reason) from error
    except IsADirectoryError as error:
        raise _refusal(name, "it is a folder; name a picture file in it") from error
    except PermissionError as error:
        raise _refusal(name, "you may not read it; change its permissions") from error
    except (OSError, ValueError) as error:  # ValueError: a closed stream, or a path with a null byte
        raise _refusal(name, f"{getattr(error, 'strerror', None) or error}; check that it is a file") from error
    except (AttributeError, TypeError) as error:
        raise _refusal(name, "it gives no bytes; open it in binary mode") from error
    if not data:
        raise _refusal(name, "it is empty; save or download it again")
    if len(data) > MAX_BYTES:
        raise _refusal(name, f"it is longer than {MAX_BYTES / 2**20:g} MiB; scale it down first")
    return data


def read_file(path: str | Path) -> bytes:
    """Read a file to the end, or just past `MAX_BYTES`; one that says how long it is, in one piece.

    Raises:
        OSError, ValueError: as `open` says.
    """
    with open(path or ".", "rb", buffering=0) as file:  # noqa: PTH123 - a Path takes longer than a small file
        return read_bounded(file, os.fstat(file.fileno()).st_size)


def read_bounded(stream: BinaryIO | RawIOBase, size: int = 0) -> bytes:
    """Read to the end, or just past `MAX_BYTES`: pipes and sockets give less at a time than they are asked for.

    Args:
        stream: what is read.
        size: how many bytes there most likely are; 0: nobody knows.
    """
    blocks: list[bytes] = []
    left = MAX_BYTES + 1
    while left > 0 and (block := stream.read(min(size or _BLOCK, left))):
        blocks.append(block)
        left -= len(block)
        size = 0
    return b"".join(blocks)  # which copies nothing where there is one


def _of_pillow(image: Image.Image, background: tuple[int, int, int]) -> Image.Image:
    """Return a Pillow picture as RGB; the caller's own is not changed, but loaded."""
    if image.width * image.height > MAX_PIXELS:
        raise TooLarge
    image.load()
    return to_rgb(image.copy(), background)


def _of_array(array: np.ndarray) -> Image.Image:
    """Return an array as a picture."""
    if array.dtype != np.uint8 or array.ndim != 3 or array.shape[2] != 3 or not array.size:
        raise Unsupported(
            f"it is {array.dtype} {list(array.shape)}, not uint8 [height, width, 3] in RGB order; convert it, floats "
            "in 0 to 1 with (x * 255).round().astype('uint8')"
        )
    if array.shape[0] * array.shape[1] > MAX_PIXELS:
        raise TooLarge
    return Image.fromarray(np.ascontiguousarray(array))


def _scale(image: Image.Image, size: tuple[int, int], steps: Preprocessing) -> Image.Image:
    # Pillow antialiases when it scales down. BICUBIC keeps edges that BOX and BILINEAR blur, and rings less around
    # them than LANCZOS. The gap bounds time and memory for huge or very long pictures: whole pixels are averaged
    # until the picture is four times too large, which the eye cannot tell from BICUBIC all the way.
    resampling = Image.Resampling[steps.filter.upper()]
    if image.size == size:
        return image
    (width, height), (to_width, to_height) = image.size, size
    columns = int(width / to_width / steps.reducing_gap) or 1
    rows = int(height / to_height / steps.reducing_gap) or 1
    if (columns, rows) != (1, 1):
        image = image.reduce((columns, rows))
    # In two calls, as docs/contract.md says: Pillow 13 begins with the columns of tall pictures, Pillow 12 never does,
    # and what lies between is rounded.
    image = image.resize((to_width, image.height), resampling, box=(0, 0, width / columns, image.height))
    return image.resize(size, resampling, box=(0, 0, to_width, height / rows))
