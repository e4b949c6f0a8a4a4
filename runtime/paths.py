"""What a path is: a run folder, a bundle, a model file of a known format, or where CIFAR-10 lies."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from .errors import DataError, ModelError
from .manifest import MANIFEST

Kind = Literal["run", "bundle", "onnx", "torchscript", "pt2"]

RUN_RECORD = "run.json"
"""The file that makes a folder a run."""

SUFFIXES: dict[str, Kind] = {".onnx": "onnx", ".pt": "torchscript", ".pt2": "pt2"}
"""What a model file is, by how its name ends."""

CIFAR10_FILES = ("cifar-10-batches-py", "cifar-10-python.tar.gz")
"""What CIFAR-10's own folder and archive are called; torchvision reads them."""


def is_cifar10(path: Path) -> bool:
    """Return whether `path` is CIFAR-10's own folder or archive, or a folder that holds one of them."""
    return path.absolute().name in CIFAR10_FILES or any((path / name).exists() for name in CIFAR10_FILES)


def expanded(path: str | Path) -> Path:
    """Return `path` with the home folder that a `~` at its beginning stands for.

    Raises:
        DataError: there is no such user, or none whose home is known, as in a container without HOME.
    """
    try:
        return Path(path).expanduser()
    except RuntimeError:
        raise DataError(
            f"{path} begins with a home folder that is not known here: write the path out, or set HOME."
        ) from None


def kind_of(path: Path) -> Kind:
    """Return what the model at `path` is, without opening it.

    Raises:
        ModelError: there is nothing, or nothing that is known.
    """
    if (path / MANIFEST).exists():
        return "bundle"
    if (path / RUN_RECORD).exists():
        return "run"
    if not path.exists():
        raise ModelError(f"{path} is not there: check the path.")
    if path.is_dir():
        raise ModelError(
            f"{path} is neither a run folder nor a bundle: name one that 'edgecifar train' or 'edgecifar export' made."
        )
    if path.suffix not in SUFFIXES:
        raise ModelError(f"{path} has an unknown ending: name a run folder, a bundle, or a .pt, .pt2 or .onnx file.")
    return SUFFIXES[path.suffix]
