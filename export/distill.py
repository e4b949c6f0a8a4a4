"""Fine-tuning: a net whose large layers are factored learns on, from the labels and from the whole net's answers."""

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
from ..train.loop import computing, derive, describe_device, drawn, set_rates
from ..train.net import Net
from ..train.optimizer import make_optimizers
from ..train.recipes import BEST, Recipe

SOFTNESS = 2.0
"""Temperature of the teacher's probabilities, and of the student's that are held against them."""

TAUGHT = 0.7
"""Share of the loss that is the distance to the teacher's answers; the labels have the rest."""

LEAST = 16
"""Images in a batch; of a last one with fewer, batch norm between the factors of `fc1` would learn little but noise."""

FOLDER = "factored"
"""Where in a run folder fine-tuned nets are kept."""


def recipe(epochs: int) -> Recipe:
    """Return how a factored net is fine-tuned in `epochs` epochs: as `best` trains, in smaller steps."""
    return replace(
        BEST,
        name="fine-tune",
        epochs=epochs,
        cuda_epochs=0,
        restart=0,
        lr=0.01,
        filter_lr=0.01,
        warm_up=0.1,
        dropout=0.0,
        held_out=0.0,
    )


def describe(epochs: int) -> dict[str, Any]:
    """Return all settings of a fine-tuning in `epochs` epochs, as JSON values."""
    return {**asdict(recipe(epochs)), "softness": SOFTNESS, "taught": TAUGHT}


def student_loss(logits: Tensor, teacher: Tensor, labels: Tensor) -> Tensor:
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

        Args:
            student: what `low_rank.factored` makes of the teacher.
            ranks: those of its factors, by the layer's name.

        Raises:
            RunError: the loss or a weight is not finite any more.
            OutputError: the run's folder cannot be written.
        """
        key = self._key(student, ranks)
        name = "-".join(f"{layer}.{rank}" for layer, rank in ranks.items())
        path = self.folder / FOLDER / f"{name}-{key[:12]}.state"
        make_folder(path.parent)
        remove_leftovers(path.parent)
        student = student.to(self.device).to(memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue]
        teacher = copy.deepcopy(self.teacher).to(self.device).eval()
        student.dropout.p = self.recipe.dropout
        optimizers = make_optimizers(student, self.recipe)
        state, done = _stored(path, key), 0
        if state:
            student.load_state_dict(state["net"])
            for optimizer, stored in zip(optimizers, state["optimizers"], strict=False):
                optimizer.load_state_dict(stored)
            done = state["epoch"]
        if done == self.recipe.epochs:
            self.say(f"  fine-tuned before, taken from {path}")
        else:
            where = describe_device(self.device)
            self.say(f"  fine-tuning on {where}; Ctrl-C stops, the same command goes on from the last complete epoch")
        for epoch in range(done, self.recipe.epochs):
            self._train_epoch(student, teacher, optimizers, epoch)
            last = epoch + 1 == self.recipe.epochs
            kept = [] if last else [optimizer.state_dict() for optimizer in optimizers]
            _store(path, {"key": key, "net": student.state_dict(), "optimizers": kept, "epoch": epoch + 1})
        return student.cpu().eval().requires_grad_(False)

    def _train_epoch(self, student: Net, teacher: Net, optimizers: list[Optimizer], epoch: int) -> None:
        recipe, started = self.recipe, time.perf_counter()
        images, labels = torch.from_numpy(self.images).to(self.device), torch.from_numpy(self.labels).to(self.device)
        torch.manual_seed(derive(self.seed, epoch, 0))  # dropout
        generator, mirrored_first, batches = drawn(self.seed, epoch, len(labels), recipe.batch_size, self.device)
        if len(batches) > 1 and len(batches[-1]) < LEAST:
            batches = batches[:-1]
        total = torch.zeros((), device=self.device)
        student.train()
        for step, batch in enumerate(batches):
            set_rates(optimizers, recipe.share_of_lr(epoch * len(batches) + step, recipe.epochs * len(batches)))
            shown = normalise(augment(images[batch], epoch, mirrored_first[batch], recipe, generator))
            with computing(recipe, self.device):
                with torch.no_grad():
                    wanted = teacher(shown)
                logits = student(shown)
            loss = student_loss(logits.float(), wanted.float(), labels[batch])
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

    def _key(self, student: Net, ranks: Mapping[str, int]) -> str:
        """Return the digest of all that decides the weights, and of how they are laid out."""
        what: dict[str, Any] = {
            "origin": self.origin,
            "ranks": dict(ranks),
            "recipe": asdict(self.recipe),
            "loss": [SOFTNESS, TAUGHT],
            "seed": self.seed,
            "images": len(self.labels),
            "layout": {name: list(tensor.shape) for name, tensor in student.state_dict().items()},
        }
        return hashlib.sha256(json.dumps(what).encode()).hexdigest()


def _store(path: Path, state: dict[str, Any]) -> None:
    """Write `state` after its digest: torch does not notice a flipped bit."""
    packed = io.BytesIO()
    torch.save(state, packed)
    content = packed.getvalue()
    write_file(path, hashlib.sha256(content).digest() + content)


def _stored(path: Path, key: str) -> dict[str, Any] | None:
    """Return what was kept under this key; None where nothing was, or it is damaged: it is then computed anew."""
    try:
        content = path.read_bytes()
    except FileNotFoundError:
        return None
    digest, content = content[:32], content[32:]
    if hashlib.sha256(content).digest() != digest:
        return None
    try:
        state = torch.load(io.BytesIO(content), map_location="cpu", weights_only=True)
        return state if state["key"] == key else None
    except Exception:  # torch's unpickler raises whatever the bytes lead it to
        return None
