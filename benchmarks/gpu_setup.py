"""What the tasks of gpu.py are given: a device, a folder, a data set, and how much is measured."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch

from edgecifar.export.parity import Reference
from edgecifar.runtime import Bundle
from edgecifar.runtime.errors import DataError
from edgecifar.train.data import Dataset
from edgecifar.train.recipes import RECIPES, Recipe
from edgecifar.train.run import RECORD, Run


@dataclass(frozen=True)
class Sizes:
    """How much is measured.

    Attributes:
        steps: of the smoke test, a whole epoch.
        batch_size: images a step in every training, and rates that fall with its root; None for the recipe's.
        epochs: of every training; None for the recipe's.
        seeds: runs of each training.
        lengths: NAME:EPOCHS, trainings of other lengths than the recipes have.
        batches: images a call in inference.
        seconds: of each entry that is timed.
        rounds: turns of each.
        product: rows of the matrices whose product gives the device's peak.
        engines: of peers.py, by parts of their names: those that are not fastest, or timed elsewhere, are left out.
    """

    steps: int = 30
    batch_size: int | None = None
    epochs: int | None = None
    seeds: int = 3
    lengths: tuple[str, ...] = ("fast:20", "fast:2")
    batches: tuple[int, ...] = (1, 64, 1024)
    seconds: float = 0.5
    rounds: int = 5
    product: int = 8192
    engines: tuple[str, ...] = ("torch eager", "torch.compile", "onnxruntime", "Classifier", "resident")


@dataclass(frozen=True)
class Setup:
    """What every task is given.

    Attributes:
        device: of torch; its type is the provider's name, too.
        folder: where runs and the bundle go.
        dataset: what is trained on.
        sizes: how much is measured.
        known: what eager torch says of the test images, once it was asked.
        not_recorded: recipes whose step could not be recorded as a CUDA graph: they train without.
        keep: takes the rows that a long task has so far, so that they are not lost where it is killed.
    """

    device: torch.device
    folder: Path
    dataset: Dataset
    sizes: Sizes = field(default_factory=Sizes)
    known: dict[str, Reference] = field(default_factory=dict)
    not_recorded: set[str] = field(default_factory=set)
    keep: Callable[[Sequence[dict[str, Any]]], None] = lambda _: None

    @property
    def kind(self) -> str:
        """The device's kind, such as "cuda"."""
        return self.device.type

    def recipe(self, text: str) -> Recipe:
        """Return the recipe that NAME or NAME:EPOCHS means on this device, in this setup's sizes."""
        name, _, epochs = text.partition(":")
        recipe, sizes = RECIPES[name].on("cuda"), self.sizes
        if epochs:
            recipe = replace(recipe, epochs=int(epochs))
        recipe = replace(recipe, cuda_epochs=0, epochs=sizes.epochs or recipe.epochs)
        if sizes.batch_size:
            rate = recipe.lr * min(1.0, sizes.batch_size / recipe.batch_size) ** 0.5
            recipe = recipe.with_settings({"batch_size": sizes.batch_size, "lr": rate})
        return recipe

    def run(self, text: str, seed: int) -> Run:
        """Return the run of a recipe and a seed, made or not."""
        return Run(self.folder / f"{text.replace(':', '-')}-seed{seed}")

    def finished(self, text: str, seed: int) -> Run:
        """As `run`.

        Raises:
            DataError: it is not finished.
        """
        run = self.run(text, seed)
        if not (run.folder / RECORD).exists() or not run.record.is_finished:
            raise DataError(f"It needs the training {text}, seed {seed}, which is not finished: run this again.")
        return run

    @property
    def bundle_folder(self) -> Path:
        """Where the bundle goes."""
        return self.folder / "bundle"

    def bundle(self) -> Bundle:
        """Return the bundle.

        Raises:
            BundleError: it was not exported.
        """
        return Bundle.open(self.bundle_folder)
