"""The page's preprocessing in JavaScript gives the very bytes of `load_picture`, for PNG of every kind."""

from __future__ import annotations

import base64
import json
import struct
import subprocess
import zlib
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from edgecifar.runtime.contract import CIFAR10, FITS
from edgecifar.runtime.errors import PictureError
from edgecifar.runtime.pictures import load_picture


@pytest.fixture
def in_javascript(node):
    """Inputs, or sentences, that the page's modules make of (file, contract) pairs."""

    def call(pairs):
        jobs = [
            {"file": str(file), "size": contract.size, "steps": contract.as_json()["preprocessing"]}
            for file, contract in pairs
        ]
        ran = subprocess.run(
            [node, Path(__file__).with_name("pixels.mjs")],
            input=json.dumps(jobs),
            capture_output=True,
            text=True,
            check=True,
        )
        made = json.loads(ran.stdout)
        return [
            np.frombuffer(base64.b64decode(found), np.uint8).reshape(contract.picture_shape)
            if isinstance(found, str)
            else found["error"]
            for found, (_, contract) in zip(made, pairs, strict=True)
        ]

    return call


def in_python(file, contract):
    try:
        return load_picture(file, contract)
    except PictureError as error:
        return str(error)


def test_every_size_fit_and_orientation(in_javascript, tmp_path):
    rng = np.random.default_rng(25)
    pairs = []
    for number in range(150):
        width, height = (int(np.exp(rng.uniform(0, np.log(500)))) for _ in range(2))
        if number % 10 == 0:
            width, height = int(rng.integers(1, 40)), int(rng.integers(1, 3000))
        noise = rng.integers(0, 256, (height, width, 3 + number % 2), np.uint8)
        exif = Image.Exif()
        exif[0x0112] = number % 9
        file = tmp_path / f"{number}.png"
        Image.fromarray(noise).save(file, compress_level=1, exif=exif)
        contract = replace(CIFAR10.with_fit(FITS[number % 3]), size=(32, 24, 96)[number // 3 % 3])
        pairs.append((file, contract))
    for (file, contract), found in zip(pairs, in_javascript(pairs), strict=True):
        expected = in_python(file, contract)
        np.testing.assert_array_equal(found, expected, err_msg=f"{file} {contract.fit} {contract.size}")


def test_every_kind_of_png(in_javascript, tmp_path, monkeypatch):
    """The corpus's: all depths, palettes, transparent colours, gamma, interlaced, damaged metadata."""
    monkeypatch.syspath_prepend(str(Path(__file__).parents[1] / "pictures"))
    from corpus import variants  # pyright: ignore[reportMissingImports]

    found = [variant for variant in variants() if variant.format in ("PNG", "APNG")]
    assert len(found) > 150
    pairs = []
    for number, variant in enumerate(found):
        file = tmp_path / f"{number}.png"
        file.write_bytes(variant.data)
        pairs.append((file, CIFAR10))
    wrong = []
    for variant, (file, contract), made in zip(found, pairs, in_javascript(pairs), strict=True):
        expected = in_python(file, contract)
        if isinstance(expected, str) or isinstance(made, str):
            if type(expected) is not type(made):
                wrong.append((variant.name, expected if isinstance(expected, str) else made))
        elif np.abs(made.astype(int) - expected).max() > 1:
            wrong.append((variant.name, int(np.abs(made.astype(int) - expected).max())))
    assert wrong == [], wrong


def chunk(kind, data):
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


ROWS = zlib.compress(bytes(32 * (1 + 3 * 32)))
HEADER, PIXELS, END = struct.pack(">IIBBBBB", 32, 32, 8, 2, 0, 0, 0), chunk(b"IDAT", ROWS), chunk(b"IEND", b"")
FIRST, SECOND = chunk(b"IDAT", ROWS[:20]), chunk(b"IDAT", ROWS[20:])
INDEXED = struct.pack(">IIBBBBB", 32, 32, 8, 3, 0, 0, 0)
EXIF = b"MM\0*" + struct.pack(">IHHHIHHI", 8, 1, 0x0112, 3, 1, 6, 0, 0)


DAMAGED = {
    "an unknown kind of filters": (HEADER[:11] + b"\1\0", PIXELS),
    "RGB of 4 bits": (struct.pack(">IIBBBBB", 32, 32, 4, 2, 0, 0, 0), PIXELS),
    "gAMA cut short": (HEADER, chunk(b"gAMA", b"\0\0") + PIXELS),
    "tRNS cut short": (HEADER, chunk(b"tRNS", b"\0\0") + PIXELS),
    "an empty sRGB": (HEADER, chunk(b"sRGB", b"") + PIXELS),
    "cICP too long": (HEADER, chunk(b"cICP", b"\1\15\0\1\0") + PIXELS),
    "EXIF between the pixels": (HEADER, FIRST + chunk(b"eXIf", EXIF) + SECOND),
    "two headers": (HEADER, chunk(b"IHDR", HEADER) + PIXELS),
    "a palette picture without palette": (INDEXED, PIXELS),
    "a palette behind the pixels": (INDEXED, PIXELS + chunk(b"PLTE", bytes(3))),
    "a palette cut short": (INDEXED, chunk(b"PLTE", bytes(4)) + PIXELS),
    "a palette of 257 colours": (INDEXED, chunk(b"PLTE", bytes(771)) + PIXELS),
    "data that end between two rows": (HEADER, chunk(b"IDAT", zlib.compress(bytes(31 * 97)))),
    "a second tRNS without its checksum": (HEADER, PIXELS + chunk(b"tRNS", bytes(6))[:-4] + bytes(4)),
}
INTACT = {
    "whole": (HEADER, PIXELS),
    "two palettes": (INDEXED, chunk(b"PLTE", b"\xff\0\0") + chunk(b"PLTE", b"\0\xff\0") + PIXELS),
    "two palettes, one behind the pixels": (INDEXED, chunk(b"PLTE", b"\xff\0\0") + PIXELS + chunk(b"PLTE", b"")),
    "two transparent colours": (HEADER, chunk(b"tRNS", bytes(6)) + chunk(b"tRNS", b"") + PIXELS),
    "text between the pixels": (HEADER, FIRST + chunk(b"tEXt", b"Comment\0a car") + SECOND),
    "damaged EXIF between the pixels": (HEADER, FIRST + chunk(b"eXIf", EXIF)[:-4] + bytes(4) + SECOND),
}


def test_damaged_where_python_says_so(in_javascript, tmp_path):
    files = {}
    for name, (header, chunks) in {**DAMAGED, **INTACT}.items():
        files[name] = tmp_path / f"{name}.png"
        files[name].write_bytes(b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunks + END)
    found = dict(zip(files, in_javascript([(file, CIFAR10) for file in files.values()]), strict=True))
    for name, made in found.items():
        expected = in_python(files[name], CIFAR10)
        assert isinstance(expected, str) == (name in DAMAGED), name
        assert isinstance(made, str) == (name in DAMAGED), (name, made)
        if name in DAMAGED:
            assert "damaged" in made, name
        else:
            np.testing.assert_array_equal(made, expected, err_msg=name)


@pytest.mark.parametrize(("width", "height"), [(60_000, 3), (3, 9_000), (4097, 2), (30, 20)])
def test_a_picture_larger_than_the_canvas(node, width, height):
    """Browsers limit a canvas, phones to 4096 x 4096, and read one beyond that as transparent."""
    assert grabbed(node, width=width, height=height, limit=4096) == {"right": True}


def test_a_canvas_that_cannot_be_read_is_named(node):
    assert "so many pixels" in grabbed(node, width=30, height=20, limit=10)["error"]


def grabbed(node, **job):
    script = Path(__file__).with_name("grab.mjs")
    ran = subprocess.run([node, script], input=json.dumps(job), capture_output=True, text=True, check=True)
    return json.loads(ran.stdout)
