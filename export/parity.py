"""The parity gate: whether an exported model says what the net says, image by image, at every batch size."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np

from ..runtime.metrics import score
from ..train.inference import BATCH_SIZE
from .models import Outputs

ATOL = RTOL = 1e-4
"""Bounds on a logit of an exact (fp32) format: |exported - eager| <= ATOL + RTOL * |eager|."""

BATCH_SIZES = (1, 2, 7, 64)
"""A model is run at these batch sizes, as far as there are so many images; 1 and 2 expose a batch dimension that was
frozen."""

PROBABILITY_TOLERANCE = 1e-4
"""The output `probabilities` of an exact format may differ by so much from the net's, and that of a lossy model from
the softmax of its own logits, which is in float32 there too: it is what users read, and can be wrong alone."""

MAX_DIFFERENCE_BETWEEN_BATCH_SIZES = 0.05
"""A lossy model may move a probability by so much between batch sizes: kernels round differently."""


@dataclass(frozen=True)
class Reference:
    """What exported models are held against: images, and eager torch's answers to them, in fp32 on the CPU.

    Attributes:
        images: uint8 [N, size, size, 3].
        data: what the images are, such as "CIFAR-10 test".
        logits: the net's own logits, float32 [N, classes].
        labels: integer [M], M <= N: of the first M images, which the accuracy is measured on; None where there are no
            true ones. The rest, seen in training, tell only whether a model says what the net says.
        temperature: what the logits are divided by for probabilities.
    """

    images: np.ndarray
    data: str
    logits: np.ndarray
    labels: np.ndarray | None = None
    temperature: float = 1.0


@dataclass(frozen=True)
class Answers:
    """What a model gives for the images of a reference; see `ask`.

    Attributes:
        by_size: its outputs by the batch size: of `BATCH_SIZES`, as far as there are so many images, for the first
            ones; of `BATCH_SIZE` for all.
        failure: why there are no more; empty where there are all.
    """

    by_size: Mapping[int, Sequence[np.ndarray]] = field(default_factory=dict[int, Sequence[np.ndarray]])
    failure: str = ""

    @property
    def batch_sizes(self) -> tuple[int, ...]:
        """The sizes of `BATCH_SIZES` that ran."""
        return tuple(size for size in self.by_size if size in BATCH_SIZES)

    def output(self, number: int) -> dict[int, np.ndarray] | None:
        """Return one output by the batch size, 0 the probabilities, 1 the logits, 2 the familiarity; None if absent."""
        if any(len(outputs) <= number for outputs in self.by_size.values()):
            return None
        return {size: outputs[number] for size, outputs in self.by_size.items()}


@dataclass(frozen=True)
class Limits:
    """How far a model may be from the net.

    Attributes:
        accuracy_drop: None for an exact (fp32) format, of which every arg-max and the tolerances must hold; for a lossy
            variant, the points of accuracy, in per cent, that it may lose beyond three standard errors.
        max_probability_difference: largest difference of a probability that a lossy variant may show; one that is held
            to this may do without labels. None where the accuracy alone counts.
        agreement: share of the images, 0 to 1, which a lossy variant must give the same class.
    """

    accuracy_drop: float | None = None
    max_probability_difference: float | None = None
    agreement: float = 0.0

    @property
    def exact(self) -> bool:
        """Whether the model must agree on every arg-max and within the tolerances."""
        return self.accuracy_drop is None


@dataclass(frozen=True)
class Parity:
    """How a model agrees with eager torch in fp32, in eval mode on the CPU.

    Attributes:
        images: how many images were compared.
        data: what they were, such as "CIFAR-10 test".
        agree: how many arg-maxes are equal.
        accuracy: share of the images classified correctly, 0 to 1; None where there are no true labels.
        max_abs_difference: largest |exported - eager| of a logit; None where the model cannot be compared.
        max_rel_difference: the largest of that over the image's largest |eager|; None likewise.
        batch_sizes: those that ran, each on the first images.
        failure: why the model does not pass; empty where it does.
        nll: mean negative log-likelihood of the true class, in nats; None without labels, as the two below.
        ece: expected calibration error, 0 to 1.
        p_value: of the exact two-sided McNemar test: the probability that an equally good model would differ from the
            net by as many correct answers or more.
        max_probability_difference: largest |exported - eager| of a probability; None where the model cannot be
            compared.
        torch_form: of a quantized model, how it agrees with what it was before: "agree" and
            "max_probability_difference" as here, and "accuracy", which is that of the form before. None of others.
        tested: how many of the images, the first ones, have true labels, and are what accuracy, NLL, ECE and the
            p-value are of; None without labels.
        familiarity: how its familiarity agrees with that of the net that it was made from, in torch, on the same
            images: "max_abs_difference" and "correlation"; None where it has no such output.
    """

    images: int
    data: str
    agree: int = 0
    accuracy: float | None = None
    max_abs_difference: float | None = None
    max_rel_difference: float | None = None
    batch_sizes: tuple[int, ...] = ()
    failure: str = ""
    nll: float | None = None
    ece: float | None = None
    p_value: float | None = None
    max_probability_difference: float | None = None
    torch_form: Mapping[str, float] | None = None
    tested: int | None = None
    familiarity: Mapping[str, float] | None = None

    @property
    def passed(self) -> bool:
        """Whether the model may be shipped."""
        return not self.failure

    def as_json(self) -> dict[str, Any]:
        """Return the figures as JSON values."""
        return asdict(self)


def tested_images(parity: Mapping[str, Any]) -> int:
    """Return how many images the accuracy in a manifest is of; `parity` is what `Parity.as_json` returned."""
    return parity.get("tested") or parity["images"]  # in earlier versions they were all the images


def refused(reference: Reference, failure: str, batch_sizes: Sequence[int] = ()) -> Parity:
    """Return what is known of a model whose logits cannot be compared: the reason, and the batch sizes that ran."""
    return Parity(len(reference.images), reference.data, batch_sizes=tuple(batch_sizes), failure=failure)


def ask(model: Outputs, reference: Reference) -> Answers:
    """Run a model, as loaded back from the disk, on all images of a reference once, and on some at each batch size."""
    images, classes = reference.images, reference.logits.shape[1]
    by_size: dict[int, Sequence[np.ndarray]] = {}
    for size in (*(size for size in BATCH_SIZES if size <= len(images)), BATCH_SIZE):
        some = images if size == BATCH_SIZE else images[: 2 * size]
        batch = min(size, len(some))
        try:
            parts = [model(some[start : start + size]) for start in range(0, len(some), size)]
            outputs = [np.concatenate(rows) for rows in zip(*parts, strict=True)]
        except Exception as error:  # whatever an engine raises: the gate names the model and goes on to the next
            reason = str(error).strip().splitlines()[0][:160] if str(error).strip() else type(error).__name__
            return Answers(by_size, f"cannot run batch size {batch}: {reason}")
        for name, output in (("logits", outputs[1]), ("probabilities", outputs[0])):
            if output.shape != (len(some), classes):
                return Answers(by_size, f"gives {name} of shape {list(output.shape)} at batch size {batch}")
        by_size[size] = outputs
    return Answers(by_size)


def compare(answers: Answers, reference: Reference, limits: Limits) -> Parity:
    """Hold what a model gives against what the net gives.

    Args:
        answers: what `ask` returned of the model and `reference`.
        reference: images, and the net's own logits of them.
        limits: how far the model may be from the net.
    """
    if answers.failure:
        return refused(reference, answers.failure, answers.batch_sizes)
    eager, (probabilities, logits, *_) = reference.logits, answers.by_size[BATCH_SIZE]
    difference = np.abs(logits - eager)
    finite = bool(np.isfinite(logits).all() and np.isfinite(probabilities).all())
    moved, result, p_value = None, None, None
    if finite:
        moved = float(np.abs(probabilities - _softmax(eager / reference.temperature)).max())
        if reference.labels is not None:
            names, labels = [str(index) for index in range(eager.shape[1])], reference.labels
            tested = len(labels)
            result = score(probabilities[:tested], labels, names, seconds=0)
            p_value = mcnemar(logits[:tested].argmax(1) == labels, eager[:tested].argmax(1) == labels)
    return Parity(
        images=len(reference.images),
        data=reference.data,
        agree=int((logits.argmax(1) == eager.argmax(1)).sum()),
        accuracy=result and result.accuracy,
        max_abs_difference=float(difference.max()),
        max_rel_difference=float((difference / np.abs(eager).max(axis=1, keepdims=True)).max()),
        batch_sizes=answers.batch_sizes,
        failure=_failure(answers, reference, limits, moved),
        nll=result and result.nll,
        ece=result and result.ece,
        p_value=p_value,
        max_probability_difference=moved,
        tested=None if reference.labels is None else len(reference.labels),
    )


def _failure(answers: Answers, reference: Reference, limits: Limits, moved: float | None) -> str:
    """Return why a model fails, or "".

    Args:
        answers: of the model.
        reference: what they are held against.
        limits: how far they may be from that.
        moved: largest difference of a probability; None where a value is not finite.
    """
    by_size = {size: outputs[1] for size, outputs in answers.by_size.items()}
    logits, eager = by_size.pop(BATCH_SIZE), reference.logits
    if moved is None:
        name = "probabilities" if np.isfinite(logits).all() else "logits"
        return f"gives {name} that are not finite"
    if limits.accuracy_drop is None:
        return _not_exact(logits, by_size, eager) or _wrong_probabilities(answers, reference, exact=True)
    if failure := _changes_with_batch(by_size, logits, reference.temperature):
        return failure
    if failure := _wrong_probabilities(answers, reference, exact=False):
        return failure
    limit = limits.max_probability_difference
    if limit is not None and not moved <= limit:  # not: nan fails too
        return f"moves a probability by {moved:.3f}, more than {limit:g}"
    agree = int((logits.argmax(1) == eager.argmax(1)).sum())
    if agree < limits.agreement * len(eager):
        return f"gives the same class for {agree:,} of {len(eager):,} images, less than {100 * limits.agreement:g} %"
    if reference.labels is None:
        return "" if limit is not None else "is lossy, and there are no labels to measure its accuracy by"
    tested = len(reference.labels)
    return _over_budget(logits[:tested], eager[:tested], reference.labels, limits.accuracy_drop)


def _wrong_probabilities(answers: Answers, reference: Reference, exact: bool) -> str:
    """Return why the output `probabilities` fails, or "": it is not the softmax of the logits, at some batch size.

    Those are the net's logits where the model must be `exact`, else its own; all are finite.
    """
    for size, (probabilities, logits, *_) in answers.by_size.items():
        meant = _softmax((reference.logits[: len(logits)] if exact else logits) / reference.temperature)
        difference = np.abs(probabilities - meant).max()
        if not difference <= PROBABILITY_TOLERANCE:  # not: nan fails too
            whose = "the net's" if exact else "what its own logits say"
            batch = min(size, len(logits))
            return f"gives probabilities that differ from {whose} by {difference:.1e} at batch size {batch}"
    return ""


def _not_exact(logits: np.ndarray, by_size: dict[int, np.ndarray], eager: np.ndarray) -> str:
    """Return why an exact format fails, or ""; the arguments are those of `_failure`."""
    for size, some in by_size.items():
        if not np.allclose(some, eager[: len(some)], atol=ATOL, rtol=RTOL):
            other = f"gives other logits at batch size {size}"
            break
    else:
        other = ""
    disagree = int((logits.argmax(1) != eager.argmax(1)).sum())
    if disagree:
        return f"disagrees on {disagree:,} of {len(eager):,} arg-maxes"
    if (np.abs(logits - eager) > ATOL + RTOL * np.abs(eager)).any():
        return f"logits differ by more than {ATOL:.0e} + {RTOL:.0e} * |logit|"
    return other


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
    tail, ways = 0, 1  # ways to choose k of the trials, each from the one before
    for k in range(fewer + 1):
        tail += ways
        ways = ways * (trials - k) // (k + 1)
    return min(1.0, 2 * tail / 2**trials)


def _softmax(logits: np.ndarray) -> np.ndarray:
    powers = np.exp(logits - logits.max(axis=1, keepdims=True), dtype=np.float64)
    return powers / powers.sum(axis=1, keepdims=True)


def _changes_with_batch(by_size: dict[int, np.ndarray], logits: np.ndarray, temperature: float) -> str:
    """Return why a lossy model fails, or "": one batch size gives other answers than all images at once."""
    whole = _softmax(logits / temperature)
    for size, some in by_size.items():
        finite = bool(np.isfinite(some).all())
        difference = np.abs(_softmax(some / temperature) - whole[: len(some)]).max() if finite else np.inf
        if difference > MAX_DIFFERENCE_BETWEEN_BATCH_SIZES:
            return f"gives other logits at batch size {size}"
    return ""


def _over_budget(logits: np.ndarray, eager: np.ndarray, labels: np.ndarray, budget: float) -> str:
    """Return why a lossy variant fails, or "": it lost more than `budget` points and three standard errors.

    Of two classifiers of the same images, the difference of the numbers they have right has the standard error
    sqrt(images that one of them alone has right), as in McNemar's test.
    """
    right, right_before = logits.argmax(1) == labels, eager.argmax(1) == labels
    lost = int(right_before.sum()) - int(right.sum())
    if lost <= budget / 100 * len(labels) + 3 * np.sqrt((right != right_before).sum()):
        return ""
    return f"classifies {lost:,} of {len(labels):,} images fewer correctly, beyond the budget of {budget:g} points"


def table(results: dict[str, Parity]) -> str:
    """Return the results as lines of text, a model a line, the verdict first."""
    lines = [
        f"{'':4}  {'model':<12}  {'same class':>17}  {'largest |Δ|':>9}  {'relative':>9}  {'accuracy':>9}  batch sizes"
    ]
    for name, parity in results.items():
        accuracy = "—" if parity.accuracy is None else f"{100 * parity.accuracy:.2f} %"
        differences = "  ".join(
            f"{'—':>9}" if value is None else f"{value:9.1e}"
            for value in (parity.max_abs_difference, parity.max_rel_difference)
        )
        lines.append(
            f"{'pass' if parity.passed else 'FAIL'}  {name:<12}  {f'{parity.agree:,} / {parity.images:,}':>17}  "
            f"{differences}  {accuracy:>9}  "
            + ", ".join(map(str, parity.batch_sizes))
            + (f"  {parity.failure}" if parity.failure else "")
        )
    return "\n".join(lines)
