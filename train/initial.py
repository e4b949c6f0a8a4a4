"""Weights to begin with: those of an earlier run, all but the last layer where the classes are others."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import nn

from ..runtime.contract import Contract
from ..runtime.errors import RunError
from . import folders
from .data import Dataset
from .recipes import Recipe
from .run import Run, load_state

log = logging.getLogger("edgecifar")


def check(earlier: Run, recipe: Recipe) -> None:
    """Make sure that a run by `recipe` can begin with the weights of `earlier`.

    Raises:
        RunError: it is no finished run, or holds another net than the recipe's.
    """
    record = earlier.record
    if not record.is_finished:
        raise RunError(f"{earlier.folder} is not finished: resume it first.", option="resume")
    if record.recipe.net != recipe.net:
        raise RunError(
            f"{earlier.folder} holds the net {record.recipe.net!r} and the recipe {recipe.name} trains the net "
            f"{recipe.net!r}: begin with a run of the same net.",
            option="from",
        )


def describe(earlier: Run, recipe: Recipe, dataset: Dataset) -> dict[str, Any]:
    """Return what a run records of the run that it begins with, as JSON values.

    Raises:
        RunError: as `check` says; `earlier` was trained on images that the new run holds out, or its weights are
            damaged.
    """
    check(earlier, recipe)
    earlier.net()  # what is damaged is said before there is a new folder
    record = earlier.record
    if record.dataset.sha256 == dataset.digest and record.recipe.held_out < recipe.held_out:
        raise RunError(
            f"{earlier.folder} has seen images that the new run would be judged on: it held out "
            f"{100 * record.recipe.held_out:g} % of them, not {100 * recipe.held_out:g} %; name a run that held out as "
            "many.",
            option="from",
        )
    mine, its = (
        folders.not_trained_on(origin, held_out)
        for origin, held_out in ((dataset.origin, recipe.held_out), (record.dataset.origin, record.recipe.held_out))
    )
    if record.dataset.name == dataset.name and mine is not None and its is not None:
        if its < mine - 1e-9:  # 0.1 + 0.2 is more than 0.15 + 0.15 in floats
            raise RunError(
                f"{earlier.folder} was trained on pictures that the new run would be judged on: it tested on and held "
                f"out {100 * its:g} % of {dataset.name}, not {100 * mine:g} %; give the new run shares no larger.",
                option="from",
            )
        if record.dataset.sha256 != dataset.digest:
            log.warning(
                "%s was trained on %s as it was then. Files that it was trained on are trained on again, but copies of "
                "them in another size or format, or those whose group is another now, may be among what the new run is "
                "judged on.",
                earlier.folder,
                record.dataset.name,
            )
    elif record.dataset.sha256 != dataset.digest and {*record.contract.labels} & {*dataset.contract.labels}:
        log.warning(
            "%s was trained on %s. Pictures of it that are in %s, too, may be among those that the new run is judged "
            "on.",
            earlier.folder,
            record.dataset.name,
            dataset.name,
        )
    return {
        "folder": str(earlier.folder.absolute()),
        "weights_sha256": record.weights_sha256,
        "recipe": record.recipe.name,
        "dataset": {"name": record.dataset.name, "sha256": record.dataset.sha256},
        "last_layer": record.contract.labels == dataset.contract.labels,
    }


def recorded(begun_from: Mapping[str, Any], of: Path) -> Run:
    """Return the run that a run's record says it began with.

    Args:
        begun_from: what `describe` returned.
        of: the folder of the run that began with it.

    Raises:
        RunError: the earlier run is not there any more, holds other weights by now, or the record is damaged.
    """
    try:
        return Run.recorded(begun_from["folder"], begun_from["weights_sha256"], f"which {of} began with")
    except (KeyError, TypeError):
        raise RunError(f"The record of {of} does not say what it began with: restore it or train again.") from None


def load(net: nn.Module, earlier: Run, contract: Contract) -> None:
    """Give `net` the weights of `earlier`, those of the last layer only where the classes are the same.

    Args:
        net: an untrained net of the same architecture.
        earlier: the run that it begins with.
        contract: the net's.

    Raises:
        RunError: the weights are missing, damaged, or another net's.
    """
    state = earlier.net().state_dict()
    if earlier.record.contract.labels != contract.labels:
        own, last = net.state_dict(), last_layer(net)
        state |= {name: tensor for name, tensor in own.items() if name.startswith(f"{last}.")}
    load_state(net, state, earlier.folder)


def last_layer(net: nn.Module) -> str:
    """Return the name of the layer that has an output a class: the last fully connected one."""
    return [name for name, module in net.named_modules() if isinstance(module, nn.Linear)][-1]
