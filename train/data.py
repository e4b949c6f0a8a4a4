"""Data sets as plain numpy arrays: CIFAR-10, own pictures, or a small synthetic one that is drawn here.

This is the one place, beside the reading of old runs, that knows what CIFAR-10's contract is.
"""

from __future__ import annotations

import colorsys
import hashlib
import logging
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from ..runtime import labelled
from ..runtime.contract import CIFAR10, Contract
from ..runtime.errors import DataError
from ..runtime.labelled import SPLITS
from ..runtime.paths import CIFAR10_FILES, expanded, is_cifar10
from . import cifar10, folders
from .decoding import decode
from .folders import FolderOptions, SplitPictures

log = logging.getLogger("edgecifar")

CIFAR10_NAME, SYNTHETIC = "CIFAR-10", "synthetic"
"""Names of data sets."""

OWN = "own"
"""The kind of all others, which have names of their own."""


def cache_folder() -> Path:
    """Return the user's folder for caches, as the XDG Base Directory Specification defines it."""
    named = Path(os.environ.get("XDG_CACHE_HOME", ""))
    return (named if named.is_absolute() else Path("~/.cache")) / "edgecifar"


CACHE = cache_folder()
"""Decoded pictures are kept here, and CIFAR-10 unless a folder is named."""


@dataclass(frozen=True)
class Dataset:
    """Images uint8 [N, size, size, 3] RGB and labels int64 [N], for training and for testing.

    Attributes:
        contract: what the labels are called, and the pictures' size.
        name: "CIFAR-10", "synthetic", or the name of a folder or CSV; nothing made from one of these may be reported as
            CIFAR-10.
        digest: SHA-256 over all images and labels, and over `validation` where it is there.
        validation: indices into `train_images` of the pictures that are held out for decisions, int64, ascending; None
            where `hold_out` chooses them.
        origin: what is recorded of a folder or a CSV, JSON values as `folders.describe` returns them.
        pictures: the files of a folder or a CSV, and the splits that they are in; None of others.
    """

    contract: Contract
    name: str
    train_images: np.ndarray
    train_labels: np.ndarray
    test_images: np.ndarray
    test_labels: np.ndarray
    digest: str
    validation: np.ndarray | None = None
    origin: Mapping[str, Any] = field(default_factory=dict)
    pictures: SplitPictures | None = None

    @property
    def is_own(self) -> bool:
        """Whether the pictures come from a folder or a CSV."""
        return bool(self.origin)

    def test_labels_as(self, labels: Sequence[str]) -> np.ndarray:
        """Return the labels of the test images as indices into `labels`, a model's classes, int64 [N].

        Raises:
            DataError: there is a class among them that the model does not know.
        """
        if tuple(labels) == self.contract.labels:
            return self.test_labels
        known = {label: place for place, label in enumerate(labels)}
        names = [self.contract.labels[label] for label in np.unique(self.test_labels)]
        if unknown := [name for name in names if name not in known]:
            raise DataError(
                f"The model does not know {labelled.some(unknown)}, of which {self.name} has test pictures; it knows "
                f"{labelled.some(labels)}: name the data that it was made for.",
                option="data",
            )
        places = np.array([known.get(name, -1) for name in self.contract.labels])
        return places[self.test_labels]

    def hold_out(self, share: float) -> tuple[np.ndarray, np.ndarray]:
        """Split the training images into those to train on and the `share` held out for decisions.

        The held-out images are the last ones of each class, the same for every seed, so that
        decisions taken in different runs are comparable and never see an image trained on. Where
        the data set has a validation split, that is held out, whatever the share.

        Args:
            share: 0 to 0.5; 0.1 of CIFAR-10 holds out 500 images of each class. 0 holds none out.

        Returns:
            Two int64 arrays of indices into `train_images`, ascending.
        """
        held_out = np.zeros(len(self.train_labels), bool)
        if self.validation is not None:
            held_out[self.validation] = share > 0
            return np.flatnonzero(~held_out), np.flatnonzero(held_out)
        for label in range(self.contract.classes):
            indices = np.flatnonzero(self.train_labels == label)
            held_out[indices[len(indices) - round(share * len(indices)) :]] = True
        return np.flatnonzero(~held_out), np.flatnonzero(held_out)


class Place(NamedTuple):
    """What a name of data leads to.

    Attributes:
        kind: `CIFAR10_NAME`, `SYNTHETIC` or `OWN`.
        path: the folder that holds CIFAR-10, or is to; the folder or CSV of labelled pictures; of no use for others.
        may_fill: whether CIFAR-10 may be downloaded there: into the default folder, or one that holds nothing else.
    """

    kind: str
    path: Path
    may_fill: bool = False


def place_of(data: str | Path | None = None) -> Place:
    """Return what `data` leads to, as `load` takes it; no file is read.

    Raises:
        DataError: there is nothing, or neither CIFAR-10 nor labelled pictures; or `data` is "".
    """
    named = labelled.named(data)
    if str(named) == SYNTHETIC:
        return Place(SYNTHETIC, Path(SYNTHETIC))
    root = expanded(named or CACHE).absolute()
    if root.name in CIFAR10_FILES:  # what the folder holds was named
        root = root.parent
    if named and not root.exists():  # most likely mistyped
        raise DataError(f"{root} is not there: check the path. (CIFAR-10 is downloaded only into an empty folder.)")
    if root.is_file():
        if root.suffix.lower() != ".csv":
            raise DataError(f"{root} is a file: name a folder with a folder of pictures for each class, or a CSV.")
        return Place(OWN, root)
    others = _other_things(root) if named else []
    if not others or is_cifar10(root):
        return Place(CIFAR10_NAME, root, may_fill=not others)
    if labelled.recognise(root) is None:
        raise DataError(_not_cifar10(root, others))
    return Place(OWN, root)


def load(
    data: str | Path | None = None,
    download: bool = True,
    options: FolderOptions | None = None,
    progress: Callable[[int, int], object] = lambda done, total: None,
) -> Dataset:
    """Load the data set that `data` names; what takes long is logged.

    Args:
        data: a folder that holds `cifar-10-batches-py` or `cifar-10-python.tar.gz`, or one of these; a folder or a CSV
            of labelled pictures, as `runtime.labelled` reads them; or "synthetic". By default `$EDGECIFAR_DATA`, else
            `~/.cache/edgecifar`, where CIFAR-10 is downloaded to.
        download: whether what is missing may be downloaded. Of folders that were named that happens only in those that
            are there and hold nothing else.
        options: how labelled pictures are split and made square.
        progress: called with the number of labelled pictures that are decoded, and how many there are.

    Raises:
        DataError: the files are missing and cannot be downloaded, one of them is corrupt, the folder holds neither
            CIFAR-10 nor labelled pictures, or `data` is "".
        OutputError: they cannot be written.
    """
    place = place_of(data)
    if place.kind == SYNTHETIC:
        return synthetic()
    if place.kind == OWN:
        return load_labelled(place.path, options or FolderOptions(), progress=progress)
    return _dataset(CIFAR10, CIFAR10_NAME, *cifar10.read(place.path, download and place.may_fill))


def require_named(data: str | None, trained_on: str, origin: Mapping[str, Any]) -> None:
    """Make sure that `data` or `$EDGECIFAR_DATA` says where own pictures are, whose `origin` is that of a run.

    Raises:
        DataError: neither does, and `trained_on`, the name of the data set, is none that has a default place.
    """
    if origin and not labelled.named(data):
        raise DataError(f"The run was trained on pictures of your own ({trained_on}): name them.", option="data")


def load_labelled(
    path: Path,
    options: FolderOptions,
    *,
    cache: Path | None = None,
    progress: Callable[[int, int], object] = lambda done, total: None,
) -> Dataset:
    """Load a folder or a CSV of labelled pictures; in memory it takes 3 kB a picture.

    Args:
        path: as `runtime.labelled.read` takes it.
        options: how the pictures are split and made square.
        cache: where decoded pictures are kept; by default `CACHE`.
        progress: called with the number of pictures that are decoded, and how many there are.

    Raises:
        DataError: the pictures cannot be trained on; the message says why.
        OutputError: the cache cannot be written.
    """
    listing = labelled.read(path)
    contract = folders.contract_of(listing.labels(), options.fit)
    pictures = decode(listing, contract, expanded(cache or CACHE), progress=progress)
    splits = folders.splits_of(pictures, options)
    folders.check(pictures, splits, options)
    classes = np.array(listing.indices(contract.labels), np.int64)
    places = {name: np.array([row for row, split in enumerate(splits) if split == name], int) for name in SPLITS}
    trained = np.sort(np.concatenate([places["train"], places["val"]]))
    dataset = _dataset(
        contract,
        _name(listing.source),
        np.asarray(pictures.images[trained]),
        classes[trained],
        np.asarray(pictures.images[places["test"]]),
        classes[places["test"]],
    )
    held_out = np.flatnonzero(np.isin(trained, places["val"]))
    digest = hashlib.sha256(dataset.digest.encode() + held_out.tobytes()).hexdigest()
    origin = folders.describe(pictures, splits, options)
    split = SplitPictures(pictures, tuple(splits))
    return replace(dataset, digest=digest, validation=held_out, origin=origin, pictures=split)


def _name(source: Path) -> str:
    """Return what a folder or a CSV is called as a data set: never as one that is known by its name."""
    name = source.name if source.name.isprintable() and source.name else "pictures"
    return f"{name} (own)" if name in (CIFAR10_NAME, SYNTHETIC) else name


def load_for_export(
    trained_on: str,
    data: str | None,
    origin: Mapping[str, Any] | None = None,
    progress: Callable[[int, int], object] = lambda done, total: None,
) -> Dataset | None:
    """Return the data set that a run was trained on, or None where CIFAR-10 was not named and is not at hand.

    Args:
        trained_on: the name of the run's data set.
        data: as `load` takes it.
        origin: how the run's folder or CSV was read, as the run records it.
        progress: as `load` takes it.

    Raises:
        DataError: `data` names what is not there or corrupt.
    """
    named = labelled.named(data)
    if trained_on == SYNTHETIC:
        return load(SYNTHETIC if data is None else data)  # what is named and is another is refused later
    options = FolderOptions.recorded(origin or {})
    if options and not named:
        log.warning("The run was trained on %s.", trained_on)
        return None
    try:
        return load(data, download=False, options=options, progress=progress)
    except DataError as error:
        if data:
            raise
        log.warning("%s", error)
        return None


def _other_things(root: Path) -> list[Path]:
    """Return what a folder holds beside CIFAR-10, in order; hidden files do not count."""
    found = root.iterdir() if root.is_dir() else ()
    return sorted(path for path in found if path.name not in CIFAR10_FILES and not path.name.startswith("."))


def _not_cifar10(root: Path, found: list[Path]) -> str:
    """Return a sentence that says what a folder is instead of CIFAR-10's or one of labelled pictures."""
    names = ", ".join(path.name for path in found[:3]) + (", …" if len(found) > 3 else "")
    return (
        f"{root} holds neither CIFAR-10 nor a folder of pictures for each class, but {names}, and nothing is "
        "downloaded beside other things: name a folder of either kind, or a new one to have CIFAR-10 downloaded there."
    )


def _dataset(contract: Contract, name: str, *arrays: np.ndarray) -> Dataset:
    digest = hashlib.sha256()
    for array in arrays:
        digest.update(np.ascontiguousarray(array).data)
    return Dataset(contract, name, *arrays, digest=digest.hexdigest())


def synthetic(train: int = 2_000, test: int = 500, seed: int = 0, contract: Contract = CIFAR10) -> Dataset:
    """Draw a labelled set of coloured shapes; the classes are learnable.

    Each class is a shape (disc, square, cross, stripes or ring) in a colour, at a random place and size on a noisy
    background. By default there are as many classes as CIFAR-10 has, under its labels, in two colours.

    Args:
        train: number of training images.
        test: number of test images.
        seed: what all randomness derives from.
        contract: the labels, and the pictures' size.
    """
    rng = np.random.default_rng(seed)
    images, labels = zip(*(_draw(rng, count, contract) for count in (train, test)), strict=True)
    return _dataset(contract, SYNTHETIC, images[0], labels[0], images[1], labels[1])


_SHAPES = 5
"""Each colour is drawn in so many shapes."""


def _draw(rng: np.random.Generator, count: int, contract: Contract) -> tuple[np.ndarray, np.ndarray]:
    labels = rng.permutation(np.arange(count) % contract.classes).astype(np.int64)
    pixels, scale = contract.size, contract.size / 32  # places and sizes below are in 32nds of the picture
    y, x = np.mgrid[:pixels, :pixels]
    images = rng.normal(110, 25, (count, *contract.picture_shape))
    for image, label in zip(images, labels, strict=True):
        dy, dx = y - rng.uniform(11, 20) * scale, x - rng.uniform(11, 20) * scale
        size = rng.uniform(6, 10) * scale
        distance, square = np.hypot(dx, dy), np.maximum(abs(dx), abs(dy))
        mask = (
            distance < size,
            square < size * 0.85,
            (square < size) & (np.minimum(abs(dx), abs(dy)) < size / 4),
            (square < size) & (np.floor(dy / (2.5 * scale)) % 2 == 0),
            (distance < size) & (distance > size * 0.6),
        )[label % _SHAPES]
        colour = np.array(_colour(label // _SHAPES)) + rng.normal(0, 15, 3)
        image[mask] = colour + rng.normal(0, 10, (int(mask.sum()), 3))
    return images.clip(0, 255).astype(np.uint8), labels


def _colour(number: int) -> tuple[float, float, float]:
    """Return a colour, RGB 0 to 255: a warm one, a cold one, then hues as far apart as may be."""
    if number < 2:
        return ((220, 80, 50), (50, 90, 220))[number]
    red, green, blue = colorsys.hsv_to_rgb(number * 0.618 % 1, 0.8, 0.9)  # steps of the golden ratio
    return 255 * red, 255 * green, 255 * blue
