"""Distillation: a smaller net made from a trained one learns on, from the labels and from the teacher's logits."""

from __future__ import annotations

import copy
import functools
import logging
import math
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch
from torch import nn
from torch.optim import Optimizer

from ...runtime.errors import RunError
from ...runtime.files import make_folder, remove_leftovers
from ...train.adapting import with_smaller_batches
from ...train.answers import (
    ANSWERS,
    DISTILLATION_TEMPERATURE,
    DISTILLATION_WEIGHT,
    VIEW_BATCH_SIZE,
    Teachers,
    Views,
    digest,
    store,
    stored,
)
from ...train.data import Dataset
from ...train.devices import describe_device, enough_memory
from ...train.distributed import Group
from ...train.epochs import Loss, Material, Steps
from ...train.net import Net
from ...train.optimizer import make_optimizers
from ...train.recipes import FAST, Recipe
from ...train.run import Run
from ...train.speed import speed_up
from ...train.step import DROPOUT, TrainingStep, class_weights, derive_seed, epoch_plan, load_optimizers

log = logging.getLogger("edgecifar")

Student = TypeVar("Student", bound=nn.Module)

VIEWS = 8
"""Each image is shown in so many ways; the teacher's logits are computed once a view, for all students."""

STUDENT_CUTOUT = 8
"""A square of so many pixels is cut out of the pictures that an untrained student learns from."""

FOLDER = "students"
"""Students are kept in this folder of a run."""


def recipe(epochs: int) -> Recipe:
    """Return how a student is fine-tuned in `epochs` epochs: as `fast` trains, but gently, and with wider shifts."""
    return replace(
        FAST,
        name="fine-tune",
        epochs=epochs,
        cuda_epochs=0,
        batch_size=256,
        lr=0.05,
        muon_lr=0.05,
        warm_up=0.1,
        translate=4,
        held_out=0.0,
    )


def describe(recipe: Recipe) -> dict[str, Any]:
    """Return all settings of a fine-tuning by `recipe`, as JSON values."""
    return {
        **asdict(recipe),
        "distillation_temperature": DISTILLATION_TEMPERATURE,
        "distillation_weight": DISTILLATION_WEIGHT,
        "views": VIEWS,
    }


@dataclass(frozen=True)
class Itself:
    """The run's own net as the teacher, asked about each picture as it is.

    Attributes:
        folder: where its answers are kept.
        origin: digest of its weights.
        net: in eval mode; it is not changed.
        flips: whether the mirror image is asked about, too.
    """

    folder: Path
    origin: str
    net: nn.Module
    flips: bool = False

    def nets(self, device: torch.device) -> list[nn.Module]:
        """Return a copy on `device`."""
        return [copy.deepcopy(self.net).to(device).eval()]


@dataclass(frozen=True)
class Distiller:
    """Fine-tunes students of one run, and keeps each in a run's folder: it is not computed twice.

    What is begun and interrupted goes on from its last complete epoch. The same run, student, recipe and seed give the
    same weights on the same machine. What is finished is taken wherever it was made.

    A student sees each image in `VIEWS` ways, of which `train.answers.Views` has the teacher's logits.

    Attributes:
        folder: of the run that students are kept in.
        origin: digest of the weights that a student begins with.
        teacher: the run's net, which students are narrowed from where it is a Net; it is not changed.
        images: uint8 [N, size, size, 3], what the run was trained on.
        labels: int64 [N].
        recipe: how to train.
        seed: what all randomness derives from.
        device: what to train on.
        teachers: other runs that students learn from, instead of from the run's net; None for that net.
    """

    folder: Path
    origin: str
    teacher: nn.Module
    images: np.ndarray
    labels: np.ndarray
    recipe: Recipe
    seed: int
    device: torch.device
    teachers: Teachers | None = None

    def lasting(self, multiplier: int) -> Distiller:
        """Return a distiller of the same run that trains for `multiplier` times the epochs."""
        return replace(self, recipe=replace(self.recipe, epochs=multiplier * self.recipe.epochs))

    def from_nothing(self, multiplier: int) -> Distiller:
        """Return a distiller of the same run for nets that begin untrained, for `multiplier` times the epochs.

        Where other runs teach, such a student owes nothing to the run's own net. It is then kept in the folder of the
        first teacher, for all runs that are taught by it.
        """
        longer = self.lasting(multiplier)
        longer = replace(longer, recipe=replace(longer.recipe, name="student", cutout=STUDENT_CUTOUT))
        return replace(longer, folder=self.teachers.runs[0].folder, origin="") if self.teachers else longer

    def describe(self) -> dict[str, Any]:
        """Return all settings, as JSON values."""
        taught_by = {"teachers": self.teachers.describe(folders=False)} if self.teachers else {}
        return {**describe(self.recipe), **taught_by}

    def holds(self, student: nn.Module, widths: Mapping[str, int]) -> bool:
        """Return whether the run's folder has what `tune` would make of these; nothing is trained."""
        key = self._key(student, widths)
        state = stored(self._path(widths, key), key)
        return state is not None and state["epoch"] == self.recipe.epochs

    def tune(self, student: Student, widths: Mapping[str, int]) -> Student:
        """Train `student` in place and return it, in eval mode on the CPU.

        Args:
            student: a net narrower than the run's, or one of its own shape.
            widths: outputs of its layers, by the layer's name.

        Raises:
            RunError: the loss or a weight is not finite any more, or memory runs out.
            OutputError: the folder cannot be written.
        """
        recipe, key = self.recipe, self._key(student, widths)
        path = self._path(widths, key)
        make_folder(path.parent)  # before the work, so that a place that cannot be written is said at once
        remove_leftovers(path.parent)
        student = student.to(self.device).to(memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue]
        if isinstance(student, Net):
            student.dropout.p = recipe.dropout
        speed_up(student, self.device)
        optimizers = make_optimizers(student, recipe)
        state, done = stored(path, key), 0
        if state:
            student.load_state_dict(state["net"])
            done = state["epoch"]
            if done < recipe.epochs:  # the optimizers of what is finished are not kept
                load_optimizers(optimizers, state["optimizers"])
        if done == recipe.epochs:
            log.info("  fine-tuned before, taken from %s", path)
        else:
            log.info(
                "  fine-tuning on %s; Ctrl-C stops, the same command goes on from the last complete epoch",
                describe_device(self.device),
            )
        with enough_memory("fine-tune on the CPU, or where there is more memory"):
            for epoch in range(done, recipe.epochs):
                self._train_epoch(student, optimizers, epoch)
                last = epoch + 1 == recipe.epochs
                kept = [] if last else [optimizer.state_dict() for optimizer in optimizers]
                store(path, {"key": key, "net": student.state_dict(), "optimizers": kept, "epoch": epoch + 1})
        return student.cpu().eval().requires_grad_(False)

    def _train_epoch(self, student: nn.Module, optimizers: list[Optimizer], epoch: int) -> None:
        recipe, (images, teacher_logits) = self.recipe, self.views.view(epoch)
        labels, started = torch.from_numpy(self.labels).to(self.device), time.perf_counter()
        weights = class_weights(self.labels, teacher_logits.shape[1]).to(self.device) if recipe.balance else None
        torch.manual_seed(derive_seed(self.seed, epoch, DROPOUT))
        plan = epoch_plan(self.seed, epoch, len(labels), recipe.batch_size, self.device)
        count = len(plan.batches)
        step = TrainingStep(student, optimizers, recipe, self.device, recipe.epochs * count)
        steps = Steps(step, Loss(recipe.label_smoothing, weights, Group()), count)
        student.train()
        for _ in steps.run(Material(epoch, plan, images, labels, teacher_logits)):
            pass
        mean, seconds = steps.losses.mean().item(), time.perf_counter() - started
        # The weights too: the last step was one that no loss has seen.
        if not math.isfinite(mean) or not all(
            bool(tensor.isfinite().all()) for tensor in student.state_dict().values()
        ):
            raise RunError("The loss of the fine-tuning is not finite any more: export without fine-tuning.")
        log.info("  fine-tuning, epoch %d of %d: loss %.4f, %.0f s", epoch + 1, recipe.epochs, mean, seconds)

    @functools.cached_property
    def views(self) -> Views:
        """What is shown: of one object, so that a GPU is given the images once."""
        teachers = self.teachers or Itself(self.folder / ANSWERS, self.origin, self.teacher)
        return Views(teachers, self.images, self.recipe, self.seed, self.device, VIEWS)

    def _path(self, widths: Mapping[str, int], key: str) -> Path:
        return self.folder / FOLDER / f"{'-'.join(map(str, widths.values()))}-{key[:12]}.state"

    def _key(self, student: nn.Module, widths: Mapping[str, int]) -> str:
        """Return the digest of what decides the weights, and of how they are laid out.

        What computes is left out, though another precision gives other weights: a student is as good as the next.
        """
        return digest(
            {
                "widths": dict(widths),
                "recipe": asdict(self.recipe),
                "loss": [DISTILLATION_TEMPERATURE, DISTILLATION_WEIGHT],
                "views": [VIEWS, VIEW_BATCH_SIZE],
                "layout": {name: list(tensor.shape) for name, tensor in student.state_dict().items()},
                "arrangement": getattr(student, "arrangement", None),
                "origin": self.origin,
                "teachers": self.teachers.origin if self.teachers else None,
                "seed": self.seed,
                "images": len(self.labels),
            }
        )


def recipe_of(run: Run, dataset: Dataset, epochs: int, corrupted: float | None = None) -> Recipe:
    """Return how students of a run learn.

    Where the run weighs its classes or corrupts its images, so do its students; of few own pictures, they learn in
    smaller batches.

    Args:
        run: whose record has the settings.
        dataset: what it was trained on.
        epochs: how long they learn; some learn for a multiple of it.
        corrupted: share of the pictures that is corrupted, 0 to 1; None for the run's.
    """
    own = run.record.recipe
    how = replace(recipe(epochs), balance=own.balance, corrupted=own.corrupted if corrupted is None else corrupted)
    trained_on, _ = dataset.hold_out(own.held_out)
    return with_smaller_batches(how, len(trained_on)) if dataset.is_own else how


def distiller_of(
    run: Run, net: nn.Module, dataset: Dataset, how: Recipe, device: torch.device, teachers: Teachers | None = None
) -> Distiller:
    """Return the distiller of a run, as exports use it.

    Args:
        run: the run; students are kept in its folder, or in that of their teacher.
        net: its net.
        dataset: what it was trained on.
        how: students learn, as `recipe_of` says.
        device: what to train on.
        teachers: runs that students learn from; None for the run itself.

    Raises:
        RunError: a teacher has seen images that the run held out, or is no teacher of its data.
    """
    record = run.record
    if teachers:
        teachers.check(dataset, record.recipe.held_out)
    trained_on, _ = dataset.hold_out(record.recipe.held_out)
    return Distiller(
        folder=run.folder,
        origin=record.weights_sha256 or "",
        teacher=net,
        images=dataset.train_images[trained_on],
        labels=dataset.train_labels[trained_on],
        recipe=how,
        seed=record.seed,
        device=device,
        teachers=teachers,
    )
