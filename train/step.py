"""What trainings share: what chance decides of an epoch, and one step of the weights."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.optim import Optimizer

from .augment import normalise
from .devices import autocast
from .recipes import Recipe

DROPOUT, AUGMENTATION, ORDER = range(3)
"""What the random streams of an epoch are for, as `derive_seed` tells them apart."""


class EpochPlan(NamedTuple):
    """What chance decides of an epoch.

    Attributes:
        generator: the source of translations and cuts, for `augment`.
        flipped_first: bool [images], likewise.
        batches: the indices of each batch, int64 [at most batch_size].
    """

    generator: torch.Generator
    flipped_first: Tensor
    batches: tuple[Tensor, ...]


def epoch_plan(seed: int, epoch: int, count: int, batch_size: int, device: torch.device) -> EpochPlan:
    """Return the plan of an epoch: a function of the seed and the epoch, so that a resumed run repeats what was lost.

    Args:
        seed: of the run.
        epoch: counted from 0.
        count: images.
        batch_size: images a step.
        device: of the images.
    """
    generator = torch.Generator(device).manual_seed(derive_seed(seed, epoch, AUGMENTATION))
    flipped_first = torch.randint(2, (count,), generator=torch.Generator().manual_seed(seed)).bool().to(device)
    order = torch.randperm(count, generator=torch.Generator().manual_seed(derive_seed(seed, epoch, ORDER)))
    return EpochPlan(generator, flipped_first, order.to(device).split(batch_size))


def derive_seed(seed: int, epoch: int, purpose: int) -> int:
    """Return the seed of one stream of random numbers; numpy promises the same on every machine and version."""
    return int(np.random.SeedSequence(seed, spawn_key=(epoch, purpose)).generate_state(1, np.uint64)[0] >> 1)


def set_learning_rates(optimizers: Iterable[Optimizer], factor: float) -> None:
    """Set every learning rate to `factor` times its highest."""
    for optimizer in optimizers:
        for group in optimizer.param_groups:
            rate = group["max_lr"] * factor
            if isinstance(group["lr"], Tensor):
                group["lr"].fill_(rate)  # a recorded step reads this very tensor
            else:
                group["lr"] = rate


def optimizer_states(optimizers: Iterable[Optimizer]) -> list[dict]:
    """Return the `state_dict` of each optimizer, with learning rates as plain numbers."""
    states = [optimizer.state_dict() for optimizer in optimizers]
    for state in states:
        state["param_groups"] = [{**group, "lr": float(group["lr"])} for group in state["param_groups"]]
    return states


def load_optimizers(optimizers: Sequence[Optimizer], states: Sequence[dict]) -> None:
    """Give each optimizer the state that its `state_dict` returned, in this version or an earlier one.

    Raises:
        ValueError: there are more or fewer states than optimizers, or a state is another optimizer's.
    """
    for optimizer, state in zip(optimizers, states, strict=True):
        highest = [group["max_lr"] for group in optimizer.param_groups]
        optimizer.load_state_dict(state)
        for group, max_lr in zip(optimizer.param_groups, highest, strict=True):
            group.pop("peak_lr", None)  # the name in earlier versions
            group["max_lr"] = max_lr


def class_weights(labels: np.ndarray, classes: int) -> Tensor:
    """Return what an image of each class counts so that all classes count the same, float32 [classes].

    Args:
        labels: of what is trained on, integer [N].
        classes: how many there are. One without images counts nothing.

    The weight of a class is N / (classes * its images), so that their mean over the images is 1 (King and Zeng,
    Logistic Regression in Rare Events Data, 2001, on weighting, with all classes equally frequent).
    """
    counts = np.bincount(labels, minlength=classes)
    present = np.count_nonzero(counts)
    weights = np.divide(len(labels), present * counts, out=np.zeros(classes), where=counts > 0)
    return torch.from_numpy(weights).float()


def weighted_cross_entropy(
    logits: Tensor, targets: Tensor, weights: Tensor | None = None, label_smoothing: float = 0.0
) -> Tensor:
    """Return the mean cross-entropy over the images, a scalar.

    Args:
        logits: float32 [N, classes].
        targets: labels, int64 [N], or probabilities, float32 [N, classes].
        weights: what each image counts, float32 [N], on average 1 over the data set; None where all count the same. The
            sum is divided by N, not by the weights' sum, so that a batch that several processes share has one mean.
        label_smoothing: probability spread evenly over the classes.
    """
    if weights is None:
        return functional.cross_entropy(logits, targets, label_smoothing=label_smoothing)
    losses = functional.cross_entropy(logits, targets, label_smoothing=label_smoothing, reduction="none")
    return (losses * weights).mean()


@dataclass(frozen=True)
class TrainingStep:
    """One step: learning rates, forward pass, loss, backward pass, and the step of each optimizer.

    Attributes:
        net: maps float32 [N, 3, size, size] to logits, float [N, classes]; in training mode.
        optimizers: together they move every parameter, each once.
        recipe: its schedule and precision are used.
        device: of the net.
        steps: steps of the whole training, for the schedule.
    """

    net: nn.Module
    optimizers: Sequence[Optimizer]
    recipe: Recipe
    device: torch.device
    steps: int

    def __call__(self, number: int, images: Tensor, loss_of: Callable[[Tensor], Tensor]) -> Tensor:
        """Take step `number`, counted from 0 over all epochs, and return its loss, a detached scalar.

        Args:
            number: of the step.
            images: the batch as it is shown, uint8 [N, size, size, 3].
            loss_of: maps the logits, float32 [N, classes], to the loss, a scalar.
        """
        set_learning_rates(self.optimizers, self.recipe.lr_factor(number, self.steps))
        return self.advance(images, loss_of)

    def advance(self, images: Tensor, loss_of: Callable[[Tensor], Tensor]) -> Tensor:
        """As a call, with the learning rates as they are."""
        with autocast(self.recipe, self.device):
            logits = self.net(normalise(images))
        loss = loss_of(logits.float())
        for optimizer in self.optimizers:
            optimizer.zero_grad(set_to_none=True)
        loss.backward()
        for optimizer in self.optimizers:
            optimizer.step()
        return loss.detach()
