"""CIFAR-10 through torchvision, or a small synthetic set of the same shape; as plain numpy arrays."""

from __future__ import annotations

import contextlib
import errno
import hashlib
import http.client
import os
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from ..runtime.contract import LABELS, SIDE
from ..runtime.errors import DataError
from ..runtime.files import STAGING, explained, make_folder, remove_leftovers

if TYPE_CHECKING:
    from collections.abc import Callable

SYNTHETIC = "synthetic"

NO_SPACE = (errno.ENOSPC, errno.EDQUOT)

_SUPPLY = (
    "copy cifar-10-python.tar.gz or its folder cifar-10-batches-py there, name another place with --data or "
    "$EDGECIFAR_DATA, or try the pipeline with --data synthetic"
)


@dataclass(frozen=True)
class Dataset:
    """Images uint8 [N, 32, 32, 3] RGB and labels int64 [N], for training and for testing.

    Attributes:
        name: "CIFAR-10" or "synthetic"; nothing made from the latter may be reported as the former.
        digest: SHA-256 over all images and labels.
    """

    name: str
    train_images: np.ndarray
    train_labels: np.ndarray
    test_images: np.ndarray
    test_labels: np.ndarray
    digest: str

    def hold_out(self, share: float) -> tuple[np.ndarray, np.ndarray]:
        """Split the training images into those to train on and the `share` held out for decisions.

        The held-out images are the last ones of each class, the same for every seed, so that
        decisions taken in different runs are comparable and never see an image trained on.

        Args:
            share: 0 to 0.5; 0.1 of CIFAR-10 holds out 500 images of each class.

        Returns:
            Two int64 arrays of indices into `train_images`, ascending.
        """
        held_out = np.zeros(len(self.train_labels), bool)
        for label in range(len(LABELS)):
            indices = np.flatnonzero(self.train_labels == label)
            held_out[indices[len(indices) - round(share * len(indices)) :]] = True
        return np.flatnonzero(~held_out), np.flatnonzero(held_out)


def load(
    data: str | Path | None = None, download: bool = True, say: Callable[[str], object] = lambda line: None
) -> Dataset:
    """Load the data set that `data` names.

    Args:
        data: a folder that holds `cifar-10-batches-py` or `cifar-10-python.tar.gz`, or one of these, or "synthetic";
            by default `$EDGECIFAR_DATA`, else `~/.cache/edgecifar`, where CIFAR-10 is downloaded to.
        download: whether what is missing may be downloaded.
        say: called with a line about what takes long.

    Raises:
        DataError: the files are missing and cannot be downloaded, or one of them is corrupt.
        OutputError: they cannot be written.
    """
    data = data or os.environ.get("EDGECIFAR_DATA") or Path("~/.cache/edgecifar").expanduser()
    if str(data) == SYNTHETIC:
        return synthetic()
    return _load_cifar10(Path(data).expanduser().absolute(), download, say)


def load_for_export(trained_on: str, data: str | None, say: Callable[[str], object]) -> Dataset | None:
    """Return the data set that a run was trained on, or None where CIFAR-10 was not named and is not at hand.

    Args:
        trained_on: the name of the run's data set.
        data: as `load` takes it.
        say: called with a line where the files are not there.

    Raises:
        DataError: `data` names what is not there or corrupt.
    """
    if trained_on == SYNTHETIC:
        return load(SYNTHETIC)
    try:
        return load(data, download=False)
    except DataError as error:
        if data:
            raise
        say(f"{error} Without it, parity is proved on drawn pictures and accuracy stays unknown.")
        return None


def _load_cifar10(root: Path, download: bool, say: Callable[[str], object]) -> Dataset:
    from torchvision.datasets import CIFAR10
    from torchvision.datasets.utils import check_integrity

    if root.name in (CIFAR10.base_folder, CIFAR10.filename):  # what the folder holds was named
        root = root.parent
    folder, archive = root / CIFAR10.base_folder, root / CIFAR10.filename
    files = dict((*CIFAR10.train_list, *CIFAR10.test_list))
    files[CIFAR10.meta["filename"]] = CIFAR10.meta["md5"]
    missing = [name for name in files if not (folder / name).exists()]
    corrupt = [name for name, md5 in files.items() if name not in missing and not check_integrity(folder / name, md5)]
    if corrupt:
        raise DataError(
            f"Corrupt in {folder}: {', '.join(corrupt)}; delete {'it' if len(corrupt) == 1 else 'them'} to have "
            "CIFAR-10 extracted or downloaded anew, or copy intact files there."
        )
    if missing:
        if archive.exists() and not check_integrity(archive, CIFAR10.tgz_md5):
            raise DataError(
                f"{archive} is not the official CIFAR-10 archive (its MD5 should be {CIFAR10.tgz_md5}): "
                "delete or replace it."
            )
        if len(missing) == len(files):
            lack = f"CIFAR-10 is not in {root}"
        else:
            lack = f"{', '.join(missing)} {'is' if len(missing) == 1 else 'are'} not in {folder}"
        if not archive.exists() and not download:
            raise DataError(f"{lack}: {_SUPPLY}.")
        say(f"{'Extracting' if archive.exists() else 'Downloading'} CIFAR-10 in {root} …")
        found = root.exists()
        try:
            _supply(root, missing, lack)
        except DataError:
            if not found:  # a mistyped path leaves no folder
                with contextlib.suppress(OSError):
                    root.rmdir()
            raise
    train, test = CIFAR10(str(root), train=True), CIFAR10(str(root), train=False)
    return _dataset("CIFAR-10", train.data, np.asarray(train.targets), test.data, np.asarray(test.targets))


def _supply(root: Path, missing: list[str], lack: str) -> None:
    """Put the `missing` files into the data folder, from the archive in `root` or, where it has none, the network.

    `lack` begins the sentence that says that the network failed.
    Everything is downloaded and extracted beside its place first, so that what is cut off leaves nothing.
    """
    from torchvision.datasets import CIFAR10
    from torchvision.datasets.utils import download_url, extract_archive

    make_folder(root)
    remove_leftovers(root)
    folder, archive = root / CIFAR10.base_folder, root / CIFAR10.filename
    with explained(folder), tempfile.TemporaryDirectory(prefix=f"{STAGING}{os.getpid()}-", dir=root) as staging:
        if not archive.exists():
            archive = Path(staging, archive.name)
            try:
                download_url(CIFAR10.url, staging, archive.name, CIFAR10.tgz_md5)
            except (OSError, RuntimeError, http.client.HTTPException) as error:
                if isinstance(error, OSError) and error.errno in NO_SPACE:
                    raise
                reason = (str(error).strip() or type(error).__name__).splitlines()[0].rstrip(".")
                raise DataError(f"{lack} and could not be downloaded ({reason}): {_SUPPLY}.") from error
        extract_archive(str(archive), staging)
        folder.mkdir(exist_ok=True)
        for name in missing:
            Path(staging, folder.name, name).replace(folder / name)


def _dataset(name: str, *arrays: np.ndarray) -> Dataset:
    digest = hashlib.sha256()
    for array in arrays:
        digest.update(np.ascontiguousarray(array).tobytes())
    return Dataset(name, *arrays, digest=digest.hexdigest())


def synthetic(train: int = 2_000, test: int = 500, seed: int = 0) -> Dataset:
    """Draw a labelled set of coloured shapes with CIFAR-10's shapes and dtypes; the classes are learnable.

    Each class is a shape (disc, square, cross, stripes or ring) in a warm or a cold colour, at a random
    place and size on a noisy background.

    Args:
        train: number of training images.
        test: number of test images.
        seed: what all randomness derives from.
    """
    rng = np.random.default_rng(seed)
    images, labels = zip(*(_draw(rng, count) for count in (train, test)), strict=True)
    return _dataset(SYNTHETIC, images[0], labels[0], images[1], labels[1])


def _draw(rng: np.random.Generator, count: int) -> tuple[np.ndarray, np.ndarray]:
    labels = rng.permutation(np.arange(count) % len(LABELS)).astype(np.int64)
    y, x = np.mgrid[:SIDE, :SIDE]
    images = rng.normal(110, 25, (count, SIDE, SIDE, 3))
    for image, label in zip(images, labels, strict=True):
        dy, dx = y - rng.uniform(11, 20), x - rng.uniform(11, 20)
        size = rng.uniform(6, 10)
        distance, square = np.hypot(dx, dy), np.maximum(abs(dx), abs(dy))
        mask = (
            distance < size,
            square < size * 0.85,
            (square < size) & (np.minimum(abs(dx), abs(dy)) < size / 4),
            (square < size) & (np.floor(dy / 2.5) % 2 == 0),
            (distance < size) & (distance > size * 0.6),
        )[label % 5]
        colour = np.array((220, 80, 50) if label < 5 else (50, 90, 220)) + rng.normal(0, 15, 3)
        image[mask] = colour + rng.normal(0, 10, (int(mask.sum()), 3))
    return images.clip(0, 255).astype(np.uint8), labels
