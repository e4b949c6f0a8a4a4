"""Golden pictures: encoded files, the arrays that they become, and the probabilities that the models give for them.

They prove a port of the preprocessing, in whatever language: golden.json is plain JSON, docs/contract.md says how to
read it.
"""

from __future__ import annotations

import io
import json
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from .contract import Contract
from .files import write_file
from .manifest import GOLDEN_PICTURES, PLAIN_NAME, refuse_constant, unique_names
from .pictures import load_picture

JPEG_TOLERANCE = 4
"""Largest difference of a pixel's value between decoders of JPEG, which may round differently; PNG is exact."""


@dataclass(frozen=True)
class GoldenPicture:
    """One picture and what must become of it.

    Attributes:
        file: its name in the bundle's folder.
        tolerance: largest difference of a value of the array, 0 to 255, that a decoder may show.
        array: uint8 [size, size, 3], what `load_picture` makes of it by the bundle's contract.
        probabilities: of each ONNX variant by its name, float32 [classes], for `array` itself.
        familiarity: likewise, where the models have it.
    """

    file: str
    tolerance: int
    array: np.ndarray
    probabilities: dict[str, np.ndarray]
    familiarity: dict[str, float] = field(default_factory=dict[str, float])

    def as_json(self) -> dict[str, Any]:
        """Return the picture as JSON values; the array is flat: rows, then columns, then R, G and B."""
        return {
            "file": self.file,
            "tolerance": self.tolerance,
            "shape": list(self.array.shape),
            "array": self.array.ravel().tolist(),
            "probabilities": {
                name: [round(value, 7) for value in row.tolist()] for name, row in self.probabilities.items()
            },
            **({"familiarity": self.familiarity} if self.familiarity else {}),
        }


def draw() -> dict[str, bytes]:
    """Return the encoded golden pictures by their file names; with one version of Pillow the same bytes every time.

    Each needs another step of the preprocessing: a JPEG whose EXIF orientation says that it lies on its side, a PNG
    with transparency, and a PNG of over 1,000 pixels with detail so fine that scaling without antialiasing shows. None
    is square, and none looks the same when it is turned.
    """
    from PIL import Image

    side = Image.fromarray(_scene(width=72, height=48))
    exif = Image.Exif()
    exif[0x0112] = 6  # orientation: turn by 90 degrees clockwise to see it upright
    jpeg = io.BytesIO()
    side.save(jpeg, "jpeg", quality=90, subsampling=0, exif=exif)

    scene = _scene(width=56, height=40)
    alpha = np.broadcast_to(np.linspace(0, 255, 56).round().astype(np.uint8)[None, :, None], (40, 56, 1))
    clear = io.BytesIO()
    Image.fromarray(np.concatenate([scene, alpha], axis=2)).save(clear, "png", optimize=True)

    large = io.BytesIO()
    Image.fromarray(_stripes(width=1200, height=900)).save(large, "png", optimize=True)
    return {
        "golden.orientation.jpg": jpeg.getvalue(),
        "golden.alpha.png": clear.getvalue(),
        "golden.large.png": large.getvalue(),
    }


def _scene(width: int, height: int) -> np.ndarray:
    """Return uint8 [height, width, 3]: a sky that fades, ground, and a red disc in the upper left."""
    y, x = np.mgrid[:height, :width]
    picture = np.empty((height, width, 3), np.uint8)
    picture[...] = np.stack([60 + 120 * y // height, 120 + 100 * y // height, 250 - 40 * x // width], axis=2)
    picture[y > 3 * height // 4] = (70, 110, 50)
    picture[(x - width / 4) ** 2 + (y - height / 3) ** 2 < (height / 5) ** 2] = (210, 40, 30)
    return picture


def _stripes(width: int, height: int) -> np.ndarray:
    """Return uint8 [height, width, 3]: stripes of three pixels, bars of 40, and a dark corner; it packs well."""
    y, x = np.mgrid[:height, :width]
    picture = np.empty((height, width, 3), np.uint8)
    picture[...] = np.stack([255 * (x // 3 % 2), 255 * (x // 40 % 2), 255 * (y // 40 % 2)], axis=2)
    picture[(x < width // 2) & (y < height // 3)] = (20, 20, 60)
    return picture


Function = Callable[[np.ndarray], np.ndarray]


def write(
    folder: Path, contract: Contract, models: Mapping[str, Function], scores: Mapping[str, Function] | None = None
) -> tuple[GoldenPicture, ...]:
    """Write the golden pictures and golden.json into `folder`, a bundle in the making.

    Args:
        folder: where to.
        contract: the bundle's.
        models: of each ONNX variant by its name, what maps uint8 [N, size, size, 3] to probabilities, float32
            [N, classes].
        scores: likewise to the familiarity, float32 [N], of the models that have it.

    Raises:
        OutputError: they cannot be written.
    """
    files = draw()
    arrays = np.stack([load_picture(content, contract, name=name) for name, content in files.items()])
    rows = {name: model(arrays) for name, model in models.items()}
    familiarity = {name: score(arrays) for name, score in (scores or {}).items()}
    pictures = tuple(
        GoldenPicture(
            file=name,
            tolerance=JPEG_TOLERANCE if name.endswith(".jpg") else 0,
            array=arrays[index],
            probabilities={variant: row[index] for variant, row in rows.items()},
            familiarity={variant: round(float(found[index]), 5) for variant, found in familiarity.items()},
        )
        for index, name in enumerate(files)
    )
    for name, content in files.items():
        write_file(folder / name, content)
    # A line a value would make 9,000 lines: one line a picture, and any JSON reader takes it.
    lines = ",\n".join(json.dumps(picture.as_json(), separators=(",", ":")) for picture in pictures)
    write_file(folder / GOLDEN_PICTURES, f'{{"pictures":[\n{lines}\n]}}\n'.encode())
    return pictures


def parse(text: str, contract: Contract) -> tuple[GoldenPicture, ...]:
    """Read golden.json's text, strictly.

    Raises:
        ValueError: it is not JSON, or a field is missing, unknown, of another type or not as the contract says.
    """
    values = json.loads(text, object_pairs_hook=unique_names, parse_constant=refuse_constant)
    try:
        pictures = tuple(_picture(entry, contract) for entry in values.pop("pictures"))
        if values or not pictures or len({picture.file for picture in pictures}) != len(pictures):
            raise ValueError("it has no pictures, one twice, or other fields")
    except (LookupError, TypeError, AttributeError, OverflowError) as error:
        raise ValueError(f"it lacks a field or has one of another type ({error})") from None
    return pictures


def _picture(entry: dict[str, Any], contract: Contract) -> GoldenPicture:
    scores = entry.get("familiarity", {})
    if sorted(entry.keys() - {"familiarity"}) != ["array", "file", "probabilities", "shape", "tolerance"]:
        raise ValueError("a picture has other fields")
    if not re.fullmatch(PLAIN_NAME, entry["file"]):
        raise ValueError(f"{entry['file']!r} is not a plain name")
    if type(entry["tolerance"]) is not int or not 0 <= entry["tolerance"] <= 255:
        raise ValueError(f"the tolerance of {entry['file']} is not 0 to 255")
    flat = entry["array"]
    if entry["shape"] != list(contract.picture_shape) or len(flat) != np.prod(contract.picture_shape):
        raise ValueError(f"the array of {entry['file']} is not {list(contract.picture_shape)}")
    if any(type(value) is not int or not 0 <= value <= 255 for value in flat):
        raise ValueError(f"the array of {entry['file']} holds values that are not 0 to 255")
    rows = {str(name): np.array(row, np.float32) for name, row in entry["probabilities"].items()}
    if any(row.shape != (contract.classes,) for row in rows.values()):
        raise ValueError(f"the probabilities of {entry['file']} are not of {contract.classes} classes")
    if any(type(score) not in (int, float) for score in scores.values()):
        raise ValueError(f"a familiarity of {entry['file']} is no number")
    familiarity = {str(name): float(score) for name, score in scores.items()}
    array = np.array(flat, np.uint8).reshape(contract.picture_shape)
    return GoldenPicture(entry["file"], entry["tolerance"], array, rows, familiarity)
