"""What Pillow gets wrong of a PNG: damaged metadata, transparent colours at the file's depth, gAMA and cICP."""

from __future__ import annotations

import struct
import zlib
from dataclasses import dataclass
from typing import TYPE_CHECKING

from PIL import Image, ImageChops

from .formats import CONVERT, Unsupported

if TYPE_CHECKING:
    from PIL.ImageFile import ImageFile

SIGNATURE = b"\x89PNG\r\n\x1a\n"

_PIXELS = {b"IHDR", b"PLTE", b"IDAT", b"tRNS", b"gAMA", b"sRGB", b"iCCP", b"cICP"}
"""Chunks that pixels depend on: a wrong checksum of one makes the picture damaged."""

_ORIENTED = {b"iTXt": b"XML:com.adobe.xmp\0", b"zTXt": b"Raw profile type exif\0", b"tEXt": b"Raw profile type exif\0"}
"""Text that may hold an orientation: the chunk, and the keyword that it begins with."""

_MOST_TEXT = 1 << 20
"""Bytes of text that are looked at for an orientation, as Pillow has it."""

_SRGB_GAMMA = 1 / 2.2
_NEAR = 0.05
"""A gAMA within 5 % of sRGB's is taken for sRGB's, as libpng does."""

_ADAM7 = ((0, 0, 8, 8), (4, 0, 8, 8), (0, 4, 4, 8), (2, 0, 4, 4), (0, 2, 2, 4), (1, 0, 2, 2), (0, 1, 1, 2))
"""First column, first row, column step and row step of the passes of an interlaced picture."""

_PIECE = 1 << 14
"""Packed bytes that are unpacked at once: to 17 MB at most."""

_HDR = {16: "PQ", 18: "HLG"}
_LIKE_SRGB = {1, 2, 6, 13, 14, 15}
"""Transfer functions of cICP that are shown as sRGB's is: BT.709 and its kin, as browsers do, and unspecified."""

_POWERS = {4: 1 / 2.2, 5: 1 / 2.8, 8: 1.0}
"""Transfer functions of cICP that are powers: code to exponent of the encoding."""


@dataclass(frozen=True)
class Png:
    """The chunks of a PNG that its pixels depend on.

    Attributes:
        data: the PNG again, of these chunks alone.
        header: IHDR's fields: width, height, bit depth, colour type, compression, filter, interlace.
        transparent: tRNS's content, b"" where there is none.
        gamma: exponent of the encoding if it is another than sRGB's, else None.
    """

    data: bytes
    header: tuple[int, ...]
    transparent: bytes
    gamma: float | None


def parse(data: bytes) -> Png:
    """Reduce a PNG to what its first picture needs.

    Pillow refuses a picture for a wrong checksum or too long a text in chunks that only hold metadata, which libpng
    skips with a warning, and checks no checksum of IDAT, which libpng refuses. The first picture of an APNG is the one
    that readers without animation show.

    Raises:
        Unsupported: the colours are of a kind that is not read.
        ValueError: a chunk that counts is damaged.
    """
    whole = memoryview(data)
    kept: list[memoryview | bytes] = [whole[:8]]
    found: dict[bytes, bytes] = {}
    place = 8
    while place + 8 <= len(data):
        size, kind = struct.unpack_from(">I4s", data, place)
        end = place + 12 + size
        body = whole[place + 8 : place + 8 + size]
        if kind == b"CgBI":
            raise Unsupported("it is a PNG that Xcode changed for iPhones, which is not read; take the original")
        intact = end <= len(data) and zlib.crc32(body, zlib.crc32(kind)) == int.from_bytes(data[end - 4 : end], "big")
        if (kind == b"IHDR") != (place == 8):
            raise ValueError("IHDR is not the first chunk, or not the only one")
        if kind in _PIXELS:
            if not intact and (end <= len(data) or kind != b"IDAT"):  # an IDAT without its end: Pillow says if it lacks
                raise ValueError(f"the checksum of {kind.decode()} is wrong")
            if kind != b"IDAT" and (kind in found or (kind == b"PLTE" and b"IDAT" in found)):
                place = end  # the first counts, and a palette only before the pixels; Pillow takes the last
                continue
            found.setdefault(kind, b"" if kind == b"IDAT" else bytes(body))
        if kind == b"IDAT" and end > len(data):  # what is appended must not be read as its content
            kept.append(
                struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(body, zlib.crc32(kind)))
            )
        elif (kind in _PIXELS - {b"iCCP"}) or (intact and (kind == b"eXIf" or _is_oriented(kind, body))):
            kept.append(whole[place:end])
        if kind == b"IEND":
            break
        place = end
    kept.append(b"\0\0\0\0IEND\xaeB`\x82")
    header = struct.unpack(">IIBBBBB", found[b"IHDR"])
    palette = found.get(b"PLTE", b"")
    if header[3] == 3 and (not palette or len(palette) % 3):
        raise ValueError("it has no palette")  # Pillow shows it in black
    return Png(b"".join(kept), header, found.get(b"tRNS", b""), _gamma(found))


def _is_oriented(kind: bytes, body: memoryview) -> bool:
    """Whether a chunk is text that may say how the picture is turned, of a length that Pillow takes."""
    keyword = _ORIENTED.get(kind)
    if keyword is None or bytes(body[: len(keyword)]) != keyword or len(body) > _MOST_TEXT:
        return False
    if kind == b"zTXt":
        text = zlib.decompressobj()
        try:
            text.decompress(body[len(keyword) + 1 :], _MOST_TEXT)
        except zlib.error:
            return False
        return not text.unconsumed_tail
    return (
        kind == b"tEXt" or bytes(body[len(keyword) : len(keyword) + 1]) == b"\0"
    )  # XMP is stored as it is, not packed


def _gamma(found: dict[bytes, bytes]) -> float | None:
    """Return the exponent of the encoding where it is another than sRGB's; cICP goes before iCCP, sRGB and gAMA."""
    if b"cICP" in found:
        _, transfer, matrix, full = found[b"cICP"]
        if transfer in _HDR:
            raise Unsupported(f"it is an HDR picture ({_HDR[transfer]}), which is not read; {CONVERT} in sRGB")
        if matrix or not full or (transfer not in _LIKE_SRGB and transfer not in _POWERS):
            raise Unsupported(
                f"its cICP chunk describes colours that are not read (transfer {transfer}, matrix {matrix}, range "
                f"{full}); {CONVERT} in sRGB"
            )
        return _POWERS.get(transfer)
    if b"iCCP" in found or b"sRGB" in found or b"gAMA" not in found:
        return None
    gamma = int.from_bytes(found[b"gAMA"][:4], "big") / 100_000
    return gamma if gamma and abs(gamma / _SRGB_GAMMA - 1) > _NEAR else None


def lacks_rows(image: ImageFile, png: Png) -> bool:
    """Whether the packed pixels end before the last row: Pillow then leaves rows at 0, and says nothing.

    Pixels are unpacked a second time only where the last row is 0, as one that is missing would be.
    """
    width, height, depth, colour, _, _, interlaced = png.header
    if not interlaced and image.crop((0, height - 1, width, height)).tobytes().strip(b"\0"):
        return False
    bits = depth * {0: 1, 2: 3, 3: 1, 4: 2, 6: 4}[colour]
    lacking = sum(
        -(-(height - top) // down) * (1 + (-(-(width - left) // across) * bits + 7) // 8)
        for left, top, across, down in (_ADAM7 if interlaced else ((0, 0, 1, 1),))
        if left < width and top < height
    )
    pixels, place = zlib.decompressobj(), len(SIGNATURE)
    while lacking > 0 and place < len(png.data):
        size, kind = struct.unpack_from(">I4s", png.data, place)
        start, place = place + 8, place + 12 + size
        if kind == b"IDAT":
            for at in range(start, start + size, _PIECE):
                lacking -= len(pixels.decompress(png.data[at : min(at + _PIECE, start + size)]))
    return lacking > 0


def transparent(image: ImageFile, png: Png) -> Image.Image | None:
    """Return the mask of the pixels of a grey or RGB picture that are not its transparent colour; None if all count.

    The PNG specification compares at the file's own depth; Pillow compares 8-bit values with the number in the file.
    16-bit RGB is decoded a second time for its low bytes, which Pillow drops.
    """
    _, _, depth, colour, *_ = png.header
    if colour not in (0, 2) or len(png.transparent) < (2 if colour == 0 else 6):
        return None
    image.info.pop("transparency", None)
    wanted = [value & ((1 << depth) - 1) for value in struct.unpack_from(">3H" if colour else ">H", png.transparent)]
    if depth < 16:
        scaled = [value * 255 // ((1 << depth) - 1) for value in wanted]
        bands = image.convert("L" if colour == 0 else "RGB").split()
    elif colour == 0:
        import numpy as np

        return Image.fromarray(np.where(np.array(image) == wanted[0], 0, 255).astype(np.uint8))
    else:
        scaled = [value >> 8 for value in wanted] + [value & 255 for value in wanted]
        bands = image.split() + _low_bytes(png).split()
    mask = Image.new("L", image.size, 0)
    for band, value in zip(bands, scaled, strict=True):
        mask = ImageChops.lighter(mask, band.point([255 * (other != value) for other in range(256)]))
    return mask


def _low_bytes(png: Png) -> Image.Image:
    """Decode the low bytes of a 16-bit RGB picture: as those of big-endian numbers that are taken for little-endian."""
    import io

    from .formats import reader

    image = reader("PNG")(io.BytesIO(png.data))
    image.tile = [tile._replace(args="RGB;16L") for tile in image.tile]
    image.load()
    return image


def to_srgb(image: Image.Image, gamma: float) -> Image.Image:
    """Encode an L, LA, RGB or RGBA picture, whose samples are light to the power of `gamma`, as sRGB does."""
    light = [(value / 255) ** (1 / gamma) for value in range(256)]
    curve = [round(255 * (12.92 * x if x <= 0.0031308 else 1.055 * x ** (1 / 2.4) - 0.055)) for x in light]
    table = [value for band in image.getbands() for value in (range(256) if band == "A" else curve)]
    return image.point(table)
