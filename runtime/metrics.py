"""How good a classifier is, from its probabilities and the true labels; numpy only."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

BINS = 15
"""The number of equal-width bins of confidence."""


@dataclass(frozen=True)
class Evaluation:
    """What `evaluate` measured.

    Attributes:
        images: how many images were classified.
        correct: how many of them correctly.
        class_names: the classes, in the order of the rows of `confusion`.
        confusion: int64 [classes, classes]; row: the true class, column: the predicted one.
        nll: mean negative log-likelihood of the true class, in nats.
        ece: expected calibration error over 15 equal-width bins of confidence, 0 to 1.
        images_per_second: throughput of the classifier, decoding not included.
        predictions: int64 [images], the arg-max of each row.
    """

    images: int
    correct: int
    class_names: tuple[str, ...]
    confusion: np.ndarray
    nll: float
    ece: float
    images_per_second: float
    predictions: np.ndarray

    @property
    def accuracy(self) -> float:
        """Share of the images that were classified correctly, 0 to 1."""
        return self.correct / self.images

    @property
    def per_class(self) -> dict[str, float]:
        """Share of each class's images that were classified correctly (its recall); nan where it has none."""
        total = self.confusion.sum(axis=1)
        recall = np.divide(self.confusion.diagonal(), total, out=np.full(len(total), np.nan), where=total > 0)
        return {label: float(value) for label, value in zip(self.class_names, recall, strict=True)}

    def as_json(self) -> dict[str, object]:
        """Return everything but the single predictions, as JSON values."""
        return {
            "images": self.images,
            "correct": self.correct,
            "accuracy": self.accuracy,
            "per_class": {label: None if np.isnan(value) else value for label, value in self.per_class.items()},
            "nll": self.nll,
            "ece": self.ece,
            "images_per_second": self.images_per_second,
            "confusion": self.confusion.tolist(),
        }


def expected_calibration_error(probabilities: np.ndarray, labels: np.ndarray, bins: int = BINS) -> float:
    """Return the mean gap between confidence and accuracy, weighted by how many images each bin holds.

    Args:
        probabilities: float [N, classes].
        labels: integer [N].
        bins: number of equal-width bins of confidence, as (0, 1/bins], (1/bins, 2/bins], and so on.

    Source: Guo et al., On Calibration of Modern Neural Networks, 2017, equation 3.
    """
    confidence = probabilities.max(axis=1).astype(np.float64)
    correct = probabilities.argmax(axis=1) == labels
    binned = np.nan_to_num(confidence)  # nan, of a net that diverged, has no bin; the gap below stays nan
    index = np.clip(np.ceil(binned * bins).astype(int) - 1, 0, bins - 1)
    gap = np.bincount(index, weights=confidence - correct, minlength=bins)
    return float(np.abs(gap).sum() / len(labels))


def score(probabilities: np.ndarray, labels: np.ndarray, class_names: Sequence[str], seconds: float) -> Evaluation:
    """Return the metrics of `probabilities`, float [N, classes], against `labels`, integer [N].

    Args:
        probabilities: each row sums to 1.
        labels: the true classes, as indices into `class_names`.
        class_names: the classes in the order of the columns of `probabilities`.
        seconds: how long the classifier took for them.
    """
    predictions = probabilities.argmax(axis=1)
    confusion = np.zeros((len(class_names), len(class_names)), np.int64)
    np.add.at(confusion, (labels, predictions), 1)
    true = probabilities[np.arange(len(labels)), labels].astype(np.float64)
    return Evaluation(
        images=len(labels),
        correct=int(confusion.trace()),
        class_names=tuple(class_names),
        confusion=confusion,
        nll=float(-np.log(np.maximum(true, np.finfo(np.float32).tiny)).mean()),
        ece=expected_calibration_error(probabilities, labels),
        images_per_second=len(labels) / max(seconds, 1e-9),
        predictions=predictions,
    )


def evaluate(
    classify: Callable[[np.ndarray], np.ndarray],
    images: np.ndarray,
    labels: np.ndarray,
    class_names: Sequence[str],
    batch_size: int = 250,
    progress: Callable[[int], object] = lambda done: None,
) -> Evaluation:
    """Run a classifier over images and return its metrics.

    Args:
        classify: maps uint8 [batch, size, size, 3] to probabilities, float32 [batch, classes].
        images: uint8 [N, size, size, 3].
        labels: integer [N], indices into `class_names`.
        class_names: the classes in the order of the classifier's outputs.
        batch_size: how many images a call gets.
        progress: called with the number of images done so far.
    """
    classify(images[:1])  # the first call of a session allocates and is slower
    rows: list[np.ndarray] = []
    seconds = 0.0
    for start in range(0, len(images), batch_size):
        batch = images[start : start + batch_size]
        begin = time.perf_counter()
        rows.append(classify(batch))
        seconds += time.perf_counter() - begin
        progress(start + len(batch))
    return score(np.concatenate(rows), labels, class_names, seconds)
