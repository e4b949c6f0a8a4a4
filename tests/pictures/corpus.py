"""Valid pictures of every kind, drawn here, and which pixels are right; most are not written by Pillow.

    python tests/pictures/corpus.py             prints the table of what load_picture makes of them
    python tests/pictures/corpus.py --write     writes it into docs/pictures.md
    python tests/pictures/corpus.py --save DIR  writes the files, to look at

The picture is 37 x 32, so that a row is no whole number of words and a turned one is found; the contract's 32 pixels
crop it without scaling. Truth is the drawing itself; OpenCV, tifffile and imagecodecs decode the same bytes where
they follow the same rule.
"""

from __future__ import annotations

import argparse
import functools
import re
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from edgecifar.runtime.contract import CIFAR10
from edgecifar.runtime.errors import PictureError
from edgecifar.runtime.pictures import load_picture

WIDTH, HEIGHT = 37, 32
CROP = slice(2, 34)


@dataclass(frozen=True)
class Variant:
    """A valid picture.

    Attributes:
        format: a row of the table.
        name: unique in the format.
        encoder: what wrote it.
        data: the file.
        expected: the right pixels of the whole picture, uint8 [height, width, 3]; None where it is to be refused.
        refusal: a word of the reason that it is refused for.
        most: how far a pixel may be off, of 255.
        mean: how far pixels may be off on average where the format is lossy; then `most` does not count.
        judge: decodes `data` to right pixels as another library has it, where that follows the same rule.
        judged: how far a pixel may be off that; on average where the format is lossy.
    """

    format: str
    name: str
    encoder: str
    data: bytes
    expected: np.ndarray | None
    refusal: str = ""
    most: int = 0
    mean: float | None = None
    judge: Callable[[bytes], np.ndarray] | None = None
    judged: float = 1

    @property
    def title(self) -> str:
        return f"{self.format}: {self.name} ({self.encoder})"


def drawn() -> np.ndarray:
    """Draw the picture: gradients, and shapes that look different in each of the eight orientations."""
    y, x = np.mgrid[0:HEIGHT, 0:WIDTH]
    pixels = np.stack([40 + 5 * x, 60 + 5 * y, 200 - 3 * x - 2 * y], axis=-1).clip(0, 255)
    pixels[4:10, 5:12] = (230, 30, 40)
    pixels[18:30, 6:10] = (20, 190, 60)
    pixels[6:9, 24:33] = (250, 250, 240)
    pixels[22:28, 20:33] = (10, 20, 90)
    return pixels.astype(np.uint8)


RGB = drawn()
GREY = RGB[..., 1].copy()
GREY_RGB = np.repeat(GREY[..., None], 3, axis=2)
ALPHA = ((np.mgrid[0:HEIGHT, 0:WIDTH][1] * 11) % 256).astype(np.uint8)
WHITE = np.uint8(255)


def levels(bits: int) -> np.ndarray:
    """Return the grey picture in `bits` bits."""
    return (
        (GREY.astype(np.uint32) >> (8 - bits)).astype(np.uint32) if bits <= 8 else GREY.astype(np.uint32) << (bits - 8)
    )


def grey_of(numbers: np.ndarray, bits: int) -> np.ndarray:
    """Return numbers of up to 8 bits as the RGB that they mean."""
    return np.repeat(np.rint(numbers * (255 / ((1 << bits) - 1))).astype(np.uint8)[..., None], 3, axis=2)


def palette(size: int) -> np.ndarray:
    """Return `size` colours, [size, 3]."""
    return np.random.default_rng(size).integers(0, 256, (size, 3), dtype=np.uint8)


def over_white(pixels: np.ndarray, alpha: np.ndarray) -> np.ndarray:
    """Lay pixels over white."""
    share = alpha[..., None].astype(float) / 255
    return np.rint(pixels * share + 255 * (1 - share)).astype(np.uint8)


def where_seen(pixels: np.ndarray, seen: np.ndarray) -> np.ndarray:
    """Return pixels where they are seen, and white elsewhere."""
    return np.where(seen[..., None], pixels, WHITE)


def stored(upright: np.ndarray, orientation: int) -> np.ndarray:
    """Return what is stored of a picture that EXIF's orientation turns upright."""
    turned = (
        upright,
        upright[:, ::-1],
        upright[::-1, ::-1],
        upright[::-1],
        upright.swapaxes(0, 1),
        np.rot90(upright, 1),
        np.rot90(upright, 2).swapaxes(0, 1),
        np.rot90(upright, -1),
    )
    return np.ascontiguousarray(turned[orientation - 1])


def opencv(data: bytes) -> np.ndarray:
    """Decode by OpenCV: 8-bit colour, turned upright, alpha dropped."""
    import cv2

    decoded = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR)
    assert decoded is not None, "OpenCV cannot read it"
    return np.ascontiguousarray(decoded[..., ::-1])


@functools.cache
def variants() -> tuple[Variant, ...]:
    """Draw the corpus."""
    import lossless
    import lossy
    import simple
    import tiffs

    found = tuple(variant for module in (lossless, simple, lossy, tiffs) for variant in module.variants())
    names = [variant.title for variant in found]
    assert len(names) == len(set(names)), sorted(name for name in set(names) if names.count(name) > 1)
    return found


def outcome(variant: Variant) -> tuple[str, str]:
    """Load a variant: "read", "refused", "wrong" or "damaged", and what was seen."""
    try:
        pixels = load_picture(variant.data, CIFAR10)
    except PictureError as error:
        said = str(error)
        if "damaged" in said:
            return "damaged", f"{said} {error.__cause__!r}"
        if variant.expected is None and variant.refusal in said:
            return "refused", said
        return "wrong", f"refused: {said}"
    if variant.expected is None:
        return "wrong", "it was read"
    wide = variant.expected.shape[1] >= variant.expected.shape[0]
    expected = variant.expected[:, CROP] if wide else variant.expected[CROP]
    return compared(pixels, expected, variant.most, variant.mean)


def compared(pixels: np.ndarray, expected: np.ndarray, most: float, mean: float | None) -> tuple[str, str]:
    """Hold pixels against the right ones."""
    off = np.abs(pixels.astype(int) - expected)
    seen = f"off by {off.max()} at most, {off.mean():.2f} on average"
    return ("read" if (off.mean() <= mean if mean is not None else off.max() <= most) else "wrong"), seen


def judged(variant: Variant) -> tuple[str, str]:
    """Hold what load_picture reads against what the independent reader does."""
    assert variant.judge is not None
    pixels = load_picture(variant.data, CIFAR10)
    other = variant.judge(variant.data)
    lossy = variant.mean is not None
    return compared(pixels, other[:, CROP], variant.judged, variant.judged if lossy else None)


COLUMNS = ("read", "refused", "wrong", "damaged")


@functools.cache
def results() -> tuple[tuple[Variant, str, str, str], ...]:
    """Load every variant: what came of it, what was seen, what the independent reader says ("" where none is asked)."""
    found = []
    for variant in variants():
        came, seen = outcome(variant)
        elsewhere = ""
        if came == "read" and variant.judge is not None:
            try:
                same, off = judged(variant)
            except Exception as error:  # whatever another library raises
                same, off = "unread", repr(error)
            elsewhere = "equal" if same == "read" else off
        found.append((variant, came, seen, elsewhere))
    return tuple(found)


def table() -> str:
    """Return the table of outcomes, as Markdown."""
    lines = [
        "| format | variants | not by Pillow | read right | refused truly | wrong | called damaged | equal elsewhere |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for name in [*dict.fromkeys(variant.format for variant in variants()), "all"]:
        rows = [row for row in results() if name in (row[0].format, "all")]
        others = sum(variant.encoder != "Pillow" for variant, *_ in rows)
        outcomes = [came for _, came, _, _ in rows]
        counts = " | ".join(f"{outcomes.count(column)}" for column in COLUMNS)
        lines.append(f"| {name} | {len(rows)} | {others} | {counts} | {sum(row[3] == 'equal' for row in rows)} |")
    return "\n".join(lines)


def failures(name: str | None = None) -> Iterator[str]:
    """Say what is not as it must be, of one format or of all."""
    for variant, came, seen, elsewhere in results():
        if name not in (None, variant.format):
            continue
        if came not in ("read", "refused"):
            yield f"{variant.title}: {came}, {seen}"
        if elsewhere not in ("", "equal"):
            yield f"{variant.title}: the other reader differs, {elsewhere}"


BEGIN, END = "<!-- the corpus's table begins -->", "<!-- the corpus's table ends -->"


def main() -> int:
    """Print the table and what fails."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--write", action="store_true", help="write the table into docs/pictures.md")
    parser.add_argument("--save", type=Path, help="write the pictures into this folder")
    options = parser.parse_args()
    if options.save:
        options.save.mkdir(parents=True, exist_ok=True)
        for variant in variants():
            (options.save / re.sub(r"[^\w.-]+", "_", variant.title)).write_bytes(variant.data)
    made = table()
    print(made)  # noqa: T201
    if options.write:
        page = Path(__file__).parents[2] / "docs" / "pictures.md"
        before, rest = page.read_text().split(BEGIN)
        page.write_text(f"{before}{BEGIN}\n{made}\n{END}{rest.split(END)[1]}")
    wrong = list(failures())
    print(*wrong, sep="\n", file=sys.stderr)  # noqa: T201
    return int(bool(wrong))


if __name__ == "__main__":
    sys.modules["corpus"] = sys.modules["__main__"]  # the modules of variants import it by this name
    sys.exit(main())
