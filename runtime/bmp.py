"""What Pillow gets wrong of a BMP: bit masks, alpha, small palettes, RLE; and which kinds are refused by name."""

from __future__ import annotations

import struct
from dataclasses import dataclass

import numpy as np
from PIL import Image

from .formats import CONVERT, TooLarge, Unsupported

_RGB, _RLE8, _RLE4, _BITFIELDS, _ALPHABITFIELDS = 0, 1, 2, 3, 6
_OS2_2 = 64
"""Length of OS/2's second header, in which the numbers of compressions from 3 on mean others."""

_BLOCK = 1 << 20
"""Pixels that are unpacked at once."""


@dataclass(frozen=True)
class _Header:
    length: int
    width: int
    height: int
    top_down: bool
    bits: int
    compression: int
    offset: int
    colours: int

    @property
    def stride(self) -> int:
        return (self.width * self.bits + 31) // 32 * 4


def load(data: bytes, max_pixels: int) -> Image.Image | None:
    """Decode the kinds of BMP that Pillow refuses or misreads: with bit masks, RLE, and of 2 and 4 bits a pixel.

    Pillow refuses 2 bits, and 4 bits with a palette of the sixteen darkest greys. Of RLE that passes over a whole row
    it moves those that follow, and what ends before its last pixel it refuses. It knows a dozen of the possible
    masks, ignores alpha of 16 bits, and takes an alpha channel that is 0 everywhere for a transparent picture, which
    every other reader shows opaque. All other kinds are Pillow's: None is returned.

    Raises:
        Unsupported: the kind is not read.
        TooLarge: there are more than `max_pixels`.
        ValueError, struct.error: the data is damaged or incomplete.
    """
    header = _header(data)
    if header.width * header.height > max_pixels:
        raise TooLarge
    if header.compression in (_RLE8, _RLE4):
        return _packed(data, header)
    if header.bits in (2, 4) and header.compression == _RGB:
        return _indexed(data, header)
    masked = header.compression in (_BITFIELDS, _ALPHABITFIELDS)
    if masked or (header.bits == 16 and header.compression == _RGB):
        return _masked(data, header, _masks(data, header) if masked else (0x7C00, 0x3E0, 0x1F, 0))
    return None


def _header(data: bytes) -> _Header:
    offset, length = struct.unpack_from("<II", data, 10)
    if length == 12:
        width, height, _, bits = struct.unpack_from("<HHHH", data, 18)
        return _Header(length, width, height, False, bits, _RGB, offset, 0)
    if length not in (40, 52, 56, _OS2_2, 108, 124):
        raise Unsupported(f"this kind of BMP (with a header of {length} bytes) is not read; {CONVERT}")
    width, height, _, bits, compression, *_, colours = struct.unpack_from("<iiHHIIiiI", data, 18)
    known = {
        _RGB: (1, 2, 4, 8, 16, 24, 32),
        _RLE8: (8,),
        _RLE4: (4,),
        _BITFIELDS: () if length == _OS2_2 else (16, 32),
        _ALPHABITFIELDS: () if length == _OS2_2 else (16, 32),
    }
    if bits not in known.get(compression, ()):
        raise Unsupported(f"this kind of BMP ({bits} bits, compression {compression}) is not read; {CONVERT}")
    if width <= 0 or height == 0:
        raise ValueError("it has no width or no height")
    return _Header(length, width, abs(height), height < 0, bits, compression, offset, colours)


def _masks(data: bytes, header: _Header) -> tuple[int, int, int, int]:
    """Return the masks of red, green, blue and alpha; 0 where there is none."""
    has_alpha = header.length >= 56 or header.compression == _ALPHABITFIELDS
    masks = struct.unpack_from("<4I" if has_alpha else "<3I", data, 14 + 40)
    return (*masks[:3], masks[3] if has_alpha else 0)


def _rows(data: bytes, header: _Header) -> np.ndarray:
    """Return the rows of pixels from the top on, uint8 [height, stride]; the last may lack its padding."""
    needed = header.offset + header.stride * (header.height - 1) + (header.width * header.bits + 7) // 8
    if len(data) < needed or header.offset < 14:
        raise ValueError("there are fewer rows than the header says")
    raw = data[header.offset : header.offset + header.stride * header.height]
    rows = np.frombuffer(raw.ljust(header.stride * header.height, b"\0"), np.uint8).reshape(header.height, -1)
    return rows if header.top_down else rows[::-1]


def _masked(data: bytes, header: _Header, masks: tuple[int, int, int, int]) -> Image.Image:
    """Decode pixels of 16 or 32 bits by their masks, a channel's greatest value becoming 255."""
    kind = np.dtype("<u2" if header.bits == 16 else "<u4")
    rows = _rows(data, header)
    pixels = np.empty((header.height, header.width, 4), np.uint8)
    pixels[..., 3] = 255
    step = max(1, _BLOCK // header.width)
    for top in range(0, header.height, step):
        block = np.ascontiguousarray(rows[top : top + step]).view(kind)[:, : header.width]
        for channel, mask in enumerate(masks):
            if mask:
                shift = (mask & -mask).bit_length() - 1
                values = (
                    (block & kind.type(mask)).astype(np.float64) if mask >> shift > 255 else block & kind.type(mask)
                )
                scaled = np.rint((values / (1 << shift)) * (255 / (mask >> shift)))
                pixels[top : top + step, :, channel] = scaled
            elif channel < 3:
                pixels[top : top + step, :, channel] = 0
    if not masks[3] or not pixels[..., 3].any():
        return Image.fromarray(np.ascontiguousarray(pixels[..., :3]))
    return Image.fromarray(pixels)


def _indexed(data: bytes, header: _Header) -> Image.Image:
    """Decode 2 or 4 bits a pixel, the leftmost in the highest bits, by a palette."""
    rows, most = _rows(data, header), 1 << header.bits
    indices = (rows[:, :, None] >> np.arange(8 - header.bits, -1, -header.bits, dtype=np.uint8)) & (most - 1)
    return Image.fromarray(_palette(data, header)[indices.reshape(header.height, -1)[:, : header.width]])


def _palette(data: bytes, header: _Header) -> np.ndarray:
    """Return the colours, uint8 [2 ** bits, 3]; those that the file has not are black."""
    size, most = 3 if header.length == 12 else 4, 1 << header.bits
    start, count = 14 + header.length, min(header.colours or most, most)
    palette = np.zeros((most, 3), np.uint8)
    entries = np.frombuffer(data, np.uint8, size * count, start).reshape(count, size)
    palette[:count] = entries[:, 2::-1]
    return palette


def _packed(data: bytes, header: _Header) -> Image.Image:
    """Decode RLE of 8 or 4 bits a pixel. Pixels that it passes over, also by its mark of the end, have colour 0."""
    nibbles, place, x, y = header.compression == _RLE4, header.offset, 0, 0
    width, height = header.width, header.height
    pixels = bytearray(width * height)
    while y < height and (y < height - 1 or x < width):
        count, value = struct.unpack_from("BB", data, place)  # an error: it ends without a mark, and lacks pixels
        place += 2
        if count == 0 and value == 1:  # the end
            break
        if count == 0 and value == 0:  # the next row
            x, y = 0, y + 1
            continue
        if count == 0 and value == 2:  # so many pixels to the right, and so many rows
            right, rows = struct.unpack_from("BB", data, place)
            x, y, place = x + right, y + rows, place + 2
            continue
        if count:  # one number, or two in turn, again and again
            run = (bytes(divmod(value, 16) if nibbles else (value,)) * count)[:count]
        else:  # numbers as they are, in whole pairs of bytes
            size = (value + 1) // 2 if nibbles else value
            (run,) = struct.unpack_from(f"{size}s", data, place)
            if nibbles:
                run = bytes(number for byte in run for number in divmod(byte, 16))[:value]
            place += size + size % 2
        fits = run[: max(0, width - x)]
        pixels[y * width + x : y * width + x + len(fits)] = fits
        x += len(run)
    indices = np.frombuffer(pixels, np.uint8).reshape(height, width)
    return Image.fromarray(_palette(data, header)[indices if header.top_down else indices[::-1]])
