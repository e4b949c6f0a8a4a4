"""The corpus's TGA, ICO, PPM, PGM and PBM pictures, nearly all written byte by byte."""

from __future__ import annotations

import io
from collections.abc import Iterator

import corpus
import numpy as np
import raw_pictures as raw
from corpus import ALPHA, GREY, GREY_RGB, HEIGHT, RGB, WIDTH, Variant, opencv
from lossless import numbers_of
from PIL import Image

RAW = "raw bytes"


def variants() -> Iterator[Variant]:
    for part in (tgas, tga_of_pillow, icons, pnms):
        yield from part()


def fifteen_of(data: bytes) -> bytes:
    """Say in a TGA's header that 15 bits count."""
    return data[:16] + bytes([15]) + data[17:]


def tgas() -> Iterator[Variant]:
    grey, numbers, colours = GREY.astype(np.uint32), corpus.levels(6), corpus.palette(64)
    packed = RGB[..., 0].astype(np.uint32) << 16 | RGB[..., 1].astype(np.uint32) << 8 | RGB[..., 2]
    with_alpha = packed | ALPHA.astype(np.uint32) << 24
    fifteen, means = numbers_of(RGB, (0x7C00, 0x3E0, 0x1F))
    bgr = colours[:, ::-1]
    for packing in (0, 8):
        for origin in (0, 0x10, 0x20, 0x30):
            where = {0: "bottom left", 0x10: "bottom right", 0x20: "top left", 0x30: "top right"}[origin]
            name = f"{where}{', RLE' * bool(packing)}"
            make = lambda values, depth, kind, **more: raw.tga(values, depth, kind + packing, origin=origin, **more)  # noqa: B023, E731
            yield Variant("TGA", f"grey, {name}", RAW, make(grey, 8, 3), GREY_RGB)
            yield Variant("TGA", f"24 bits, {name}", RAW, make(packed, 24, 2, identification=b"a car"), RGB)
            seen = corpus.over_white(RGB, ALPHA)
            yield Variant(
                "TGA", f"32 bits, {name}", RAW, make(with_alpha, 32, 2, alpha_bits=8, footer=True), seen, most=1
            )
            yield Variant("TGA", f"32 bits, alpha 0 everywhere, {name}", RAW, make(packed, 32, 2, alpha_bits=8), RGB)
            yield Variant("TGA", f"32 bits, none of alpha, {name}", RAW, make(with_alpha, 32, 2), RGB)
            yield Variant("TGA", f"16 bits, {name}", RAW, make(fifteen, 16, 2), means, most=8)
            yield Variant(
                "TGA", f"16 bits, bit 15 set, {name}", RAW, make(fifteen | 0x8000, 16, 2, alpha_bits=1), means, most=8
            )
            data = make(numbers, 8, 1, palette=bgr.tobytes(), palette_depth=24)
            yield Variant("TGA", f"palette, {name}", RAW, data, colours[numbers])
            yield Variant("TGA", f"15 bits, {name}", RAW, fifteen_of(make(fifteen, 16, 2)), means, most=8)
        alphas = np.linspace(0, 255, 64).astype(np.uint8)
        for name, alpha_bits, expected in (
            ("with alpha", 8, corpus.over_white(colours[numbers], alphas[numbers])),
            ("none of it alpha", 0, colours[numbers]),
        ):
            table = np.dstack([bgr[None], alphas[None, :, None]]).tobytes()
            data = raw.tga(numbers, 8, 1 + packing, palette=table, palette_depth=32, alpha_bits=alpha_bits)
            yield Variant("TGA", f"palette of 32 bits, {name}{', RLE' * bool(packing)}", RAW, data, expected, most=1)
        small, meant = numbers_of(colours[None], (0x7C00, 0x3E0, 0x1F))
        for bits in (15, 16):
            data = raw.tga(numbers, 8, 1 + packing, palette=small.astype("<u2").tobytes(), palette_depth=16)
            data = data[:7] + bytes([bits]) + data[8:]
            name = f"palette of {bits} bits{', RLE' * bool(packing)}"
            yield Variant("TGA", name, RAW, data, meant[0][numbers], most=8)
        whole = np.dstack([GREY, ALPHA])
        values = whole[..., 0].astype(np.uint32) | whole[..., 1].astype(np.uint32) << 8
        data = raw.tga(values, 16, 3 + packing, alpha_bits=8)
        yield Variant(
            "TGA", f"grey with alpha{', RLE' * bool(packing)}", RAW, data, corpus.over_white(GREY_RGB, ALPHA), most=1
        )


def tga_of_pillow() -> Iterator[Variant]:
    bits = GREY > 127
    file = io.BytesIO()
    Image.fromarray(bits).save(file, "TGA")
    expected = np.repeat((bits * corpus.WHITE).astype(np.uint8)[..., None], 3, axis=2)
    yield Variant("TGA", "1 bit", "Pillow", file.getvalue(), expected)


def icons() -> Iterator[Variant]:
    shown = ALPHA > 90
    nothing = np.zeros((HEIGHT, WIDTH), np.uint32)
    hidden = (~shown).astype(np.uint32)
    packed = RGB[..., 0].astype(np.uint32) << 16 | RGB[..., 1].astype(np.uint32) << 8 | RGB[..., 2]
    for bits in (1, 4, 8):
        numbers, colours = corpus.levels(bits), corpus.palette(1 << bits)
        for name, mask, seen in (("opaque", nothing, shown | True), ("with a mask", hidden, shown)):
            data = raw.icon_bmp(raw.bmp(numbers, bits, palette=colours), mask)
            expected = corpus.where_seen(colours[numbers], seen)
            yield Variant("ICO", f"{bits}-bit palette, {name}", RAW, raw.ico([(WIDTH, HEIGHT, bits, data)]), expected)
    for name, mask, seen in (("opaque", nothing, shown | True), ("with a mask", hidden, shown)):
        data = raw.ico([(WIDTH, HEIGHT, 24, raw.icon_bmp(raw.bmp(packed, 24), mask))])
        yield Variant("ICO", f"24 bits, {name}", RAW, data, corpus.where_seen(RGB, seen))
    for name, alpha, expected in (
        ("with alpha", ALPHA, corpus.over_white(RGB, ALPHA)),
        ("alpha 0 everywhere", np.zeros_like(ALPHA), RGB),
    ):
        content = raw.icon_bmp(raw.bmp(packed | alpha.astype(np.uint32) << 24, 32), nothing)
        yield Variant("ICO", f"32 bits, {name}", RAW, raw.ico([(WIDTH, HEIGHT, 32, content)]), expected, most=1)
    small = raw.png(np.zeros((8, 8, 3), np.uint32), 8, 2)
    large = raw.png(RGB.astype(np.uint32), 8, 2)
    yield Variant("ICO", "PNG", RAW, raw.ico([(WIDTH, HEIGHT, 32, large)]), RGB)
    for name, order in (("first", (0, 1)), ("last", (1, 0))):
        entries = [(WIDTH, HEIGHT, 24, large), (8, 8, 24, small)]
        yield Variant("ICO", f"the largest {name}", RAW, raw.ico([entries[place] for place in order]), RGB)
    file = io.BytesIO()
    Image.fromarray(RGB).save(file, "ICO", sizes=[(16, 16), (WIDTH, HEIGHT)])
    yield Variant("ICO", "two sizes", "Pillow", file.getvalue(), RGB)


def pnms() -> Iterator[Variant]:
    import cv2

    head = lambda kind, rest: b"%s\n# a comment\n%d %d\n%s" % (kind, WIDTH, HEIGHT, rest)  # noqa: E731
    text = lambda values: b" ".join(b"%d" % value for value in values.reshape(-1).tolist())  # noqa: E731
    bits = (GREY > 127).astype(np.uint32)
    seen = np.repeat((1 - bits).astype(np.uint8)[..., None] * corpus.WHITE, 3, axis=2)
    yield Variant("PPM", "P1", RAW, head(b"P1", text(bits)), seen, judge=opencv)
    yield Variant("PPM", "P4", RAW, head(b"P4", raw.packed(bits, 1)), seen, judge=opencv)
    for maximum in (1, 15, 100, 255, 1023, 65535):
        for kind, pixels in ((b"P2", GREY), (b"P3", RGB), (b"P5", GREY), (b"P6", RGB)):
            values = np.rint(pixels.astype(float) * maximum / 255).astype(np.uint32)
            expected = np.rint(values.astype(float) * 255 / maximum).astype(np.uint8)
            expected = expected if expected.ndim == 3 else np.repeat(expected[..., None], 3, axis=2)
            packed = raw.packed(values.reshape(HEIGHT, -1), 8 if maximum < 256 else 16)
            body = b"%d\n" % maximum + (text(values) if kind in (b"P2", b"P3") else packed)
            yield Variant("PPM", f"{kind.decode()}, {maximum}", RAW, head(kind, body), expected, most=1)
    for name, array in ((".pgm", GREY), (".ppm", RGB[..., ::-1])):
        expected = GREY_RGB if array.ndim == 2 else RGB
        yield Variant("PPM", name, "OpenCV", cv2.imencode(name, array)[1].tobytes(), expected, judge=opencv)
    for order, scale in (("<", b"-1.0"), (">", b"1.0")):
        values = (GREY[::-1].astype(np.float32) / 255).astype(f"{order}f4").tobytes()
        data = b"Pf\n%d %d\n%s\n" % (WIDTH, HEIGHT, scale) + values
        yield Variant("PPM", f"grey floats, {order}", RAW, data, GREY_RGB, most=1)
    yield Variant(
        "PPM", "colour floats", RAW, b"PF\n%d %d\n-1.0\n" % (WIDTH, HEIGHT) + bytes(12 * WIDTH * HEIGHT), None, "PFM"
    )
    pam = b"P7\nWIDTH %d\nHEIGHT %d\nDEPTH 3\nMAXVAL 255\nTUPLTYPE RGB\nENDHDR\n" % (WIDTH, HEIGHT)
    yield Variant("PPM", "PAM", RAW, pam + RGB.tobytes(), None, "PAM")
