"""What the cases of robustness.py share: a case, the bundles that are damaged, and mutations of bytes."""

from __future__ import annotations

import contextlib
import random
import shutil
import struct
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import cache
from hashlib import sha256
from pathlib import Path

import numpy as np

from edgecifar.runtime import Bundle, Classifier
from edgecifar.runtime.bundle import DEFAULT
from edgecifar.runtime.contract import Contract
from edgecifar.runtime.manifest import SUMS

TINY = Path(__file__).parents[1] / "fixtures" / "tiny_bundle"


class WrongAnswer(Exception):  # noqa: N818 - it is a finding, not an error of this program
    """Damage was not found, or an answer is not what it must be."""


@dataclass
class Case:
    """One input: what `run` returns or raises is the outcome; `files` and `note` are what is kept of a failure."""

    run: Callable[[World], object]
    files: dict[str, bytes] = field(default_factory=dict)
    note: str = ""


class World:
    """What the cases of one process share: copies of two bundles to damage, and an intact classifier beside them."""

    def __init__(self, scratch: Path) -> None:
        self.scratch = scratch
        self.folders = {source: Path(shutil.copytree(source, scratch / source.name)) for source in (TINY, DEFAULT)}
        self.guard = Classifier(TINY, provider="cpu", threads=1)
        self.contract = self.guard.contract
        self.images = np.random.default_rng(0).integers(0, 256, (8, *self.contract.picture_shape), np.uint8)
        self.expected = self.guard.probabilities(self.images).tobytes()

    @contextlib.contextmanager
    def changed(self, source: Path, files: dict[str, bytes]) -> Iterator[Path]:
        """Write `files` into the copy of the bundle `source`, and restore it afterwards."""
        folder = self.folders[source]
        for name, content in files.items():
            (folder / name).write_bytes(content)
        try:
            yield folder
        finally:
            for name in files:
                (folder / name).write_bytes(contents(source)[name])


@cache
def contents(source: Path) -> dict[str, bytes]:
    """Return the files of an intact bundle."""
    return {path.name: path.read_bytes() for path in sorted(source.iterdir())}


@cache
def tiny_contract() -> Contract:
    """Return the contract of the tiny bundle."""
    return Bundle.open(TINY).contract


def sealed(files: dict[str, bytes]) -> dict[str, bytes]:
    """Add the SHA256SUMS that changed `files` of the tiny bundle have, as an attacker would."""
    everything = {**contents(TINY), **files}
    sums = "".join(f"{sha256(content).hexdigest()}  {name}\n" for name, content in everything.items() if name != SUMS)
    return {**files, SUMS: sums.encode()}


def flip(data: bytes, rng: random.Random) -> bytes:
    """Flip one bit."""
    place = rng.randrange(8 * len(data))
    return data[: place // 8] + bytes([data[place // 8] ^ 1 << place % 8]) + data[place // 8 + 1 :]


def cut(data: bytes, rng: random.Random) -> bytes:
    """Leave out the end."""
    return data[: rng.randrange(len(data))]


def remove(data: bytes, rng: random.Random) -> bytes:
    """Leave out a part."""
    start = rng.randrange(len(data))
    return data[:start] + data[start + rng.randint(1, 64) :]


def repeat(data: bytes, rng: random.Random) -> bytes:
    """Repeat a part once, or many times."""
    start, size = rng.randrange(len(data)), rng.randint(1, 64)
    return data[:start] + data[start : start + size] * rng.choice((2, 2, 100)) + data[start + size :]


def scribble(data: bytes, rng: random.Random) -> bytes:
    """Write noise over a part."""
    start = rng.randrange(len(data))
    noise = rng.randbytes(rng.randint(1, 32))
    return data[:start] + noise + data[start + len(noise) :]


def exaggerate(data: bytes, rng: random.Random) -> bytes:
    """Put an extreme number somewhere, most often where headers are."""
    number = rng.choice((0, 1, 0x7F, 0xFF, 0x7FFF, 0xFFFF, 0x7FFFFFFF, 0x80000000, 0xFFFFFFFF, 30000, 100000))
    packed = struct.pack(rng.choice("<>") + "I", number)
    packed = packed if rng.random() < 0.5 else packed[:2] if packed[2:] == b"\0\0" else packed[2:]
    start = rng.randrange(min(64, len(data)) if rng.random() < 0.7 else len(data))
    return data[:start] + packed + data[start + len(packed) :]


MUTATIONS = (flip, cut, remove, repeat, scribble, exaggerate)


def mutated(data: bytes, rng: random.Random) -> bytes:
    """Apply one to four mutations."""
    for _ in range(rng.randint(1, 4)):
        data = rng.choice(MUTATIONS)(data, rng) if data else data
    return data
