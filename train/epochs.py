"""The steps of an epoch: what each is shown, its loss, and the order of it all; `graphs` replays them on CUDA."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from .answers import distillation_loss
from .augment import augment
from .corruption import corrupt
from .distributed import Group
from .recipes import Recipe
from .step import EpochPlan, TrainingStep, weighted_cross_entropy


@dataclass(frozen=True)
class Material:
    """What an epoch shows; all tensors are on the training device.

    Attributes:
        epoch: counted from 0.
        plan: of the epoch.
        images: uint8 [count, size, size, 3].
        labels: int64 [count].
        teacher: a teacher's logits of the images, float32 [count, classes], which are then not augmented; None where
            they are, as the recipe says. What is corrupted is asked of the teacher as it was before.
    """

    epoch: int
    plan: EpochPlan
    images: Tensor
    labels: Tensor
    teacher: Tensor | None = None

    def shown(self, index: int, recipe: Recipe) -> Tensor:
        """Return the images of a batch as they are shown, uint8; to be called once for each batch, in order.

        Args:
            index: of the batch in the epoch.
            recipe: of the training.
        """
        plan, batch = self.plan, self.plan.batches[index]
        images = self.images[batch]
        if self.teacher is None:
            images = augment(images, self.epoch, plan.flipped_first[batch], recipe, plan.generator)
        if recipe.corrupted:
            first = self.epoch * len(self.labels) + index * len(plan.batches[0])
            images = corrupt(images, recipe.corrupted, plan.generator, first)
        return images

    def is_shown_as_it_is(self, recipe: Recipe) -> bool:
        """Return whether `shown` changes nothing."""
        return not recipe.corrupted and (self.teacher is not None or not recipe.augments)


@dataclass(frozen=True)
class Loss:
    """The loss of this process's part of a batch.

    Attributes:
        label_smoothing: probability spread evenly over the classes.
        class_weights: what an image of each class counts, float32 [classes]; None where all count the same.
        group: the processes that share a batch.
    """

    label_smoothing: float
    class_weights: Tensor | None
    group: Group

    def of(self, labels: Tensor, batch_size: int, teacher: Tensor | None = None) -> Callable[[Tensor], Tensor]:
        """Return the function from logits, float32 [N, classes], to the loss, a scalar.

        Args:
            labels: of this process's images, int64 [N].
            batch_size: images of the whole batch.
            teacher: a teacher's logits, float32 [N, classes].
        """
        weights = None if self.class_weights is None else self.class_weights[labels]

        def loss_of(logits: Tensor) -> Tensor:
            if teacher is None:
                loss = weighted_cross_entropy(logits, labels, weights, self.label_smoothing)
            else:
                loss = distillation_loss(logits, teacher, labels, self.label_smoothing, weights)
            return self.group.scale_loss(loss, len(labels), batch_size)

        return loss_of


class Steps:
    """The steps of an epoch, one after the other.

    Attributes:
        losses: of the steps of the running epoch, float32 [steps], on the device.
        recorded: whether a CUDA graph is replayed.
    """

    recorded = False

    def __init__(self, step: TrainingStep, loss: Loss, steps: int) -> None:
        self.step, self.loss, self.losses = step, loss, torch.empty(steps, device=step.device)

    def run(self, material: Material) -> Iterator[int]:
        """Take the steps of an epoch; yield after each how many are done. The host need not wait for the device."""
        for index in range(len(material.plan.batches)):
            self._take(index, material)
            yield index + 1

    def _take(self, index: int, material: Material) -> None:
        """Take step `index` of the epoch."""
        group, batch = self.loss.group, material.plan.batches[index]
        shown = material.shown(index, self.step.recipe)
        shard = group.shard(len(batch))
        mine = batch[shard]
        teacher = None if material.teacher is None else material.teacher[mine]
        loss_of = self.loss.of(material.labels[mine], len(batch), teacher)
        loss = self.step(material.epoch * len(self.losses) + index, shown[shard], loss_of)
        self.losses[index] = group.mean(loss)
