"""Recipes: every setting that decides how Net is trained, as plain values that a run records."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

from ..runtime.contract import SIDE

SCHEDULES = ("constant", "one-cycle")
ARCHITECTURES = ("net", "teacher")


@dataclass(frozen=True)
class Recipe:
    """How to train Net.

    Attributes:
        name: what it is called on the command line.
        epochs: passes over the training images.
        cuda_epochs: where CUDA trains, if that is another number; 0 if not.
        batch_size: images a step.
        optimizer: "sgd", "adam", or "muon": Muon on the filters, SGD on the rest.
        lr: learning rate; the peak where the schedule is "one-cycle".
        filter_lr: Muon's, the relative size of a step; likewise.
        momentum: of SGD; Adam keeps its own defaults.
        nesterov: whether SGD's momentum is Nesterov's.
        weight_decay: on weights only, never on biases or batch norm's parameters.
        schedule: "constant", or "one-cycle": linearly up over the first `warm_up`, then linearly to zero.
        warm_up: share of the steps, 0 to 1.
        label_smoothing: probability spread evenly over the classes in the training targets.
        dropout: Net's probability.
        flip: whether an image is mirrored in every other epoch (which of the two is drawn per image).
        shift: an image is moved by up to so many pixels each way; what comes in is reflected.
        cutout: side of the square that is set to the mean grey at a random place; 0 for none.
        held_out: share of the training images kept out of training, for decisions and for the temperature.
        bfloat16: whether to compute in bfloat16 (autocast, float32 weights) where the device can: CUDA, and CPUs with
            instructions for it (AVX-512 BF16, AMX).
        architecture: what is trained, one of `ARCHITECTURES`.
        width: of a teacher, the channels of its second and third block; 0 for its own default.
        head_lr: of a teacher, the learning rate of its last layer; 0 for `lr`.

    Raises:
        ValueError: a setting is none that can be trained with.
    """

    name: str
    epochs: int
    batch_size: int
    optimizer: str = "sgd"
    lr: float = 1e-3
    filter_lr: float = 0.1
    momentum: float = 0.9
    nesterov: bool = False
    weight_decay: float = 0.0
    schedule: str = "constant"
    warm_up: float = 0.0
    label_smoothing: float = 0.0
    dropout: float = 0.5
    flip: bool = False
    shift: int = 0
    cutout: int = 0
    held_out: float = 0.0
    bfloat16: bool = False
    cuda_epochs: int = 0
    architecture: str = "net"
    width: int = 0
    head_lr: float = 0.0

    def __post_init__(self) -> None:
        valid = {
            "epochs": self.epochs >= 1,
            "cuda_epochs": self.cuda_epochs >= 0,
            "batch_size": self.batch_size >= 2,  # batch norm needs two
            "lr": 0 <= self.lr < math.inf,
            "filter_lr": 0 <= self.filter_lr < math.inf,
            "momentum": 0 <= self.momentum < 1,
            "weight_decay": self.weight_decay >= 0,
            "architecture": self.architecture in ARCHITECTURES,
            "width": self.width >= 0,
            "head_lr": 0 <= self.head_lr < math.inf,
            "schedule": self.schedule in SCHEDULES,
            "warm_up": 0 <= self.warm_up <= 1,
            "label_smoothing": 0 <= self.label_smoothing < 1,
            "dropout": 0 <= self.dropout < 1,
            "shift": 0 <= self.shift < SIDE,
            "cutout": self.cutout >= 0,
            "held_out": 0 <= self.held_out < 1,
        }
        for name, is_valid in valid.items():
            if not is_valid:
                raise ValueError(f"{name} cannot be {getattr(self, name)}")

    def on(self, device: str) -> Recipe:
        """Return the recipe as it is on this kind of device, such as "cpu" or "cuda"."""
        return replace(self, epochs=self.cuda_epochs) if device == "cuda" and self.cuda_epochs else self

    def share_of_lr(self, step: int, steps: int) -> float:
        """Return what share of its learning rate each optimizer gets in step `step` (from 0) of `steps` in all."""
        if self.schedule == "constant":
            return 1.0
        done = (step + 1) / (steps + 1)
        return min(done / max(self.warm_up, 1e-9), (1 - done) / max(1 - self.warm_up, 1e-9))


REFERENCE = Recipe("reference", epochs=50, batch_size=16)
"""The reference experiment: constant small rate, no augmentation, dropout 0.5."""

FAST = Recipe(
    "fast",
    epochs=2,
    batch_size=512,
    optimizer="muon",
    lr=0.15,
    filter_lr=0.2,
    nesterov=True,
    weight_decay=5e-4,
    schedule="one-cycle",
    warm_up=0.2,
    dropout=0.0,
    flip=True,
    shift=2,
    held_out=0.1,
    bfloat16=True,
    cuda_epochs=10,  # not measured yet, nor are those of `best`
)
"""A useful net soon: 80 % of the test images in three and a half minutes on two cores that multiply in bfloat16."""

BEST = replace(
    FAST,
    name="best",
    epochs=50,
    cuda_epochs=100,
    filter_lr=0.1,
    warm_up=0.15,
    dropout=0.1,
    shift=4,
    cutout=8,
)
"""Accuracy first: an hour and a half on two CPU cores that multiply in bfloat16."""

TEACHER = Recipe(
    "teacher",
    epochs=16,
    batch_size=500,
    optimizer="muon",
    lr=0.1,
    filter_lr=0.12,
    momentum=0.85,
    nesterov=True,
    weight_decay=1e-4,
    schedule="one-cycle",
    warm_up=0.2,
    label_smoothing=0.1,
    dropout=0.0,
    flip=True,
    shift=3,
    held_out=0.1,
    bfloat16=True,
    architecture="teacher",
    head_lr=0.4,
)
"""A net that others learn from; it is never exported."""

RECIPES = {recipe.name: recipe for recipe in (REFERENCE, FAST, BEST, TEACHER)}
