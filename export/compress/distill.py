"""Distillation: a smaller net made from a trained one learns on, from the labels and from the teacher's logits."""

from __future__ import annotations

import copy
import hashlib
import io
import json
import logging
import math
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional
from torch.optim import Optimizer

from ...runtime.errors import RunError
from ...runtime.files import make_folder, remove_leftovers, write_file
from ...train.augment import augment, normalise
from ...train.data import Dataset
from ...train.devices import autocast, describe_device, enough_memory, in_bfloat16
from ...train.net import Net
from ...train.optimizer import make_optimizers
from ...train.recipes import FAST, Recipe
from ...train.run import Run
from ...train.speed import speed_up
from ...train.step import DROPOUT, TrainingStep, derive_seed, epoch_plan, load_optimizers

log = logging.getLogger("edgecifar")

DISTILLATION_TEMPERATURE = 2.0
"""The logits of teacher and student are divided by it before they are compared."""

DISTILLATION_WEIGHT = 0.7
"""The distance to the teacher's probabilities is this share of the loss, 0 to 1; the labels have the rest."""

VIEWS = 8
"""Each image is shown in so many ways; the teacher's logits are computed once a view, for all students."""

VIEW_BATCH_SIZE = 250
"""So many images are augmented and shown to the teacher at once; another number gives other views."""

FOLDER = "students"
"""Fine-tuned nets and the teacher's logits are kept in this folder of a run."""


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


def describe(epochs: int) -> dict[str, Any]:
    """Return all settings of a fine-tuning in `epochs` epochs, as JSON values."""
    return {
        **asdict(recipe(epochs)),
        "distillation_temperature": DISTILLATION_TEMPERATURE,
        "distillation_weight": DISTILLATION_WEIGHT,
        "views": VIEWS,
    }


def student_loss(logits: Tensor, teacher: Tensor, labels: Tensor) -> Tensor:
    """Return the mean loss of a student, a scalar.

    Cross-entropy against the teacher's softened probabilities, times the temperature squared so that its gradient
    keeps its size, and against the labels (Hinton, Vinyals, Dean, Distilling the Knowledge in a Neural Network, 2015,
    section 2).

    Args:
        logits: the student's, float32 [N, classes].
        teacher: the teacher's logits, float32 [N, classes].
        labels: int64 [N].
    """
    temperature, weight = DISTILLATION_TEMPERATURE, DISTILLATION_WEIGHT
    soft = functional.cross_entropy(logits / temperature, (teacher / temperature).softmax(1)) * temperature**2
    return weight * soft + (1 - weight) * functional.cross_entropy(logits, labels)


@dataclass(frozen=True)
class Distiller:
    """Fine-tunes students of one run, and keeps each in the run's folder: it is not computed twice.

    What is begun and interrupted goes on from its last complete epoch. The same run, student, recipe and seed give the
    same weights on the same machine.

    A student sees each image in `VIEWS` ways, one an epoch and in turn, so that the teacher's logits need not be
    computed again in every epoch, which for a small student would cost more than its own training. Student and teacher
    see the same views (Beyer et al., Knowledge distillation: A good teacher is patient and consistent, 2022).

    Attributes:
        folder: the run's.
        origin: digest of the run's weights.
        teacher: the run's net; it is not changed.
        images: uint8 [N, size, size, 3], what the run was trained on.
        labels: int64 [N].
        recipe: how to train.
        seed: what all randomness derives from.
        device: what to train on.
    """

    folder: Path
    origin: str
    teacher: Net
    images: np.ndarray
    labels: np.ndarray
    recipe: Recipe
    seed: int
    device: torch.device

    def lasting(self, multiplier: int) -> Distiller:
        """Return a distiller of the same run that trains for `multiplier` times the epochs."""
        return replace(self, recipe=recipe(multiplier * self.recipe.epochs))

    def holds(self, student: Net, widths: Mapping[str, int]) -> bool:
        """Return whether the run's folder has what `tune` would make of these; nothing is trained."""
        key = self._key(student, widths)
        state = _stored(self._path(widths, key), key)
        return state is not None and state["epoch"] == self.recipe.epochs

    def tune(self, student: Net, widths: Mapping[str, int]) -> Net:
        """Train `student` in place and return it, in eval mode on the CPU.

        Args:
            student: a smaller net made from the teacher.
            widths: what it was narrowed to, by the layer's name.

        Raises:
            RunError: the loss or a weight is not finite any more, or memory runs out.
            OutputError: the run's folder cannot be written.
        """
        recipe, key = self.recipe, self._key(student, widths)
        path = self._path(widths, key)
        make_folder(path.parent)  # before the work, so that a place that cannot be written is said at once
        remove_leftovers(path.parent)
        student = student.to(self.device).to(memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue]
        student.dropout.p = recipe.dropout
        speed_up(student, self.device)
        optimizers = make_optimizers(student, recipe)
        state, done = _stored(path, key), 0
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
                _store(path, {"key": key, "net": student.state_dict(), "optimizers": kept, "epoch": epoch + 1})
        return student.cpu().eval().requires_grad_(False)

    def _train_epoch(self, student: Net, optimizers: list[Optimizer], epoch: int) -> None:
        recipe, (images, teacher_logits) = self.recipe, self._view(epoch % VIEWS)
        labels, started = torch.from_numpy(self.labels).to(self.device), time.perf_counter()
        torch.manual_seed(derive_seed(self.seed, epoch, DROPOUT))
        batches = epoch_plan(self.seed, epoch, len(labels), recipe.batch_size, self.device).batches
        total = torch.zeros((), device=self.device)
        step = TrainingStep(student, optimizers, recipe, self.device, recipe.epochs * len(batches))
        student.train()
        for number, batch in enumerate(batches, epoch * len(batches)):
            wanted = teacher_logits[batch], labels[batch]
            total += step(number, images[batch], lambda logits, wanted=wanted: student_loss(logits, *wanted))
        mean, seconds = total.item() / len(batches), time.perf_counter() - started
        # The weights too: the last step was one that no loss has seen.
        if not math.isfinite(mean) or not all(
            bool(tensor.isfinite().all()) for tensor in student.state_dict().values()
        ):
            raise RunError("The loss of the fine-tuning is not finite any more: export without fine-tuning.")
        log.info("  fine-tuning, epoch %d of %d: loss %.4f, %.0f s", epoch + 1, recipe.epochs, mean, seconds)

    def _view(self, number: int) -> tuple[Tensor, Tensor]:
        """Return view `number` of all images, uint8 [N, size, size, 3], and teacher logits, float32 [N, classes]."""
        recipe = self.recipe
        plan = epoch_plan(self.seed, number, len(self.labels), VIEW_BATCH_SIZE, self.device)
        parts = torch.from_numpy(self.images).to(self.device).split(VIEW_BATCH_SIZE)
        firsts = plan.flipped_first.split(VIEW_BATCH_SIZE)
        images = torch.cat(
            [augment(some, number, first, recipe, plan.generator) for some, first in zip(parts, firsts, strict=True)]
        )
        shown = {"flip": recipe.flip, "translate": recipe.translate, "cutout": recipe.cutout}
        key = self._digest({"view": number, **shown, "at_once": VIEW_BATCH_SIZE})
        path = self.folder / FOLDER / f"teacher_logits.{number}-{key[:12]}.state"
        state = _stored(path, key)
        if not state:
            started, teacher = time.perf_counter(), copy.deepcopy(self.teacher).to(self.device).eval()
            with torch.no_grad(), autocast(recipe, self.device):
                parts = [teacher(normalise(some)).float().cpu() for some in images.split(VIEW_BATCH_SIZE)]
            state = {"key": key, "logits": torch.cat(parts)}
            _store(path, state)
            log.info("  the teacher's logits of view %d: %.0f s", number + 1, time.perf_counter() - started)
        return images, state["logits"].to(self.device)

    def _path(self, widths: Mapping[str, int], key: str) -> Path:
        return self.folder / FOLDER / f"{'-'.join(map(str, widths.values()))}-{key[:12]}.state"

    def _key(self, student: Net, widths: Mapping[str, int]) -> str:
        """Return the digest of all that decides the weights, and of how they are laid out."""
        return self._digest(
            {
                "widths": dict(widths),
                "recipe": asdict(self.recipe),
                "loss": [DISTILLATION_TEMPERATURE, DISTILLATION_WEIGHT],
                "views": [VIEWS, VIEW_BATCH_SIZE],
                "layout": {name: list(tensor.shape) for name, tensor in student.state_dict().items()},
            }
        )

    def _digest(self, what: dict[str, Any]) -> str:
        """Return the digest of these JSON values, of the run, of its images, and of what computes.

        Another kind of device draws other views of the same seed; another precision gives other logits and weights.
        """
        what = {**what, "device": self.device.type, "bfloat16": in_bfloat16(self.recipe, self.device)}
        what = {**what, "origin": self.origin, "seed": self.seed, "images": len(self.labels)}
        return hashlib.sha256(json.dumps(what, sort_keys=True).encode()).hexdigest()


def distiller_of(run: Run, net: Net, dataset: Dataset, epochs: int, device: torch.device) -> Distiller:
    """Return the distiller of a run, as exports use it.

    Args:
        run: the run; students are kept in its folder.
        net: its net, the teacher.
        dataset: what it was trained on.
        epochs: how long students learn.
        device: what to train on.
    """
    record = run.record
    trained_on, _ = dataset.hold_out(record.recipe.held_out)
    return Distiller(
        folder=run.folder,
        origin=record.weights_sha256 or "",
        teacher=net,
        images=dataset.train_images[trained_on],
        labels=dataset.train_labels[trained_on],
        recipe=recipe(epochs),
        seed=record.seed,
        device=device,
    )


def _store(path: Path, state: dict[str, Any]) -> None:
    """Write `state` after its digest: torch does not notice a flipped bit."""
    packed = io.BytesIO()
    torch.save(state, packed)
    content = packed.getvalue()
    make_folder(path.parent)
    write_file(path, hashlib.sha256(content).digest() + content)


def _stored(path: Path, key: str) -> dict[str, Any] | None:
    """Return what was kept under this key; None where nothing was, or it is damaged: it is then computed anew."""
    try:
        content = path.read_bytes()
    except OSError:  # not there, or something else is in its place: writing says so where it matters
        return None
    digest, content = content[:32], content[32:]
    if hashlib.sha256(content).digest() != digest:
        return None
    try:
        state = torch.load(io.BytesIO(content), map_location="cpu", weights_only=True)
        return state if state["key"] == key else None
    except Exception:  # torch's unpickler raises whatever the bytes lead it to
        return None
