"""What teachers answer to views of the training images: computed once, kept on the disk, and learnt from."""

from __future__ import annotations

import hashlib
import io
import json
import logging
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from ..runtime.errors import RunError
from ..runtime.files import make_folder, remove_leftovers, write_file
from .augment import augment, normalise
from .data import Dataset
from .loop import computing, drawn
from .optimizer import in_bfloat16
from .recipes import Recipe
from .run import FINISHED, Run

log = logging.getLogger("edgecifar")

DISTILLATION_TEMPERATURE = 2.0
"""The logits of teacher and student are divided by it before they are compared."""

DISTILLATION_WEIGHT = 0.7
"""The distance to the teacher's probabilities is this share of the loss, 0 to 1; the labels have the rest."""

VIEWS = 8
"""Each image is shown in so many ways, one an epoch and in turn."""

VIEW_BATCH_SIZE = 250
"""So many images are augmented and shown to the teachers at once; another number gives other views."""


def distillation_loss(logits: Tensor, teacher: Tensor, labels: Tensor, label_smoothing: float = 0.0) -> Tensor:
    """Return the mean loss of a student, a scalar.

    Cross-entropy against the teacher's softened probabilities, times the temperature squared so that its gradient
    keeps its size, and against the labels (Hinton, Vinyals, Dean, Distilling the Knowledge in a Neural Network, 2015,
    section 2).

    Args:
        logits: the student's, float32 [N, classes].
        teacher: the teacher's logits, float32 [N, classes].
        labels: int64 [N].
        label_smoothing: probability spread evenly over the classes in the labels' part.
    """
    temperature, weight = DISTILLATION_TEMPERATURE, DISTILLATION_WEIGHT
    soft = functional.cross_entropy(logits / temperature, (teacher / temperature).softmax(1)) * temperature**2
    hard = functional.cross_entropy(logits, labels, label_smoothing=label_smoothing)
    return weight * soft + (1 - weight) * hard


@dataclass(frozen=True)
class Teachers:
    """Trained runs whose answers others learn from: the mean of their logits of a picture and of its mirror image.

    Attributes:
        runs: finished runs, at least one.
        flips: whether the mirror image is asked about, too.

    Raises:
        ValueError: there is no run.
    """

    runs: tuple[Run, ...]
    flips: bool = True

    def __post_init__(self) -> None:
        if not self.runs:
            raise ValueError("a teacher is at least one run")

    def check(self, dataset: Dataset, held_out: float) -> None:
        """Make sure that a student of these teachers can be judged on held-out images.

        Args:
            dataset: what the student learns from.
            held_out: share of its training images that the student holds out.

        Raises:
            RunError: a run is not finished, was trained on other data, or has seen images that the student holds out.
        """
        for run in self.runs:
            record = run.record
            if record["status"] != FINISHED:
                raise RunError(f"The teacher {run.folder} is not finished: go on with it first, or name another run.")
            if record["dataset"]["sha256"] != dataset.digest:
                raise RunError(
                    f"The teacher {run.folder} was trained on other data ({record['dataset']['name']}) than "
                    f"{dataset.name}: name a run that was trained on the same."
                )
            if record["recipe"]["held_out"] < held_out:
                raise RunError(
                    f"The teacher {run.folder} was trained on images that its student would be judged on, as it held "
                    f"out {100 * record['recipe']['held_out']:g} % and not {100 * held_out:g} % of them: name a run "
                    "that held out as many."
                )

    def describe(self) -> list[dict[str, Any]]:
        """Return what a record says of the teachers, as JSON values; `recorded` reads it."""
        return [
            {
                "folder": str(run.folder.absolute()),
                "weights_sha256": record["weights_sha256"],
                "recipe": record["recipe"],
                "flips_averaged": self.flips,
            }
            for run in self.runs
            for record in [run.record]
        ]

    @classmethod
    def recorded(cls, described: Sequence[dict[str, Any]], of: Path) -> Teachers:
        """Return the teachers that `describe` described.

        Args:
            described: its value.
            of: the folder whose record it is from, for errors.

        Raises:
            RunError: a teacher's folder is not there any more, or holds other weights by now.
        """
        runs = tuple(Run(Path(teacher["folder"])) for teacher in described)
        for run, teacher in zip(runs, described, strict=True):
            if run.record["weights_sha256"] != teacher["weights_sha256"]:
                raise RunError(f"{run.folder}, the teacher of {of}, holds other weights by now: restore it.")
        return cls(runs, all(teacher["flips_averaged"] for teacher in described))

    @property
    def origin(self) -> str:
        """What decides the answers: the digests of the runs' weights, and whether flips are averaged."""
        digests = [run.record["weights_sha256"] for run in self.runs]
        return "+".join(digests) + ("+flips" if self.flips else "")

    def nets(self, device: torch.device) -> list[nn.Module]:
        """Return the nets in eval mode on `device`.

        Raises:
            RunError: weights are missing or damaged.
        """
        layout = {"memory_format": torch.channels_last}
        return [run.net().to(device).to(**layout).eval() for run in self.runs]


@torch.no_grad()
def answers(nets: Sequence[nn.Module], pictures: Tensor, flips: bool) -> Tensor:
    """Return the mean of the nets' logits, float32 [N, classes].

    Args:
        nets: in eval mode.
        pictures: float32 [N, 3, size, size] in [-1, 1].
        flips: whether the mean is over the mirror images, too.
    """
    shown = [pictures, pictures.flip(3)] if flips else [pictures]
    return torch.stack([net(some).float() for net in nets for some in shown]).mean(0)


@dataclass(frozen=True)
class Views:
    """The training images in `VIEWS` augmented views, and the teachers' logits of each.

    Teachers and students see the same views (Beyer et al., Knowledge distillation: A good teacher is patient and
    consistent, 2022). The logits of a view are computed once and kept: asking again in every epoch would cost a small
    student more than its own training. Where flips are averaged, every other view is the mirror image of the one before
    it: the logits are the same.

    Attributes:
        folder: where logits are kept.
        teachers: who answers.
        images: uint8 [N, size, size, 3], what is learnt from.
        recipe: its `flip`, `shift`, `cutout` and `bfloat16` are used.
        seed: what the views derive from.
        device: what computes.
    """

    folder: Path
    teachers: Teachers
    images: np.ndarray
    recipe: Recipe
    seed: int
    device: torch.device

    def view(self, epoch: int) -> tuple[Tensor, Tensor]:
        """Return what a student sees in an epoch: the images, uint8 [N, size, size, 3], and float32 [N, classes].

        Args:
            epoch: counted from 0; every `VIEWS` epochs the views come again.

        Raises:
            RunError: the logits were not computed yet, and a teacher is missing or damaged.
            OutputError: they cannot be kept.
        """
        number, recipe = epoch % VIEWS, self.recipe
        mirrored = self.teachers.flips and recipe.flip and number % 2 == 1
        number -= mirrored
        generator, mirrored_first, _ = drawn(self.seed, number, len(self.images), VIEW_BATCH_SIZE, self.device)
        images = torch.from_numpy(self.images).to(self.device)
        images = torch.cat(
            [
                augment(some, number, first, recipe, generator)
                for some, first in zip(images.split(VIEW_BATCH_SIZE), mirrored_first.split(VIEW_BATCH_SIZE), strict=True)
            ]
        )
        key = self._key(number)
        path = self.folder / f"teacher_logits.{number}-{key[:12]}.state"
        state = stored(path, key)
        if not state:
            remove_leftovers(self.folder)
            started, nets = time.perf_counter(), self.teachers.nets(self.device)
            with computing(recipe, self.device):
                parts = [
                    answers(nets, normalise(some), self.teachers.flips).cpu() for some in images.split(VIEW_BATCH_SIZE)
                ]
            state = {"key": key, "logits": torch.cat(parts)}
            store(path, state)
            log.info("  the teacher's logits of view %d: %.0f s", number + 1, time.perf_counter() - started)
        return images.flip(2) if mirrored else images, state["logits"].to(self.device)

    def describe(self) -> dict[str, Any]:
        """Return the settings of the distillation, as JSON values."""
        return {
            "teachers": self.teachers.describe(),
            "temperature": DISTILLATION_TEMPERATURE,
            "weight": DISTILLATION_WEIGHT,
            "views": VIEWS,
        }

    def _key(self, number: int) -> str:
        """Return the digest of all that decides the logits.

        Another kind of device draws other views of the same seed; another precision gives other logits.
        """
        recipe = self.recipe
        return digest(
            {
                "view": [number, VIEW_BATCH_SIZE, recipe.flip, recipe.shift, recipe.cutout],
                "device": [self.device.type, in_bfloat16(recipe, self.device)],
                "teachers": self.teachers.origin,
                "seed": self.seed,
                "images": hashlib.sha256(np.ascontiguousarray(self.images)).hexdigest(),
            }
        )


def digest(what: dict[str, Any]) -> str:
    """Return the SHA-256 of these JSON values."""
    return hashlib.sha256(json.dumps(what, sort_keys=True).encode()).hexdigest()


def store(path: Path, state: dict[str, Any]) -> None:
    """Write `state`, which holds its "key", after its digest: torch does not notice a flipped bit.

    Raises:
        OutputError: the disk is full, and so on.
    """
    packed = io.BytesIO()
    torch.save(state, packed)
    content = packed.getvalue()
    make_folder(path.parent)
    write_file(path, hashlib.sha256(content).digest() + content)


def stored(path: Path, key: str) -> dict[str, Any] | None:
    """Return what was stored under this key; None where nothing was, or it is damaged: it is then computed anew."""
    try:
        content = path.read_bytes()
    except OSError:  # not there, or something else is in its place: writing says so where it matters
        return None
    checksum, content = content[:32], content[32:]
    if hashlib.sha256(content).digest() != checksum:
        return None
    try:
        state = torch.load(io.BytesIO(content), map_location="cpu", weights_only=True)
        return state if state["key"] == key else None
    except Exception:  # torch's unpickler raises whatever the bytes lead it to
        return None
