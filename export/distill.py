"""Fine-tuning: a smaller net made from a trained one learns on, from the labels and from the whole net's answers."""

from __future__ import annotations

import copy
import hashlib
import io
import json
import math
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional
from torch.optim import Optimizer

from ..runtime.errors import RunError
from ..runtime.files import make_folder, remove_leftovers, write_file
from ..train.augment import augment, normalise
from ..train.data import Dataset
from ..train.lean import lean
from ..train.loop import computing, derive, describe_device, drawn, enough_memory, set_rates
from ..train.net import Net
from ..train.optimizer import in_bfloat16, make_optimizers
from ..train.recipes import FAST, Recipe

DISTILLATION_TEMPERATURE = 2.0
"""Of the teacher's probabilities, and of the student's that are held against them."""

DISTILLATION_WEIGHT = 0.7
"""Share of the loss that is the distance to the teacher's answers; the labels have the rest."""

VIEWS = 8
"""Ways in which each image is shown; what the whole net answers is computed once a view, for all students."""

AT_ONCE = 250
"""Images that are drawn and shown to the teacher at once; another number gives other views."""

FOLDER = "students"
"""Where in a run folder fine-tuned nets and the whole net's answers are kept."""


def recipe(epochs: int) -> Recipe:
    """Return how a student is fine-tuned in `epochs` epochs: as `fast` trains, but gently, and with wider shifts."""
    return replace(
        FAST,
        name="fine-tune",
        epochs=epochs,
        cuda_epochs=0,
        batch_size=256,
        lr=0.05,
        filter_lr=0.05,
        warm_up=0.1,
        shift=4,
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
        logits: the student's, float32 [N, 10].
        teacher: the teacher's logits, float32 [N, 10].
        labels: int64 [N].
    """
    temperature, weight = DISTILLATION_TEMPERATURE, DISTILLATION_WEIGHT
    soft = functional.cross_entropy(logits / temperature, (teacher / temperature).softmax(1)) * temperature**2
    return weight * soft + (1 - weight) * functional.cross_entropy(logits, labels)


@dataclass(frozen=True)
class Tuner:
    """Fine-tunes students of one run, and keeps each in the run's folder: it is not computed twice.

    What is begun and interrupted goes on from its last complete epoch. The same run, student, recipe and seed give the
    same weights on the same machine.

    A student sees each image in `VIEWS` ways, one an epoch and in turn, so that the teacher need not answer again in
    every epoch, which for a small student would cost more than its own training. Student and teacher see the same
    views (Beyer et al., Knowledge distillation: A good teacher is patient and consistent, 2022).

    Attributes:
        folder: the run's.
        origin: digest of the run's weights.
        teacher: the run's net; it is not changed.
        images: uint8 [N, 32, 32, 3], what the run was trained on.
        labels: int64 [N].
        recipe: how to train.
        seed: what all randomness derives from.
        device: what to train on.
        say: called with a line an epoch.
    """

    folder: Path
    origin: str
    teacher: Net
    images: np.ndarray
    labels: np.ndarray
    recipe: Recipe
    seed: int
    device: torch.device
    say: Callable[[str], object]

    def lasting(self, times: int) -> Tuner:
        """Return a tuner of the same run that fine-tunes for so many times the epochs."""
        return replace(self, recipe=recipe(times * self.recipe.epochs))

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
        lean(student, self.device)
        optimizers = make_optimizers(student, recipe)
        state, done = _stored(path, key), 0
        if state:
            student.load_state_dict(state["net"])
            for optimizer, stored in zip(optimizers, state["optimizers"], strict=False):
                optimizer.load_state_dict(stored)
            done = state["epoch"]
        if done == recipe.epochs:
            self.say(f"  fine-tuned before, taken from {path}")
        else:
            where = describe_device(self.device)
            self.say(f"  fine-tuning on {where}; Ctrl-C stops, the same command goes on from the last complete epoch")
        with enough_memory("export with --device cpu, or where there is more"):
            for epoch in range(done, recipe.epochs):
                self._train_epoch(student, optimizers, epoch)
                last = epoch + 1 == recipe.epochs
                kept = [] if last else [optimizer.state_dict() for optimizer in optimizers]
                _store(path, {"key": key, "net": student.state_dict(), "optimizers": kept, "epoch": epoch + 1})
        return student.cpu().eval().requires_grad_(False)

    def _train_epoch(self, student: Net, optimizers: list[Optimizer], epoch: int) -> None:
        recipe, (images, answers) = self.recipe, self._view(epoch % VIEWS)
        labels, started = torch.from_numpy(self.labels).to(self.device), time.perf_counter()
        torch.manual_seed(derive(self.seed, epoch, 0))  # dropout
        _, _, batches = drawn(self.seed, epoch, len(labels), recipe.batch_size, self.device)
        total = torch.zeros((), device=self.device)
        student.train()
        for step, batch in enumerate(batches):
            set_rates(optimizers, recipe.share_of_lr(epoch * len(batches) + step, recipe.epochs * len(batches)))
            with computing(recipe, self.device):
                logits = student(normalise(images[batch]))
            loss = student_loss(logits.float(), answers[batch], labels[batch])
            student.zero_grad(set_to_none=True)
            loss.backward()
            for optimizer in optimizers:
                optimizer.step()
            total += loss.detach()
        mean, seconds = total.item() / len(batches), time.perf_counter() - started
        # The weights too: the last step was one that no loss has seen.
        if not math.isfinite(mean) or not all(
            bool(tensor.isfinite().all()) for tensor in student.state_dict().values()
        ):
            raise RunError("The loss of the fine-tuning is not finite any more: export without --fine-tune.")
        self.say(f"  fine-tuning, epoch {epoch + 1} of {recipe.epochs}: loss {mean:.4f}, {seconds:.0f} s")

    def _view(self, number: int) -> tuple[Tensor, Tensor]:
        """Return all images as view `number` (from 0) shows them, uint8, and the teacher's logits, float32 [N, 10]."""
        recipe = self.recipe
        generator, mirrored_first, _ = drawn(self.seed, number, len(self.labels), AT_ONCE, self.device)
        images = torch.from_numpy(self.images).to(self.device)
        images = torch.cat(
            [
                augment(some, number, first, recipe, generator)
                for some, first in zip(images.split(AT_ONCE), mirrored_first.split(AT_ONCE), strict=True)
            ]
        )
        shown = {"flip": recipe.flip, "shift": recipe.shift, "cutout": recipe.cutout}
        key = self._digest({"view": number, **shown, "at_once": AT_ONCE})
        path = self.folder / FOLDER / f"answers.{number}-{key[:12]}.state"
        state = _stored(path, key)
        if not state:
            started, teacher = time.perf_counter(), copy.deepcopy(self.teacher).to(self.device).eval()
            with torch.no_grad(), computing(recipe, self.device):
                parts = [teacher(normalise(some)).float().cpu() for some in images.split(AT_ONCE)]
            state = {"key": key, "answers": torch.cat(parts)}
            _store(path, state)
            self.say(f"  the whole net's answers to view {number + 1}: {time.perf_counter() - started:.0f} s")
        return images, state["answers"].to(self.device)

    def _path(self, widths: Mapping[str, int], key: str) -> Path:
        return self.folder / FOLDER / f"{'-'.join(map(str, widths.values()))}-{key[:12]}.state"

    def _key(self, student: Net, widths: Mapping[str, int]) -> str:
        """Return the digest of all that decides the weights, and of how they are laid out."""
        return self._digest(
            {
                "widths": dict(widths),
                "recipe": asdict(self.recipe),
                "loss": [DISTILLATION_TEMPERATURE, DISTILLATION_WEIGHT],
                "views": [VIEWS, AT_ONCE],
                "layout": {name: list(tensor.shape) for name, tensor in student.state_dict().items()},
            }
        )

    def _digest(self, what: dict[str, Any]) -> str:
        """Return the digest of these JSON values, of the run, of its images, and of what computes.

        Another kind of device draws other views of the same seed; another precision gives other answers and weights.
        """
        what = {**what, "device": self.device.type, "bfloat16": in_bfloat16(self.recipe, self.device)}
        what = {**what, "origin": self.origin, "seed": self.seed, "images": len(self.labels)}
        return hashlib.sha256(json.dumps(what, sort_keys=True).encode()).hexdigest()


def tuner_of(
    folder: Path,
    record: Mapping[str, Any],
    net: Net,
    dataset: Dataset,
    epochs: int,
    device: torch.device,
    say: Callable[[str], object],
) -> Tuner:
    """Return the tuner of a run, as exports use it.

    Args:
        folder: the run's.
        record: its run.json.
        net: its net.
        dataset: what it was trained on.
        epochs: how long students learn.
        device: what to train on.
        say: called with a line an epoch.
    """
    trained_on, _ = dataset.hold_out(record["recipe"]["held_out"])
    images, labels = dataset.train_images[trained_on], dataset.train_labels[trained_on]
    return Tuner(folder, record["weights_sha256"], net, images, labels, recipe(epochs), record["seed"], device, say)


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
