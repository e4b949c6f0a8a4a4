"""Scores that tell known pictures from others, side by side: each from what a net's last layers give.

A score is larger for what is more like the training pictures. All are fitted on training pictures alone, but for
`OURS`, which the file itself gives.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

OURS = "familiarity"
"""The score that is in the file."""

NEIGHBOURS, MEMORY = 20, 5_000
"""KNN: the similarity to this nearest of so many training pictures."""

GEN_CLASSES, GEN_POWER = 10, 0.1
"""GEN: over the so many most probable classes, each p(1 - p) to this power; the paper's are 100 of 1,000 and 0.1."""

PRINCIPAL_SHARE = 0.5
"""ViM: so large a part of the features' directions is the principal space."""

Score = Callable[["Answers"], np.ndarray]


@dataclass(frozen=True)
class Answers:
    """What a model says of pictures.

    Attributes:
        probabilities: float32 [N, classes].
        logits: float32 [N, classes].
        familiarity: float32 [N].
        hidden: what the last layer reads, float32 [N, features].
    """

    probabilities: np.ndarray
    logits: np.ndarray
    familiarity: np.ndarray
    hidden: np.ndarray

    def __getitem__(self, chosen: np.ndarray | slice) -> Answers:
        """Return those of some of the pictures."""
        parts = (self.probabilities, self.logits, self.familiarity, self.hidden)
        return Answers(*(part[chosen] for part in parts))

    def __len__(self) -> int:
        return len(self.logits)


def max_softmax(given: Answers) -> np.ndarray:
    """Score as Hendrycks and Gimpel do, A baseline for detecting misclassified … examples in neural networks, 2017."""
    return given.probabilities.max(1)


def energy(given: Answers) -> np.ndarray:
    """Score as Liu et al. do, Energy-based out-of-distribution detection, 2020, at temperature 1."""
    largest = given.logits.max(1, keepdims=True)
    return largest[:, 0] + np.log(np.exp(given.logits - largest).sum(1))


def gen(given: Answers) -> np.ndarray:
    """Score as Liu et al. do, GEN: pushing the limits of softmax-based out-of-distribution detection, 2023."""
    likely = np.sort(given.probabilities.astype(np.float64), 1)[:, -GEN_CLASSES:]
    return -((likely * (1 - likely)).clip(0) ** GEN_POWER).sum(1)


def scores_of(train: Answers, labels: np.ndarray, weight: np.ndarray, bias: np.ndarray) -> dict[str, Score]:
    """Return all scores by their names.

    Args:
        train: what the model says of training pictures.
        labels: integer [N], theirs.
        weight: of the last layer, float32 [classes, features].
        bias: float32 [classes].
    """
    return {
        "max-softmax": max_softmax,
        "energy": energy,
        "GEN": gen,
        "fDBD": fdbd(train, weight),
        "ViM": vim(train, weight, bias),
        "KNN": knn(train),
        "class means": class_means(train, labels),
        OURS: lambda given: given.familiarity,
    }


def fdbd(train: Answers, weight: np.ndarray) -> Score:
    """Score as Liu and Qin do, Fast decision boundary based out-of-distribution detector, 2024.

    The mean distance to the other classes' decision boundaries, over the distance to the mean training picture.
    """
    apart = np.linalg.norm(weight[:, None] - weight[None], axis=2)
    inverse = np.where(apart > 0, 1 / np.where(apart > 0, apart, 1), 0)  # of a class to itself it counts for nothing
    mean = train.hidden.mean(0, dtype=np.float64)

    def score(given: Answers) -> np.ndarray:
        distances = (given.logits.max(1, keepdims=True) - given.logits) * inverse[given.logits.argmax(1)]
        return distances.sum(1) / (len(weight) - 1) / np.linalg.norm(given.hidden - mean, axis=1).clip(1e-9)

    return score


def vim(train: Answers, weight: np.ndarray, bias: np.ndarray) -> Score:
    """Score as Wang et al. do, ViM: out-of-distribution with virtual-logit matching, 2022."""
    origin = -np.linalg.pinv(weight.astype(np.float64)) @ bias
    centred = train.hidden - origin
    _, directions = np.linalg.eigh(centred.T @ centred / len(centred))
    rest = directions[:, : round((1 - PRINCIPAL_SHARE) * len(directions))]
    alpha = train.logits.max(1).mean() / np.linalg.norm(centred @ rest, axis=1).mean()
    return lambda given: energy(given) - alpha * np.linalg.norm((given.hidden - origin) @ rest, axis=1)


def knn(train: Answers, seed: int = 0) -> Score:
    """Score as Sun et al. do, Out-of-distribution detection with deep nearest neighbors, 2022."""
    some = np.random.default_rng(seed).permutation(len(train))[:MEMORY]
    memory = _unit(train.hidden[some])
    rank = min(NEIGHBOURS, len(memory))

    def score(given: Answers) -> np.ndarray:
        parts = np.array_split(_unit(given.hidden), -(-len(given) // 1_000) or 1)
        return np.concatenate([np.partition(part @ memory.T, -rank, axis=1)[:, -rank] for part in parts])

    return score


def class_means(train: Answers, labels: np.ndarray) -> Score:
    """Score by the largest cosine to the mean features of a class; nothing is centred."""
    means = _unit(np.stack([train.hidden[labels == label].mean(0) for label in np.unique(labels)]))
    return lambda given: (_unit(given.hidden) @ means.T).max(1)


def _unit(rows: np.ndarray) -> np.ndarray:
    return rows / np.linalg.norm(rows, axis=1, keepdims=True).clip(1e-12)
