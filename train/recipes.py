"""Recipes: every setting that decides how Net is trained, as plain values that a run records."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from typing import Any

SCHEDULES = ("constant", "one-cycle")

_RENAMED = {"filter_lr": "muon_lr", "shift": "translate"}
"""Settings that older runs recorded under another name."""


class RecipeError(ValueError):
    """A setting is none that can be trained with; the message names it."""


@dataclass(frozen=True)
class Recipe:
    """How to train a net.

    Attributes:
        name: what it is called on the command line.
        epochs: passes over the training images.
        cuda_epochs: where CUDA trains, if that is another number; 0 if not.
        batch_size: images a step.
        optimizer: "sgd", "adam", or "muon": Muon on the filters, SGD on the rest.
        lr: learning rate; the highest where the schedule is "one-cycle".
        muon_lr: Muon's, the relative size of a step; likewise.
        momentum: of SGD; Adam keeps its own defaults.
        nesterov: whether SGD's momentum is Nesterov's.
        weight_decay: on weights only, never on biases or batch norm's parameters.
        schedule: "constant", or "one-cycle": linearly up over the first `warm_up`, then linearly to zero.
        warm_up: share of the steps, 0 to 1.
        label_smoothing: probability spread evenly over the classes in the training targets.
        dropout: the net's probability.
        flip: whether an image is mirrored in every other epoch (which of the two is drawn per image).
        translate: an image is moved by up to so many pixels each way; what comes in is reflected.
        cutout: side of the square that is set to the mean grey at a random place; 0 for none.
        corrupted: share of the images that are spoilt as cameras spoil them (`train.corruption`), 0 to 1.
        held_out: share of the training images kept out of training, for decisions and for the temperature.
        bfloat16: whether to compute in bfloat16 (autocast, float32 weights) where the device can: CUDA, and CPUs with
            instructions for it (AVX-512 BF16, AMX).
        net: what is trained, one of `nets.NETS`.
        head_lr: learning rate of the fully connected layers, and of a first convolution; 0 for `lr`.
        balance: whether an image counts in the loss in inverse proportion to the size of its class.

    Raises:
        RecipeError: a setting is none that can be trained with.
    """

    name: str
    epochs: int
    batch_size: int
    optimizer: str = "sgd"
    lr: float = 1e-3
    muon_lr: float = 0.1
    momentum: float = 0.9
    nesterov: bool = False
    weight_decay: float = 0.0
    schedule: str = "constant"
    warm_up: float = 0.0
    label_smoothing: float = 0.0
    dropout: float = 0.5
    flip: bool = False
    translate: int = 0
    cutout: int = 0
    corrupted: float = 0.0
    held_out: float = 0.0
    bfloat16: bool = False
    cuda_epochs: int = 0
    net: str = "net"
    head_lr: float = 0.0
    balance: bool = False

    def __post_init__(self) -> None:
        valid = {
            "epochs": self.epochs >= 1,
            "cuda_epochs": self.cuda_epochs >= 0,
            "batch_size": self.batch_size >= 2,  # batch norm needs two
            "lr": 0 <= self.lr < math.inf,
            "muon_lr": 0 <= self.muon_lr < math.inf,
            "head_lr": 0 <= self.head_lr < math.inf,
            "momentum": 0 <= self.momentum < 1,
            "weight_decay": self.weight_decay >= 0,
            "schedule": self.schedule in SCHEDULES,
            "warm_up": 0 <= self.warm_up <= 1,
            "label_smoothing": 0 <= self.label_smoothing < 1,
            "dropout": 0 <= self.dropout < 1,
            "translate": self.translate >= 0,
            "cutout": self.cutout >= 0,
            "corrupted": 0 <= self.corrupted <= 1,
            "held_out": 0 <= self.held_out < 1,
        }
        for name, is_valid in valid.items():
            if not is_valid:
                raise RecipeError(f"{name} cannot be {getattr(self, name)}")

    def on(self, device: str) -> Recipe:
        """Return the recipe as it is on this kind of device, such as "cpu" or "cuda"."""
        return replace(self, epochs=self.cuda_epochs) if device == "cuda" and self.cuda_epochs else self

    def with_settings(self, settings: Mapping[str, Any]) -> Recipe:
        """Return the recipe with other settings, by their names; another `lr` changes the other two in proportion.

        Raises:
            RecipeError: a setting is none that can be trained with.
        """
        factor = settings["lr"] / self.lr if "lr" in settings and self.lr else 1.0
        coupled = {"muon_lr": self.muon_lr * factor, "head_lr": self.head_lr * factor}
        return replace(self, **{**coupled, **settings})

    @property
    def augments(self) -> bool:
        """Whether images are shown otherwise than they are, corruption aside."""
        return self.flip or self.translate > 0 or self.cutout > 0

    def lr_factor(self, step: int, steps: int) -> float:
        """Return the factor of each learning rate in step `step` (from 0) of `steps` in all, 0 to 1."""
        if self.schedule == "constant":
            return 1.0
        done = (step + 1) / (steps + 1)
        return min(done / max(self.warm_up, 1e-9), (1 - done) / max(1 - self.warm_up, 1e-9))

    @classmethod
    def known(cls, recorded: Mapping[str, Any]) -> tuple[dict[str, Any], tuple[str, ...]]:
        """Split what a run recorded of its recipe into settings, by today's names, and names that are unknown here."""
        current = {_RENAMED.get(name, name): value for name, value in recorded.items()}
        names = {field.name for field in fields(cls)}
        known = {name: value for name, value in current.items() if name in names}
        return known, tuple(name for name in current if name not in names)


REFERENCE = Recipe("reference", epochs=50, batch_size=16)
"""The reference experiment: constant small rate, no augmentation, dropout 0.5."""

FAST = Recipe(
    "fast",
    epochs=2,
    batch_size=512,
    optimizer="muon",
    lr=0.15,
    muon_lr=0.2,
    nesterov=True,
    weight_decay=5e-4,
    schedule="one-cycle",
    warm_up=0.2,
    dropout=0.0,
    flip=True,
    translate=2,
    held_out=0.1,
    bfloat16=True,
    cuda_epochs=10,  # not measured yet, nor are those of `best`
)
"""A useful net soon: 79.6 % of the test images after 195 seconds on two cores that multiply in bfloat16."""

BEST = replace(
    FAST,
    name="best",
    epochs=50,
    cuda_epochs=100,
    muon_lr=0.1,
    warm_up=0.15,
    dropout=0.1,
    translate=4,
    cutout=8,
)
"""Accuracy first: an hour and a half on two CPU cores that multiply in bfloat16."""

TEACHER = Recipe(
    "teacher",
    epochs=16,
    batch_size=500,
    optimizer="muon",
    lr=0.1,
    muon_lr=0.12,
    head_lr=0.4,
    momentum=0.85,
    nesterov=True,
    weight_decay=1e-4,
    schedule="one-cycle",
    warm_up=0.2,
    label_smoothing=0.1,
    dropout=0.0,
    flip=True,
    translate=3,
    held_out=0.1,
    bfloat16=True,
    net="teacher",
)
"""A net for others to learn from, which is never exported: 93.27 % of the test images (docs/teachers.md)."""

RECIPES = {recipe.name: recipe for recipe in (REFERENCE, FAST, BEST, TEACHER)}
