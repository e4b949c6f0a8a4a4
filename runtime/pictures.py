"""Turns any picture a person has into the 32x32 RGB array that models take; it knows nothing of models or labels.

Colour profiles are ignored: CIFAR-10's pictures come without any.
"""

from __future__ import annotations

import functools
import importlib
import io
import os
import re
import struct
import sys
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO

import numpy as np
from PIL import Image

from .contract import SIDE
from .errors import PictureError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from PIL.ImageFile import ImageFile

__all__ = ["FITS", "MAX_BYTES", "MAX_PIXELS", "find_pictures", "load_picture"]

FITS = ("crop", "squash", "pad")
"""How a picture that is not square is made so; `load_picture` says what each does."""

MAX_BYTES = 256 * 2**20
"""The longest file or stream that is read, in bytes."""

MAX_PIXELS = 64_000_000
"""The largest picture that is decoded, width times height; decoding takes about 8 bytes of memory per pixel."""

_SUFFIXES = (".bmp", ".gif", ".jpeg", ".jpg", ".png", ".tif", ".tiff", ".webp")


# Pillow's readers are called by the first bytes of the data rather than through `Image.open`, which warns of large
# pictures before their size can be looked at, and loads every exotic parser that Pillow has to find WebP and TIFF.
# Each is imported when its first picture comes.
_FORMATS = (
    (rb"\x89PNG\r\n\x1a\n", "Png"),
    (rb"\xff\xd8\xff", "Jpeg"),
    (rb"RIFF.{4}WEBP", "WebP"),
    (rb"BM", "Bmp"),
    (rb"II[*+]\0|MM\0[*+]", "Tiff"),
    (rb"GIF8[79]a", "Gif"),
)


@functools.cache
def _reader(kind: str) -> type[ImageFile]:
    """Return Pillow's reader of the format `kind`, as its module is named."""
    reader = getattr(importlib.import_module(f"PIL.{kind}ImagePlugin"), f"{kind}ImageFile")
    if kind == "Jpeg":  # the resolution is of no use here, and Pillow's look for it warns of damaged EXIF data
        return type("JpegReader", (reader,), {"_read_dpi_from_exif": lambda self: None})
    return reader


_UPRIGHT = {  # by EXIF orientation
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}


def load_picture(source: str | Path | bytes | BinaryIO, fit: str = "crop", name: str | None = None) -> np.ndarray:
    """Load a PNG, JPEG, WebP, BMP, TIFF or GIF (its first frame) of up to `MAX_PIXELS` as 32x32 RGB.

    The EXIF orientation is applied, and what is transparent lies over white. 16-bit grey is scaled so that 65535
    becomes 255. Of a TIFF of floats, the least of 1, 255, 65535 and its own maximum that it does not exceed becomes
    255; likewise of 32-bit integers, by 65535 and the maximum. A 32x32 RGB picture passes bit for bit.

    Args:
        source: a file's path, "-" for standard input, the file's content, or a binary stream, read to its end.
        fit: "crop" takes the centre square, "squash" ignores the aspect ratio, "pad" scales the longer side to 32
            and fills the rest with grey 128.
        name: what messages call the picture; by default its path, or in words what it was read from.

    Returns:
        uint8 [32, 32, 3]: height, width, RGB from 0 to 255; C-contiguous and writable.

    Raises:
        PictureError: the picture cannot be read, is damaged, or exceeds `MAX_BYTES` or `MAX_PIXELS`, or `fit` is
            unknown; the message names the picture and says what to do.
    """
    if fit not in FITS:
        raise PictureError(f"There is no fit {fit!r}: choose one of {', '.join(FITS)}.")
    name = name or _name(source)
    data = _read(source, name)
    kind = next((kind for start, kind in _FORMATS if re.match(start, data, re.DOTALL)), None)
    if kind is None:
        raise _refusal(name, "it is not a PNG, JPEG, WebP, BMP, TIFF or GIF picture; convert it to one of these")
    reader = _reader(kind)
    try:
        return _decode(reader(io.BytesIO(data)), fit)
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        limit = f"{MAX_PIXELS / 1e6:g} million"
        raise _refusal(name, f"it has more than {limit} pixels; scale it down first") from error
    except MemoryError as error:
        raise _refusal(name, "decoding it takes more memory than is free; scale it down first") from error
    except Exception as error:  # Pillow's parsers meet hostile bytes with nearly every built-in exception, and with
        # their own warnings where warnings are errors: whatever they raise means that these bytes are no good.
        raise _refusal(name, f"its {reader.format} data is damaged or incomplete; save or download it again") from error


def find_pictures(arguments: Sequence[str]) -> list[str]:
    """Expand the arguments of a command to the pictures they mean, in order; the same one may come twice.

    A folder becomes the picture files (by suffix) in it and its subfolders, sorted, without hidden ones and without
    pipes and devices, which only those who name them are made to wait for. A pattern
    that the shell left alone (with `*`, `?` or `[`, and no file's name) becomes the files that match, sorted; `**`
    goes into subfolders. Anything else stays as it is, existing or not: `load_picture` says what is wrong with it.

    Raises:
        PictureError: a folder has no pictures, or a pattern matches no file.
    """
    pictures: list[str] = []
    for argument in arguments:
        # os.path answers False where pathlib raises: on names that are too long, or in folders that may not be read.
        if os.path.isdir(argument):  # noqa: PTH112
            found, why = _walk(argument), f"no name in it and its subfolders ends with {', '.join(_SUFFIXES)}"
        elif re.search(r"[*?[]", argument) and not os.path.lexists(argument):
            import glob

            matches = sorted(glob.glob(argument, recursive=True))  # pathlib refuses absolute patterns
            found, why = [match for match in matches if os.path.isfile(match)], "no file matches it"  # noqa: PTH113
        else:
            found, why = [argument], ""
        if not found:
            raise PictureError(f"There are no pictures in {argument}: {why}; check the path.")
        pictures += found
    return pictures


def _walk(folder: str) -> list[str]:
    """Return the picture files of a folder: its own first, then those of each subfolder, sorted by name."""
    found: list[str] = []
    for where, folders, files in os.walk(folder):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        names = sorted(name for name in files if not name.startswith(".") and name.lower().endswith(_SUFFIXES))
        found += [path for name in names if not _endless(path := str(Path(where, name)))]
    return found


def _endless(path: str) -> bool:
    """Whether `path` is a pipe, a device or a socket, which may never end; a broken link is none of them."""
    return os.path.exists(path) and not os.path.isfile(path)  # noqa: PTH110, PTH113 - as in find_pictures


def _refusal(name: str, reason: str) -> PictureError:
    shown = name if name.isprintable() else ascii(name)  # what is printed must not steer a terminal
    return PictureError(f"Could not read {shown}: {reason}.")


def _name(source: str | Path | bytes | BinaryIO) -> str:
    """Say in words what `source` is."""
    if isinstance(source, bytes):
        return "the given bytes"
    if isinstance(source, str | Path):
        return "standard input" if source == "-" else str(source) or "a file without a name"
    name = getattr(source, "name", None)
    return "standard input" if name == "<stdin>" else name if isinstance(name, str) else "the given stream"


def _read(source: str | Path | bytes | BinaryIO, name: str) -> bytes:
    """Return all bytes of `source`, at least one and at most `MAX_BYTES`."""
    try:
        if isinstance(source, bytes):
            data = source
        elif source == "-":
            data = _drain(sys.stdin.buffer)
        elif isinstance(source, str | Path):
            with Path(source).open("rb") as file:
                data = _drain(file)
        else:
            data = _drain(source)
    except FileNotFoundError as error:
        raise _refusal(name, "there is no such file; check the path") from error
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


def _drain(stream: BinaryIO) -> bytes:
    """Read to the end, or just past the limit: pipes and sockets give less at a time than they are asked for."""
    data = bytearray()
    while len(data) <= MAX_BYTES and (block := stream.read(1 << 20)):
        data += block
    return bytes(data)


def _decode(image: ImageFile, fit: str) -> np.ndarray:
    """Decode an opened picture into uint8 [32, 32, 3]; raises whatever Pillow does."""
    if image.width * image.height > MAX_PIXELS:
        raise Image.DecompressionBombError
    image.draft(None, (4 * SIDE, 4 * SIDE))  # lets big JPEGs be decoded at 1/2 to 1/8 of their size, far faster
    image.load()
    orientation = _orientation(image.info.get("exif", b""))  # a TIFF has none here: Pillow turns it while loading
    small = _fit(_rgb(image), fit)
    if orientation in _UPRIGHT:  # as good as before the scaling, and without turning a copy of the whole picture
        small = small.transpose(_UPRIGHT[orientation])
    return np.array(small)


def _orientation(exif: bytes) -> int:
    """Find the orientation, 1 to 8, in EXIF data; Pillow's own reader warns when any other entry is damaged."""
    exif = exif.removeprefix(b"Exif\0\0")
    order = ">" if exif.startswith(b"MM") else "<"
    try:
        (start,) = struct.unpack_from(order + "I", exif, 4)
        (count,) = struct.unpack_from(order + "H", exif, start)
        for entry in range(start + 2, start + 2 + 12 * count, 12):
            tag, _, _, value = struct.unpack_from(order + "HHIH", exif, entry)
            if tag == 0x0112:
                return value
    except struct.error:
        pass  # it ends too early
    return 1


def _rgb(image: Image.Image) -> Image.Image:
    """Convert from any mode to 8-bit RGB, over white where the picture is transparent."""
    if image.mode.startswith(("I", "F")):
        return _from_deep_grey(image).convert("RGB")
    if not image.has_transparency_data:
        return image.convert("RGB")
    if image.mode == "La":  # Pillow converts premultiplied grey to nothing else
        image = image.convert("LA")
    if image.mode != "RGBA":
        image = image.convert("RGBA")
    white = Image.new("RGB", image.size, "white")
    white.paste(image, mask=image)
    return white


def _from_deep_grey(image: Image.Image) -> Image.Image:
    """Scale grey of more than 8 bits (modes I, I;16, I;16B and F) to 8; Pillow's own conversion would clip it."""
    grey = np.array(image).astype(np.float32)
    top = float(grey.max(where=np.isfinite(grey), initial=0))
    whites = (1.0, 255.0, 65535.0) if image.mode == "F" else (65535.0,)
    white = next((white for white in whites if top <= white), top)
    np.nan_to_num(grey, copy=False, posinf=white)  # first: arithmetic on a signalling NaN warns
    if "transparency" in image.info:
        grey[grey == image.info["transparency"]] = white
    np.clip(grey, 0, white, out=grey)
    grey *= 255 / white
    return Image.fromarray(np.rint(grey, out=grey).astype(np.uint8))


def _fit(image: Image.Image, fit: str) -> Image.Image:
    """Scale an RGB picture to 32x32."""
    width, height = image.size
    if fit == "pad":
        longer = max(width, height)
        size = max(1, round(SIDE * width / longer)), max(1, round(SIDE * height / longer))
        square = Image.new("RGB", (SIDE, SIDE), (128, 128, 128))
        square.paste(_scale(image, size), ((SIDE - size[0]) // 2, (SIDE - size[1]) // 2))
        return square
    if fit == "crop" and width != height:
        shorter = min(width, height)
        left, top = (width - shorter) // 2, (height - shorter) // 2
        image = image.crop((left, top, left + shorter, top + shorter))
    return _scale(image, (SIDE, SIDE))


def _scale(image: Image.Image, size: tuple[int, int]) -> Image.Image:
    # Pillow antialiases when it scales down. BICUBIC keeps edges that BOX and BILINEAR blur, and rings less around
    # them than LANCZOS. The gap bounds time and memory for huge or very long pictures: whole pixels are averaged
    # until the picture is four times too large, which the eye cannot tell from BICUBIC all the way.
    return image.resize(size, Image.Resampling.BICUBIC, reducing_gap=4.0)
