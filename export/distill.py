"""Fine-tuning: a net whose large layers are factored learns on, from the labels and from the whole net's answers."""

from __future__ import annotations

import copy
import hashlib
import io
import json
import math
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from ..runtime.errors import RunError
from ..runtime.files import make_folder, remove_leftovers, write_file
from ..train.augment import augment, normalise
from ..train.loop import derive
from ..train.net import Net
from ..train.optimizer import make_optimizers
from ..train.recipes import Recipe

SOFTNESS = 2.0
"""Temperature of the teacher's probabilities, and of the student's that are held against them."""

TAUGHT = 0.7
"""Share of the loss that is the distance to the teacher's answers; the labels have the rest."""

FOLDER = "factored"
"""Where in a run folder fine-tuned nets are kept."""


def recipe(epochs: int) -> Recipe:
    """Return how a factored net is fine-tuned in `epochs` epochs: as `best` trains, in smaller steps."""
    return Recipe(
        "fine-tune",
        epochs=epochs,
        batch_size=256,
        optimizer="muon",
        lr=0.02,
        filter_lr=0.02,
        nesterov=True,
        weight_decay=5e-4,
        schedule="one-cycle",
        warm_up=0.1,
        dropout=0.0,
        flip=True,
        shift=4,
    )


def distance(logits: Tensor, teacher: Tensor, labels: Tensor) -> Tensor:
    """Return the mean loss of a student, a scalar.

    Cross-entropy against the teacher's softened probabilities, times the softness squared so that its gradient keeps
    its size, and against the labels (Hinton, Vinyals, Dean, Distilling the Knowledge in a Neural Network, 2015,
    section 2).

    Args:
        logits: the student's, float32 [N, 10].
        teacher: the teacher's logits, float32 [N, 10].
        labels: int64 [N].
    """
    soft = functional.cross_entropy(logits / SOFTNESS, (teacher / SOFTNESS).softmax(1)) * SOFTNESS**2
    return TAUGHT * soft + (1 - TAUGHT) * functional.cross_entropy(logits, labels)


@dataclass(frozen=True)
class Tuner:
    """Fine-tunes factored nets of one run, and keeps each in the run's folder: it is not computed twice.

    What is begun and interrupted goes on from its last complete epoch. The same run, ranks, recipe and seed give the
    same weights on the same machine.

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

    def tune(self, student: Net, ranks: Mapping[str, int]) -> Net:
        """Train `student` in place and return it, in eval mode on the CPU.

        Raises:
            RunError: the loss is not finite any more.
            OutputError: the run's folder cannot be written.
        """
        path = self.folder / FOLDER / ("-".join(f"{name}.{rank}" for name, rank in ranks.items()) + ".pt")
        key = self._key(ranks)
        make_folder(path.parent)
        remove_leftovers(path.parent)
        student = student.to(self.device).to(memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue]
        teacher = copy.deepcopy(self.teacher).to(self.device).eval()
        student.dropout.p = self.recipe.dropout
        optimizers = make_optimizers(student, self.recipe)
        state = _stored(path, key)
        if state:
            student.load_state_dict(state["net"])
            for optimizer, stored in zip(optimizers, state["optimizers"], strict=False):
                optimizer.load_state_dict(stored)
        for epoch in range(state["epoch"] if state else 0, self.recipe.epochs):
            self._train_epoch(student, teacher, optimizers, epoch)
            last = epoch + 1 == self.recipe.epochs
            packed = io.BytesIO()
            kept = [] if last else [optimizer.state_dict() for optimizer in optimizers]
            torch.save({"key": key, "net": student.state_dict(), "optimizers": kept, "epoch": epoch + 1}, packed)
            write_file(path, packed.getvalue())
        return student.cpu().eval().requires_grad_(False)

    def _train_epoch(self, student: Net, teacher: Net, optimizers: list[torch.optim.Optimizer], epoch: int) -> None:
        recipe, count = self.recipe, len(self.labels)
        images, labels = torch.from_numpy(self.images).to(self.device), torch.from_numpy(self.labels).to(self.device)
        generator = torch.Generator(self.device).manual_seed(derive(self.seed, epoch, 1))
        mirror = torch.Generator().manual_seed(self.seed)
        mirrored_first = torch.randint(2, (count,), generator=mirror).bool().to(self.device)
        order = torch.randperm(count, generator=torch.Generator().manual_seed(derive(self.seed, epoch, 2)))
        batches = order.to(self.device).split(recipe.batch_size)
        started, total = time.perf_counter(), torch.zeros((), device=self.device)
        student.train()
        for step, batch in enumerate(batches):
            share = recipe.share_of_lr(epoch * len(batches) + step, recipe.epochs * len(batches))
            for optimizer in optimizers:
                for group in optimizer.param_groups:
                    group["lr"] = group["peak_lr"] * share
            shown = normalise(augment(images[batch], epoch, mirrored_first[batch], recipe, generator))
            with torch.no_grad():
                wanted = teacher(shown)
            loss = distance(student(shown), wanted, labels[batch])
            student.zero_grad(set_to_none=True)
            loss.backward()
            for optimizer in optimizers:
                optimizer.step()
            total += loss.detach()
        mean = total.item() / len(batches)
        if not math.isfinite(mean):
            raise RunError("The loss of the fine-tuning is not finite any more: export without --fine-tune.")
        seconds = time.perf_counter() - started
        self.say(f"  fine-tuning, epoch {epoch + 1} of {recipe.epochs}: loss {mean:.4f}, {seconds:.0f} s")

    def _key(self, ranks: Mapping[str, int]) -> str:
        """Return the digest of all that decides the weights."""
        what: dict[str, Any] = {
            "origin": self.origin,
            "ranks": dict(ranks),
            "recipe": asdict(self.recipe),
            "loss": [SOFTNESS, TAUGHT],
            "seed": self.seed,
            "images": len(self.labels),
        }
        return hashlib.sha256(json.dumps(what).encode()).hexdigest()


def _stored(path: Path, key: str) -> dict[str, Any] | None:
    """Return what was kept under this key; None where nothing was, or it is damaged: it is then computed anew."""
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
        return state if state["key"] == key else None
    except Exception:  # torch's unpickler raises whatever the bytes lead it to
        return None
