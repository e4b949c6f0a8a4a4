"""The part of `evaluate` that needs no torch: bundles and ONNX files on labelled pictures."""

from __future__ import annotations

import os
from enum import StrEnum
from importlib.util import find_spec
from pathlib import Path

import typer

from .app import say

CIFAR10_FILES = ("cifar-10-batches-py", "cifar-10-python.tar.gz")
"""What CIFAR-10's own folder and archive are called; torchvision reads them."""

NAMED_UNREAD = 20
"""How many pictures that cannot be read are named; of the rest the number is said."""


class Split(StrEnum):
    """Which of the labelled pictures are measured; a test holds it to `labelled.SPLITS`."""

    train = "train"
    val = "val"
    test = "test"
    all = "all"


def own_pictures(data: str | None, model: Path) -> Path | None:
    """Return the folder or CSV that `data` names, where it holds labelled pictures and the model needs no torch.

    Raises:
        ModelError: there is no such model.
        DataError: there is no torch, and no data is named.
    """
    from ..runtime.errors import DataError
    from ..runtime.labelled import recognise
    from ..runtime.manifest import SYNTHETIC
    from ..runtime.paths import kind_of

    if kind_of(model) not in ("bundle", "onnx"):
        return None
    named = data or os.environ.get("EDGECIFAR_DATA")
    with_torch = find_spec("torchvision") is not None
    if not named:
        if with_torch:
            return None
        raise DataError("Name labelled pictures, a folder with a folder per class or a CSV.", option="data")
    path = Path(named).expanduser()
    if path.name in CIFAR10_FILES or any((path / name).exists() for name in CIFAR10_FILES) or named == SYNTHETIC:
        return None
    if not with_torch:
        return path  # which is refused with the reason where it is no data set
    return path if path.exists() and recognise(path) else None


def evaluate_files(
    model: Path,
    data: Path,
    *,
    variant: str | None,
    provider: str,
    split: Split | None,
    plot: Path | None,
    as_json: bool,
) -> None:
    """Print the figures of an ONNX file or a bundle on labelled pictures; exit code 1 where some cannot be read."""
    from ..runtime.evaluation import ALL, evaluate, load
    from .display import json_text
    from .progress import Progress
    from .training_display import evaluation_table

    loaded = load(model, variant, provider)
    if loaded.variant:
        say(f"{model}: variant {loaded.variant} on {loaded.provider}")
    with Progress(None) as progress:
        found = evaluate(loaded, data, split=split.value if split else None, progress=progress.update)
    say(found.reason)
    if as_json:
        described = {
            "model": str(model),
            "kind": loaded.kind,
            "variant": loaded.variant,
            "provider": loaded.provider,
            "dataset": found.name,
            "split": found.pictures,
            "unread": dict(found.unread),
        }
        print(json_text({**described, **found.result.as_json()}))
    else:
        images = "pictures" if found.pictures == ALL else f"{found.pictures} pictures"
        print(evaluation_table(found.result, found.name, images))
    if plot:  # last: where the picture cannot be written, the figures are not lost
        from ..train.plots import confusion

        confusion(found.result, plot)
    for error in list(found.unread.values())[:NAMED_UNREAD]:
        say(f"edgecifar: {error}")
    if len(found.unread) > NAMED_UNREAD:
        say(f"edgecifar: {len(found.unread) - NAMED_UNREAD:,} more could not be read.")
    if found.unread:
        raise typer.Exit(1)
