"""Pictures of other things, on which `unknown.py` measures: which kinds there are, and how they are made.

Two sets that share no kind: scores are chosen by `TUNING`, and what is reported is of `REPORTED`. Both were committed
before the first measurement. None of them shows an animal or a vehicle, which CIFAR-10's classes are.

Stamps are those of Debian's package tuxpaint-stamps-default, emoji those of fonts-noto-color-emoji; all else is drawn
here, the same for the same seed. Every picture becomes the net's input by the contract, as `predict` does it.
"""

from __future__ import annotations

import math
import string
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from edgecifar import EdgecifarError, load_picture
from edgecifar.runtime.contract import Contract

STAMPS = Path("/usr/share/tuxpaint/stamps")
"""Where tuxpaint-stamps-default puts its pictures."""

EMOJI = Path("/usr/share/fonts/truetype/noto/NotoColorEmoji.ttf")
"""Where fonts-noto-color-emoji puts its font."""

EMOJI_SIZE = 109
"""The only size, in pixels, that the emoji font has."""

CANVAS = 128
"""Pixels of a side at which pictures are drawn, before the contract scales them."""

DRAWN = 300
"""So many pictures are drawn of a kind."""

Draw = Callable[[np.random.Generator], Image.Image]
"""Draws one picture."""


@dataclass(frozen=True)
class Kind:
    """A kind of pictures.

    Attributes:
        name: of the kind.
        make: maps a contract to its pictures, uint8 [N, size, size, 3].
        found: whether others made the pictures; else this file draws them, some with the tools that `export.outliers`
            draws with, which makes them easier.
    """

    name: str
    make: Callable[[Contract], np.ndarray]
    found: bool = False


def stamps(contract: Contract, folders: tuple[str, ...]) -> np.ndarray:
    """Return the PNG stamps in `folders` of `STAMPS`, in the order of their names, uint8 [N, size, size, 3].

    Raises:
        EdgecifarError: the package is not installed.
    """
    paths = [path for folder in folders for path in sorted((STAMPS / folder).rglob("*.png"))]
    if not paths:
        raise EdgecifarError(f"{STAMPS} holds no stamps: apt-get install tuxpaint-stamps-default.")
    return np.stack([load_picture(path, contract) for path in paths])


def emoji(contract: Contract, ranges: tuple[tuple[int, int], ...]) -> np.ndarray:
    """Return the emoji of `ranges` of code points, first and last, on white, uint8 [N, size, size, 3].

    Raises:
        EdgecifarError: the font is not installed.
    """
    try:
        font = ImageFont.truetype(str(EMOJI), EMOJI_SIZE)
    except OSError:
        raise EdgecifarError(f"{EMOJI} is not there: apt-get install fonts-noto-color-emoji.") from None
    found = []
    for code in (code for first, last in ranges for code in range(first, last + 1)):
        canvas = Image.new("RGBA", (136, 128), (255, 255, 255, 255))
        ImageDraw.Draw(canvas).text((0, 0), chr(code), font=font, embedded_color=True)
        if canvas.getextrema() != ((255, 255),) * 4:  # the font may lack one
            found.append(load_picture(canvas, contract))
    return np.stack(found)


def drawn(contract: Contract, draw: Draw, seed: int) -> np.ndarray:
    """Return `DRAWN` pictures, uint8 [N, size, size, 3]."""
    rng = np.random.default_rng(seed)
    return np.stack([load_picture(draw(rng), contract) for _ in range(DRAWN)])


def _colour(rng: np.random.Generator) -> tuple[int, int, int]:
    red, green, blue = rng.integers(0, 256, 3).tolist()
    return red, green, blue


def _canvas(rng: np.random.Generator) -> tuple[Image.Image, ImageDraw.ImageDraw]:
    image = Image.new("RGB", (CANVAS, CANVAS), _colour(rng))
    return image, ImageDraw.Draw(image)


def _picture(values: np.ndarray) -> Image.Image:
    """Return float [H, W, 3] as a picture, cut off at 0 and 255."""
    return Image.fromarray(np.clip(np.rint(values), 0, 255).astype(np.uint8))


def _mixed(share: np.ndarray, rng: np.random.Generator) -> Image.Image:
    """Return a picture between two random colours, of which `share`, float [H, W] in 0 to 1, is the second."""
    one, other = (np.array(_colour(rng), float) for _ in range(2))
    return _picture(one + share[..., None] * (other - one))


def simple_shapes(rng: np.random.Generator) -> Image.Image:
    """Draw one to four discs, rectangles or triangles on a plain ground."""
    image, pen = _canvas(rng)
    for _ in range(rng.integers(1, 5)):
        x, y, radius = (*rng.uniform(20, CANVAS - 20, 2), rng.uniform(10, 45))
        kind, colour = rng.integers(3), _colour(rng)
        if kind == 0:
            pen.ellipse((x - radius, y - radius, x + radius, y + radius), fill=colour)
        elif kind == 1:
            height = radius * rng.uniform(0.4, 1)
            pen.rectangle((x - radius, y - height, x + radius, y + height), fill=colour)
        else:
            pen.regular_polygon((x, y, radius), 3, rotation=int(rng.integers(360)), fill=colour)
    return image


def stars_and_wheels(rng: np.random.Generator) -> Image.Image:
    """Draw a colour wheel, a star, a spiral or rings."""
    image, pen = _canvas(rng)
    x, y, radius, kind = *rng.uniform(48, CANVAS - 48, 2), rng.uniform(30, 60), rng.integers(4)
    if kind == 0:
        parts = int(rng.integers(3, 13))
        for part in range(parts):
            angles = 360 * part / parts, 360 * (part + 1) / parts
            pen.pieslice((x - radius, y - radius, x + radius, y + radius), *angles, fill=_colour(rng))
    elif kind == 1:
        points, turn = 2 * int(rng.integers(4, 10)), rng.uniform(0, 2 * math.pi)
        corners = [
            (x + r * math.cos(a), y + r * math.sin(a))
            for r, a in ((radius * (1 - 0.5 * (i % 2)), turn + 2 * math.pi * i / points) for i in range(points))
        ]
        pen.polygon(corners, fill=_colour(rng))
    elif kind == 2:
        turns, angles = rng.uniform(2, 6), np.linspace(0, 1, 300)
        line = [
            (x + radius * t * math.cos(2 * math.pi * turns * t), y + radius * t * math.sin(2 * math.pi * turns * t))
            for t in angles.tolist()
        ]
        pen.line(line, fill=_colour(rng), width=int(rng.integers(3, 9)))
    else:
        for share in np.linspace(1, 0.1, int(rng.integers(3, 9))).tolist():
            r = radius * share
            pen.ellipse((x - r, y - r, x + r, y + r), fill=_colour(rng))
    return image


def stripes_and_checks(rng: np.random.Generator) -> Image.Image:
    """Draw stripes at any angle, or a chequered pattern."""
    y, x = np.mgrid[:CANVAS, :CANVAS] / CANVAS
    angle, waves = rng.uniform(0, math.pi), rng.uniform(2, 14)
    along, across = x * math.cos(angle) + y * math.sin(angle), y * math.cos(angle) - x * math.sin(angle)
    pattern = np.sin(2 * math.pi * waves * along)
    if rng.integers(2):
        pattern = pattern * np.sin(2 * math.pi * waves * across)
    return _mixed((pattern > 0).astype(float) if rng.integers(2) else (pattern + 1) / 2, rng)


def _turbulence(rng: np.random.Generator, falling: float) -> np.ndarray:
    """Return smooth noise in 0 to 1, float [CANVAS, CANVAS], whose amplitude falls with a power of the frequency."""
    frequency = np.hypot(np.fft.fftfreq(CANVAS)[:, None], np.fft.rfftfreq(CANVAS)[None])
    frequency[0, 0] = 1
    spectrum = np.fft.rfft2(rng.normal(size=(CANVAS, CANVAS))) / frequency**falling
    spectrum[0, 0] = 0
    values = np.fft.irfft2(spectrum, s=(CANVAS, CANVAS))
    return (values - values.min()) / np.ptp(values)


def natural_textures(rng: np.random.Generator) -> Image.Image:
    """Draw something like cells, marble or wood."""
    y, x = np.mgrid[:CANVAS, :CANVAS] / CANVAS
    kind = rng.integers(3)
    if kind == 0:
        seeds = rng.uniform(0, 1, (int(rng.integers(8, 60)), 2))
        away = np.sort(np.hypot(x[..., None] - seeds[:, 0], y[..., None] - seeds[:, 1]), axis=2)
        return _mixed(np.clip((away[..., 1] - away[..., 0]) * rng.uniform(5, 20), 0, 1), rng)
    bent = rng.uniform(1, 4) * _turbulence(rng, 1.7)
    if kind == 1:
        return _mixed((np.sin(2 * math.pi * (rng.uniform(1, 5) * (x + y) + bent)) + 1) / 2, rng)
    rings = np.hypot(x - rng.uniform(-1, 0), (y - rng.uniform(0, 1)) / 3)
    return _mixed((rng.uniform(5, 15) * rings + bent) % 1, rng)


def uniform_noise(rng: np.random.Generator) -> Image.Image:
    """Draw each value of each pixel by itself, or of squares of 2 to 8 pixels."""
    square = 4 * int(rng.integers(1, 3))  # at CANVAS pixels; the contract shrinks them
    values = rng.integers(0, 256, (CANVAS // square, CANVAS // square, 3))
    return _picture(values.repeat(square, 0).repeat(square, 1).astype(float))


def other_noise(rng: np.random.Generator) -> Image.Image:
    """Draw noise whose amplitude falls with frequency, normal noise around a colour, or salt and pepper."""
    kind = rng.integers(3)
    if kind == 0:
        falling = rng.uniform(0.7, 1.6)
        return _picture(255 * np.stack([_turbulence(rng, falling) for _ in range(3)], 2))
    coarse = CANVAS // 4
    if kind == 1:
        values = np.array(_colour(rng)) + rng.normal(0, rng.uniform(20, 80), (coarse, coarse, 3))
    else:
        share = rng.uniform(0, 1, (coarse, coarse))
        spots = rng.uniform(0.05, 0.3)
        values = np.where((share < spots)[..., None], 0.0, np.array(_colour(rng), float))
        values = np.where((share > 1 - spots)[..., None], 255.0, values)
    return _picture(values.repeat(4, 0).repeat(4, 1))


def _words(rng: np.random.Generator, letters: str) -> str:
    return " ".join("".join(rng.choice(list(letters), rng.integers(2, 9))) for _ in range(40))


def _written(rng: np.random.Generator, letters: str, size: tuple[int, int], ink: tuple[int, int, int]) -> Image.Image:
    """Return lines of random words, `size` the smallest and largest height of a letter in pixels."""
    image, pen = _canvas(rng)
    height = int(rng.integers(*size))
    font = ImageFont.load_default(height)
    for y in range(int(rng.integers(0, 10)), CANVAS, int(height * 1.25)):
        pen.text((int(rng.integers(-20, 4)), y), _words(rng, letters), font=font, fill=ink)
    return image


def lower_case(rng: np.random.Generator) -> Image.Image:
    """Write lines of small letters in any colours."""
    return _written(rng, string.ascii_lowercase, (12, 40), _colour(rng))


def figures_and_signs(rng: np.random.Generator) -> Image.Image:
    """Write black or white lines of figures, capitals and signs, or one large sign."""
    ink = (0, 0, 0) if rng.integers(2) else (255, 255, 255)
    letters = string.digits + string.ascii_uppercase + "&%?!#@+=*"
    if rng.integers(2):
        return _written(rng, letters, (12, 40), ink)
    image, pen = _canvas(rng)
    pen.text((CANVAS // 2, CANVAS // 2), str(rng.choice(list(letters))), ink, ImageFont.load_default(100), anchor="mm")
    return image


def gradients(rng: np.random.Generator) -> Image.Image:
    """Draw two colours that pass into one another, along a line or around a point."""
    y, x = np.mgrid[:CANVAS, :CANVAS] / (CANVAS - 1)
    if rng.integers(2):
        angle = rng.uniform(0, 2 * math.pi)
        share = x * math.cos(angle) + y * math.sin(angle)
    else:
        share = np.hypot(x - rng.uniform(0, 1), y - rng.uniform(0, 1))
    return _mixed((share - share.min()) / np.ptp(share), rng)


TUNING = (
    Kind("stamps: clothes", partial(stamps, folders=("clothes",)), found=True),
    Kind("stamps: hobbies, medicine, space", partial(stamps, folders=("hobbies", "medical", "space")), found=True),
    Kind("emoji: celebrations, objects", partial(emoji, ranges=((0x1F380, 0x1F393), (0x1F4A0, 0x1F4FF))), found=True),
    Kind("shapes: discs, rectangles, triangles", partial(drawn, draw=simple_shapes, seed=1)),
    Kind("textures: stripes, checks", partial(drawn, draw=stripes_and_checks, seed=2)),
    Kind("text: small letters", partial(drawn, draw=lower_case, seed=3)),
    Kind("noise: uniform", partial(drawn, draw=uniform_noise, seed=4)),
)
"""By these kinds a score is chosen, and its settings."""

SYMBOLS = ("alphabets", "faces", "math", "money", "music", "shapes")
"""Folders of the stamps' symbols; the chess men are left out, as knights are horses."""

REPORTED = (
    Kind("stamps: food", partial(stamps, folders=("food",)), found=True),
    Kind("stamps: household", partial(stamps, folders=("household",)), found=True),
    Kind("stamps: plants", partial(stamps, folders=("plants",)), found=True),
    Kind("stamps: symbols", partial(stamps, folders=tuple(f"symbols/{name}" for name in SYMBOLS)), found=True),
    Kind("emoji: food, plants, faces", partial(emoji, ranges=((0x1F330, 0x1F37F), (0x1F600, 0x1F637))), found=True),
    Kind("shapes: stars, wheels, spirals", partial(drawn, draw=stars_and_wheels, seed=11)),
    Kind("textures: cells, marble, wood", partial(drawn, draw=natural_textures, seed=12)),
    Kind("text: figures, capitals, signs", partial(drawn, draw=figures_and_signs, seed=13)),
    Kind("noise: smooth, normal, spots", partial(drawn, draw=other_noise, seed=14)),
    Kind("gradients", partial(drawn, draw=gradients, seed=15)),
)
"""Of these kinds is what is reported; nothing is chosen by them."""
