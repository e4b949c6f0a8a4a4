"""What depends on the number of pictures: batch, epochs, the weight of classes, and what so few can decide."""

from __future__ import annotations

import logging
import math
from collections.abc import Collection
from dataclasses import fields, replace

import numpy as np

from .data import Dataset
from .folders import FolderOptions
from .inspection import MAX_IMBALANCE
from .recipes import FAST, Recipe, RecipeError

log = logging.getLogger("edgecifar")

BATCHES = 10
"""An epoch of own pictures has at least so many steps, unless batches would be smaller than `MIN_BATCH_SIZE`."""

MIN_BATCH_SIZE = 16
"""Batch norm's statistics of fewer pictures are too rough."""

MIN_STEPS = 500
"""A training on own pictures takes at least about so many steps; with fewer, a net from nothing learns little."""

DEFAULT_BUDGET = 0.2
"""Points of held-out accuracy, in per cent, that an export's `edge` may lose unless told otherwise."""

MIN_CALIBRATION_IMAGES = 100
"""With fewer images to train on and held out, in all, an export makes no int8 variant."""


def adapt(recipe: Recipe, dataset: Dataset, given: Collection[str]) -> Recipe:
    """Return `recipe` with what depends on the pictures set for `dataset`, and log what was changed and why.

    Nothing changes where the pictures are CIFAR-10's or drawn ones: the recipes are made for those. Of own pictures the
    validation split is held out by every recipe, also by one that holds nothing of CIFAR-10 out, unless `held_out` was
    given.

    Args:
        recipe: how the net would be trained.
        dataset: what it is trained on.
        given: what somebody decided, by the names of `Recipe`'s fields and of `FolderOptions`'; settings among them
            stay as they are.

    Raises:
        RecipeError: something was given that cannot apply to this data set.
    """
    _check_given(recipe, dataset, given)
    if not dataset.is_own:
        return recipe
    if not recipe.held_out and "held_out" not in given and dataset.validation is not None and len(dataset.validation):
        recipe = replace(recipe, held_out=FAST.held_out)
        log.info(
            "The %s pictures of the validation split are held out, though the recipe %s holds none of CIFAR-10 out.",
            f"{len(dataset.validation):,}",
            recipe.name,
        )
    trained_on, held_out = dataset.hold_out(recipe.held_out)
    images, changed = len(trained_on), []
    if "batch_size" not in given:
        smaller = with_smaller_batches(recipe, images)
        if smaller != recipe:
            changed.append(f"batch size {smaller.batch_size} instead of {recipe.batch_size}")
            if "lr" in given:
                smaller = replace(recipe, batch_size=smaller.batch_size)
            else:
                changed.append(f"learning rates times {smaller.lr / recipe.lr:.2f}")
        recipe = smaller
    if "epochs" not in given:
        epochs = max(recipe.epochs, math.ceil(MIN_STEPS / math.ceil(images / recipe.batch_size)))
        if epochs != recipe.epochs:
            changed.append(f"{epochs} epochs instead of {recipe.epochs}")
            recipe = replace(recipe, epochs=epochs)
    if changed:
        log.info("The recipe is adapted to %s training pictures: %s.", f"{images:,}", ", ".join(changed))
    if "balance" not in given and (ratio := imbalance(dataset.train_labels[trained_on])) > MAX_IMBALANCE:
        log.info("The largest class has %.1f times the pictures of the smallest: each class counts the same.", ratio)
        recipe = replace(recipe, balance=True)
    if recipe.held_out and (remark := held_out_remark(len(held_out), DEFAULT_BUDGET)):
        given_split = "val" not in dataset.origin.get("options", {})
        log.warning("%s %s.", remark, "Add some" if given_split else "Give more to --val, or add pictures")
    return recipe


def _check_given(recipe: Recipe, dataset: Dataset, given: Collection[str]) -> None:
    """Refuse what was given and would change nothing.

    Raises:
        RecipeError: there is such an option.
    """
    options = [option.name for option in fields(FolderOptions) if option.name in given]
    if not dataset.is_own:
        refuse_own_options(options, dataset.name)
    decided = [name for name in options if name in ("val", "test") and name not in dataset.origin.get("options", {})]
    if decided:
        raise RecipeError(f"{' and '.join(decided)} cannot be given, as {dataset.name} has that split itself")
    if "held_out" not in given or dataset.validation is None:
        return
    if recipe.held_out:
        raise RecipeError("held_out is for CIFAR-10: of own pictures, give the share of the validation split as val")
    if "val" in options:
        raise RecipeError("held_out 0 trains on the validation split, too: leave it or val out")


def refuse_own_options(options: Collection[str], name: str) -> None:
    """Refuse the options of own pictures for the data set called `name`, which is none.

    Raises:
        RecipeError: there are such options.
    """
    if options:
        raise RecipeError(f"{', '.join(options)} can only be given for pictures of your own, not for {name}")


def with_smaller_batches(recipe: Recipe, images: int) -> Recipe:
    """Return `recipe` with batches of at most a tenth of the training pictures, and rates that suit them.

    The gradients of smaller batches are noisier: the rates fall by the root of the ratio.
    """
    batch_size = min(recipe.batch_size, max(MIN_BATCH_SIZE, images // BATCHES))
    share = math.sqrt(batch_size / recipe.batch_size)
    return recipe.with_settings({"batch_size": batch_size, "lr": recipe.lr * share}) if share < 1 else recipe


def imbalance(labels: np.ndarray) -> float:
    """Return how many times as large the largest class among `labels`, integer [N], is as the smallest."""
    counts = np.unique(labels, return_counts=True)[1]
    return float(counts.max() / counts.min())


def held_out_remark(images: int, budget: float) -> str:
    """Return a sentence on a held-out set that is too small to decide on a budget of accuracy; "" where it is not.

    It is too small where a single image weighs more than the budget.

    Args:
        images: how many are held out.
        budget: points of accuracy, in per cent.
    """
    if not images:
        return "No pictures are held out: there are none to decide on."
    if 100 / images <= budget:
        return ""
    return (
        f"Only {images:,} pictures are held out for decisions. One of them is {100 / images:.1f} points of accuracy, "
        f"and the budget of an export is {budget:g}: decisions on so few are partly chance."
    )
