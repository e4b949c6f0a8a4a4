"""Draws pictures of four shapes, a folder a class, to try training on own pictures with.

    python scripts/draw_shapes.py FOLDER [--each 200] [--seed 0]

FOLDER must not be there: pictures of an earlier call would be trained on, too. It appears whole or not at all.
The shapes have a random place, size, angle and colour on a ground of blurred patches and noise. The same pixels come
out every time.
"""

from __future__ import annotations

import argparse
import math
import sys
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw

from edgecifar.runtime.errors import EdgecifarError
from edgecifar.runtime.files import new_folder

CORNERS = {"circle": 60, "square": 4, "star": 10, "triangle": 3}
"""The corners of each shape; every other one of a star is nearer to its middle."""

WIDTH, HEIGHT = 96, 72
"""Pixels of a picture: not square, as a camera's are not."""

ENLARGED = 4
"""A shape is painted so many times larger, so that scaling down smooths its edges."""


def draw(rng: np.random.Generator, shape: str) -> Image.Image:
    """Return a picture of a shape, RGB."""
    patches = Image.fromarray(rng.integers(60, 196, (4, 5, 3), np.uint8))
    ground = np.asarray(patches.resize((WIDTH, HEIGHT), Image.Resampling.BICUBIC), float)
    colour = rng.choice([0, 255], 3)
    middle = rng.uniform(0.35, 0.65) * WIDTH, rng.uniform(0.35, 0.65) * HEIGHT
    radius, turn, corners = rng.uniform(12, 26), rng.uniform(0, math.tau), CORNERS[shape]
    mask = Image.new("L", (WIDTH * ENLARGED, HEIGHT * ENLARGED))
    points = []
    for corner in range(corners):
        angle = turn + math.tau * corner / corners
        length = radius * (0.45 if shape == "star" and corner % 2 else 1) * ENLARGED
        points.append(
            (middle[0] * ENLARGED + length * math.cos(angle), middle[1] * ENLARGED + length * math.sin(angle))
        )
    ImageDraw.Draw(mask).polygon(points, fill=255)
    share = np.asarray(mask.resize((WIDTH, HEIGHT), Image.Resampling.BOX), float)[..., None] / 255
    pixels = ground + share * (colour - ground) + rng.normal(0, 15, (HEIGHT, WIDTH, 3))
    return Image.fromarray(pixels.clip(0, 255).astype(np.uint8))


def write(folder: Path, each: int, seed: int) -> None:
    """Draw `each` pictures of each shape into the new folder `folder`.

    Raises:
        EdgecifarError: it is there already, or cannot be written.
    """
    rng = np.random.default_rng(seed)
    with new_folder(folder) as staged:
        for shape in CORNERS:
            (staged / shape).mkdir()
            for number in range(each):
                draw(rng, shape).save(staged / shape / f"{number:04}.png")


def main() -> None:
    """Draw what the command line asks for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--each", type=int, default=200, help="pictures of each shape (default: 200)")
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args()
    if given.each < 1 or given.seed < 0:
        parser.error("--each must be at least 1, and --seed at least 0")
    if given.folder.exists():
        sys.exit(f"draw_shapes.py: {given.folder} exists already: choose another folder, or delete it first.")
    try:
        write(given.folder, given.each, given.seed)
    except EdgecifarError as error:
        sys.exit(f"draw_shapes.py: {error}")


if __name__ == "__main__":
    main()
