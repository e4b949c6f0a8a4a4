"""The parity gate: whether an exported model says what the net says, image by image, at every batch size."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from math import comb
from typing import Any

import numpy as np

from ..runtime.metrics import score

ATOL = RTOL = 1e-4
"""Bounds on a logit of an exact (fp32) format: |exported - eager| <= ATOL + RTOL * |eager|."""

BATCH_SIZES = (1, 2, 7, 64)
"""The batch sizes that a model is run at; 1 and 2 expose a batch dimension that was frozen."""
WHOLE = 250
"""The batch size at which all images are compared."""

BETWEEN_BATCHES = 0.05
"""Largest difference of a probability that a lossy model may show between batch sizes, which may round differently."""

Function = Callable[[np.ndarray], np.ndarray]


@dataclass(frozen=True)
class Parity:
    """How a model agrees with eager torch in fp32, in eval mode on the CPU.

    Attributes:
        images: how many images were compared.
        data: what they were, such as "CIFAR-10 test".
        agree: how many arg-maxes are equal.
        accuracy: share of the images classified correctly, 0 to 1; None where there are no true labels.
        largest_absolute: largest |exported - eager| of a logit.
        largest_relative: the largest of that over the image's largest |eager|.
        batch_sizes: those that ran, each on the first images.
        failure: why the model does not pass; empty where it does.
        nll: mean negative log-likelihood of the true class, in nats; None without labels, as the two below.
        ece: expected calibration error, 0 to 1.
        p_value: of the exact two-sided McNemar test; that an equally good model would differ from the net by as many
            correct answers or more.
        largest_probability: largest |exported - eager| of a probability; None where the model cannot be compared.
    """

    images: int
    data: str
    agree: int
    accuracy: float | None
    largest_absolute: float
    largest_relative: float
    batch_sizes: tuple[int, ...]
    failure: str = ""
    nll: float | None = None
    ece: float | None = None
    p_value: float | None = None
    largest_probability: float | None = None

    @property
    def passed(self) -> bool:
        """Whether the model may be shipped."""
        return not self.failure

    def as_json(self) -> dict[str, Any]:
        """Return the figures as JSON values."""
        return asdict(self)


def in_batches(logits: Function, images: np.ndarray, size: int = WHOLE) -> np.ndarray:
    """Return the logits of all `images`, float32 [N, 10], computed `size` at a time."""
    return np.concatenate([logits(images[start : start + size]) for start in range(0, len(images), size)])


def refused(images: np.ndarray, data: str, failure: str, batch_sizes: Sequence[int] = ()) -> Parity:
    """Return what is known of a model whose logits cannot be compared; the arguments are `Parity`'s and `compare`'s."""
    nan = float("nan")
    return Parity(len(images), data, 0, None, nan, nan, tuple(batch_sizes), failure)


def compare(
    exported: Function,
    eager: np.ndarray,
    images: np.ndarray,
    data: str,
    labels: np.ndarray | None,
    budget: float | None = None,
    temperature: float = 1.0,
    within: float | None = None,
) -> Parity:
    """Hold a model against the eager logits of the same images.

    Args:
        exported: maps uint8 [N, 32, 32, 3] to logits, float32 [N, 10]; as loaded back from the disk.
        eager: the net's own logits of `images`, float32 [N, 10].
        images: uint8 [N, 32, 32, 3].
        data: what the images are.
        labels: integer [N], for the accuracy; None where they mean nothing.
        budget: None for an exact (fp32) format, of which every arg-max and the tolerances must hold; for a lossy
            variant, the points of accuracy, in per cent, that it may lose beyond what chance explains.
        temperature: what the logits are divided by for probabilities.
        within: largest difference of a probability that a lossy variant may show; one that is held to this may do
            without `labels`.
    """
    ran: list[int] = []
    small: dict[int, np.ndarray] = {}
    failure = ""
    logits = np.empty(0)
    for size in (*BATCH_SIZES, WHOLE):
        some = images if size == WHOLE else images[: 2 * size]
        try:
            logits = in_batches(exported, some, size)
        except Exception as error:  # whatever an engine raises: the gate names the model and goes on to the next
            reason = str(error).strip().splitlines()[0][:160] if str(error).strip() else type(error).__name__
            return refused(images, data, f"cannot run batch size {size}: {reason}", ran)
        if logits.shape != (len(some), eager.shape[1]):
            return refused(images, data, f"gives logits of shape {list(logits.shape)} at batch size {size}", ran)
        if size == WHOLE:
            break
        ran.append(size)
        small[size] = logits
        if budget is None and not failure and not np.allclose(logits, eager[: len(some)], atol=ATOL, rtol=RTOL):
            failure = f"gives other logits at batch size {size}"
    difference = np.abs(logits - eager)
    agree = int((logits.argmax(1) == eager.argmax(1)).sum())
    finite = bool(np.isfinite(logits).all())
    moved = float(np.abs(_softmax(logits / temperature) - _softmax(eager / temperature)).max()) if finite else None
    if moved is None:
        failure = "gives logits that are not finite"
    elif budget is not None:
        failure = _changes_with_batch(small, logits, temperature)
        if within is not None and moved > within:
            failure = failure or f"moves a probability by {moved:.3f}, more than {within:g}"
        elif labels is not None or within is None:
            failure = failure or _over_budget(logits, eager, labels, budget)
    elif agree < len(images):
        failure = f"disagrees on {len(images) - agree:,} of {len(images):,} arg-maxes"
    elif (difference > ATOL + RTOL * np.abs(eager)).any():
        failure = f"logits differ by more than {ATOL:.0e} + {RTOL:.0e} * |logit|"
    result, p_value = None, None
    if labels is not None and finite:
        result = score(_softmax(logits / temperature), labels, seconds=0)
        p_value = mcnemar(logits.argmax(1) == labels, eager.argmax(1) == labels)
    return Parity(
        images=len(images),
        data=data,
        agree=agree,
        accuracy=result and result.accuracy,
        largest_absolute=float(difference.max()),
        largest_relative=float((difference / np.abs(eager).max(axis=1, keepdims=True)).max()),
        batch_sizes=tuple(ran),
        failure=failure,
        largest_probability=moved,
        nll=result and result.nll,
        ece=result and result.ece,
        p_value=p_value,
    )


def mcnemar(right: np.ndarray, other: np.ndarray) -> float:
    """Return the p-value, 0 to 1, of the exact two-sided McNemar test of two classifiers of the same images.

    Args:
        right: bool [N], which images the one has right.
        other: bool [N], which the other.

    Source: of the images that one alone has right, equally good classifiers have each its half, by the binomial
    distribution (McNemar, Note on the sampling error of the difference between correlated proportions, 1947).
    """
    alone, against = int((right & ~other).sum()), int((other & ~right).sum())
    trials, fewer = alone + against, min(alone, against)
    return min(1.0, 2 * sum(comb(trials, k) for k in range(fewer + 1)) / 2**trials)


def _softmax(logits: np.ndarray) -> np.ndarray:
    powers = np.exp(logits - logits.max(axis=1, keepdims=True), dtype=np.float64)
    return powers / powers.sum(axis=1, keepdims=True)


def _changes_with_batch(small: dict[int, np.ndarray], logits: np.ndarray, temperature: float) -> str:
    """Return why a lossy model fails, or "": one batch size gives other answers than all images at once.

    Args:
        small: of batch sizes the logits of the first images, float32 [M, 10].
        logits: of all images, float32 [N, 10].
        temperature: what they are divided by for probabilities.
    """
    whole = _softmax(logits / temperature)
    for size, some in small.items():
        finite = bool(np.isfinite(some).all())
        if not finite or np.abs(_softmax(some / temperature) - whole[: len(some)]).max() > BETWEEN_BATCHES:
            return f"gives other logits at batch size {size}"
    return ""


def _over_budget(logits: np.ndarray, eager: np.ndarray, labels: np.ndarray | None, budget: float) -> str:
    """Return why a lossy variant fails, or "": it lost more than `budget` points and three standard errors.

    Of two classifiers of the same images, the difference of the numbers they have right has the standard error
    sqrt(images that one of them alone has right), as in McNemar's test.
    """
    if labels is None:
        return "is lossy, and there are no labels to measure its accuracy by"
    right, right_before = logits.argmax(1) == labels, eager.argmax(1) == labels
    lost = int(right_before.sum()) - int(right.sum())
    if lost <= budget / 100 * len(labels) + 3 * np.sqrt((right != right_before).sum()):
        return ""
    return f"classifies {lost:,} of {len(labels):,} images fewer correctly, beyond the budget of {budget:g} points"


def table(results: dict[str, Parity]) -> str:
    """Return the results as lines of text, a model a line, the verdict first."""
    lines = [
        f"{'':4}  {'model':<12}  {'arg-max agrees':>17}  {'max |Δ|':>9}  {'relative':>9}  {'accuracy':>9}  batch sizes"
    ]
    for name, parity in results.items():
        accuracy = "—" if parity.accuracy is None else f"{100 * parity.accuracy:.2f} %"
        lines.append(
            f"{'pass' if parity.passed else 'FAIL'}  {name:<12}  {f'{parity.agree:,} / {parity.images:,}':>17}  "
            f"{parity.largest_absolute:9.1e}  {parity.largest_relative:9.1e}  {accuracy:>9}  "
            + ", ".join(map(str, parity.batch_sizes))
            + (f"  {parity.failure}" if parity.failure else "")
        )
    return "\n".join(lines)
