"""What teachers answer to views of the training images: computed once, kept on the disk, and learnt from."""

from __future__ import annotations

import functools
import hashlib
import json
import logging
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor, nn

from ..runtime.errors import RunError
from ..runtime.files import make_folder, remove_leftovers, write_file
from .augment import augment, normalise
from .data import Dataset
from .devices import autocast, in_bfloat16
from .recipes import Recipe
from .record import RunRecord
from .run import Run, pack, unpack
from .step import epoch_plan, weighted_cross_entropy

log = logging.getLogger("edgecifar")

DISTILLATION_TEMPERATURE = 2.0
"""The logits of teacher and student are divided by it before they are compared."""

DISTILLATION_WEIGHT = 0.7
"""The distance to the teacher's probabilities is this share of the loss, 0 to 1; the labels have the rest."""

RUN_VIEWS = 24
"""A run that learns from teachers shows each image in so many ways; how many pay has not been measured."""

ANSWERS = "teacher_logits"
"""The logits of teachers are kept in this folder of the first one's run, for all that learn from them."""

VIEW_BATCH_SIZE = 250
"""So many images are augmented and shown to the teachers at once; another number gives other views."""


def distillation_loss(
    logits: Tensor, teacher: Tensor, labels: Tensor, label_smoothing: float = 0.0, weights: Tensor | None = None
) -> Tensor:
    """Return the mean loss of a student, a scalar.

    Cross-entropy against the teacher's softened probabilities, times the temperature squared so that its gradient
    keeps its size, and against the labels (Hinton, Vinyals, Dean, Distilling the Knowledge in a Neural Network, 2015,
    section 2).

    Args:
        logits: the student's, float32 [N, classes].
        teacher: the teacher's logits, float32 [N, classes].
        labels: int64 [N].
        label_smoothing: probability spread evenly over the classes in the labels' part.
        weights: what each image counts, float32 [N], on average 1; None where all count the same.
    """
    temperature, weight = DISTILLATION_TEMPERATURE, DISTILLATION_WEIGHT
    soft = weighted_cross_entropy(logits / temperature, (teacher / temperature).softmax(1), weights) * temperature**2
    hard = weighted_cross_entropy(logits, labels, weights, label_smoothing)
    return weight * soft + (1 - weight) * hard


class Answering(Protocol):
    """Nets whose mean logits others learn from."""

    @property
    def folder(self) -> Path:
        """Where answers are kept."""
        ...

    @property
    def flips(self) -> bool:
        """Whether the mean is over the mirror images, too."""
        ...

    @property
    def origin(self) -> str:
        """A digest of all that decides the answers."""
        ...

    def nets(self, device: torch.device) -> list[nn.Module]:
        """Return the nets in eval mode on `device`."""
        ...


@dataclass(frozen=True)
class Teachers:
    """Finished runs that others learn from: the mean of their logits of a picture and of its mirror image.

    Attributes:
        runs: at least one.
        flips: whether the mirror image is asked about, too.

    Raises:
        ValueError: there is no run.
    """

    runs: tuple[Run, ...]
    flips: bool = True

    def __post_init__(self) -> None:
        if not self.runs:
            raise ValueError("there is no teacher without a run")

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
            if not record.is_finished:
                raise RunError(
                    f"The teacher {run.folder} is not finished: resume it first, or name another run.", option="teacher"
                )
            if record.dataset.sha256 != dataset.digest:
                raise RunError(
                    f"The teacher {run.folder} was trained on other data ({record.dataset.name}) than its student "
                    f"({dataset.name}), or on another split of it: name a run that was trained on the same.",
                    option="teacher",
                )
            if record.recipe.held_out < held_out:
                raise RunError(
                    f"The teacher {run.folder} has seen images that its student would be judged on: it held out "
                    f"{100 * record.recipe.held_out:g} % of them, not {100 * held_out:g} %; name a run that held out "
                    "as many.",
                    option="teacher",
                )

    def describe(self, folders: bool = True) -> list[dict[str, Any]]:
        """Return what a run's record says of its teachers, as JSON values; `recorded` reads it.

        Args:
            folders: whether it says where they are, which is nobody's business elsewhere.
        """
        found = [(run.folder, run.record) for run in self.runs]
        return [
            {
                **({"folder": str(folder.absolute())} if folders else {}),
                "weights_sha256": record.weights_sha256,
                "recipe": asdict(record.recipe),
                "seed": record.seed,
                "flips_averaged": self.flips,
            }
            for folder, record in found
        ]

    @classmethod
    def recorded(cls, distillation: Mapping[str, Any], of: Path) -> Teachers:
        """Return the teachers that a run's record names.

        Args:
            distillation: the record's.
            of: the run's folder.

        Raises:
            RunError: a teacher's folder is not there any more, holds other weights by now, or the record is damaged.
        """
        try:
            known = [
                (Run.recorded(teacher["folder"], teacher["weights_sha256"], f"a teacher of {of}"), teacher)
                for teacher in distillation["teachers"]
            ]
            return cls(tuple(run for run, _ in known), all(bool(teacher["flips_averaged"]) for _, teacher in known))
        except (KeyError, TypeError, ValueError):
            raise RunError(f"The record of {of} does not say what taught it: restore it or train again.") from None

    @property
    def folder(self) -> Path:
        """Where answers are kept: in the first run's folder."""
        return self.runs[0].folder / ANSWERS

    @property
    def origin(self) -> str:
        """A digest of all that decides the answers: the runs' weights, and whether flips are averaged."""
        return digest({"weights": [run.record.weights_sha256 for run in self.runs], "flips": self.flips})

    def nets(self, device: torch.device) -> list[nn.Module]:
        """Return the nets in eval mode on `device`.

        Raises:
            RunError: weights are missing or damaged.
        """
        layout: Any = {"memory_format": torch.channels_last}
        return [run.net().to(device).to(**layout) for run in self.runs]


@torch.no_grad()
def mean_logits(nets: Sequence[nn.Module], pictures: Tensor, flips: bool) -> Tensor:
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
    """The training images in several augmented views, and the teachers' logits of each.

    Teachers and students see the same views (Beyer et al., Knowledge distillation: A good teacher is patient and
    consistent, 2022). The logits of a view are computed once and kept: computing them again in every epoch would cost
    a small student more than its own training. Where flips are averaged, every other view is the mirror image of the
    one before it, as the logits are the same.

    Attributes:
        teachers: what answers; their logits are kept in their folder.
        images: uint8 [N, size, size, 3], what is learnt from.
        recipe: its `flip`, `translate`, `cutout` and `bfloat16` are used.
        seed: what the views derive from.
        device: what computes.
        count: number of views; one is shown an epoch, in turn.
    """

    teachers: Answering
    images: np.ndarray
    recipe: Recipe
    seed: int
    device: torch.device
    count: int = RUN_VIEWS

    @classmethod
    def recorded(cls, record: RunRecord, folder: Path, images: np.ndarray, device: torch.device) -> Views:
        """Return the views that a run learns from.

        Args:
            record: the run's, which names its teachers.
            folder: the run's.
            images: uint8 [N, size, size, 3], what it is trained on.
            device: what computes.

        Raises:
            RunError: as `Teachers.recorded` says.
        """
        teachers = Teachers.recorded(record.distillation or {}, folder)
        return cls(teachers, images, record.recipe, record.seed, device)

    @functools.cached_property
    def pictures(self) -> Tensor:
        """The images on the device, where they stay, uint8 [N, size, size, 3]."""
        return torch.from_numpy(self.images).to(self.device)

    def view(self, epoch: int) -> tuple[Tensor, Tensor]:
        """Return what a student sees in an epoch: the images, uint8 [N, size, size, 3], and float32 [N, classes].

        Args:
            epoch: counted from 0.

        Raises:
            RunError: the logits were not computed yet, and a teacher is missing or damaged.
            OutputError: they cannot be kept.
        """
        number, recipe, teachers = epoch % self.count, self.recipe, self.teachers
        mirrored = teachers.flips and recipe.flip and number % 2 == 1
        number -= mirrored
        plan = epoch_plan(self.seed, number, len(self.images), VIEW_BATCH_SIZE, self.device)
        parts, firsts = (whole.split(VIEW_BATCH_SIZE) for whole in (self.pictures, plan.flipped_first))
        images = torch.cat(
            [augment(some, number, first, recipe, plan.generator) for some, first in zip(parts, firsts, strict=True)]
        )
        key = self._key(number)
        folder = self.teachers.folder
        path = folder / f"{number}-{key[:12]}.state"
        state = stored(path, key)
        if not state:
            make_folder(folder)
            remove_leftovers(folder)
            started, nets = time.perf_counter(), teachers.nets(self.device)
            with autocast(recipe, self.device):
                answers = [
                    mean_logits(nets, normalise(some), teachers.flips).cpu() for some in images.split(VIEW_BATCH_SIZE)
                ]
            state = {"key": key, "logits": torch.cat(answers)}
            store(path, state)
            log.info("  the teacher's logits of view %d: %.0f s", number + 1, time.perf_counter() - started)
        return images.flip(2) if mirrored else images, state["logits"].to(self.device)

    def _key(self, number: int) -> str:
        """Return the digest of all that decides a view and its logits.

        Another kind of device draws other views of the same seed; another precision gives other logits.
        """
        recipe = self.recipe
        return digest(
            {
                "view": [number, VIEW_BATCH_SIZE, recipe.flip, recipe.translate, recipe.cutout],
                "device": [self.device.type, in_bfloat16(recipe, self.device)],
                "teachers": self.teachers.origin,
                "seed": self.seed,
                "images": len(self.images),
            }
        )


def describe_distillation(teachers: Teachers) -> dict[str, Any]:
    """Return what a run's record says of its distillation, as JSON values."""
    return {
        "teachers": teachers.describe(),
        "temperature": DISTILLATION_TEMPERATURE,
        "weight": DISTILLATION_WEIGHT,
        "views": RUN_VIEWS,
    }


def digest(what: dict[str, Any]) -> str:
    """Return the SHA-256 of these JSON values."""
    return hashlib.sha256(json.dumps(what, sort_keys=True).encode()).hexdigest()


def store(path: Path, state: dict[str, Any]) -> None:
    """Write `state`, which holds its "key", as `pack` makes it.

    Raises:
        OutputError: the disk is full, and so on.
    """
    make_folder(path.parent)
    write_file(path, pack(state))


def stored(path: Path, key: str | None = None) -> dict[str, Any] | None:
    """Return what was stored under this key, or under any; None where nothing was or it is damaged: it is made anew."""
    try:
        state = unpack(path.read_bytes())
    except (OSError, ValueError):  # not there, or something else is in its place: writing says so where it matters
        return None
    return state if key in (None, state.get("key")) else None
