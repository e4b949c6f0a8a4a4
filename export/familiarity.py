"""Familiarity: a third output of the graph that says how much a picture is like those that the net was trained on."""

from __future__ import annotations

from typing import cast

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from ..runtime.errors import DataError
from ..runtime.manifest import Familiarity
from .compress.students import DeployedResidual
from .graph import Deployed
from .parity import Function, in_batches

ACCEPTED = 0.95
"""The threshold is set so that this share of the held-out pictures passes, 0 to 1."""

MIN_THRESHOLD_IMAGES = 200
"""With fewer held-out pictures no threshold is set: ten of them would decide."""


class ClassMeans(nn.Module):
    """The largest cosine between what the last layer reads and its mean over the training pictures of each class.

    It is -1 to 1. Nothing is centred.

    Args:
        hidden: what the last layer reads of training pictures, float32 [N, features].
        labels: int64 [N].
        classes: number of classes.

    Raises:
        DataError: a class has no picture.
    """

    def __init__(self, hidden: Tensor, labels: Tensor, classes: int) -> None:
        super().__init__()
        counts = torch.bincount(labels, minlength=classes)
        if not bool((counts > 0).all()):
            raise DataError("Familiarity compares with pictures of each class, and one has none: add some.")
        sums = hidden.new_zeros(classes, hidden.shape[1], dtype=torch.float64).index_add_(0, labels, hidden.double())
        self.register_buffer("means", functional.normalize(sums / counts[:, None]).float())

    def forward(self, hidden: Tensor, logits: Tensor) -> Tensor:
        """Map float32 [N, features] and [N, classes] to the familiarity, float32 [N]."""
        del logits  # other scores need them
        return (functional.normalize(hidden) @ self.get_buffer("means").T).amax(1)


class BoundaryDistance(nn.Module):
    """The mean distance to the other classes' decision boundaries, over the distance to the mean training picture.

    All in the space that the last layer reads. The distance to the boundary between the predicted class and another is
    the difference of their logits over the distance of their weights (Liu and Qin, Fast decision boundary based
    out-of-distribution detector, ICML 2024, where it is called fDBD).

    Args:
        hidden: what the last layer reads of training pictures, float32 [N, features].
        weight: of the last layer, float32 [classes, features].
    """

    def __init__(self, hidden: Tensor, weight: Tensor) -> None:
        super().__init__()
        apart = torch.cdist(weight.double(), weight.double(), compute_mode="donot_use_mm_for_euclid_dist")
        inverse = torch.where(apart > 0, 1 / apart, 0.0)  # of a class to itself: it counts for nothing
        self.register_buffer("inverse", inverse.float())
        self.register_buffer("mean", hidden.double().mean(0).float())

    def forward(self, hidden: Tensor, logits: Tensor) -> Tensor:
        """Map float32 [N, features] and [N, classes] to the familiarity, float32 [N], at least 0."""
        inverse = self.get_buffer("inverse")
        distances = (logits.amax(1, keepdim=True) - logits) * inverse[logits.argmax(1)]
        far = (hidden - self.get_buffer("mean")).square().sum(1).clamp_min(1e-12).sqrt()
        return distances.sum(1) / (logits.shape[1] - 1) / far


class Familiar(nn.Module):
    """A deployed graph with the familiarity as its third output.

    Args:
        model: the graph; it is not changed.
        score: maps what the last layer reads, float32 [N, features], and logits, float32 [N, classes], to float32 [N].
    """

    def __init__(self, model: Deployed | DeployedResidual, score: nn.Module) -> None:
        super().__init__()
        self.model, self.score = model, score
        self.eval().requires_grad_(False)

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Map uint8 [N, size, size, 3] RGB to probabilities, logits and familiarity, float32."""
        hidden = self.model.hidden(images)
        logits = last_layer(self.model)(hidden)
        probabilities = torch.softmax(logits / self.model.temperature, dim=1)
        return probabilities, logits, self.score(hidden, logits)


def last_layer(model: Deployed | DeployedResidual) -> nn.Linear:
    """Return the layer that gives the logits."""
    return cast("nn.Linear", model.fc3 if isinstance(model, Deployed) else model.head)


@torch.inference_mode()
def hidden_of(model: Deployed | DeployedResidual, images: np.ndarray) -> Tensor:
    """Return what the last layer reads of all `images`, uint8 [N, size, size, 3], as float32 [N, features]."""
    return torch.from_numpy(in_batches(lambda some: model.hidden(torch.from_numpy(some)).numpy(), images)).clone()


def fit_threshold(familiarity: Function, images: np.ndarray, accepted: float = ACCEPTED) -> Familiarity | None:
    """Return the threshold at which the share `accepted` of the pictures pass; None where there are too few to say.

    Args:
        familiarity: maps uint8 [N, size, size, 3] to float32 [N], as the file gives it that is shipped.
        images: uint8 [N, size, size, 3], held out from training.
        accepted: 0 to 1.

    Raises:
        ValueError: a score is not finite.
    """
    if len(images) < MIN_THRESHOLD_IMAGES:
        return None
    scores = in_batches(familiarity, images)
    if not np.isfinite(scores).all():
        raise ValueError("a familiarity is not finite")
    threshold = float(np.quantile(scores, 1 - accepted, method="lower"))
    return Familiarity(threshold, float((scores >= threshold).mean()), len(images), {})


def auroc(known: np.ndarray, unknown: np.ndarray) -> float:
    """Return the area under the ROC curve: how often a known picture is more familiar than an unknown one, 0 to 1.

    Args:
        known: familiarity of pictures like those trained on, float [N].
        unknown: of others, float [M]. Ties count half.
    """
    order = np.sort(unknown)
    below, upto = np.searchsorted(order, known, "left"), np.searchsorted(order, known, "right")
    return float((below + upto).mean() / 2 / len(unknown))


def false_positive_rate(known: np.ndarray, unknown: np.ndarray, accepted: float = ACCEPTED) -> float:
    """Return the share of unknown pictures that pass where `accepted` of the known ones do (FPR95), 0 to 1."""
    return float((unknown >= np.quantile(known, 1 - accepted, method="lower")).mean())
