"""How good a classifier is, from its probabilities and the true labels; numpy only."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

BINS = 15
"""The number of equal-width bins of confidence."""


INTERVAL_Z = 1.959963984540054
"""The normal distribution lies within so many standard deviations with a probability of 95 %."""


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

    @property
    def interval(self) -> tuple[float, float]:
        """The 95 % interval of `accuracy`, 0 to 1, by `wilson_interval`."""
        return wilson_interval(self.correct, self.images)

    @property
    def per_class_interval(self) -> dict[str, tuple[float, float]]:
        """The 95 % interval of each class's share; (nan, nan) where it has no images."""
        pairs = zip(self.confusion.diagonal().tolist(), self.confusion.sum(axis=1).tolist(), strict=True)
        return {label: wilson_interval(*pair) for label, pair in zip(self.class_names, pairs, strict=True)}

    @property
    def is_balanced(self) -> bool:
        """Whether all classes have equally many images, so that `balanced_accuracy` is `accuracy`."""
        return len(set(self.confusion.sum(axis=1).tolist())) == 1

    @property
    def balanced_accuracy(self) -> float:
        """Mean over the classes of `per_class`, those without images left out, 0 to 1."""
        return float(np.nanmean(list(self.per_class.values())))

    @property
    def balanced_interval(self) -> tuple[float, float]:
        """The 95 % interval of `balanced_accuracy`, 0 to 1.

        Source: the classes' own intervals put together by the method of variance estimates recovery (Zou and Donner,
        Construction of confidence limits about effect measures, 2008).
        """
        shares = np.array(list(self.per_class.values()))
        limits = np.array(list(self.per_class_interval.values()))[~np.isnan(shares)]
        shares = shares[~np.isnan(shares)]
        below, above = (np.sqrt(((limits[:, side] - shares) ** 2).sum()) / len(shares) for side in (0, 1))
        return float(shares.mean() - below), float(shares.mean() + above)

    def as_json(self) -> dict[str, object]:
        """Return everything but the single predictions, as JSON values."""
        return {
            "images": self.images,
            "correct": self.correct,
            "accuracy": self.accuracy,
            "accuracy_interval": list(self.interval),
            "balanced_accuracy": self.balanced_accuracy,
            "balanced_accuracy_interval": list(self.balanced_interval),
            "per_class": {label: None if np.isnan(value) else value for label, value in self.per_class.items()},
            "per_class_interval": {
                label: None if np.isnan(limits).any() else list(limits)
                for label, limits in self.per_class_interval.items()
            },
            "nll": self.nll,
            "ece": self.ece,
            "images_per_second": self.images_per_second,
            "confusion": self.confusion.tolist(),
        }


def wilson_interval(correct: int, images: int) -> tuple[float, float]:
    """Return the 95 % interval of the accuracy of a classifier that had `correct` of `images` images right, 0 to 1.

    It is (nan, nan) where there are no images. Unlike the usual plus and minus two standard errors it holds for few
    images and near 0 and 1, too.

    Source: Wilson, Probable inference, the law of succession, and statistical inference, 1927; recommended by Brown,
    Cai and DasGupta, Interval estimation for a binomial proportion, 2001.
    """
    if not images:
        return math.nan, math.nan
    share, z2 = correct / images, INTERVAL_Z**2
    centre = (share + z2 / (2 * images)) / (1 + z2 / images)
    half = INTERVAL_Z * math.sqrt(share * (1 - share) / images + z2 / (4 * images**2)) / (1 + z2 / images)
    # At none and at all of them one limit is 0 and 1, and rounding must not pass it.
    return max(0.0, centre - half) if correct else 0.0, min(1.0, centre + half) if correct < images else 1.0


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
        nll=float(-np.log(np.clip(true, np.finfo(np.float32).tiny, 1)).mean()) + 0.0,  # none is -0
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
