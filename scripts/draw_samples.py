"""Draws the sample pictures, one of each class, that `scripts/quickstart` classifies.

They are drawn from scratch with numpy and Pillow: no picture of any data set is in them. Run it from anywhere:

    python scripts/draw_samples.py [FOLDER]

The same pixels come out every time. Positions and lengths are percentages of the picture's central square, from its
upper left corner; colours are RGB from 0 to 255.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw

Colour = tuple[float, float, float]
Field = np.ndarray  # float32 [height, width]: a mask from 0 to 1, or noise

ENLARGED = 2
"""How much larger than the file a picture is painted, so that scaling down smooths it."""

DARK, WHITE, GLASS = (24, 23, 25), (238, 238, 236), (46, 55, 66)
SKY, HAZE, LEAVES, GRASS, ROAD = (150, 186, 218), (202, 213, 219), (90, 112, 74), (122, 142, 80), (134, 132, 130)


def smooth(stations: Sequence[Sequence[float]] | np.ndarray, closed: bool, steps: int = 16) -> np.ndarray:
    """Return the Catmull-Rom curve through `stations`, `steps` to a span; all columns are interpolated alike."""
    p = np.array(stations, float)
    p = np.concatenate([p[-1:], p, p[:2]]) if closed else np.concatenate([p[:1], p, p[-1:]])
    t = np.linspace(0, 1, steps, endpoint=False)[:, None]
    spans = [
        b + t * ((c - a) / 2 + t * ((2 * a - 5 * b + 4 * c - d) / 2 + t * (3 * b - a - 3 * c + d) / 2))
        for a, b, c, d in zip(p, p[1:], p[2:], p[3:], strict=False)
    ]
    return np.concatenate([*spans, p[-2:-1]])


class Canvas:
    """A picture in the making: shapes give masks, and masks are filled with lit and grainy colour."""

    def __init__(self, seed: int, width: int, height: int) -> None:
        self.rng = np.random.default_rng(seed)
        self.final = width, height
        self.size = width * ENLARGED, height * ENLARGED
        self.unit = min(self.size) / 100
        self.origin = np.array([side - min(self.size) for side in self.size]) / 2
        self.y = (np.indices(self.size[::-1])[0] - self.origin[1]) / self.unit
        self.pixels = np.zeros((*self.size[::-1], 3), np.float32)

    def _draw(self, outlines: Sequence[np.ndarray]) -> Field:
        image = Image.new("L", (self.size[0] * 2, self.size[1] * 2))
        pen = ImageDraw.Draw(image)
        for outline in outlines:
            pen.polygon([tuple(point) for point in (outline * self.unit + self.origin) * 2], fill=255)
        return np.asarray(image.reduce(2), np.float32) / 255

    def _outline(self, text: str, flip: bool) -> np.ndarray:
        xy = np.array([pair.split(",") for pair in text.split()], float)
        return (100, 0) + xy * (-1, 1) if flip else xy

    def polygon(self, outline: str, flip: bool = False) -> Field:
        """Return the mask of a shape with straight sides, written as in SVG ("x,y x,y ..."), perhaps mirrored."""
        return self._draw([self._outline(outline, flip)])

    def blob(self, outline: str, flip: bool = False) -> Field:
        """Return the mask of a round shape, written like a polygon; its edge goes through the corners."""
        return self._draw([smooth(self._outline(outline, flip), closed=True)])

    def box(self, x: float, y: float, width: float, height: float) -> Field:
        """Return the mask of a rectangle by its upper left corner."""
        return self._draw([np.array([(x, y), (x + width, y), (x + width, y + height), (x, y + height)])])

    def oval(self, x: float, y: float, width: float, height: float, turn: float = 0) -> Field:
        """Return the mask of an ellipse by its centre and radii, turned clockwise by `turn` degrees."""
        around = np.linspace(0, 2 * np.pi, 90)
        flat = np.stack([width * np.cos(around), height * np.sin(around)], 1)
        c, s = np.cos(np.radians(turn)), np.sin(np.radians(turn))
        return self._draw([flat @ np.array([[c, s], [-s, c]]) + (x, y)])

    def limb(self, *stations: tuple[float, float, float]) -> Field:
        """Return the mask of a bent tube through `stations`, each x, y and radius."""
        around = np.linspace(0, 2 * np.pi, 24, endpoint=False)
        circle = np.stack([np.cos(around), np.sin(around)], 1)
        steps = round(60 / min(r for _, _, r in stations)) + 12
        return self._draw([circle * r + (x, y) for x, y, r in smooth(stations, closed=False, steps=steps)])

    def soften(self, field: Field, radius: float) -> Field:
        """Blur a field by about `radius`."""
        image = Image.fromarray(field.astype(np.float32))
        small = [max(2, round(side / (radius * self.unit))) for side in self.size]
        return np.asarray(image.resize(small, Image.Resampling.HAMMING).resize(self.size, Image.Resampling.BICUBIC))

    def noise(self, size: float, stretch: float = 1) -> Field:
        """Return smooth noise about 0 with deviation 1, its spots `size` high and `stretch` times as wide."""
        total = np.zeros(self.size[::-1], np.float32)
        for octave in (1, 2, 4):
            cell = size * self.unit / octave
            grid = [max(2, round(self.size[1] / cell)), max(2, round(self.size[0] / cell / stretch))]
            spots = Image.fromarray(self.rng.standard_normal(grid).astype(np.float32))
            total += np.asarray(spots.resize(self.size, Image.Resampling.BICUBIC)) / octave**0.7
        return total / total.std()

    def backdrop(self, stops: dict[float, Colour]) -> None:
        """Paint all over with colours that change from top to bottom, each given for a height."""
        for channel, levels in enumerate(zip(*stops.values(), strict=True)):
            self.pixels[:, :, channel] = np.interp(self.y, list(stops), levels)

    def tint(self, mask: Field, colour: Colour, strength: float = 1) -> None:
        """Lay a flat colour over what is there."""
        self.pixels += (mask * strength).clip(0, 1)[:, :, None] * (np.array(colour, np.float32) - self.pixels)

    def mottle(self, mask: Field | float, amount: float, size: float, stretch: float = 1) -> None:
        """Make what is there lighter and darker in spots."""
        self.pixels *= 1 + (mask * amount * self.noise(size, stretch))[:, :, None]

    def fill(
        self, mask: Field, colour: Colour, bulge: float = 0.45, grain: float = 0.05, size: float = 3, stretch: float = 1
    ) -> None:
        """Paint a shape lit from the upper left: `bulge` says how round it looks, `grain` how uneven its colour is."""
        relief = sum(self.soften(mask, radius) for radius in (2, 5, 10))
        down, right = np.gradient(relief, 1 / self.unit)
        lit = 1 + bulge * np.tanh(5 * (0.9 * down + 0.4 * right)) + grain * self.noise(size, stretch)
        self.pixels += mask[:, :, None] * (lit[:, :, None] * np.array(colour, np.float32) - self.pixels)

    def shade(self, mask: Field, strength: float = 0.5, blur: float = 3) -> None:
        """Darken softly, as shadows do."""
        self.pixels *= 1 - strength * self.soften(mask, blur).clip(0, 1)[:, :, None]

    def finish(self) -> Image.Image:
        """Return the picture at its final size, a little soft and noisy like a photograph."""
        image = Image.fromarray(self.pixels.clip(0, 255).astype(np.uint8))
        image = image.resize(self.final, Image.Resampling.HAMMING)
        grain = self.rng.standard_normal((*self.final[::-1], 1)) * 0.7
        return Image.fromarray((np.asarray(image) + grain).clip(0, 255).astype(np.uint8))


def legs(c: Canvas, ankle: float, *pair: tuple[float, float, float]) -> Field:
    """Return the mask of legs, `ankle` thin, each by where its hip, knee and foot are across."""
    shape = (58, 2.6), (75, 1.1), (85, 0.75), (94, 1)
    across = [(hip, knee, foot, foot) for hip, knee, foot in pair]
    legs = [[(x, y, ankle * r) for x, (y, r) in zip(xs, shape, strict=True)] for xs in across]
    return np.maximum.reduce([c.limb(*leg) for leg in legs])


def eye(c: Canvas, x: float, y: float, radius: float) -> None:
    """Paint a dark eye that glints."""
    c.tint(c.oval(x, y, radius, radius), DARK)
    c.tint(c.oval(x - radius * 0.28, y - radius * 0.3, radius * 0.26, radius * 0.26), WHITE)


def wheel(c: Canvas, x: float, y: float, width: float, height: float) -> None:
    """Paint a wheel, by its radii."""
    c.fill(c.oval(x, y, width, height), (34, 34, 36), 0.4)
    c.fill(c.oval(x, y, width * 0.55, height * 0.55), (163, 164, 169), 0.45)


def plane(c: Canvas) -> None:
    """Paint an airliner in the sky, from the side."""
    c.backdrop({0: (72, 128, 196), 100: (164, 200, 232)})
    c.tint((c.noise(22, 2.5) - 0.4) * 0.3, WHITE, 0.7)
    c.fill(c.polygon("60,46 49,46 37,29 42,29"), (150, 156, 166), 0.2)  # the far wing
    c.fill(c.polygon("4,46 1,21 10,21 26,46"), (60, 80, 130), 0.2)
    body = c.blob("97,51 93,47 85,44 60,43 30,43 8,44 2,46 8,49 30,55 60,57 85,57 94,54")
    c.fill(body, (212, 215, 220), 0.4, 0.02)
    c.shade(body * (c.y > 52), 0.25, 2)
    c.tint(c.polygon("88,47 92.5,47.5 93.5,49.5 89,49"), DARK, 0.85)
    for x in np.arange(24, 84, 3.0):
        c.tint(c.oval(x, 48.5, 0.8, 1), (50, 56, 72), 0.8)
    c.fill(c.polygon("14,46 5,46 -3,53 1,54"), (168, 174, 184), 0.3)
    c.fill(c.limb((50, 63, 3.4), (42, 63.5, 2.6)), (120, 126, 138), 0.5)
    c.fill(c.polygon("65,53 45,53 17,77 23,78"), (176, 182, 192), 0.35)


def car(c: Canvas) -> None:
    """Paint a red saloon on a road, from its front left corner."""
    c.backdrop({0: (188, 198, 204), 36: (160, 172, 168), 42: (120, 128, 112), 46: (156, 154, 150), 100: ROAD})
    c.mottle(c.y < 44, 0.12, 12)
    c.mottle(c.y > 46, 0.05, 3, 5)
    c.shade(c.polygon("4,76 44,82 96,68 98,76 50,88 6,84"), 0.7, 4)
    wheel(c, 12, 76, 6, 6)
    body = c.blob("4,60 7,51 20,45 32,31 42,26 64,25 79,29 89,41 97,46 98,58 95,67 80,69 58,75 44,79 24,79 7,76")
    c.fill(body, (178, 26, 26), 0.45, 0.02)
    c.shade(c.polygon("44,54 97,46 98,66 45,80") * body, 0.3, 2)
    c.tint(c.soften(c.polygon("10,50 24,45 52,46 42,52"), 2), (236, 110, 100), 0.7)
    for outline in ("24,44 36,31 56,30 55,45", "59,44 60,31 66,30 67,43", "70,42 69,30 77,33 84,40"):
        window = c.polygon(outline)
        c.fill(window, GLASS, 0.2)
        c.tint(window * (38 - c.y).clip(0, 8) / 8, (170, 186, 196), 0.5)
    c.shade(c.limb((67, 45, 0.4), (68, 70, 0.4)), 0.6, 1)
    c.tint(c.polygon("14,58 36,59 35,64 14,63"), DARK, 0.9)
    c.tint(c.polygon("10,68 42,70 42,73 10,71"), DARK, 0.6)
    c.tint(c.polygon("18,66 32,67 32,71 18,70"), WHITE, 0.9)
    for x, y in ((8.5, 58.5), (41.5, 60)):
        c.fill(c.oval(x, y, 4, 2.8, 8), (236, 234, 222), 0.3)
    for x, y, width, height in ((53, 73, 6.5, 9.7), (88, 66, 5.2, 8.6)):
        c.tint(c.oval(x, y - 0.5, width * 1.35, height * 1.25) * body, DARK)
        wheel(c, x, y, width, height)


def bird(c: Canvas) -> None:
    """Paint a small brown bird on a branch."""
    c.backdrop({0: (132, 150, 112), 100: (96, 118, 76)})
    c.mottle(1, 0.14, 25)
    c.fill(c.limb((-10, 84, 3.5), (40, 80, 3), (110, 84, 2.5)), (96, 78, 60), 0.5, 0.15, 2, 4)
    for x in (46, 54):
        c.fill(c.limb((x + 3, 68, 1), (x, 79, 0.8)), (70, 54, 46), 0.3)
    c.fill(c.limb((66, 60, 5), (82, 72, 4), (95, 82, 3.5)), (84, 66, 52), 0.4, 0.12, 2, 3)
    body = c.blob("22,26 34,18 46,24 58,38 72,52 76,62 66,70 48,73 32,66 24,52 22,38")
    c.fill(body, (140, 112, 84), 0.4, 0.1, 2)
    c.tint(c.soften(c.oval(35, 58, 12, 15, -20), 4) * body, (226, 206, 176), 0.85)
    wing = c.blob("46,40 58,44 70,56 84,72 66,66 50,58")
    c.fill(wing, (98, 74, 54), 0.45, 0.16, 1.5, 4)
    c.fill(c.polygon("24,27 24,33 13,31.5"), (66, 58, 50), 0.4)
    eye(c, 31, 27, 2.3)


def cat(c: Canvas) -> None:
    """Paint the face of a grey tabby cat."""
    fur = (116, 108, 102)
    c.backdrop({0: (198, 194, 190), 70: (182, 174, 168), 100: (150, 138, 130)})
    c.mottle(1, 0.04, 25)
    c.fill(c.blob("8,112 12,84 26,68 74,68 88,84 92,112"), fur, 0.4, 0.08, 4, 2)
    c.tint(c.soften(c.blob("36,112 34,86 50,76 66,86 64,112"), 4), (222, 216, 208), 0.8)
    for side in (-1, 1):
        c.fill(c.polygon("57,34 70,16 81,5 86,24 86,48", side < 0), fur, 0.3, 0.12)
        c.tint(c.soften(c.polygon("66,30 79,12 82,36", side < 0), 2), (172, 138, 130), 0.75)
    head = c.blob("50,25 70,28 85,46 86,60 72,77 50,82 28,77 14,60 15,46 30,28")
    c.shade(head, 0.35, 5)
    c.fill(head, fur, 0.4, 0.07, 2)
    stripes = [c.limb((50 + dx * 1.3, 26, 0.8), (50 + dx * 0.6, 41, 1.4)) for dx in (-15, -8, 0, 8, 15)]
    stripes += [c.limb((50 + s * 36, y, 1.4), (50 + s * 23, y + 3, 0.6)) for s in (-1, 1) for y in (54, 61, 68)]
    stripes += [c.limb((50 + s * 40, y, 2), (50 + s * 24, y + 5, 1)) for s in (-1, 1) for y in (84, 93)]
    c.shade(np.maximum.reduce(stripes), 0.5, 1.2)
    c.tint(c.soften(np.maximum(c.oval(42, 70, 10, 8), c.oval(58, 70, 10, 8)), 3), (232, 226, 218), 0.95)
    c.tint(c.soften(c.oval(50, 56, 4, 12), 3), (196, 182, 166), 0.6)
    for side in (-1, 1):
        x = 50 + side * 16
        c.tint(c.soften(c.oval(x, 51, 9.5, 7, side * 14), 2), (188, 182, 174), 0.6)
        c.tint(c.oval(x, 51, 7.4, 5.2, side * 14), DARK, 0.95)
        c.fill(c.oval(x, 51, 6.2, 4.2, side * 14), (150, 146, 100), 0.3)
        c.tint(c.oval(x, 51, 2.6, 4.1), DARK)
        c.tint(c.oval(x - 1.6, 49.4, 1, 1), WHITE)
        c.shade(c.limb((50, 68, 0.5), (50 + side * 4, 74, 0.6), (50 + side * 10, 74, 0.4)), 0.8, 1)
        for rise in (-4, 0, 4):
            c.tint(c.limb((50 + side * 10, 70, 0.3), (50 + side * 42, 70 + rise * 2, 0.15)), WHITE, 0.8)
    c.fill(c.polygon("45.5,63 54.5,63 50,69"), (190, 112, 108), 0.3)


def deer(c: Canvas) -> None:
    """Paint a stag on a meadow before a wood, from the side."""
    fur, far = (146, 110, 76), (100, 76, 54)
    c.backdrop({0: (58, 70, 46), 50: (78, 90, 54), 64: (124, 128, 78), 100: (112, 118, 66)})
    c.mottle(c.y < 62, 0.28, 9)
    c.mottle(c.y > 54, 0.15, 3, 2)
    c.shade(c.oval(46, 95, 32, 3), 0.5, 3)
    c.fill(legs(c, 1.7, (36, 33, 35), (60, 62, 60)), far, 0.4)
    trunk = c.blob("20,56 25,49 40,51 54,50 65,46 71,54 66,65 52,68 36,69 24,67")
    neck = c.limb((64, 56, 8.5), (70, 44, 6.2), (73, 35, 5))
    c.fill(np.maximum.reduce([trunk, neck, legs(c, 1.9, (28, 24, 27), (65, 67, 66))]), fur, 0.5, 0.09, 3)
    c.tint(c.soften(c.blob("32,67 48,66 60,64 58,70 34,71"), 2) * trunk, (212, 190, 158), 0.8)
    c.tint(c.soften(c.oval(21, 60, 3, 6, 10), 2), (238, 230, 212), 0.9)
    c.fill(c.limb((68, 31, 2), (63, 27.5, 2.2), (57, 26, 0.8)), fur, 0.4)
    c.fill(c.limb((77, 29, 2), (83, 25.5, 2.2), (88, 24, 0.8)), fur, 0.4)
    c.fill(c.limb((73, 32, 5.4), (81, 38, 3.9), (87, 42, 2.8)), fur, 0.4)
    c.tint(c.oval(88.5, 42.5, 2, 1.7), DARK)
    eye(c, 77, 32.5, 1.5)
    antlers = ((71, 28), (61, 17), (65, 3)), ((75, 27), (84, 16), (80, 2))
    tines = ((64, 20), (53, 15)), ((62, 12), (53, 6)), ((82, 18), (93, 14)), ((83, 11), (91, 4))
    for beam in antlers + tines:
        c.fill(c.limb(*((*point, 1.5 - 0.3 * n) for n, point in enumerate(beam))), (206, 184, 148), 0.3)


def dog(c: Canvas) -> None:
    """Paint the face of a brown and white dog with drooping ears."""
    fur, ears = (176, 128, 82), (108, 72, 44)
    c.backdrop({0: (170, 174, 176), 60: (150, 150, 146), 100: (124, 122, 116)})
    c.mottle(1, 0.07, 22)
    c.fill(c.blob("8,112 14,86 30,72 70,72 86,86 92,112"), fur, 0.4, 0.1, 3)
    c.fill(c.blob("32,112 34,84 50,76 66,84 68,112"), (230, 224, 214), 0.3, 0.06)
    head = c.blob("50,10 68,14 78,32 76,50 69,68 60,82 50,86 40,82 31,68 24,50 22,32 32,14")
    c.shade(head, 0.3, 5)
    c.fill(head, fur, 0.4, 0.06, 2)
    c.tint(c.soften(c.limb((50, 10, 2), (50, 40, 4), (50, 64, 14)), 3) * head, (236, 231, 222), 0.95)
    for side in (-1, 1):
        ear = c.blob("66,13 79,17 89,36 91,58 84,70 76,58 74,36", side < 0)
        c.shade(ear, 0.3, 4)
        c.fill(ear, ears, 0.5, 0.08, 3)
        x = 50 + side * 14.5
        c.tint(c.soften(c.oval(x, 40, 6.5, 5.5), 2), (90, 58, 36), 0.7)
        eye(c, x, 40, 4.4)
        c.shade(c.limb((50, 67, 0.6), (50 + side * 5, 74, 0.7), (50 + side * 13, 71, 0.5)), 0.8, 1)
    c.fill(c.blob("45,74 55,74 55,85 50,89 45,85"), (206, 116, 120), 0.3)
    c.fill(c.blob("40,56 50,52.5 60,56 57,64.5 50,68 43,64.5"), (34, 30, 30), 0.6)
    c.tint(c.soften(c.oval(48, 56, 3, 1.2), 1), (150, 150, 155), 0.7)


def frog(c: Canvas) -> None:
    """Paint a green and brown frog on the ground, close up."""
    skin = (122, 126, 62)
    c.backdrop({0: (116, 98, 74), 100: (134, 112, 84)})
    c.mottle(1, 0.2, 8)
    c.shade(c.oval(52, 83, 44, 6), 0.6, 4)
    c.fill(c.limb((80, 60, 8), (88, 76, 5), (70, 84, 4)), (96, 100, 48), 0.4)
    body = c.blob("8,50 14,40 24,30 40,28 60,34 78,46 90,64 86,78 60,84 36,80 18,66")
    c.fill(body, skin, 0.5, 0.12, 4)
    c.tint(c.soften(c.blob("10,55 30,62 44,72 46,84 30,82 14,66"), 3) * body, (206, 198, 150), 0.85)
    for x, y in ((48, 42), (62, 50), (72, 46), (54, 57), (38, 36)):
        c.shade(c.oval(x, y, 5, 3.4), 0.45, 2)
    thigh = c.blob("52,74 60,60 76,54 90,62 92,76 80,84 62,84")
    c.shade(thigh, 0.35, 4)
    c.fill(thigh, skin, 0.5, 0.14, 4)
    c.fill(c.limb((88, 82, 4), (66, 88, 3), (50, 90, 2.5)), skin, 0.5, 0.1)
    c.fill(c.limb((36, 66, 6), (40, 80, 4.5), (28, 90, 3), (18, 91, 2)), skin, 0.5, 0.1)
    c.shade(c.limb((9, 53, 0.6), (24, 56, 0.8), (38, 52, 0.6)), 0.8, 1)
    c.fill(c.oval(30, 33, 8, 7.5), skin, 0.5)
    c.fill(c.oval(28.5, 33, 5.6, 5.4), (188, 150, 60), 0.3)
    eye(c, 28, 33, 3.4)


def horse(c: Canvas) -> None:
    """Paint a bay horse on a meadow, from the side."""
    fur, far, black = (134, 80, 48), (88, 54, 34), (36, 28, 26)
    c.backdrop({0: SKY, 26: HAZE, 29: LEAVES, 40: LEAVES, 43: GRASS, 100: GRASS})
    c.mottle((c.y > 28) * (c.y < 42), 0.2, 6)
    c.mottle(c.y > 42, 0.1, 4, 3)
    c.shade(c.oval(54, 95, 38, 3), 0.5, 3)
    c.fill(c.limb((85, 43, 3), (93, 54, 4), (92, 76, 2)), black, 0.4, 0.2, 6, 0.3)
    c.fill(legs(c, 2.6, (42, 40, 42), (74, 77, 72)), far, 0.4)
    trunk = c.blob("29,48 38,37 52,39 66,38 78,36 87,43 87,56 76,62 62,65 46,65 34,60")
    neck = c.blob("46,40 34,26 24,11 15,14 14,24 20,34 27,50 36,58")
    near = legs(c, 3, (37, 35, 36), (81, 85, 81))
    c.fill(np.maximum.reduce([trunk, neck, near]), fur, 0.55, 0.05, 4)
    c.tint((near * (c.y - 72) / 10).clip(0, 1), black, 0.85)
    c.fill(c.limb((44, 36, 2), (35, 26, 3), (26, 13, 3), (20, 10, 2)), black, 0.3, 0.2, 4)
    c.fill(c.limb((19, 17, 6), (11, 29, 4.4), (7, 36, 3.6)), fur, 0.45, 0.04)
    c.tint(c.soften(c.oval(6.5, 37, 3.5, 3), 2), black, 0.7)
    c.fill(c.polygon("19,12 20,3 25,11"), fur, 0.3)
    eye(c, 14.5, 20.5, 1.4)


def ship(c: Canvas) -> None:
    """Paint a cargo ship at sea, from the side."""
    c.backdrop({0: (138, 172, 206), 55: (198, 212, 222), 56: (92, 120, 142), 100: (50, 80, 108)})
    c.mottle(c.y > 56, 0.1, 2.5, 6)
    for x, y, width, height in ((9, 33, 24, 24), (12, 25, 17, 8), (36, 49, 46, 8)):
        c.fill(c.box(x, y, width, height), WHITE, 0.25, 0.02)
    for x, y, width in ((11, 36, 20), (11, 41, 20), (11, 46, 20), (13, 27, 15)):
        c.tint(c.box(x, y, width, 2), (60, 72, 88), 0.8)
    c.fill(c.box(15, 14, 7, 11), (60, 66, 80), 0.4)
    for x in (42, 58, 74):
        c.fill(c.limb((x, 54, 1), (x, 24, 0.7)), (206, 200, 184), 0.3)
        c.tint(c.limb((x, 28, 0.4), (x + 11, 48, 0.4)), (180, 174, 156))
    hull = c.polygon("2,53 34,57 76,57 99,49 91,74 7,74")
    c.fill(hull, (42, 48, 64), 0.4, 0.04)
    c.tint(hull * (c.y > 70), (126, 52, 46), 0.85)
    c.tint(c.soften(c.limb((4, 74.5, 0.4), (50, 75, 0.4), (94, 74, 1.4)), 1.5) * (0.7 + 0.3 * c.noise(2, 3)), WHITE)
    c.shade(c.polygon("8,76 90,76 84,86 14,86"), 0.35, 4)


def truck(c: Canvas) -> None:
    """Paint a box truck on a road, from the side."""
    c.backdrop({0: SKY, 44: HAZE, 46: LEAVES, 62: LEAVES, 64: ROAD, 100: (116, 114, 114)})
    c.mottle((c.y > 45) * (c.y < 63), 0.15, 6)
    c.mottle(c.y > 63, 0.05, 3, 5)
    c.shade(c.oval(50, 85, 48, 4), 0.75, 3)
    c.tint(c.box(6, 66, 88, 11), (34, 34, 38))
    c.fill(c.box(2, 12, 61, 58), (222, 222, 220), 0.12, 0.02)
    for x in np.arange(8, 63, 6.0):
        c.shade(c.box(x, 13, 0.6, 57), 0.25, 1)
    cab = c.blob("65,32 68,29 80,30 85,34 91,50 97,54 98,64 97,74 82,75 65,75")
    c.fill(cab, (56, 84, 146), 0.4, 0.02)
    c.fill(c.polygon("70,35 80,35 86,50 70,50"), GLASS, 0.25)
    c.tint(c.oval(96, 61, 1.6, 2.6), (244, 238, 210), 0.9)
    c.tint(c.box(84, 71, 15, 5), (60, 60, 64))
    for x in (16, 38, 81):
        c.tint(c.oval(x, 75, 10.5, 10.5), (18, 18, 20))
        wheel(c, x, 77, 9.2, 9.2)


PICTURES = plane, car, bird, cat, deer, dog, frog, horse, ship, truck
FORMATS = {frog: ("webp", 360, 300), ship: ("jpg", 640, 480)}
"""What a file is and its width and height, where it is no PNG of 192x192: any picture can be classified."""


def main(folder: Path) -> None:
    """Draw all pictures into `folder`."""
    folder.mkdir(parents=True, exist_ok=True)
    for seed, paint in enumerate(PICTURES):
        suffix, width, height = FORMATS.get(paint, ("png", 192, 192))
        canvas = Canvas(seed, width, height)
        paint(canvas)
        file = folder / f"{paint.__name__}.{suffix}"
        canvas.finish().save(file, quality=85, optimize=True)
        print(file)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    samples = Path(__file__).parents[1] / "samples"
    parser.add_argument("folder", type=Path, nargs="?", default=samples, help="by default samples/")
    main(parser.parse_args().folder)
