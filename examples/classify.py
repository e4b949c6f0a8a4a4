"""Classify pictures with a bundle, without edgecifar: NumPy, Pillow (which decodes only) and onnxruntime.

    python classify.py BUNDLE PICTURE...    print the class of each picture
    python classify.py BUNDLE               prove the preprocessing on the bundle's golden PNG pictures

docs/contract.md has the formulas.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np
import onnxruntime
from PIL import Image

BITS = 22  # of a filter weight's fraction
TURN = {  # by EXIF orientation
    2: lambda x: x[:, ::-1],
    3: lambda x: x[::-1, ::-1],
    4: lambda x: x[::-1],
    5: lambda x: x.transpose(1, 0, 2),
    6: lambda x: x.transpose(1, 0, 2)[:, ::-1],
    7: lambda x: x[::-1, ::-1].transpose(1, 0, 2),
    8: lambda x: x.transpose(1, 0, 2)[::-1],
}


def decode(file: Path, behind: list[int]) -> np.ndarray:
    """Return the picture upright and over `behind`, int64 [height, width, 3]."""
    with Image.open(file) as image:
        known = image.format in ("PNG", "JPEG", "MPO") and image.mode in ("1", "L", "LA", "P", "RGB", "RGBA")
        image.load()
        key = "transparency" in image.info and image.mode != "P"  # Pillow compares it at another depth than the file's
        curved = abs(image.info.get("gamma", 1 / 2.2) * 2.2 - 1) > 0.05 or b"cICP" in file.read_bytes()
        if not known or key or curved:
            raise SystemExit(f"This example does not read this kind of picture: make {file} an 8-bit PNG or JPEG.")
        orientation = image.getexif().get(0x0112, 1)
        rgba = np.array(image.convert("RGBA"), np.int64)
    alpha = rgba[..., 3:]
    mixed = np.array(behind) * (255 - alpha) + rgba[..., :3] * alpha + 128
    return TURN.get(orientation, lambda x: x)((mixed + (mixed >> 8)) >> 8)  # divided by 255 and rounded


def average(picture: np.ndarray, rows: int, columns: int) -> np.ndarray:
    """Average blocks of rows x columns pixels; those over an edge average the pixels that they have."""
    if rows == columns == 1:
        return picture
    height, width, _ = picture.shape
    tops, lefts = range(0, height, rows), range(0, width, columns)
    sums = np.add.reduceat(np.add.reduceat(picture, tops, axis=0), lefts, axis=1)
    counts = np.diff([*tops, height])[:, None, None] * np.diff([*lefts, width])[None, :, None]
    return (sums + counts // 2) * (2**24 // counts) >> 24


def weights(length: int, extent: float, out: int, a: float) -> np.ndarray:
    """Return the weights by which `length` pixels, of which `extent` count, become `out`: int64 [out, length]."""
    ratio = float(np.float32(extent)) / out
    spread = max(ratio, 1)
    made = np.zeros((out, length), np.int64)
    for index in range(out):
        centre = (index + 0.5) * ratio
        first = max(int(centre - 2 * spread + 0.5), 0)
        end = min(int(centre + 2 * spread + 0.5), length)
        x = np.abs((np.arange(first, end) - centre + 0.5) * (1 / spread))
        near, far = ((a + 2) * x - (a + 3)) * x * x + 1, (((x - 5) * x + 8) * x - 4) * a
        values = np.where(x < 1, near, np.where(x < 2, far, 0))
        values = values / values.sum() * 2**BITS
        made[index, first:end] = np.trunc(values + np.copysign(0.5, values))
    return made


def scale(picture: np.ndarray, width: int, height: int, steps: dict) -> np.ndarray:
    """Scale by the contract's filter: blocks first, then across, then down, each rounded to 8 bits."""
    a, gap = steps["filter"]["a"], steps["filter"]["reducing_gap"]
    high, wide, _ = picture.shape
    rows, columns = int(high / height / gap) or 1, int(wide / width / gap) or 1
    picture = average(picture, rows, columns)
    if picture.shape[1] != width or columns > 1:
        across = weights(picture.shape[1], wide / columns, width, a)
        picture = (np.einsum("hwc,ow->hoc", picture, across) + (1 << BITS - 1) >> BITS).clip(0, 255)
    if picture.shape[0] != height or rows > 1:
        down = weights(picture.shape[0], high / rows, height, a)
        picture = (np.einsum("hwc,oh->owc", picture, down) + (1 << BITS - 1) >> BITS).clip(0, 255)
    return picture


def prepare(file: Path, contract: dict) -> np.ndarray:
    """Return a picture as the model's input, uint8 [size, size, 3]."""
    size, steps = contract["input"]["shape"][1], contract["preprocessing"]
    if steps["decoding"] != 1 or steps["filter"]["name"] != "bicubic":
        raise SystemExit("This example does not know the bundle's preprocessing.")
    picture = decode(file, steps["transparency"])
    height, width, _ = picture.shape
    if steps["fit"] == "pad":
        w, h = (max(1, round(size * side / max(width, height))) for side in (width, height))
        square = np.full((size, size, 3), steps["padding"])
        top, left = (size - h) // 2, (size - w) // 2
        square[top : top + h, left : left + w] = scale(picture, w, h, steps)
    else:
        if steps["fit"] == "crop":
            side = min(width, height)
            top, left = (height - side) // 2, (width - side) // 2
            picture = picture[top : top + side, left : left + side]
        square = scale(picture, size, size, steps)
    return square.astype(np.uint8)


def main(folder: Path, files: list[Path]) -> int:
    """Classify the files, or the golden pictures; return the exit code."""
    manifest = json.loads((folder / "manifest.json").read_text(encoding="utf-8"))
    if manifest["schema"] != 2:
        raise SystemExit(f"This example reads bundles of schema 2, not {manifest['schema']}.")
    contract = manifest["contract"]
    variant = next(entry for entry in manifest["variants"] if entry["name"] == manifest["default_variant"])
    session = onnxruntime.InferenceSession(folder / variant["file"], providers=["CPUExecutionProvider"])
    name, outputs = contract["input"]["name"], [output["name"] for output in contract["outputs"]]
    threshold = variant.get("familiarity", {}).get("threshold", -np.inf)  # without one the model cannot tell

    for file in files:
        found = [np.array(array)[0] for array in session.run(outputs, {name: prepare(file, contract)[None]})]
        row, unknown = found[0], len(found) > 2 and found[2] < threshold
        note = ", but unlike the training pictures" if unknown else ""
        print(f"{file}: {contract['labels'][row.argmax()]} {row.max():.1%}{note}")
    if files:
        return 0

    wrong = 0
    pictures = json.loads((folder / "golden.json").read_text(encoding="utf-8"))["pictures"]
    for golden in (entry for entry in pictures if entry["file"].endswith(".png")):
        image = prepare(folder / golden["file"], contract)
        pixels = np.abs(image.ravel().astype(int) - golden["array"]).max()
        row = np.array(session.run(outputs, {name: image[None]})[0])[0]
        difference = np.abs(row - golden["probabilities"][variant["name"]]).max()
        good = pixels <= golden["tolerance"] and difference <= variant["golden_tolerance"]
        wrong += not good
        label = contract["labels"][row.argmax()]
        print(f"{golden['file']}: {label}, pixels differ by {pixels}, probabilities by {difference:.0e}", end=" ")
        print("ok" if good else "WRONG")
    return 1 if wrong else 0


if __name__ == "__main__":
    try:
        sys.exit(main(Path(sys.argv[1]), [Path(argument) for argument in sys.argv[2:]]) if sys.argv[1:] else __doc__)
    except OSError as error:  # a file is missing, or no picture
        sys.exit(f"classify.py: {error}")
