"""What a run takes over from the one before it: one that goes on, or one on all images that follows another."""

from __future__ import annotations

from dataclasses import replace

from ..runtime.errors import RunError
from .recipes import Recipe
from .record import SelectionRun
from .run import METRICS, Run


def follow(selection: Run) -> tuple[Recipe, SelectionRun]:
    """Return the recipe of the full-data run that follows `selection`, and what `train` takes over from it.

    A full-data run is trained as its selection run was, but on the images too that this one held out. Nothing is left
    to decide: epochs, seed and temperature are the selection run's, and the test images are seen once, at the end.

    Raises:
        RunError: `selection` is not finished, held no images out, or its record is damaged.
    """
    record, recipe = selection.record, recipe_of(selection)
    if not record.is_finished:
        raise RunError(f"{selection.folder} is not finished: resume it first.", option="resume")
    if not selection.metrics:
        raise RunError(f"{selection.folder} has lost the lines of its {METRICS}: restore the file or train again.")
    if "held_out_accuracy" not in selection.metrics[-1]:  # a share of few pictures may be none
        raise RunError(f"{selection.folder} held no images out, so that there are none to add: name a run that did.")
    taken = SelectionRun(
        weights_sha256=record.weights_sha256 or "",
        data_sha256=record.dataset.sha256,
        held_out=recipe.held_out,
        seed=record.seed,
        temperature=record.temperature,
    )
    return replace(recipe, held_out=0.0), taken


def recipe_of(run: Run) -> Recipe:
    """Return the recipe that `run` was begun with, to train by it.

    Raises:
        RunError: run.json is missing or damaged, or the recipe has settings that this version does not know.
    """
    record = run.record
    if record.unknown_settings:
        unknown = ", ".join(record.unknown_settings)
        raise RunError(
            f"{run.folder} was made by another version of edgecifar (its recipe has {unknown}): train again."
        )
    return record.recipe
