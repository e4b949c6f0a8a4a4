"""Writes pictures byte by byte, as the formats' specifications have them: what no encoder at hand writes."""

from __future__ import annotations

import struct
import zlib

import numpy as np

# PNG


def chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def packed(samples: np.ndarray, depth: int, order: str = ">") -> bytes:
    """Return the rows of `samples`, [height, width * channels], `depth` bits each, the first in the highest bits."""
    return b"".join(packed_rows(samples, depth, order))


def packed_rows(samples: np.ndarray, depth: int, order: str = ">") -> list[bytes]:
    if depth >= 8 and depth != 12:
        return [row.astype(f"{order}u{depth // 8}").tobytes() for row in samples]
    bits = (samples[..., None].astype(np.uint32) >> np.arange(depth - 1, -1, -1)) & 1
    return [np.packbits(row.reshape(-1).astype(np.uint8)).tobytes() for row in bits]


def _filtered(rows: list[bytes], step: int, mixed: bool) -> bytes:
    """Filter the rows of a PNG, with all five filters in turn if `mixed`; `step` is the bytes of a pixel."""
    out, above = [], bytes(len(rows[0]) if rows else 0)
    for number, row in enumerate(rows):
        kind = number % 5 if mixed else 0
        line = np.frombuffer(row, np.uint8).astype(int)
        left = np.concatenate([np.zeros(step, int), line])[: len(line)]
        up = np.frombuffer(above, np.uint8).astype(int)
        corner = np.concatenate([np.zeros(step, int), up])[: len(line)]
        guess = left + up - corner
        a, b, c = abs(guess - left), abs(guess - up), abs(guess - corner)
        paeth = np.where((a <= b) & (a <= c), left, np.where(b <= c, up, corner))
        predicted = (np.zeros_like(line), left, up, (left + up) // 2, paeth)[kind]
        out.append(bytes([kind]) + ((line - predicted) & 255).astype(np.uint8).tobytes())
        above = row
    return b"".join(out)


ADAM7 = ((0, 0, 8, 8), (0, 4, 8, 8), (4, 0, 8, 4), (0, 2, 4, 4), (2, 0, 4, 2), (0, 1, 2, 2), (1, 0, 2, 1))


def png(
    samples: np.ndarray,
    depth: int,
    colour: int,
    *,
    before: bytes = b"",
    after: bytes = b"",
    interlaced: bool = False,
    mixed: bool = False,
    level: int = 6,
    parts: int = 1,
) -> bytes:
    """Write [height, width, channels] as a PNG of this depth and colour type; `before` and `after` IDAT are chunks."""
    height, width, channels = samples.shape
    step = max(1, channels * depth // 8)
    passes = ADAM7 if interlaced else ((0, 0, 1, 1),)
    raw = b""
    for top, left, down, right in passes:
        part = samples[top::down, left::right]
        if part.size:
            raw += _filtered(packed_rows(part.reshape(part.shape[0], -1), depth), step, mixed)
    idat = zlib.compress(raw, level)
    size = -(-len(idat) // parts)
    body = b"".join(chunk(b"IDAT", idat[start : start + size]) for start in range(0, len(idat), size))
    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, interlaced))
    return b"\x89PNG\r\n\x1a\n" + header + before + body + after + chunk(b"IEND", b"")


# EXIF


def exif(orientation: int, order: str = "<", kind: int = 3) -> bytes:
    """Return EXIF data that holds an orientation alone, as a SHORT (3) or a LONG (4)."""
    value = struct.pack(order + ("HH" if kind == 3 else "I"), *((orientation, 0) if kind == 3 else (orientation,)))
    return (
        (b"II*\0" if order == "<" else b"MM\0*")
        + struct.pack(order + "IHHHI", 8, 1, 0x0112, kind, 1)
        + value
        + bytes(4)
    )


def xmp(orientation: int, as_element: bool = False) -> bytes:
    """Return XMP data that holds an orientation alone."""
    element = f"<tiff:Orientation>{orientation}</tiff:Orientation>" if as_element else ""
    attribute = "" if as_element else f' tiff:Orientation="{orientation}"'
    return (
        '<x:xmpmeta xmlns:x="adobe:ns:meta/"><rdf:RDF xmlns:rdf="http://www.w3.org/1999/02/22-rdf-syntax-ns#">'
        f'<rdf:Description xmlns:tiff="http://ns.adobe.com/tiff/1.0/"{attribute}>{element}</rdf:Description>'
        "</rdf:RDF></x:xmpmeta>"
    ).encode()


def with_segment(jpeg: bytes, marker: int, data: bytes) -> bytes:
    """Put an application segment right after a JPEG's start."""
    return jpeg[:2] + struct.pack(">BBH", 0xFF, marker, len(data) + 2) + data + jpeg[2:]


# BMP


def bmp(
    samples: np.ndarray,
    bits: int,
    *,
    header: int = 40,
    palette: np.ndarray | None = None,
    masks: tuple[int, ...] | None = None,
    compression: int | None = None,
    top_down: bool = False,
    encoded: bytes | None = None,
) -> bytes:
    """Write numbers [height, width] of `bits` each (24 and 32: uint32) as a BMP; `encoded` are rows already packed."""
    height, width = samples.shape
    rows = samples if top_down else samples[::-1]
    if bits <= 8:
        lines = packed_rows(rows, bits)
    elif bits == 24:
        lines = [row.astype("<u4").view(np.uint8).reshape(-1, 4)[:, :3].tobytes() for row in rows]
    else:
        lines = [row.astype(f"<u{bits // 8}").tobytes() for row in rows]
    data = b"".join(line.ljust(-(-len(line) // 4) * 4, b"\0") for line in lines) if encoded is None else encoded
    compression = compression if compression is not None else (3 if masks else 0)
    colours = b""
    if palette is not None:
        entry = 3 if header == 12 else 4
        colours = b"".join(bytes(colour[::-1]).ljust(entry, b"\0") for colour in palette)
    if header == 12:
        fields = struct.pack("<IHHHH", 12, width, height, 1, bits)
    else:
        used = len(palette) if palette is not None else 0
        signed = -height if top_down else height
        fields = struct.pack(
            "<IiiHHIIiiII", header, width, signed, 1, bits, compression, len(data), 2835, 2835, used, 0
        )
        mask_bytes = struct.pack(f"<{len(masks)}I", *masks) if masks else b""
        fields = (fields + mask_bytes).ljust(header, b"\0") if header > 40 else fields + mask_bytes
    offset = 14 + len(fields) + len(colours)
    return b"BM" + struct.pack("<IHHI", offset + len(data), 0, 0, offset) + fields + colours + data


def rle8(samples: np.ndarray) -> bytes:
    """Pack rows by RLE8: runs, and from the third pixel on a stretch of four as they are."""
    out = b""
    for row in samples[::-1].tolist():
        out += bytes([1, row[0], 1, row[1], 0, 4, *row[2:6]])
        out += b"".join(bytes([1, value]) for value in row[6:]) + b"\0\0"
    return out + b"\0\1"


def rle4(samples: np.ndarray) -> bytes:
    """Pack rows by RLE4: a pair of pixels a run."""
    out = b""
    for row in samples[::-1].tolist():
        pairs = zip(row[::2], [*row[1::2], 0], strict=False)
        out += b"".join(bytes([min(2, len(row) - 2 * n), a << 4 | b]) for n, (a, b) in enumerate(pairs)) + b"\0\0"
    return out + b"\0\1"


# TIFF


def tiff(
    data: bytes | list[bytes], width: int, height: int, tags: dict[int, tuple[int, tuple[int, ...]]], order: str = "<"
) -> bytes:
    """Write strips that are packed already; `tags` maps a tag to its type (3 SHORT, 4 LONG) and its values."""
    strips = data if isinstance(data, list) else [data]
    offsets, place = [], 8
    for strip in strips:
        offsets.append(place)
        place += len(strip) + len(strip) % 2
    entries = {
        256: (4, (width,)),
        257: (4, (height,)),
        259: (3, (1,)),
        273: (4, tuple(offsets)),
        278: (4, (height,)),
        279: (4, tuple(len(strip) for strip in strips)),
        **tags,
    }
    body = b"".join(strip + b"\0" * (len(strip) % 2) for strip in strips)
    later, directory, after = b"", b"", place + 2 + 12 * len(entries) + 4
    for tag, (kind, values) in sorted(entries.items()):
        code = {1: "B", 3: "H", 4: "I"}[kind]
        value = struct.pack(f"{order}{len(values)}{code}", *values)
        if len(value) > 4:
            offset = struct.pack(order + "I", after + len(later))
            later += value + b"\0" * (len(value) % 2)
            value = offset
        directory += struct.pack(order + "HHI", tag, kind, len(values)) + value.ljust(4, b"\0")
    head = (b"II*\0" if order == "<" else b"MM\0*") + struct.pack(order + "I", place)
    return head + body + struct.pack(order + "H", len(entries)) + directory + bytes(4) + later


# TGA, ICO


def tga(
    samples: np.ndarray,
    depth: int,
    kind: int,
    *,
    origin: int = 0x20,
    alpha_bits: int = 0,
    palette: bytes = b"",
    palette_depth: int = 0,
    identification: bytes = b"",
    footer: bool = False,
) -> bytes:
    """Write numbers [height, width] as a TGA whose first pixel is at `origin`: 0x20 the top left, 0 the bottom left."""
    height, width = samples.shape
    rows = samples if origin & 0x20 else samples[::-1]
    rows = rows[:, ::-1] if origin & 0x10 else rows
    pixels = rows.astype("<u4").view(np.uint8).reshape(height, width, 4)[..., : depth // 8]
    if kind < 8:
        data = pixels.tobytes()
    else:  # alternately a run of one and a stretch of one, and the rest of the row as it is
        data = b"".join(
            b"\x80" + row[0].tobytes() + b"\0" + row[1].tobytes() + bytes([width - 3]) + row[2:].tobytes()
            for row in pixels
        )
    entries = len(palette) * 8 // palette_depth if palette else 0
    header = struct.pack(
        "<BBBHHBHHHHBB",
        len(identification),
        bool(palette),
        kind,
        0,
        entries,
        palette_depth,
        0,
        0,
        width,
        height,
        depth,
        origin | alpha_bits,
    )
    return header + identification + palette + data + (bytes(8) + b"TRUEVISION-XFILE.\0") * footer


def ico(pictures: list[tuple[int, int, int, bytes]]) -> bytes:
    """Write an icon of pictures: width, height, bits, and content, a PNG or a BMP with mask and without file header."""
    head, body, place = struct.pack("<HHH", 0, 1, len(pictures)), b"", 6 + 16 * len(pictures)
    for width, height, bits, data in pictures:
        head += struct.pack("<BBBBHHII", width & 255, height & 255, 0, 0, 1, bits, len(data), place + len(body))
        body += data
    return head + body


def icon_bmp(whole: bytes, mask: np.ndarray) -> bytes:
    """Return the content of an icon: a BMP without file header, twice as high, and the mask of what is not shown."""
    rows = b"".join(row.ljust(-(-len(row) // 4) * 4, b"\0") for row in packed_rows(mask[::-1], 1))
    (height,) = struct.unpack_from("<i", whole, 22)
    return whole[14:22] + struct.pack("<i", 2 * height) + whole[26:] + rows


# GIF


def gif(
    indices: np.ndarray,
    palette: np.ndarray,
    *,
    canvas: tuple[int, int] | None = None,
    corner: tuple[int, int] = (0, 0),
    local: bool = False,
    interlaced: bool = False,
    transparent: int | None = None,
    trailer: bool = True,
) -> bytes:
    """Write numbers below 128 as a GIF, uncompressed: 8-bit codes with a clear code before the table would grow."""
    height, width = indices.shape
    across, down = canvas or (width, height)
    bits = 7
    table = np.zeros((128, 3), np.uint8)
    table[: len(palette)] = palette
    out = b"GIF89a" + struct.pack("<HHBBB", across, down, 0 if local else 0x80 | bits - 1, 0, 0)
    out += b"" if local else table.tobytes()
    if transparent is not None:
        out += b"!\xf9\4" + struct.pack("<BHBB", 1, 0, transparent, 0)
    flags = (0x80 | bits - 1 if local else 0) | (0x40 if interlaced else 0)
    out += b"," + struct.pack("<HHHHB", *corner, width, height, flags) + (table.tobytes() if local else b"")
    order = [row for start, step in ((0, 8), (4, 8), (2, 4), (1, 2)) for row in range(start, height, step)]
    values = (indices[order] if interlaced else indices).reshape(-1).tolist()
    codes = []
    for start in range(0, len(values), 100):
        codes += [128, *values[start : start + 100]]
    stream = 0
    for place, code in enumerate([*codes, 129]):
        stream |= code << 8 * place
    data = stream.to_bytes(len(codes) + 1, "little")
    out += bytes([bits]) + b"".join(
        bytes([len(data[at : at + 255])]) + data[at : at + 255] for at in range(0, len(data), 255)
    )
    return out + b"\0" + b";" * trailer
