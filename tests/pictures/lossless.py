"""The corpus's PNG, GIF and BMP pictures, nearly all written byte by byte."""

from __future__ import annotations

import io
import struct
import zlib
from collections.abc import Iterator

import corpus
import numpy as np
import raw_pictures as raw
from corpus import ALPHA, GREY, GREY_RGB, HEIGHT, RGB, WIDTH, Variant, opencv
from PIL import Image

RAW = "raw bytes"


def variants() -> Iterator[Variant]:
    for part in (png_kinds, png_transparency, png_colours, png_metadata, png_orientations, png_other, gifs, bmps):
        yield from part()


def samples(colour: int, depth: int) -> tuple[np.ndarray, np.ndarray, bytes]:
    """Return what a PNG of a colour type and depth holds, the right pixels, and the chunks that it needs."""
    if colour == 3:
        colours, numbers = corpus.palette(1 << depth), corpus.levels(depth)
        return numbers[..., None], colours[numbers], raw.chunk(b"PLTE", colours.tobytes())
    deep = 257 if depth == 16 else 1
    if colour == 0:
        numbers = corpus.levels(depth)
        return numbers[..., None], GREY_RGB if depth == 16 else corpus.grey_of(numbers, depth), b""
    pixels = {2: RGB, 4: np.dstack([GREY, ALPHA]), 6: np.dstack([RGB, ALPHA])}[colour]
    opaque = {2: RGB, 4: GREY_RGB, 6: RGB}[colour]
    expected = opaque if colour == 2 else corpus.over_white(opaque, ALPHA)
    return pixels.astype(np.uint32) * deep, expected, b""


KINDS = [(0, 1), (0, 2), (0, 4), (0, 8), (0, 16), (2, 8), (2, 16), (3, 1), (3, 2), (3, 4), (3, 8), (4, 8), (4, 16)]
KINDS += [(6, 8), (6, 16)]
NAMES = {0: "grey", 2: "RGB", 3: "palette", 4: "grey with alpha", 6: "RGBA"}


def png_kinds() -> Iterator[Variant]:
    for colour, depth in KINDS:
        numbers, expected, chunks = samples(colour, depth)
        for interlaced in (False, True):
            for mixed in (False, True):
                name = f"{depth}-bit {NAMES[colour]}{', Adam7' * interlaced}{', all filters' * mixed}"
                data = raw.png(numbers, depth, colour, before=chunks, interlaced=interlaced, mixed=mixed)
                judge = opencv if colour in (0, 2, 3) else None
                yield Variant("PNG", name, RAW, data, expected, most=1 if colour in (4, 6) else 0, judge=judge)


def png_transparency() -> Iterator[Variant]:
    for depth in (1, 2, 4, 8, 16):
        numbers, expected, _ = samples(0, depth)
        chosen = int(np.bincount(numbers.reshape(-1)).argmax())
        seen = corpus.where_seen(expected, numbers[..., 0] != chosen)
        data = raw.png(numbers, depth, 0, before=raw.chunk(b"tRNS", struct.pack(">H", chosen)))
        yield Variant("PNG", f"{depth}-bit grey, a transparent grey", RAW, data, seen)
    near, _, _ = samples(0, 16)
    near = near.copy()
    near[::2] += 1  # the same high byte
    data = raw.png(near, 16, 0, before=raw.chunk(b"tRNS", struct.pack(">H", int(near[1, 5, 0]))))
    seen = corpus.where_seen(GREY_RGB, near[..., 0] != near[1, 5, 0])
    yield Variant("PNG", "16-bit grey, a transparent grey among its neighbours", RAW, data, seen)
    for depth in (8, 16):
        numbers = RGB.astype(np.uint32) * (257 if depth == 16 else 1)
        if depth == 16:
            numbers[::2] ^= 1
        chosen = numbers[5, 6]
        seen = corpus.where_seen(RGB, (numbers != chosen).any(axis=2))
        for interlaced in (False, True):
            chunk = raw.chunk(b"tRNS", struct.pack(">3H", *chosen.tolist()))
            data = raw.png(numbers, depth, 2, before=chunk, interlaced=interlaced)
            yield Variant("PNG", f"{depth}-bit RGB, a transparent colour{', Adam7' * interlaced}", RAW, data, seen)
    for depth in (1, 2, 4, 8):
        numbers, expected, chunks = samples(3, depth)
        alphas = np.full(1 << depth, 255, np.uint8)
        alphas[:2] = (51, 0) if depth > 1 else (0, 255)
        data = raw.png(numbers, depth, 3, before=chunks + raw.chunk(b"tRNS", alphas.tobytes()))
        seen = corpus.over_white(expected, alphas[numbers[..., 0]])
        yield Variant("PNG", f"{depth}-bit palette with alpha", RAW, data, seen, most=1)
        data = raw.png(numbers, depth, 3, before=chunks + raw.chunk(b"tRNS", bytes([0])))
        seen = corpus.where_seen(expected, numbers[..., 0] != 0)
        yield Variant("PNG", f"{depth}-bit palette, the first colour transparent", RAW, data, seen)


def srgb(light: np.ndarray) -> np.ndarray:
    """Encode light, 0 to 1, as sRGB of 8 bits."""
    return np.rint(255 * np.where(light <= 0.0031308, 12.92 * light, 1.055 * light ** (1 / 2.4) - 0.055)).astype(
        np.uint8
    )


def png_colours() -> Iterator[Variant]:
    gama = lambda gamma: raw.chunk(b"gAMA", struct.pack(">I", round(100_000 * gamma)))  # noqa: E731
    linear = srgb(RGB / 255)
    for gamma in (1.0, 1 / 1.8, 1 / 2.8):
        for colour, depth in ((0, 8), (2, 8), (2, 16), (3, 8)):
            numbers, plain, chunks = samples(colour, depth)
            seen = srgb((plain / 255) ** (1 / gamma))
            data = raw.png(numbers, depth, colour, before=gama(gamma) + chunks)
            yield Variant("PNG", f"{depth}-bit {NAMES[colour]}, gAMA {gamma:.3f}", RAW, data, seen)
        numbers, _, _ = samples(6, 8)
        seen = corpus.over_white(srgb((RGB / 255) ** (1 / gamma)), ALPHA)
        yield Variant("PNG", f"RGBA, gAMA {gamma:.3f}", RAW, raw.png(numbers, 8, 6, before=gama(gamma)), seen, most=1)
    pixels = RGB.astype(np.uint32)
    sgrb_chunk, cicp = raw.chunk(b"sRGB", b"\0"), lambda *codes: raw.chunk(b"cICP", bytes(codes))
    for name, chunks, expected in (
        ("gAMA of sRGB", gama(0.45455), RGB),
        ("gAMA within 5 % of sRGB's", gama(0.47), RGB),
        ("sRGB before gAMA", gama(1.0) + sgrb_chunk, RGB),
        ("iCCP before gAMA", gama(1.0) + raw.chunk(b"iCCP", b"p\0\0" + zlib.compress(b"profile")), RGB),
        ("cICP sRGB before gAMA", cicp(1, 13, 0, 1) + gama(1.0), RGB),
        ("cICP Display P3", cicp(12, 13, 0, 1), RGB),
        ("cICP BT.709", cicp(1, 1, 0, 1), RGB),
        ("cICP linear", cicp(1, 8, 0, 1), linear),
        ("cICP linear before sRGB", cicp(1, 8, 0, 1) + sgrb_chunk, linear),
        ("cICP gamma 2.2", cicp(1, 4, 0, 1), srgb((RGB / 255) ** 2.2)),
        ("cICP gamma 2.8", cicp(1, 5, 0, 1), srgb((RGB / 255) ** 2.8)),
    ):
        yield Variant("PNG", name, RAW, raw.png(pixels, 8, 2, before=chunks), expected)
    for name, chunks, word in (
        ("cICP PQ", cicp(9, 16, 0, 1), "HDR"),
        ("cICP HLG", cicp(9, 18, 0, 1), "HDR"),
        ("cICP of a narrow range", cicp(1, 13, 0, 0), "range 0"),
        ("cICP logarithmic", cicp(1, 9, 0, 1), "transfer 9"),
    ):
        yield Variant("PNG", name, RAW, raw.png(pixels, 8, 2, before=chunks), None, word)


def png_metadata() -> Iterator[Variant]:
    pixels = RGB.astype(np.uint32)
    broken = raw.chunk(b"tEXt", b"Comment\0a car")[:-4] + b"\1\2\3\4"
    huge = raw.chunk(b"zTXt", b"Comment\0\0" + zlib.compress(bytes(5_000_000)))
    for name, chunk in (
        ("wrong checksum of text", broken),
        ("text that unpacks to 5 MB", huge),
        ("text that is not compressed as it says", raw.chunk(b"zTXt", b"Comment\0\0no zlib")),
        ("international text of 2 MB", raw.chunk(b"iTXt", b"Comment\0\0\0\0\0" + b"x" * 2_000_000)),
        ("a profile that unpacks to 5 MB", raw.chunk(b"iCCP", b"p\0\0" + zlib.compress(bytes(5_000_000)))),
        ("an unknown chunk", raw.chunk(b"maKe", b"whatever")),
        ("a time of no length", raw.chunk(b"tIME", b"")),
        ("a resolution cut short", raw.chunk(b"pHYs", b"\0\0")),
        ("EXIF that is none", raw.chunk(b"eXIf", b"nonsense")),
    ):
        for place in ("before", "after"):
            if name.startswith("a profile") and place == "after":
                continue
            data = raw.png(pixels, 8, 2, **{place: chunk})
            yield Variant("PNG", f"{name}, {place} the pixels", RAW, data, RGB, judge=opencv)
    for orientation in range(1, 9):
        turned = corpus.stored(RGB, orientation).astype(np.uint32)
        for place, order, kind in (("before", "<", 3), ("after", ">", 3), ("before", ">", 4)):
            chunk = raw.chunk(b"eXIf", raw.exif(orientation, order, kind))
            name = f"orientation {orientation}, {place} the pixels, {order}{'SHORT' if kind == 3 else 'LONG'}"
            yield Variant("PNG", name, RAW, raw.png(turned, 8, 2, **{place: chunk}), RGB)
        chunk = raw.chunk(b"iTXt", b"XML:com.adobe.xmp\0\0\0\0\0" + raw.xmp(orientation))
        yield Variant("PNG", f"orientation {orientation} in XMP", RAW, raw.png(turned, 8, 2, before=chunk), RGB)


def png_orientations() -> Iterator[Variant]:
    """Where an orientation may stand, and which counts of several; 6 where it counts, else 1."""
    exif = lambda data: raw.chunk(b"eXIf", data)  # noqa: E731
    xmp = lambda orientation: raw.chunk(b"iTXt", b"XML:com.adobe.xmp\0\0\0\0\0" + raw.xmp(orientation))  # noqa: E731
    damaged = lambda chunk: chunk[:-4] + b"\1\2\3\4"  # noqa: E731
    entry = struct.pack("<HHI", 0x0112, 3, 1)
    as_byte = raw.exif(6).replace(entry, struct.pack("<HHI", 0x0112, 1, 1))
    without = raw.exif(6).replace(entry, struct.pack("<HHI", 0x0131, 3, 1))
    whole = b"Exif\0\0" + raw.exif(6)
    text = f"\nexif\n{len(whole):8}\n{whole[:20].hex()}\n{whole[20:].hex()}\n".encode()
    keyword = b"Raw profile type exif\0"
    profile = raw.chunk(b"tEXt", keyword + text)
    for name, chunks, orientation in (
        ("EXIF in text", profile, 6),
        ("EXIF in compressed text", raw.chunk(b"zTXt", keyword + b"\0" + zlib.compress(text)), 6),
        ("EXIF in text that is not hexadecimal", raw.chunk(b"tEXt", keyword + text.replace(b"4578", b"45xy")), 1),
        ("EXIF with the prefix that JPEG has", exif(whole), 6),
        ("EXIF with a wrong checksum", damaged(exif(raw.exif(6))), 1),
        ("XMP with a wrong checksum", damaged(xmp(6)), 1),
        ("EXIF's orientation as a BYTE", exif(as_byte), 1),
        ("EXIF without an orientation, then XMP", exif(without) + xmp(6), 6),
        ("EXIF that is none, then XMP", exif(b"nonsense") + xmp(6), 6),
        ("EXIF that is none, then EXIF in text", exif(b"nonsense") + profile, 6),
        ("EXIF without an orientation, then EXIF in text", exif(without) + profile, 1),
        ("EXIF before XMP", xmp(3) + exif(raw.exif(6)), 6),
        ("the last of two EXIF chunks", exif(raw.exif(3)) + exif(raw.exif(6)), 6),
        ("XMP of an orientation that is none", xmp(9), 1),
    ):
        turned = corpus.stored(RGB, orientation).astype(np.uint32)
        yield Variant("PNG", name, RAW, raw.png(turned, 8, 2, before=chunks), RGB)


def png_other() -> Iterator[Variant]:
    import imagecodecs

    pixels = RGB.astype(np.uint32)
    whole = raw.png(pixels, 8, 2)
    yield Variant("PNG", "without IEND", RAW, whole[:-12], RGB)
    yield Variant("PNG", "without IEND and the last checksum", RAW, whole[:-16], RGB)
    yield Variant("PNG", "something after the end", RAW, whole + b"trailing", RGB, judge=opencv)
    for parts in (2, 50):
        yield Variant("PNG", f"{parts} IDAT chunks", RAW, raw.png(pixels, 8, 2, parts=parts), RGB, judge=opencv)
    empty = whole.replace(raw.chunk(b"IEND", b""), raw.chunk(b"IDAT", b"") + raw.chunk(b"IEND", b""))
    yield Variant("PNG", "an empty IDAT chunk", RAW, empty, RGB, judge=opencv)
    for level in (0, 1, 9):
        yield Variant("PNG", f"level {level}", RAW, raw.png(pixels, 8, 2, level=level), RGB, judge=opencv)
    for name, array in (("grey", GREY), ("RGB", RGB), ("16-bit grey", GREY.astype(np.uint16) * 257)):
        expected = RGB if array.ndim == 3 else GREY_RGB
        yield Variant("PNG", name, "imagecodecs", imagecodecs.png_encode(array), expected, judge=opencv)
    for name, array in (
        ("16-bit RGB", RGB.astype(np.uint16) * 257),
        ("RGBA", np.dstack([RGB, np.full_like(GREY, 255)])),
    ):
        yield Variant("PNG", name, "imagecodecs", imagecodecs.png_encode(array), RGB, judge=opencv)
    control = lambda number: struct.pack(">IIIIIHHBB", number, WIDTH, HEIGHT, 0, 0, 1, 10, 0, 0)  # noqa: E731
    other = zlib.compress(b"".join(b"\0" + bytes(3 * WIDTH) for _ in range(HEIGHT)))
    second = raw.chunk(b"fcTL", control(1)) + raw.chunk(b"fdAT", struct.pack(">I", 2) + other)
    animation = raw.chunk(b"acTL", struct.pack(">II", 2, 0))
    data = raw.png(pixels, 8, 2, before=animation + raw.chunk(b"fcTL", control(0)), after=second)
    yield Variant("APNG", "two frames", RAW, data, RGB, judge=opencv)
    alone = raw.chunk(b"acTL", struct.pack(">II", 1, 0))
    late = raw.chunk(b"fcTL", control(0)) + raw.chunk(b"fdAT", struct.pack(">I", 1) + other)
    yield Variant("APNG", "a picture apart from the frames", RAW, raw.png(pixels, 8, 2, before=alone, after=late), RGB)
    yield Variant("APNG", "two frame counts", RAW, raw.png(pixels, 8, 2, before=alone + alone, after=late), RGB)
    xcode = whole[:8] + raw.chunk(b"CgBI", b"\x50\0\x20\2") + whole[8:]
    yield Variant("PNG", "changed by Xcode", RAW, xcode, None, "Xcode")


def gifs() -> Iterator[Variant]:
    import imagecodecs

    numbers, colours = corpus.levels(6), corpus.palette(64)
    expected = colours[numbers]
    for local in (False, True):
        for interlaced in (False, True):
            name = f"{'local' if local else 'global'} palette{', interlaced' * interlaced}"
            data = raw.gif(numbers, colours, local=local, interlaced=interlaced)
            yield Variant("GIF", name, RAW, data, expected, judge=opencv)
            chosen = int(np.bincount(numbers.reshape(-1)).argmax())
            data = raw.gif(numbers, colours, local=local, interlaced=interlaced, transparent=chosen)
            seen = corpus.where_seen(expected, numbers != chosen)
            yield Variant("GIF", f"{name}, a transparent colour", RAW, data, seen)
    yield Variant("GIF", "without a trailer", RAW, raw.gif(numbers, colours, trailer=False), expected)
    small = numbers[4:20, 6:30]
    seen = np.full_like(RGB, 255)
    seen[4:20, 6:30] = colours[small]
    for transparent in (None, 63):
        data = raw.gif(small, colours, canvas=(WIDTH, HEIGHT), corner=(6, 4), transparent=transparent)
        name = f"a frame that covers a part{', a transparent colour' * (transparent is not None)}"
        yield Variant(
            "GIF",
            name,
            RAW,
            data,
            corpus.where_seen(seen, ~np.all(seen == colours[63], axis=2)) if transparent else seen,
        )
    yield Variant("GIF", "grey", "imagecodecs", imagecodecs.gif_encode(GREY), GREY_RGB)
    file = io.BytesIO()
    first, second = Image.fromarray(RGB).quantize(32), Image.new("P", (WIDTH, HEIGHT))
    first.save(file, "GIF", save_all=True, append_images=[second])
    yield Variant("GIF", "animated", "Pillow", file.getvalue(), np.array(first.convert("RGB")))


def numbers_of(pixels: np.ndarray, masks: tuple[int, ...]) -> tuple[np.ndarray, np.ndarray]:
    """Pack channels by their masks; return the numbers, and the channels that they mean, in whole steps of 255."""
    numbers, means = np.zeros(pixels.shape[:2], np.uint64), np.zeros_like(pixels)
    for channel, mask in enumerate(masks):
        if mask:
            shift = (mask & -mask).bit_length() - 1
            top = mask >> shift
            value = np.rint(pixels[..., channel].astype(float) * top / 255).astype(np.uint64)
            numbers |= value << np.uint64(shift)
            means[..., channel] = np.rint(value.astype(float) * 255 / top)
    return numbers.astype(np.uint32), means


def bmps() -> Iterator[Variant]:
    for bits in (1, 2, 4, 8):
        numbers, colours = corpus.levels(bits), corpus.palette(1 << bits)
        for header in (12, 40, 108, 124):
            for top_down in (False, True)[: 1 if header == 12 else 2]:
                data = raw.bmp(numbers, bits, header=header, palette=colours, top_down=top_down)
                judge = opencv if bits != 2 and header == 40 and not top_down else None
                name = f"{bits}-bit palette, header of {header}{', top down' * top_down}"
                yield Variant("BMP", name, RAW, data, colours[numbers], judge=judge)
        grey = np.repeat(np.arange(1 << bits, dtype=np.uint8)[:, None], 3, axis=1)
        data = raw.bmp(numbers, bits, palette=grey)
        yield Variant("BMP", f"{bits}-bit palette of the darkest greys", RAW, data, grey[numbers])
        full = np.repeat(np.linspace(0, 255, 1 << bits).astype(np.uint8)[:, None], 3, axis=1)
        for name, colours in (("grey", full), ("inverted grey", full[::-1])):
            yield Variant(
                "BMP", f"{bits}-bit {name} palette", RAW, raw.bmp(numbers, bits, palette=colours), colours[numbers]
            )
    few = np.minimum(corpus.levels(8) // 32, 4)
    colours = corpus.palette(5)
    yield Variant("BMP", "8-bit palette of five colours", RAW, raw.bmp(few, 8, palette=colours), colours[few])
    packed = RGB[..., 0].astype(np.uint32) << 16 | RGB[..., 1].astype(np.uint32) << 8 | RGB[..., 2]
    for header in (12, 40, 52, 56, 64, 108, 124):
        for top_down in (False, True)[: 1 if header == 12 else 2]:
            judge = opencv if header == 40 else None
            data = raw.bmp(packed, 24, header=header, top_down=top_down)
            yield Variant("BMP", f"24 bits, header of {header}{', top down' * top_down}", RAW, data, RGB, judge=judge)
    for high in (0, 0x7F000000, 0xFF000000):
        yield Variant(
            "BMP", f"32 bits, the fourth byte {high >> 24}", RAW, raw.bmp(packed | high, 32), RGB, judge=opencv
        )
    opaque, clear = np.dstack([RGB, np.full_like(GREY, 255)]), np.dstack([RGB, np.zeros_like(GREY)])
    bits555, means555 = numbers_of(RGB, (0x7C00, 0x3E0, 0x1F))
    yield Variant("BMP", "16 bits", RAW, raw.bmp(bits555, 16), means555)
    layouts = {
        "555": (16, (0x7C00, 0x3E0, 0x1F, 0)),
        "565": (16, (0xF800, 0x7E0, 0x1F, 0)),
        "4444": (16, (0xF00, 0xF0, 0xF, 0xF000)),
        "1555": (16, (0x7C00, 0x3E0, 0x1F, 0x8000)),
        "444": (16, (0xF00, 0xF0, 0xF, 0)),
        "BGRX": (32, (0xFF0000, 0xFF00, 0xFF, 0)),
        "RGBX": (32, (0xFF, 0xFF00, 0xFF0000, 0)),
        "BGRA": (32, (0xFF0000, 0xFF00, 0xFF, 0xFF000000)),
        "RGBA": (32, (0xFF, 0xFF00, 0xFF0000, 0xFF000000)),
        "ABGR": (32, (0xFF000000, 0xFF0000, 0xFF00, 0xFF)),
        "2-10-10-10": (32, (0x3FF00000, 0xFFC00, 0x3FF, 0xC0000000)),
        "11-11-10": (32, (0xFFE00000, 0x1FFC00, 0x3FF, 0)),
    }
    for name, (bits, masks) in layouts.items():
        for header in (40, 56, 108, 124):
            given = masks[:3] if header == 40 else masks
            alphas = {"opaque": opaque, "alpha 0 everywhere": clear}
            if masks[3] and header != 40:
                alphas["alpha"] = np.dstack([RGB, ALPHA])
            for what, pixels in alphas.items() if masks[3] else [("no alpha", opaque)]:
                numbers, means = numbers_of(pixels, masks)
                expected = means[..., :3]
                if what == "alpha":
                    expected = corpus.over_white(expected, means[..., 3])
                data = raw.bmp(numbers, bits, header=header, masks=given)
                yield Variant("BMP", f"masks {name}, header of {header}, {what}", RAW, data, expected, most=1)
    numbers, means = numbers_of(np.dstack([RGB, ALPHA]), (0xF00, 0xF0, 0xF, 0xF000))
    data = raw.bmp(numbers, 16, masks=(0xF00, 0xF0, 0xF, 0xF000), compression=6)
    seen = corpus.over_white(means[..., :3], means[..., 3])
    yield Variant("BMP", "masks 4444 after a header of 40", RAW, data, seen, most=1)
    numbers, colours = corpus.levels(8), corpus.palette(256)
    data = raw.bmp(numbers, 8, palette=colours, compression=1, encoded=raw.rle8(numbers))
    yield Variant("BMP", "RLE8", RAW, data, colours[numbers], judge=opencv)
    numbers, colours = corpus.levels(4), corpus.palette(16)
    data = raw.bmp(numbers, 4, palette=colours, compression=2, encoded=raw.rle4(numbers))
    yield Variant("BMP", "RLE4", RAW, data, colours[numbers], judge=opencv)
    yield Variant("BMP", "cut after the last pixel", RAW, raw.bmp(packed, 24)[: -((-3 * WIDTH) % 4) or None], RGB)
    for name, bits, compression in (("JPEG inside", 24, 4), ("PNG inside", 24, 5), ("64 bits", 64, 0)):
        data = raw.bmp(packed, bits, compression=compression, encoded=b"\0" * 8 * WIDTH * HEIGHT)
        yield Variant("BMP", name, RAW, data, None, "this kind of BMP")
    data = raw.bmp(packed, 24, header=64, compression=4)
    yield Variant("BMP", "OS/2's RLE24", RAW, data, None, "this kind of BMP")
    import cv2

    for name, array in (
        ("grey", GREY),
        ("RGB", RGB[..., ::-1]),
        ("RGBA", np.dstack([RGB[..., ::-1], np.full_like(GREY, 255)])),
    ):
        expected = GREY_RGB if array.ndim == 2 else RGB
        yield Variant("BMP", name, "OpenCV", cv2.imencode(".bmp", array)[1].tobytes(), expected, judge=opencv)
