"""The part of `evaluate` that measures on labelled pictures; for bundles and ONNX files it needs no torch."""

from __future__ import annotations

from enum import StrEnum
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

import typer

from .app import say

if TYPE_CHECKING:
    from ..runtime.evaluation import Model

WITHOUT_TORCH = ("bundle", "onnx")
"""Kinds of models that need no torch."""

NAMED_UNREAD = 20
"""How many pictures that cannot be read are named; of the rest the number is said."""


class Split(StrEnum):
    """Which of the labelled pictures are measured; a test holds it to `labelled.SPLITS`."""

    train = "train"
    val = "val"
    test = "test"
    all = "all"


def own_pictures(data: str | None, model: Path) -> Path | None:
    """Return the folder or CSV that `data` names, where it holds labelled pictures.

    Raises:
        ModelError: there is no such model.
        DataError: there is no torch, and no data is named; or they lie in a home folder that is not known.
    """
    from ..runtime.errors import DataError
    from ..runtime.labelled import named as named_data
    from ..runtime.labelled import recognise
    from ..runtime.manifest import SYNTHETIC
    from ..runtime.paths import expanded, is_cifar10, kind_of

    needs_torch = kind_of(model) not in WITHOUT_TORCH
    named = named_data(data)
    with_torch = needs_torch or find_spec("torchvision") is not None
    if not named:
        if with_torch:
            return None
        raise DataError("Name labelled pictures, a folder with a folder per class or a CSV.", option="data")
    path = expanded(named)
    if named == SYNTHETIC or is_cifar10(path):
        return None
    if not with_torch:
        return path  # which is refused with the reason where it is no data set
    return path if path.exists() and recognise(path) else None


def _of_torch(path: Path, variant: str | None, provider: str) -> Model:
    """Return a run, or a .pt or .pt2 file, as `runtime.evaluation` takes it; what is raised, `models.load` says."""
    from ..export import models
    from ..runtime.errors import ModelError
    from ..runtime.evaluation import Model

    loaded = models.load(path, variant, provider)
    if loaded.contract is None:
        raise ModelError(f"{path} is of an earlier version and does not name its classes: export it again.")
    dataset = {"name": loaded.dataset, "origin": loaded.origin} if loaded.dataset else {}
    return Model(
        loaded.kind, loaded.probabilities, loaded.contract, loaded.provider, None, dataset, loaded.trained_on_val
    )


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
    """Print the figures of a model on labelled pictures; exit code 1 where some cannot be read."""
    from ..runtime.evaluation import ALL, evaluate, load
    from ..runtime.paths import kind_of
    from .display import json_text
    from .progress import Progress
    from .training_display import evaluation_table

    loaded = (load if kind_of(model) in WITHOUT_TORCH else _of_torch)(model, variant, provider)
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
