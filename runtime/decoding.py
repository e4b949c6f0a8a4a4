"""Decodes the content of a picture file into 8-bit RGB, upright, by Pillow, and by hand only what Pillow gets wrong.

docs/pictures.md is the rule, format by format.
"""

from __future__ import annotations

import contextlib
import io
import re
import struct
import threading
import warnings
from typing import TYPE_CHECKING

import numpy as np
from PIL import Image

from .formats import CONVERT, TooLarge, Unsupported, reader
from .grey import to_grey

if TYPE_CHECKING:
    from collections.abc import Generator

    from PIL.ImageFile import ImageFile

Colour = tuple[int, int, int]

MAX_SCANS = 200
"""A JPEG of more scans is refused: each takes as long as the whole picture. Encoders make 10 or so."""

_quiet_lock = threading.Lock()


@contextlib.contextmanager
def _quiet() -> Generator[None]:
    """Keep Pillow from warning of damaged metadata: it is read, or it is refused in our own words.

    Python's filters are the process's before 3.14: one thread at a time, and decoding stays outside where it is long.
    """
    with _quiet_lock, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        warnings.simplefilter("error", Image.DecompressionBombWarning)  # an icon is decoded as soon as it is opened
        yield


def decode(data: bytes, kind: str, draft: int, max_pixels: int, background: Colour) -> Image.Image:
    """Decode a picture.

    Args:
        data: the content of the file.
        kind: its format, as `formats.recognise` names it.
        draft: a JPEG may be decoded at 1/2, 1/4 or 1/8 of its size while both sides stay at least this long.
        max_pixels: more are refused from the header.
        background: what lies behind transparent pixels.

    Returns:
        8-bit RGB, not yet turned upright; `upright` does so.

    Raises:
        Unsupported: this kind of picture is not read.
        TooLarge: there are more than `max_pixels`.
        Exception: whatever Pillow raises of damaged data.
    """
    if kind == "PNG":
        return _png(data, max_pixels, background)
    if kind == "TIFF":
        from . import tiff

        return to_rgb(tiff.load(data, max_pixels, _quiet), background)
    if kind == "JPEG":
        return to_rgb(_jpeg(data, draft, max_pixels), background)
    if kind == "GIF":
        return _gif(data, max_pixels, background)
    if kind == "BMP":
        from . import bmp

        return to_rgb(bmp.load(data, max_pixels) or _load(kind, data, max_pixels), background)
    if kind in ("AVIF", "HEIC"):
        _refuse_hdr(data, kind)
    if kind == "TGA":
        return to_rgb(_tga(data, max_pixels), background)
    image: Image.Image = _load(kind, data, max_pixels)
    if kind == "ICO" and image.mode == "RGBA" and image.getchannel("A").getextrema() == (0, 0):
        image = image.convert("RGB")  # as Windows shows an icon whose alpha is 0 everywhere
    return to_rgb(image, background)


_TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
"""What turns a picture upright, by its orientation (EXIF 2.3, tag 274)."""


def upright(image: Image.Image) -> Image.Image:
    """Turn a picture as its EXIF data, or else its XMP data, says; damaged metadata turns nothing."""
    if not image.info.keys() & {"exif", "xmp", "XML:com.adobe.xmp", "Raw profile type exif"}:
        return image
    from PIL import ExifTags

    for damaged in ("exif", "Raw profile type exif", ""):
        try:
            with _quiet():
                orientation = image.getexif().get(ExifTags.Base.Orientation)
            # Not by ImageOps.exif_transpose: it writes the EXIF data anew, which fails on tags of odd kinds.
            method = _TURNS.get(orientation) if isinstance(orientation, int) else None
            return image if method is None else image.transpose(method)
        except Exception:  # as in pictures.load_picture: Pillow's parser raises nearly everything
            image.info.pop(damaged, None)
            image = image.copy()  # which forgets what was parsed
    return image


def to_rgb(image: Image.Image, background: Colour) -> Image.Image:
    """Convert from any mode to 8-bit RGB, over `background` where the picture is transparent; keeps `info`."""
    if image.mode.startswith(("I", "F")):
        values = np.array(image)
        grey = Image.fromarray(to_grey(values))
        if isinstance(image.info.get("transparency"), int):
            grey.putalpha(Image.fromarray(np.where(values == image.info["transparency"], 0, 255).astype(np.uint8)))
        grey.info = image.info
        image = grey
    if image.mode == "La":  # Pillow converts premultiplied grey to nothing else
        image = image.convert("LA")
    if image.mode in ("LA", "RGBA", "PA", "RGBa") or "transparency" in image.info:
        if image.mode != "RGBA":
            image = image.convert("RGBA")
        flat = Image.new("RGB", image.size, background)
        flat.paste(image, mask=image)
        flat.info = image.info
        return flat
    return image if image.mode == "RGB" else image.convert("RGB")


def _open(kind: str, data: bytes, max_pixels: int) -> ImageFile:
    """Read the header of a picture."""
    if kind == "ICO":
        _refuse_large_icon(data, max_pixels)
    with _quiet():
        image = reader(kind)(io.BytesIO(data))
    if image.width * image.height > max_pixels:
        raise TooLarge
    return image


def _refuse_large_icon(data: bytes, max_pixels: int) -> None:
    """Refuse an icon one of whose pictures is too large by its own header: Pillow decodes it as it opens the file."""
    from .png import SIGNATURE

    (count,) = struct.unpack_from("<H", data, 4)
    for entry in range(6, min(6 + 16 * count, len(data) - 15), 16):
        (place,) = struct.unpack_from("<I", data, entry + 12)
        if data[place : place + 8] == SIGNATURE and len(data) >= place + 24:
            width, height = struct.unpack_from(">II", data, place + 16)
        elif len(data) >= place + 12:  # the height is that of the picture and of its mask
            width, height = struct.unpack_from("<ii", data, place + 4)
            height //= 2
        else:
            continue
        if abs(width * height) > max_pixels:
            raise TooLarge


def _load(kind: str, data: bytes, max_pixels: int, draft: int | None = None) -> ImageFile:
    """Decode a picture by Pillow alone."""
    image = _open(kind, data, max_pixels)
    if draft is not None:
        image.draft(None, (draft, draft))
    image.load()
    return image


def _png(data: bytes, max_pixels: int, background: Colour) -> Image.Image:
    from . import png

    parsed = png.parse(data)
    image = _load("PNG", parsed.data, max_pixels)
    if png.lacks_rows(image, parsed):
        raise ValueError("it lacks rows")
    loaded: Image.Image = image
    mask = png.transparent(image, parsed)
    if image.mode == "I;16":
        loaded = Image.fromarray(to_grey(np.array(image)))
    if mask is not None or parsed.gamma is not None:
        see_through = mask is not None or image.has_transparency_data
        loaded = loaded.convert("RGBA" if see_through else "RGB")
        if mask is not None:
            loaded.putalpha(mask)
        if parsed.gamma is not None:
            loaded = png.to_srgb(loaded, parsed.gamma)
        loaded.info = {key: value for key, value in image.info.items() if key != "transparency"}
    elif loaded is not image:
        loaded.info = image.info
    return to_rgb(loaded, background)


_NOISE = b"\x5a\x33\x96\x69\xa5\x0f\x3c\xc3" * 8
_END = b"\xff\xd9"
_SCAN = b"\xff\xda"  # what begins a scan
_MARKER = re.compile(rb"\xff[^\x00\x01\xd0-\xd8\xff]")  # what begins a segment, or ends the picture


def _jpeg(data: bytes, draft: int, max_pixels: int) -> Image.Image:
    _refuse_jpeg(data)
    try:
        return _load("JPEG", data, max_pixels, draft)
    except OSError:
        data = data.removesuffix(b"\xff")  # half of the end marker
        # Only the end marker may be missing, as camera modules write it. With one appended, libjpeg fills in whatever
        # is missing and says nothing; so decode twice, with noise before the end marker the second time: the pixels are
        # the same if and only if no picture data was missing.
        from PIL import ImageChops

        read, noisy = (_load("JPEG", data + end, max_pixels, draft) for end in (_END, _NOISE + _END))
        if ImageChops.difference(read, noisy).getbbox() or not _has_all_scans(data, read):
            raise
        return read


def _segments(data: bytes, place: int) -> Generator[tuple[int, int, int]]:
    """Yield a JPEG's segments from `place` to its end marker: the marker's second byte, where the content begins, ends.

    A scan's compressed data come after its segment, and have no such markers.
    """
    while (found := _MARKER.search(data, place)) and found[0] != _END:
        start = found.end() + 2
        place = found.end() + int.from_bytes(data[found.end() : start], "big")
        yield found[0][1], start, place


def _frame(data: bytes) -> tuple[int, bytes, int]:
    """Return a JPEG's start of frame: its marker's second byte, its segment, and where it ends; zeros without one."""
    for marker, start, end in _segments(data, 2):
        if marker == 0xF7 or (0xC0 <= marker <= 0xCF and marker not in (0xC4, 0xC8, 0xCC)):
            return marker, data[start:end], end
        if marker == 0xDA:
            break
    return 0, b"", 0


def _scans(data: bytes, place: int) -> int:
    """Return how many scans a JPEG has from `place`, where a segment ends, to its end marker; more may follow that."""
    return sum(marker == 0xDA for marker, _, _ in _segments(data, place))


def _count_pairs(data: bytes, pair: bytes, place: int) -> int:
    """Return how often two different bytes follow one another from `place`: as `data.count`, in an eighth of its time.

    Of a photograph that is a tenth of the time that decoding at a fraction of its size takes.
    """
    found, rest, wanted = 0, np.frombuffer(data, np.uint8)[place:], int.from_bytes(pair, "little")
    for part in (rest, rest[1:]):  # from even places, and from odd ones
        pairs = part[: len(part) // 2 * 2].view("<u2")
        for start in range(0, len(pairs), 2**20):  # in blocks: what is compared takes memory of its own
            found += int(np.count_nonzero(pairs[start : start + 2**20] == wanted))
    return found


def _refuse_jpeg(data: bytes) -> None:
    """Refuse the kinds of JPEG that Pillow or libjpeg does not read."""
    marker, segment, end = _frame(data)
    if len(segment) < 6:
        return  # Pillow says what is wrong
    bits, height, layers = segment[0], int.from_bytes(segment[1:3], "big"), segment[5]
    why = None
    if marker == 0xF7:
        why = "JPEG-LS"
    elif marker in (0xC5, 0xC6, 0xC7, 0xCD, 0xCE, 0xCF):
        why = "hierarchical"
    elif marker in (0xC3, 0xCB):
        why = "lossless"
    elif bits != 8 and 2 <= bits <= 16:
        why = f"{bits}-bit"
    elif layers == 2:
        why = "with two channels"
    elif height == 0:
        why = "whose height follows the picture"
    elif _count_pairs(data, _SCAN, end) > MAX_SCANS and _scans(data, end) > MAX_SCANS:
        why = f"of more than {MAX_SCANS} scans"
    if why:
        raise Unsupported(f"this kind of JPEG ({why}) is not read; {CONVERT}")


def _has_all_scans(data: bytes, image: ImageFile) -> bool:
    """Whether a progressive JPEG has every coefficient to its last bit; others have but one scan a component."""
    if "progressive" not in image.info:
        return True
    _, segment, place = _frame(data)
    components = set(segment[6::3])
    complete: set[tuple[int, int]] = set()
    for scan in re.finditer(rb"\xff\xda..(.)", data[place:], re.DOTALL):
        count = scan[1][0]
        rest = data[place + scan.end() : place + scan.end() + 2 * count + 3]
        if 1 <= count <= 4 and len(rest) == 2 * count + 3 and rest[-1] & 15 == 0:
            first, last = rest[-3], rest[-2]
            complete |= {(name, number) for name in rest[: 2 * count : 2] for number in range(first, last + 1)}
    return all((name, number) in complete for name in components for number in range(64))


def _gif(data: bytes, max_pixels: int, background: Colour) -> Image.Image:
    image = _open("GIF", data, max_pixels)
    box = image.tile[0].extents if image.tile else None
    image.load()
    flat = to_rgb(image, background)
    if box is None or tuple(box) == (0, 0, *image.size):
        return flat
    # Pillow fills what the first frame does not cover with the first colour; browsers show nothing there.
    canvas = Image.new("RGB", image.size, background)
    canvas.paste(flat.crop(box), box[:2])
    canvas.info = image.info
    return canvas


def _tga(data: bytes, max_pixels: int) -> Image.Image:
    """Decode a TGA without alpha that is none: the header has no bits for it, or one of 16 bits, or it is 0 everywhere.

    Pillow refuses 15 bits, which are stored as 16.
    """
    map_depth, depth, alpha_bits = data[7], data[16], data[17] & 15
    if 15 in (map_depth, depth):
        numbers = {15: 16}
        map_byte, byte = bytes([numbers.get(map_depth, map_depth)]), bytes([numbers.get(depth, depth)])
        data = data[:7] + map_byte + data[8:16] + byte + data[17:]
    image: Image.Image = _load("TGA", data, max_pixels)
    if image.mode == "P" and image.palette is not None and image.palette.mode == "RGBA":
        image, depth = image.convert("RGBA"), map_depth
    if image.mode not in ("RGBA", "LA"):
        return image
    colours = "RGB" if image.mode == "RGBA" else "L"
    if alpha_bits == 0 or (depth <= 16 and colours == "RGB") or image.getchannel("A").getextrema() == (0, 0):
        return image.convert(colours)
    return image


_TRANSFERS = {16: "PQ", 18: "HLG"}


def _refuse_hdr(data: bytes, kind: str) -> None:
    """Refuse an AVIF or HEIC whose numbers mean light as HDR has it: taken for sRGB they are far too dark."""
    place = data.find(b"colrnclx", 0, 1 << 16)
    if place >= 0 and len(data) >= place + 12:
        transfer = int.from_bytes(data[place + 10 : place + 12], "big")
        if transfer in _TRANSFERS:
            name = _TRANSFERS[transfer]
            raise Unsupported(f"it is an HDR picture ({kind}, {name}), which is not read; {CONVERT} in sRGB")
