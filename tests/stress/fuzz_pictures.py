"""Cases of robustness.py that are pictures: mutated files in every format, and files that claim to be huge."""

from __future__ import annotations

import contextlib
import io
import random
import struct
import zlib
from functools import cache
from typing import Any

import numpy as np
from fuzz_world import Case, World, WrongAnswer, mutated
from PIL import Image

from edgecifar import load_picture
from edgecifar.runtime import EdgecifarError
from edgecifar.runtime.contract import FITS


def chunk(kind: bytes, data: bytes) -> bytes:
    """Return a chunk of a PNG."""
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def mend_png(data: bytes) -> bytes:
    """Make the checksums of a PNG's chunks agree, so that its parsers are reached."""
    mended, place = data[:8], 8
    while place + 12 <= len(data):
        (size,) = struct.unpack_from(">I", data, place)
        mended += chunk(data[place + 4 : place + 8], data[place + 8 : place + 8 + size])
        place += 12 + size
    return mended


READ = ("PNG", "JPEG", "GIF", "BMP", "WEBP", "TIFF", "AVIF", "JPEG2000", "ICO", "TGA", "PPM", "MPO")
OTHERS = ("PCX", "SGI", "DDS", "QOI", "ICNS", "IM")
COMPRESSIONS = ("tiff_lzw", "tiff_deflate", "packbits", "jpeg", "group4", "lzma", "zstd")
FRAMES = {"save_all": True, "append_images": [Image.new("RGB", (56, 40), "red")]}


@cache
def seeds() -> dict[str, bytes]:
    """Draw a small picture, and encode it in every format, mode and compression that Pillow can write here."""
    y, x = np.mgrid[0:40, 0:56]
    drawn = np.stack([x * 4, y * 6, (x * y) % 256, 255 - x], axis=-1).astype(np.uint8)
    rgba = Image.fromarray(drawn)
    rgb, grey = rgba.convert("RGB"), rgba.convert("L")
    deep = Image.fromarray(drawn[..., 2].astype(np.uint16) * 200)
    modes = {mode: rgb.convert(mode) for mode in ("RGB", "L", "CMYK", "YCbCr", "LAB", "1", "P")}
    modes |= {"RGBA": rgba, "LA": rgba.convert("LA"), "I;16": deep, "F": grey.convert("F"), "I": grey.convert("I")}
    exif = Image.Exif()
    exif[0x0112] = 6
    ways: dict[str, list[dict[str, Any]]] = {
        "PNG": [{"exif": exif}, FRAMES, {"transparency": 3}, {"compress_level": 0}],
        "JPEG": [{"exif": exif}, {"progressive": True}, {"quality": 5, "optimize": True}],
        "GIF": [FRAMES, {"transparency": 3, "interlace": 0}],
        "BMP": [{}],
        "WEBP": [{"exif": exif}, FRAMES, {"lossless": True}],
        "TIFF": [{"exif": exif}, FRAMES, *({"compression": name} for name in COMPRESSIONS)],
    }
    found = {}
    for kind in (*READ, *OTHERS):
        for mode, image in (modes if kind in READ else {"RGB": rgb}).items():
            for number, options in enumerate(ways.get(kind, [{}])):
                file = io.BytesIO()
                with contextlib.suppress(Exception):  # a combination that Pillow cannot write
                    image.save(file, kind, **options)
                    found.setdefault(file.getvalue(), f"{kind} {mode} {number}")
    return {name: data for data, name in found.items()}


def picture(rng: random.Random) -> Case:
    """Draw a picture in any format, mutated; a few stay as they are."""
    names = [name for name in seeds() if name.split()[0] in READ] if rng.random() < 0.9 else list(seeds())
    name, intact = rng.choice(names), rng.random() < 0.02
    data = seeds()[name] if intact else mutated(seeds()[name], rng)
    if name.startswith("PNG") and rng.random() < 0.7:
        data = mend_png(data)
    return looked_at(data, rng.choice(FITS), name, must=intact and name.split()[0] in READ)


def bomb(rng: random.Random) -> Case:
    """Claim a huge size in a header, or unpack to a lot."""
    side = lambda: rng.choice((0, 1, 7999, 8001, 32767, 65535, 2**31 - 1, 2**32 - 1, rng.randrange(2**32)))  # noqa: E731
    width, height = side(), side()
    name = rng.choice([name for name in seeds() if name.split()[0] in READ])
    data = seeds()[name]
    if name.startswith("PNG"):
        header = struct.pack(">II", width, height) + bytes(
            [rng.choice((1, 8, 16)), rng.choice((0, 2, 3, 4, 6)), 0, 0, 0]
        )
        much = zlib.compress(bytes(rng.choice((1, 10**5, 10**7))), 9)
        extra = rng.choice((b"", chunk(b"zTXt", b"a\0\0" + much), chunk(b"iCCP", b"a\0\0" + much)))
        parts = chunk(b"IHDR", header) + extra + chunk(b"IDAT", much) + chunk(b"IEND", b"")
        return looked_at(data[:8] + parts, rng.choice(FITS), "PNG bomb")
    size = (
        struct.pack(rng.choice("<>") + "II", width, height)
        if rng.random() < 0.5
        else struct.pack(rng.choice("<>") + "HH", width & 0xFFFF, height & 0xFFFF)
    )
    actual = [struct.pack(order + code, 56) for order in "<>" for code in "HI"]  # the width as the seeds have it
    places = [place for place in range(min(len(data), 400)) if any(data.startswith(a, place) for a in actual)]
    place = rng.choice(places or [rng.randrange(len(data))])
    return looked_at(data[:place] + size + data[place + len(size) :], rng.choice(FITS), f"{name} bomb")


def looked_at(data: bytes, fit: str, note: str, must: bool = False) -> Case:
    """Return the case of a picture's bytes, read twice: uninitialised memory, say, would differ."""

    def run(world: World) -> None:
        contract = world.contract
        try:
            pixels = load_picture(data, contract, fit)
        except EdgecifarError:
            if must:
                raise WrongAnswer("an intact picture was refused") from None
            raise
        if (pixels.dtype, pixels.shape, pixels.flags.c_contiguous) != (np.uint8, contract.picture_shape, True):
            raise WrongAnswer(f"it became {pixels.dtype} {pixels.shape}")
        if not np.array_equal(pixels, load_picture(data, contract, fit)):
            raise WrongAnswer("it is read differently the second time")

    return Case(run, {"picture": data}, f"{note}, {fit}")
