"""Cases of robustness.py that are arrays of any dtype, shape and layout, and folders of odd files."""

from __future__ import annotations

import os
import random
import tempfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
from fuzz_pictures import seeds
from fuzz_world import Case, World, WrongAnswer, tiny_contract

from edgecifar.runtime.sources import find_pictures

SIZE, CLASSES = tiny_contract().size, tiny_contract().classes
IMAGES = (4, SIZE, SIZE, 3)
DTYPES = (*["u1"] * 6, *[">u1", "i1", "?", "u2", "f2", "f4", "f8", "c8", "O", "S1", "U1", "M8[s]", "V3"])
SHAPES = [IMAGES] * 8 + [(n, SIZE, SIZE, 3) for n in (0, 1, 65)] + [(SIZE, SIZE, 3), (4, 3, SIZE, SIZE), (), (0,)]
SHAPES += [(4, 3 * SIZE**2), (4, SIZE, SIZE, 1), (4, SIZE, SIZE, 4), (2, *IMAGES), (4, SIZE - 1, SIZE, 3)]


def strange_array(rng: random.Random) -> np.ndarray:
    """Return an array of any dtype, shape and memory layout, NaN among the floats; one in a hundred is endless."""
    dtype, shape = np.dtype(rng.choice(DTYPES)), rng.choice(SHAPES)
    noise = np.random.default_rng(rng.getrandbits(32)).integers(0, 256, (*shape, dtype.itemsize), np.uint8)
    array = np.full(shape, None) if dtype.hasobject else noise.view(dtype)[..., 0]
    if dtype.kind == "f" and array.size:
        array.flat[0] = np.nan
    layouts: tuple[Callable[[], np.ndarray], ...] = (
        lambda: array,
        lambda: np.asfortranarray(array),
        lambda: np.repeat(array, 2, axis=0)[::2],
        lambda: np.repeat(array, 2, axis=-1)[..., ::2],
        lambda: np.flip(array),
        lambda: array.swapaxes(-2, -3),
        lambda: np.broadcast_to(array[:1], (3 if rng.random() < 0.9 else 10**8, *shape[1:])),
        lambda: np.ma.masked_array(array, mask=False),
    )
    array = rng.choice(layouts)() if array.size and array.ndim > 2 else array
    array.flags.writeable = array.flags.writeable and rng.random() < 0.5
    return array


def array(rng: random.Random) -> Case:
    """Take any array for pictures; those that are must give what a plain copy gives."""
    images = strange_array(rng)
    rest = (rng.choice((1, 3, CLASSES, 0, CLASSES + 1, -1)), rng.random() < 0.3)

    def run(world: World) -> None:
        right = images.dtype == np.uint8 and images.ndim == 4 and images.shape[1:] == IMAGES[1:]
        top_k, predict = rest
        if predict and images.ndim and len(images) < 1000:
            one = images.ndim == 3  # a picture of any height and width; with more dimensions, a batch
            count = len(world.guard.predict(images, top_k))
            may = images.dtype == np.uint8 and images.shape[2] == 3 and images.size if one else right
            if count != (1 if one else len(images)) or not may or top_k < 1:
                raise WrongAnswer("it was taken")
            return
        answers = world.guard.probabilities(images)
        plain = np.array(images, np.uint8, order="C", subok=False)
        if not right or answers.tobytes() != world.guard.probabilities(plain).tobytes():
            raise WrongAnswer("it was taken, or the layout in memory counts")

    return Case(run, {}, f"{images.dtype} {images.shape} strides {images.strides} {type(images).__name__} {rest}")


def folder(rng: random.Random) -> Case:
    """Fill a folder with thousands of files of odd names and contents, links and a pipe; each gives one result."""
    odd = ("", "-", "a b", "\n", "\x1b[2J", "\udcff", "é", "*?[", "x" * 200)
    names = [f"{rng.choice(odd)}{number}.{rng.choice(('png', 'JPG', 'gif', 'tiff'))}" for number in range(2000)]
    pictures = list(seeds().values())

    def run(world: World) -> None:
        with tempfile.TemporaryDirectory(dir=world.scratch) as place:
            for number, name in enumerate(names):
                path = Path(place, name)
                how = rng.randrange(20)
                if how == 0:
                    path.mkdir()
                elif how == 1:
                    path.symlink_to(rng.choice((".", "missing", path.name, "/dev/null", "/proc/self/mem")))
                elif how == 2 and number % 50 == 0:
                    os.mkfifo(path)
                else:
                    data = rng.choice(pictures)
                    path.write_bytes(rng.choice((data, data[:200], b"", rng.randbytes(50))))
            found = find_pictures([place])
            if len(list(world.guard.stream(found))) != len(found) or len(found) < 1000:
                raise WrongAnswer("some were lost")

    return Case(run, {}, "folder")
