"""The corpus's TIFF pictures, by tifffile (whose codecs are imagecodecs') and byte by byte."""

from __future__ import annotations

import io
from collections.abc import Iterator
from typing import Any

import corpus
import numpy as np
import raw_pictures as raw
from corpus import ALPHA, GREY, GREY_RGB, HEIGHT, RGB, WIDTH, Variant
from PIL import Image

RAW = "raw bytes"


def variants() -> Iterator[Variant]:
    for part in (by_tifffile, packed_bits, palettes, others, orientations, refused):
        yield from part()


def written(array: np.ndarray, **options: Any) -> bytes:
    """Write an array by tifffile."""
    import tifffile

    file = io.BytesIO()
    tifffile.imwrite(file, array, **options)
    return file.getvalue()


def by_tifffile() -> Iterator[Variant]:
    deep, deep_rgb, cmyk = GREY.astype(np.uint16) * 257, RGB.astype(np.uint16) * 257, np.dstack([255 - RGB, 0 * GREY])
    planes = lambda array: np.ascontiguousarray(np.moveaxis(array, -1, 0))  # noqa: E731
    rgba, over = np.dstack([RGB, ALPHA]), corpus.over_white(RGB, ALPHA)
    share = ALPHA[..., None].astype(float) / 255
    premultiplied = np.dstack([np.rint(RGB * share), ALPHA]).astype(np.uint8)
    kinds: dict[str, tuple[np.ndarray, np.ndarray, int, dict[str, Any]]] = {
        "grey": (GREY, GREY_RGB, 0, {"photometric": "minisblack"}),
        "grey, 0 is white": (255 - GREY, GREY_RGB, 0, {"photometric": "miniswhite"}),
        "16-bit grey": (deep, GREY_RGB, 0, {"photometric": "minisblack"}),
        "16-bit grey, 0 is white": (65535 - deep, GREY_RGB, 0, {"photometric": "miniswhite"}),
        "16-bit grey in tiles": (deep, GREY_RGB, 0, {"photometric": "minisblack", "tile": (16, 16)}),
        "32-bit floats": (GREY.astype(np.float32) / 255, GREY_RGB, 0, {"photometric": "minisblack"}),
        "32-bit floats, 0 is white": (1 - GREY.astype(np.float32) / 255, GREY_RGB, 1, {"photometric": "miniswhite"}),
        "32-bit signed": (GREY.astype(np.int32) * 257, GREY_RGB, 0, {"photometric": "minisblack"}),
        "32-bit unsigned": (GREY.astype(np.uint32) << 24, None, 1, {"photometric": "minisblack"}),
        "RGB": (RGB, RGB, 0, {"photometric": "rgb"}),
        "RGB in tiles": (RGB, RGB, 0, {"photometric": "rgb", "tile": (16, 16)}),
        "RGB in many strips": (RGB, RGB, 0, {"photometric": "rgb", "rowsperstrip": 5}),
        "RGB in planes": (planes(RGB), RGB, 0, {"photometric": "rgb", "planarconfig": "separate"}),
        "16-bit RGB": (deep_rgb, RGB, 0, {"photometric": "rgb"}),
        "16-bit RGB in planes": (planes(deep_rgb), RGB, 0, {"photometric": "rgb", "planarconfig": "separate"}),
        "16-bit RGB in tiles": (deep_rgb, RGB, 0, {"photometric": "rgb", "tile": (16, 16)}),
        "RGBA": (rgba, over, 1, {"photometric": "rgb", "extrasamples": ["unassalpha"]}),
        "RGBA in planes": (
            planes(rgba),
            over,
            1,
            {"photometric": "rgb", "extrasamples": ["unassalpha"], "planarconfig": "separate"},
        ),
        "RGBA, premultiplied": (premultiplied, over, 3, {"photometric": "rgb", "extrasamples": ["assocalpha"]}),
        "16-bit RGBA": (rgba.astype(np.uint16) * 257, over, 1, {"photometric": "rgb", "extrasamples": ["unassalpha"]}),
        "RGB and infrared": (rgba, RGB, 0, {"photometric": "rgb", "extrasamples": ["unspecified"]}),
        "grey with alpha": (
            np.dstack([GREY, ALPHA]),
            corpus.over_white(GREY_RGB, ALPHA),
            1,
            {"photometric": "minisblack", "extrasamples": ["unassalpha"], "planarconfig": "contig"},
        ),
        "CMYK": (cmyk, RGB, 0, {"photometric": "separated"}),
        "16-bit CMYK": (cmyk.astype(np.uint16) * 257, RGB, 0, {"photometric": "separated"}),
    }
    for name, (array, expected, most, options) in kinds.items():
        for order in "<>":
            for compression in (None, "zlib", "lzw", "packbits", "lzma", "zstd"):
                data = written(array, byteorder=order, compression=compression, **options)
                plain = options["photometric"] in ("minisblack", "rgb") and array.dtype in (np.uint8, np.uint16)
                judge = by_other if plain and array.ndim >= 2 and not options.get("extrasamples") else None
                if name == "32-bit unsigned" and order == ">":
                    yield Variant(
                        "TIFF", f"{name}, {order}, {compression}", "tifffile", data, None, "this kind of TIFF"
                    )
                    continue
                right = (
                    np.repeat(np.rint(GREY / (GREY.max() / 255)).astype(np.uint8)[..., None], 3, axis=2)
                    if expected is None
                    else expected
                )
                yield Variant(
                    "TIFF", f"{name}, {order}, {compression}", "tifffile", data, right, most=most, judge=judge
                )
    for name in ("grey", "16-bit grey", "RGB", "16-bit RGB", "32-bit floats"):
        array, expected, most, options = kinds[name]
        for order in "<>":
            for compression in ("zlib", "lzw"):
                data = written(array, byteorder=order, compression=compression, predictor=True, **options)
                yield Variant(
                    "TIFF", f"{name}, {order}, {compression}, predictor", "tifffile", data, expected, most=most
                )
        yield Variant(
            "TIFF", f"{name}, BigTIFF", "tifffile", written(array, bigtiff=True, **options), expected, most=most
        )
        data = written(array, bigtiff=True, byteorder=">", **options)
        yield Variant("TIFF", f"{name}, BigTIFF, >", "tifffile", data, None, "this kind of TIFF")


def by_other(data: bytes) -> np.ndarray:
    """Decode by tifffile: grey or RGB of 8 or 16 bits."""
    import tifffile

    array = tifffile.imread(io.BytesIO(data))
    array = np.moveaxis(array, 0, -1) if array.shape[0] == 3 else array
    array = (array >> 8).astype(np.uint8) if array.dtype == np.uint16 else array
    return array if array.ndim == 3 else np.repeat(array[..., None], 3, axis=2)


def flipped(data: bytes) -> bytes:
    """Turn the bits of every byte round, as FillOrder 2 has them."""
    return np.packbits(np.unpackbits(np.frombuffer(data, np.uint8)).reshape(-1, 8)[:, ::-1]).tobytes()


def packed_bits() -> Iterator[Variant]:
    for bits in (1, 2, 4, 8, 12, 16):
        numbers = corpus.levels(bits)
        top = (1 << bits) - 1
        expected = corpus.grey_of(numbers, bits) if bits <= 8 else GREY_RGB
        for order in "<>":
            for photometric in (0, 1):
                for fill in (1, 2) if bits <= 8 else (1,):
                    data = raw.packed(numbers if photometric else top - numbers, bits, order)
                    data = flipped(data) if fill == 2 else data
                    tags = {258: (3, (bits,)), 262: (3, (photometric,)), 266: (3, (fill,)), 277: (3, (1,))}
                    name = f"{bits}-bit grey, {order}, photometric {photometric}{', bits turned round' * (fill == 2)}"
                    refused = bits == 12 and order == ">"
                    data = raw.tiff(data, WIDTH, HEIGHT, tags, order)
                    yield Variant(
                        "TIFF", name, RAW, data, None if refused else expected, "this kind of TIFF" if refused else ""
                    )
    data = raw.packed(255 - GREY.astype(np.uint32), 8)
    yield Variant("TIFF", "no photometric tag", RAW, raw.tiff(data, WIDTH, HEIGHT, {258: (3, (8,))}), GREY_RGB)
    bits = raw.packed(1 - corpus.levels(1), 1)
    yield Variant(
        "TIFF", "no tags but the size", RAW, raw.tiff(bits, WIDTH, HEIGHT, {}), corpus.grey_of(corpus.levels(1), 1)
    )


def palettes() -> Iterator[Variant]:
    for bits in (1, 2, 4, 8):
        numbers, colours = corpus.levels(bits), corpus.palette(1 << bits)
        for order in "<>":
            for name, scale in (("16-bit", 257), ("8-bit", 1)):
                colour_map = tuple((colours.T.astype(int) * scale).reshape(-1).tolist())
                tags = {258: (3, (bits,)), 262: (3, (3,)), 277: (3, (1,)), 320: (3, colour_map)}
                data = raw.tiff(raw.packed(numbers, bits), WIDTH, HEIGHT, tags, order)
                yield Variant("TIFF", f"{bits}-bit palette of {name} colours, {order}", RAW, data, colours[numbers])
    for compression in ("zlib", "lzw"):
        numbers, colours = corpus.levels(8).astype(np.uint8), corpus.palette(256)
        data = written(
            numbers, photometric="palette", colormap=colours.T.astype(np.uint16) * 257, compression=compression
        )
        yield Variant("TIFF", f"palette, {compression}", "tifffile", data, colours[numbers])


def others() -> Iterator[Variant]:
    for subsampling in ((1, 1), (2, 1), (2, 2)):
        data = written(
            RGB, photometric="rgb", compression="jpeg", compressionargs={"level": 95}, subsampling=subsampling
        )
        yield Variant("TIFF", f"JPEG inside, {subsampling}", "tifffile", data, RGB, mean=6)
    data = written(GREY, photometric="minisblack", compression="jpeg", compressionargs={"level": 95})
    yield Variant("TIFF", "grey JPEG inside", "tifffile", data, GREY_RGB, mean=2)
    full = np.array(Image.fromarray(RGB).convert("YCbCr"))
    tags = {
        258: (3, (8, 8, 8)),
        262: (3, (6,)),
        277: (3, (3,)),
        530: (3, (1, 1)),
        532: (4, (0, 255, 128, 255, 128, 255)),
    }
    for order in "<>":
        data = raw.tiff(full.tobytes(), WIDTH, HEIGHT, {**tags, 532: tags[532]}, order)
        del_reference = {tag: value for tag, value in tags.items() if tag != 532}
        yield Variant(
            "TIFF", f"YCbCr, {order}", RAW, raw.tiff(full.tobytes(), WIDTH, HEIGHT, del_reference, order), RGB, most=4
        )
        even = np.pad(full, ((0, 0), (0, 1), (0, 0)), mode="edge").astype(int)
        blocks = even.reshape(HEIGHT // 2, 2, (WIDTH + 1) // 2, 2, 3)
        luma = blocks[..., 0].transpose(0, 2, 1, 3).reshape(HEIGHT // 2, -1, 4)
        chroma = np.rint(blocks[..., 1:].mean(axis=(1, 3)))
        units = np.concatenate([luma, chroma], axis=2).astype(np.uint8).tobytes()
        data = raw.tiff(units, WIDTH, HEIGHT, {**del_reference, 530: (3, (2, 2))}, order)
        yield Variant("TIFF", f"YCbCr, colours halved, {order}", RAW, data, RGB, mean=6)
    for compression in ("group3", "group4", "tiff_ccitt"):
        file = io.BytesIO()
        Image.fromarray(GREY > 127).save(file, "TIFF", compression=compression)
        expected = np.repeat(((GREY > 127) * corpus.WHITE)[..., None], 3, axis=2).astype(np.uint8)
        yield Variant("TIFF", f"1 bit, {compression}", "Pillow", file.getvalue(), expected)
    file = io.BytesIO()
    Image.fromarray(RGB).convert("LAB").save(file, "TIFF")
    yield Variant("TIFF", "L*a*b*", "Pillow", file.getvalue(), RGB, mean=2)
    pages = written(np.stack([RGB, 255 - RGB]), photometric="rgb")
    yield Variant("TIFF", "two pages", "tifffile", pages, RGB)


def orientations() -> Iterator[Variant]:
    for orientation in range(1, 9):
        turned = corpus.stored(RGB, orientation)
        height, width, _ = turned.shape
        for order in "<>":
            for kind in (3, 4):
                tags = {258: (3, (8, 8, 8)), 262: (3, (2,)), 274: (kind, (orientation,)), 277: (3, (3,))}
                name = f"orientation {orientation}, {order}{'SHORT' if kind == 3 else 'LONG'}"
                yield Variant("TIFF", name, RAW, raw.tiff(turned.tobytes(), width, height, tags, order), RGB)
        tags = [(274, "H", 1, orientation, True)]
        data = written(turned, photometric="rgb", compression="zlib", extratags=tags)
        yield Variant("TIFF", f"orientation {orientation}, zlib", "tifffile", data, RGB)
        grey = corpus.stored(65535 - GREY.astype(np.uint16) * 257, orientation)
        data = written(grey, photometric="miniswhite", extratags=tags)
        yield Variant("TIFF", f"orientation {orientation}, 16-bit grey, 0 is white", "tifffile", data, GREY_RGB)
        packet = raw.xmp(orientation)
        tags = {258: (3, (8, 8, 8)), 262: (3, (2,)), 277: (3, (3,)), 700: (1, tuple(packet))}
        data = raw.tiff(turned.tobytes(), width, height, tags)
        yield Variant("TIFF", f"orientation {orientation} in XMP", RAW, data, RGB)
    tags = {258: (3, (8, 8, 8)), 262: (3, (2,)), 274: (3, (1,)), 277: (3, (3,)), 700: (1, tuple(raw.xmp(6)))}
    yield Variant("TIFF", "upright by its tag, turned by XMP", RAW, raw.tiff(RGB.tobytes(), WIDTH, HEIGHT, tags), RGB)


def refused() -> Iterator[Variant]:
    both = np.dstack([GREY, ALPHA])
    kinds: dict[str, tuple[np.ndarray, dict[str, Any]]] = {
        "16-bit floats": (GREY.astype(np.float16) / 255, {"photometric": "minisblack"}),
        "64-bit floats": (GREY.astype(np.float64) / 255, {"photometric": "minisblack"}),
        "8-bit signed": ((GREY.astype(np.int16) - 128).astype(np.int8), {"photometric": "minisblack"}),
        "16-bit signed": (GREY.astype(np.int16), {"photometric": "minisblack"}),
        "64-bit integers": (GREY.astype(np.uint64), {"photometric": "minisblack"}),
        "complex": (GREY.astype(np.complex64), {"photometric": "minisblack"}),
        "RGB floats": (RGB.astype(np.float32) / 255, {"photometric": "rgb"}),
        "32-bit RGB": (RGB.astype(np.uint32), {"photometric": "rgb"}),
        "16-bit grey with alpha": (
            both.astype(np.uint16) * 257,
            {"photometric": "minisblack", "extrasamples": ["unassalpha"], "planarconfig": "contig"},
        ),
        "grey with alpha in planes": (
            np.stack([GREY, ALPHA]),
            {"photometric": "minisblack", "extrasamples": ["unassalpha"], "planarconfig": "separate"},
        ),
        "L*a*b* in planes": (
            np.ascontiguousarray(np.moveaxis(RGB, -1, 0)),
            {"photometric": "cielab", "planarconfig": "separate"},
        ),
        "raw sensor data": (GREY, {"photometric": "cfa"}),
        "five inks": (np.dstack([both, RGB]), {"photometric": "minisblack", "planarconfig": "contig"}),
        "JPEG 2000 inside": (RGB, {"photometric": "rgb", "compression": "jpeg2000"}),
        "JPEG XL inside": (RGB, {"photometric": "rgb", "compression": "jpegxl"}),
        "ICC L*a*b*": (RGB, {"photometric": "icclab"}),
    }
    for name, (array, options) in kinds.items():
        for order in "<>":
            data = written(array, byteorder=order, **options)
            yield Variant("TIFF", f"{name}, {order}", "tifffile", data, None, "this kind of TIFF")
