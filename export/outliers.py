"""Pictures of nothing: drawn, and made from parts of training pictures, for a score to learn what is unfamiliar.

Nobody has to collect pictures of "others" for that. The same arguments give the same pictures.
"""

from __future__ import annotations

import math
import string
from collections.abc import Callable

import numpy as np
from PIL import Image, ImageDraw, ImageFont

FINE = 2
"""Shapes and letters are drawn at so many times the size, and then shrunk."""

Maker = Callable[[np.ndarray, np.ndarray, np.random.Generator], np.ndarray]
"""Makes one picture, uint8 [size, size, 3], of the training pictures, uint8 [N, size, size, 3], and their labels."""


def outliers(images: np.ndarray, labels: np.ndarray, count: int, seed: int = 0) -> np.ndarray:
    """Return pictures that show none of the classes, uint8 [count, size, size, 3], as many of each of `MAKERS`.

    Args:
        images: training pictures, uint8 [N, size, size, 3].
        labels: integer [N].
        count: how many.
        seed: of all randomness.
    """
    rng = np.random.default_rng(seed)
    return np.stack([MAKERS[index % len(MAKERS)](images, labels, rng) for index in range(count)])


def mixed(images: np.ndarray, labels: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Lay two pictures, of two classes where there is one of another, half and half over one another."""
    one, other = rng.integers(0, len(images), 2).tolist()
    for _ in range(20):
        if labels[one] != labels[other]:
            break
        other = int(rng.integers(len(images)))
    share = rng.uniform(0.4, 0.6)
    return _rounded(share * images[one] + (1 - share) * images[other].astype(float))


def shuffled(images: np.ndarray, labels: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Cut a picture into 2x2, 4x4 or 8x8 squares and lay them in another order; a few pixels at the edge stay."""
    del labels
    picture = images[rng.integers(len(images))].copy()
    parts = min(2 ** int(rng.integers(1, 4)), len(picture) // 2)
    side = len(picture) // parts
    cut = picture[: parts * side, : parts * side].reshape(parts, side, parts, side, 3).swapaxes(1, 2)
    order = rng.permutation(parts * parts)
    laid = cut.reshape(-1, side, side, 3)[order].reshape(parts, parts, side, side, 3).swapaxes(1, 2)
    picture[: parts * side, : parts * side] = laid.reshape(parts * side, parts * side, 3)
    return picture


def enlarged(images: np.ndarray, labels: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Take a fifth of a picture's sides, far too near to tell what it shows."""
    del labels
    picture = images[rng.integers(len(images))]
    size = len(picture)
    side = max(2, size // 5)
    top, left = rng.integers(0, size - side + 1, 2).tolist()
    part = Image.fromarray(picture[top : top + side, left : left + side])
    return np.asarray(part.resize((size, size), Image.Resampling.BICUBIC))


def thing(images: np.ndarray, labels: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Cut a round outline with bulges out of an enlarged picture, a pattern or a colour; lay it on a plain ground."""
    size = images.shape[1]
    y, x = (np.mgrid[:size, :size] - (size - 1) / 2) / (size / 2)
    angle, away = np.arctan2(y, x), np.hypot(x, y * rng.uniform(0.7, 1.6))
    outline = rng.uniform(0.4, 0.9) * np.ones_like(x)
    for waves in range(1, 6):
        outline += rng.normal(0, 0.12 / waves) * np.cos(waves * angle + rng.uniform(0, 2 * math.pi))
    inside = np.clip((outline - away) * size / 2 + 0.5, 0, 1)[..., None]
    filling = (enlarged, pattern, plain)[int(rng.integers(3))](images, labels, rng).astype(float)
    light = 1 - rng.uniform(0, 0.5) * np.hypot(x + 0.4, y + 0.4)[..., None]
    ground = np.full(3, 255.0) if rng.integers(4) else np.array(_colour(rng), float)
    return _rounded(inside * filling * light + (1 - inside) * ground)


def plain(images: np.ndarray, labels: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Return one colour."""
    del labels
    return np.broadcast_to(np.array(_colour(rng), np.uint8), images.shape[1:])


def pattern(images: np.ndarray, labels: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Return stripes or checks, sharp or soft, of two colours."""
    del labels
    size = images.shape[1]
    y, x = np.mgrid[:size, :size] / size
    angle, waves = rng.uniform(0, math.pi), rng.uniform(1, 12)
    wave = np.sin(2 * math.pi * (waves * (x * math.cos(angle) + y * math.sin(angle)) + rng.uniform()))
    if rng.integers(2):
        wave = wave * np.sin(2 * math.pi * waves * (y * math.cos(angle) - x * math.sin(angle)))
    share = (wave > 0).astype(float) if rng.integers(2) else (wave + 1) / 2
    one, other = (np.array(_colour(rng), float) for _ in range(2))
    return _rounded(one + share[..., None] * (other - one))


def squares(images: np.ndarray, labels: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Return squares of 1 to 4 pixels, each of a random colour."""
    del labels
    size, side = images.shape[1], 2 ** int(rng.integers(3))
    values = rng.integers(0, 256, (-(-size // side), -(-size // side), 3), np.uint8)
    return values.repeat(side, 0).repeat(side, 1)[:size, :size]


def shapes(images: np.ndarray, labels: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Draw one to four discs, rectangles or triangles on a plain ground."""
    del labels
    side = FINE * images.shape[1]
    canvas = Image.new("RGB", (side, side), _colour(rng))
    pen = ImageDraw.Draw(canvas)
    for _ in range(rng.integers(1, 5)):
        (x, y), radius = (side * rng.uniform(0.1, 0.9, 2)).tolist(), side * rng.uniform(0.05, 0.4)
        box, colour, kind = (x - radius, y - radius, x + radius, y + radius), _colour(rng), rng.integers(3)
        if kind == 0:
            pen.ellipse(box, fill=colour)
        elif kind == 1:
            pen.rectangle(box, fill=colour)
        else:
            pen.regular_polygon((x, y, radius), 3, rotation=int(rng.integers(360)), fill=colour)
    return _shrunk(canvas)


def letters(images: np.ndarray, labels: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Write lines of random small letters."""
    del labels
    side = FINE * images.shape[1]
    canvas = Image.new("RGB", (side, side), _colour(rng))
    pen, ink, height = ImageDraw.Draw(canvas), _colour(rng), max(6, int(side * rng.uniform(0.1, 0.35)))
    font = ImageFont.load_default(height)
    for y in range(int(rng.integers(height)) - height, side, int(height * 1.25)):
        words = " ".join("".join(rng.choice(list(string.ascii_lowercase), rng.integers(2, 9))) for _ in range(5))
        pen.text((int(rng.integers(-height, height)), y), words, font=font, fill=ink)
    return _shrunk(canvas)


MAKERS: tuple[Maker, ...] = (mixed, shuffled, enlarged, thing, thing, pattern, squares, shapes, letters)
"""What makes the pictures, in turn; one named twice makes twice as many."""


def _colour(rng: np.random.Generator) -> tuple[int, int, int]:
    red, green, blue = rng.integers(0, 256, 3).tolist()
    return red, green, blue


def _rounded(values: np.ndarray) -> np.ndarray:
    return np.clip(np.rint(values), 0, 255).astype(np.uint8)


def _shrunk(canvas: Image.Image) -> np.ndarray:
    return np.asarray(canvas.reduce(FINE))
