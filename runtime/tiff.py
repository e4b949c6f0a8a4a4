"""What Pillow gets wrong of a TIFF, and which kinds of it are refused by name."""

from __future__ import annotations

import contextlib
import functools
import io
import struct
from collections.abc import Callable, Generator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, cast

import numpy as np
from PIL import Image

from .formats import CONVERT, TooLarge, Unsupported, reader
from .grey import to_grey

if TYPE_CHECKING:
    from PIL.ImageFile import ImageFile

Quiet = Callable[[], contextlib.AbstractContextManager[None]]

_WIDTH, _LENGTH, _BITS, _COMPRESSION, _PHOTOMETRIC = 256, 257, 258, 259, 262
_STRIPS, _SAMPLES, _PLANAR, _COLOUR_MAP, _TILES = 273, 277, 284, 320, 324
_TILE_WIDTH, _TILE_LENGTH, _INK_SET, _EXTRA, _SAMPLE_FORMAT = 322, 323, 332, 338, 339

_PHOTOMETRICS = {
    0: "grey (0 is white)",
    1: "grey",
    2: "RGB",
    3: "palette",
    4: "mask",
    5: "CMYK",
    6: "YCbCr",
    8: "L*a*b*",
    9: "ICC L*a*b*",
    10: "ITU L*a*b*",
    32803: "raw sensor data",
    32844: "LogL",
    32845: "LogLuv",
    34892: "raw linear data",
}
_FORMATS = {1: "", 2: "signed ", 3: "float ", 4: "untyped ", 5: "complex ", 6: "complex float "}
_UNSIGNED, _SIGNED, _FLOAT = 1, 2, 3

_COMPRESSIONS = {1, 2, 3, 4, 5, 7, 8, 32773, 32946, 34925, 50000, 50001}
"""None, CCITT (three), LZW, JPEG, Deflate, PackBits, Deflate's older number, LZMA, Zstandard, WebP."""


_OPTIONAL = {34925: "LZMA", 50000: "Zstandard", 50001: "WebP"}
"""Compressions that some builds of libtiff lack."""


@dataclass(frozen=True)
class _Kind:
    """What the tags of the first directory say of its pixels, missing ones by their defaults."""

    big_endian: bool
    width: int
    length: int
    tile_pixels: int
    photometric: int
    sample_format: int
    bits: tuple[int, ...]
    extra: tuple[int, ...]
    planar: int
    compression: int
    colour_map: tuple[int, ...]
    inks: int
    photometric_at: int | None

    def __str__(self) -> str:
        depth = "-".join(map(str, sorted(set(self.bits))))
        colour = _PHOTOMETRICS.get(self.photometric, f"photometric {self.photometric}")
        text = f"{depth}-bit {_FORMATS.get(self.sample_format, 'untyped ')}{colour}"
        if self.extra:
            text += f" with {len(self.extra)} more channel{'s' * (len(self.extra) > 1)}"
        if self.compression not in _COMPRESSIONS:
            text += f", compression {self.compression}"
        return text + (", big-endian" if self.big_endian else "")

    def refusal(self) -> Unsupported:
        return Unsupported(f"this kind of TIFF ({self}) is not read; {CONVERT}, or to 8-bit RGB")


def load(data: bytes, max_pixels: int, quiet: Quiet) -> Image.Image:
    """Decode the first picture of a TIFF, turned upright.

    By hand, because Pillow gets it wrong without a word or refuses it: 16-bit WhiteIsZero (not inverted), 8-bit with
    its bits turned round (unknown), 12 bits (16 times too dark), a palette of 8-bit values (black), big-endian numbers
    of 32 bits that are compressed (bytes swapped), uncompressed planes of 16 bits (misread), unsigned integers of 32
    bits (negative), YCbCr that is not compressed (taken for not subsampled).

    Args:
        data: the content of the file.
        max_pixels: more are refused from the header.
        quiet: keeps Pillow from warning of damaged tags, one thread at a time.

    Raises:
        Unsupported: the kind is not read.
        TooLarge: there are more than `max_pixels`.
        Exception: whatever Pillow raises of damaged data.
    """
    with quiet():
        kind = _kind(data)
    if max(kind.width * kind.length, kind.tile_pixels) > max_pixels:  # a tile may be larger than its picture
        raise TooLarge
    _check(kind)
    place = kind.photometric_at if kind.photometric == 0 and len(kind.bits) == 1 and kind.bits[0] >= 8 else None
    inverted = place is not None
    if place is not None:  # Pillow knows these as BlackIsZero only: told so, it gives the stored numbers
        data = data[:place] + struct.pack(">H" if kind.big_endian else "<H", 1) + data[place + 2 :]
    try:
        with quiet(), _libtiff(kind.planar == 2 or kind.photometric == 6):
            image = _reader(quiet)(io.BytesIO(data))
    except SyntaxError:  # "unknown pixel mode": the tags were found to be whole above
        raise kind.refusal() from None
    try:
        image.load()
    except OSError:
        if kind.compression not in _OPTIONAL:
            raise
        name = _OPTIONAL[kind.compression]
        raise Unsupported(
            f"its TIFF data ({name}) is incomplete, or this Pillow was built without {name}; {CONVERT}"
        ) from None
    if kind.photometric == 3 and max(kind.colour_map, default=0) < 256:  # 8-bit values, as libtiff takes them too
        image.putpalette(np.array(kind.colour_map, np.uint8).reshape(3, -1).T.tobytes())
    image.info = {}  # which may hold another orientation: Pillow has turned it as its tag says
    if image.mode not in ("I", "F") and not image.mode.startswith("I;"):
        return image.point([255 - value for value in range(256)]) if inverted else image
    values = np.array(image)
    if kind.bits == (32,) and kind.sample_format == _UNSIGNED:
        values = values.view(np.uint32)
    if kind.big_endian and kind.bits == (32,) and kind.compression != 1:
        values = values.byteswap()
    grey = to_grey(values, bits=12 if kind.bits == (12,) else 16)
    return Image.fromarray(255 - grey if inverted else grey)


@functools.cache
def _reader(quiet: Quiet) -> type[ImageFile]:
    """Return Pillow's reader, which is quiet where it reads tags; other threads need not wait while it decodes."""
    base: Any = reader("TIFF")

    class Reader(base):
        def load_prepare(self) -> None:
            with quiet():
                super().load_prepare()  # pyright: ignore[reportUnknownMemberType]

        def load_end(self) -> None:
            with quiet():
                super().load_end()  # pyright: ignore[reportUnknownMemberType]

    return cast("type[ImageFile]", Reader)


def _kind(data: bytes) -> _Kind:
    """Read the tags that matter of the first directory, by Pillow's reader of them.

    Raises:
        Unsupported: a BigTIFF in big-endian order, whose header Pillow misreads.
        ValueError: a tag is missing or makes no sense.
    """
    from PIL.TiffImagePlugin import ImageFileDirectory_v2

    if data[:4] == b"MM\0+":
        raise Unsupported(f"this kind of TIFF (BigTIFF, big-endian) is not read; {CONVERT}")
    file = io.BytesIO(data)
    tags = ImageFileDirectory_v2(data[: 16 if data[2:3] == b"+" else 8])
    directory = tags.next
    file.seek(directory)
    tags.load(file)

    def numbers(tag: int, default: tuple[int, ...] = ()) -> tuple[int, ...]:
        found: Any = tags.get(tag, default)
        value = cast("tuple[Any, ...]", found if isinstance(found, tuple) else (found,))
        if not all(isinstance(number, int) for number in value):
            raise ValueError(f"tag {tag} is not a number")
        return value

    width, length, tile_width, tile_length, planar, compression, samples, photometric = (
        (numbers(tag, (default,)) or (default,))[0]
        for tag, default in (
            (_WIDTH, 0),
            (_LENGTH, 0),
            (_TILE_WIDTH, 0),
            (_TILE_LENGTH, 0),
            (_PLANAR, 1),
            (_COMPRESSION, 1),
            (_SAMPLES, 1),
            (_PHOTOMETRIC, 0),
        )
    )
    if min(width, length) <= 0 or not (_STRIPS in tags or _TILES in tags):
        raise ValueError("a tag that every TIFF has is missing")
    bits = numbers(_BITS, (1,))[: max(1, samples)] or (1,)
    formats = set(numbers(_SAMPLE_FORMAT, (_UNSIGNED,))[: max(1, samples)])
    return _Kind(
        big_endian=data[:2] == b"MM",
        width=width,
        length=length,
        tile_pixels=tile_width * tile_length,
        photometric=photometric,
        sample_format=formats.pop() if len(formats) == 1 else 4,
        bits=bits if len(bits) > 1 else bits * min(max(1, samples), 16),
        extra=numbers(_EXTRA),
        planar=planar,
        compression=compression,
        colour_map=numbers(_COLOUR_MAP) if photometric == 3 else (),
        inks=(numbers(_INK_SET, (1,)) or (1,))[0],
        photometric_at=_value_at(data, directory, _PHOTOMETRIC),
    )


def _value_at(data: bytes, directory: int, tag: int) -> int | None:
    """Return where the value of a tag lies that fits into its entry of the directory; None where it is missing."""
    order, big = ("<", ">")[data[:2] == b"MM"], data[2:3] == b"+"
    (count,) = struct.unpack_from(order + ("Q" if big else "H"), data, directory)
    first, step = directory + (8 if big else 2), 20 if big else 12
    for entry in range(first, min(first + step * count, len(data) - step + 1), step):
        if struct.unpack_from(order + "H", data, entry)[0] == tag:
            return entry + (12 if big else 8)
    return None


def _check(kind: _Kind) -> None:
    """Refuse what Pillow would misread; what it refuses itself is left to it."""
    grey = kind.photometric in (0, 1) and len(kind.bits) == 1
    signed_is_read = kind.sample_format == _SIGNED and kind.bits == (32,)
    float_is_read = kind.sample_format == _FLOAT and kind.bits == (32,)
    if (
        kind.compression not in _COMPRESSIONS
        or kind.photometric not in (0, 1, 2, 3, 5, 6, 8)
        or kind.planar not in (1, 2)
        or (kind.sample_format != _UNSIGNED and not (grey and (signed_is_read or float_is_read)))
        or (kind.photometric == 5 and kind.inks != 1)
        or (kind.planar == 2 and (kind.photometric == 8 or (kind.photometric in (0, 1) and len(kind.bits) > 1)))
        or (kind.photometric == 0 and max(kind.bits) > 8 and kind.photometric_at is None)
    ):
        raise kind.refusal()


@contextlib.contextmanager
def _libtiff(wanted: bool) -> Generator[None]:
    """Let libtiff decode what is not compressed, too, if `wanted`, by Pillow's switch for all of the process."""
    from PIL import TiffImagePlugin

    before = TiffImagePlugin.READ_LIBTIFF
    TiffImagePlugin.READ_LIBTIFF = before or wanted
    try:
        yield
    finally:
        TiffImagePlugin.READ_LIBTIFF = before
