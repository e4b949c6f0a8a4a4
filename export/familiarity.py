"""Familiarity: a third output of the graph that says how much a picture is like those that the net was trained on.

It is computed of what the last layer reads, and is a sum of two logarithms of sums of exponentials. One is of the last
layer's functions, the net's own: the energy score (Liu et al., Energy-based out-of-distribution detection, 2020). The
other is of a few more linear functions without constants, the detectors, each of which is large for training pictures
of some kind, and small for pictures of nothing (`outliers`). They are learnt from the features of both; the net itself
stays as it is.

On pictures of other things the detectors tell most, and the energy changes next to nothing (AUROC 95.1 instead of 95.0
% with `tiny`, FPR95 23.3 instead of 22.5); on other classes of the same kind the energy tells more: 71.4 % instead of
67.5 in three splits of five (benchmarks/unknown.py).
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import torch
from onnx import TensorProto, helper, numpy_helper
from torch import Tensor, nn
from torch.nn import functional

from ..runtime.contract import METADATA_PREFIX, Contract
from ..runtime.errors import DataError, ParityError
from ..runtime.manifest import Familiarity
from ..runtime.providers import first_sentence, import_onnxruntime
from ..train.data import Dataset
from ..train.inference import BATCH_SIZE, Function, in_batches
from .compress.students import DeployedResidual
from .formats import onnx as onnx_format
from .graph import Deployed
from .outliers import outliers
from .parity import ATOL, RTOL

NAME = "familiarity"
"""What the output is called."""

ACCEPTED = 0.95
"""The threshold is set so that this share of the held-out pictures passes, 0 to 1."""

MIN_THRESHOLD_IMAGES = 200
"""With fewer held-out pictures no threshold is set: ten of them would decide."""

MAX_CONSTANTS = 1_900
"""The score adds at most so many float32 constants to the graph, and so at most 8 KB with its nodes."""

MAX_DETECTORS = 12
"""More linear functions gained nothing on the kinds of pictures that benchmarks/unknown.py tunes on."""

KNOWN_IMAGES, OUTLIERS = 20_000, 9_000
"""It is learnt from at most so many training pictures, and so many of nothing: these are at most twice as many."""

STEPS, LEARNING_BATCH, RATE, DECAY = 600, 256, 0.02, 0.01
"""AdamW takes so many steps, each on so many pictures of either kind, to this peak rate and with this weight decay."""

MIN_CORRELATION = 0.95
"""The scores of a lossy variant and of the net that it was made from must correlate by so much."""


@dataclass(frozen=True)
class Detectors:
    """The linear functions whose log-sum-exp is added to the energy.

    Attributes:
        weight: float32 [detectors, features].
        head: weight, float32 [classes, features], and bias, float32 [classes], of the last layer.
    """

    weight: np.ndarray
    head: tuple[np.ndarray, np.ndarray]

    def __call__(self, hidden: np.ndarray) -> np.ndarray:
        """Map what the last layer reads, float32 [N, features], to the familiarity, float32 [N]."""
        with torch.inference_mode():
            features = torch.from_numpy(hidden)
            energy = _score(features, *map(torch.from_numpy, self.head))
            return (_score(features, torch.from_numpy(self.weight)) + energy).numpy()


def _score(hidden: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    return functional.linear(hidden, weight, bias).logsumexp(1)


def detector_count(features: int) -> int:
    """Return how many linear functions of so many features there are."""
    return max(1, min(MAX_DETECTORS, MAX_CONSTANTS // features))


def constants(features: int) -> int:
    """Return how many float32 constants the score of so many features adds to a graph."""
    return detector_count(features) * features


def learn(known: np.ndarray, unknown: np.ndarray, head: tuple[np.ndarray, np.ndarray], seed: int = 0) -> Detectors:
    """Return detectors whose log-sum-exp is larger for known features than for unknown ones.

    They begin as the last layer's functions, one a class, so that this begins almost as the energy, with further random
    ones; what they learn is logistic regression on outliers (Hendrycks et al., Deep anomaly detection with outlier
    exposure, 2019, there for the whole net). Neither a constant for each gained anything, nor to learn what the energy
    lacks, with it in the sum.

    Args:
        known: what the last layer reads of training pictures, float32 [N, features].
        unknown: and of pictures of nothing, float32 [M, features].
        head: of the last layer, as `Detectors` has it.
        seed: of all randomness.
    """
    units = detector_count(known.shape[1])
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # the matrices are small: more threads cost more than they give
    try:
        return _learn(known, unknown, head, units, seed)
    finally:
        torch.set_num_threads(threads)


def _learn(
    known: np.ndarray, unknown: np.ndarray, head: tuple[np.ndarray, np.ndarray], units: int, seed: int
) -> Detectors:
    inside, outside = torch.from_numpy(known).clone(), torch.from_numpy(unknown).clone()
    scale = inside.square().mean().sqrt().clamp_min(1e-6)
    inside, outside = inside / scale, outside / scale
    with torch.random.fork_rng(devices=[]), torch.enable_grad():
        torch.manual_seed(seed)
        weight = nn.Linear(known.shape[1], units, bias=False).weight
        with torch.no_grad():
            first = min(units, len(head[0]))
            weight[:first] = torch.from_numpy(head[0][:first]) * scale
            level = nn.Parameter(_score(inside, weight).sort().values[len(inside) // 10])  # the boundary's
        optimizer = torch.optim.AdamW([weight, level], lr=RATE, weight_decay=DECAY)
        schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, RATE, total_steps=STEPS)
        for _ in range(STEPS):
            some = inside[torch.randint(len(inside), (LEARNING_BATCH,))]
            others = outside[torch.randint(len(outside), (LEARNING_BATCH,))]
            loss = functional.softplus(level - _score(some, weight)).mean()
            loss = loss + functional.softplus(_score(others, weight) - level).mean()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
    return Detectors((weight.detach() / scale).numpy(), head)


@torch.inference_mode()
def hidden_of(model: Deployed | DeployedResidual, images: np.ndarray) -> np.ndarray:
    """Return what the last layer reads of all `images`, uint8 [N, size, size, 3], in torch: float32 [N, features]."""
    return in_batches(lambda some: model.hidden(torch.from_numpy(some)).numpy(), images)


def tensor_of(model: onnx.ModelProto, contract: Contract, name: str) -> Function:
    """Return what maps uint8 [N, size, size, 3] to the tensor `name` of an ONNX model, one with a row an image."""
    if all(output.name != name for output in model.graph.output):
        inside, model = model, onnx.ModelProto()
        model.CopyFrom(inside)
        model.graph.output.append(helper.make_tensor_value_info(name, TensorProto.FLOAT, None))
    session = import_onnxruntime().InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    return lambda images: in_batches(lambda some: session.run([name], {contract.input_name: some})[0], images)


def head_of(model: onnx.ModelProto, contract: Contract) -> tuple[np.ndarray, np.ndarray]:
    """Return weight, float32 [classes, features], and bias, float32 [classes], of an ONNX model's last layer."""
    constants = {constant.name: constant for constant in model.graph.initializer}
    last = onnx_format.last_layer(model, contract)
    weight, bias = (numpy_helper.to_array(constants[name]) for name in last.input[1:])
    by_class = any(attribute.name == "transB" and attribute.i for attribute in last.attribute)
    return (weight if by_class else weight.T).copy(), bias.copy()


def append(model: onnx.ModelProto, contract: Contract, detectors: Detectors) -> None:
    """Add the familiarity to an ONNX model as its last output; all else in it stays as it is.

    Args:
        model: changed in place.
        contract: with the familiarity's name.
        detectors: learnt of what the model's last layer reads.

    Raises:
        ValueError: the contract names no familiarity.
    """
    if (name := contract.familiarity_name) is None:
        raise ValueError("the contract names no familiarity")
    graph, last = model.graph, onnx_format.last_layer(model, contract)
    weight, axes, energy, values = (f"{name}_{part}" for part in ("weight", "axes", "energy", "detectors"))
    graph.initializer.extend(
        [numpy_helper.from_array(detectors.weight, weight), numpy_helper.from_array(np.array([1], np.int64), axes)]
    )
    # The energy goes in as what Gemm adds to each row, which saves a node.
    graph.node.extend(
        [
            helper.make_node("ReduceLogSumExp", [last.output[0], axes], [energy], energy),
            helper.make_node("Gemm", [last.input[0], weight, energy], [values], values, transB=1),
            helper.make_node("ReduceLogSumExp", [values, axes], [name], f"{name}_logsumexp", keepdims=0),
        ]
    )
    batch = graph.input[0].type.tensor_type.shape.dim[0].dim_param
    graph.output.append(helper.make_tensor_value_info(name, TensorProto.FLOAT, [batch]))


@dataclass(frozen=True)
class Examples:
    """The pictures that a familiarity is learnt from and set by, uint8 [N, size, size, 3] each.

    Attributes:
        known: of training.
        unknown: of nothing.
        held_out: of no training; there may be none.
        drawn: of nothing, others than `unknown`, on which it is measured how well the score tells them.
    """

    known: np.ndarray
    unknown: np.ndarray
    held_out: np.ndarray
    drawn: np.ndarray

    @classmethod
    def of_dataset(cls, dataset: Dataset, share: float) -> Examples:
        """Return those of a data set of whose training images `share` was held out, 0 to 1; see `of`."""
        trained_on, held_out = dataset.hold_out(share)
        images = dataset.train_images
        return cls.of(images[trained_on], dataset.train_labels[trained_on], images[held_out])

    @classmethod
    def of(cls, images: np.ndarray, labels: np.ndarray, held_out: np.ndarray) -> Examples:
        """Draw the pictures of nothing.

        Args:
            images: that the net was trained on, uint8 [N, size, size, 3].
            labels: integer [N].
            held_out: uint8 [M, size, size, 3].

        Raises:
            DataError: there are no pictures.
        """
        if not len(images):
            raise DataError("A familiarity is learnt from training pictures: name the data set.")
        every = max(1, -(-len(images) // KNOWN_IMAGES))
        count = min(OUTLIERS, 2 * len(images))
        drawn = outliers(images, labels, count + count // 5)
        return cls(images[::every], drawn[:count], held_out, drawn[count:])


@dataclass(frozen=True)
class Added:
    """What was added to a file.

    Attributes:
        detectors: that its familiarity is computed by.
        threshold: from which familiarity on a picture is known; None where there are too few held-out pictures.
    """

    detectors: Detectors
    threshold: Familiarity | None

    def in_torch(self, model: Deployed | DeployedResidual) -> Function:
        """Return what maps uint8 [N, size, size, 3] to the familiarity, float32 [N], as `model` has the features."""
        return lambda images: self.detectors(hidden_of(model, images))


def add(path: Path, contract: Contract, examples: Examples) -> Added:
    """Give the ONNX file at `path` the familiarity.

    Args:
        path: a file without it, as `formats.onnx.save` wrote it; it is replaced.
        contract: with the familiarity's name.
        examples: what it is learnt from.

    Raises:
        ParityError: it is no such file, or what it gives is not finite; it stays as it is.
        OSError: the file cannot be read or written.
    """
    try:
        return _add(path, contract, examples)
    except (OSError, MemoryError):  # the disk or the memory is full, and the model may be sound
        raise
    except Exception as error:  # whatever a reader or an engine raises: the gate names the model and goes on
        raise ParityError(f"cannot be given a familiarity ({first_sentence(error)})") from error


def _add(path: Path, contract: Contract, examples: Examples) -> Added:
    model = onnx.load(path)
    hidden = tensor_of(model, contract, onnx_format.last_layer(model, contract).input[0])
    known, unknown = hidden(examples.known), hidden(examples.unknown)
    if not np.isfinite(known).all() or not np.isfinite(unknown).all():
        raise ValueError("its features are not finite")
    detectors = learn(known, unknown, head_of(model, contract))
    described = {entry.key: entry.value for entry in model.metadata_props}
    provenance: Mapping[str, Any] = json.loads(described[METADATA_PREFIX + "provenance"])
    append(model, contract, detectors)
    scores = tensor_of(model, contract, contract.familiarity_name or NAME)
    found = fit_threshold(scores, examples.held_out, examples.drawn)
    more = {} if found is None else {"familiarity": {"threshold": found.threshold}}
    onnx_format.save(model, path, contract, provenance, more)
    return Added(detectors, found)


def fit_threshold(
    familiarity: Function, images: np.ndarray, others: np.ndarray, accepted: float = ACCEPTED
) -> Familiarity | None:
    """Return the threshold at which the share `accepted` of the pictures pass; None where there are too few to say.

    Args:
        familiarity: maps uint8 [N, size, size, 3] to float32 [N], as the file gives it that is shipped.
        images: uint8 [N, size, size, 3], held out from training.
        others: likewise, of nothing; how well these are told apart is measured.
        accepted: 0 to 1.

    Raises:
        ValueError: a score is not finite.
    """
    if len(images) < MIN_THRESHOLD_IMAGES:
        return None
    scores, strange = familiarity(images), familiarity(others)
    if not np.isfinite(scores).all() or not np.isfinite(strange).all():
        raise ValueError("a familiarity is not finite")
    threshold = float(np.quantile(scores, 1 - accepted, method="lower"))
    drawn = {
        "images": len(others),
        "auroc": round(auroc(scores, strange), 4),
        "passed": round(float((strange >= threshold).mean()), 4),
    }
    return Familiarity(threshold, float((scores >= threshold).mean()), len(images), {"drawn": drawn})


def compare(found: Mapping[int, np.ndarray], wanted: np.ndarray, exact: bool) -> tuple[dict[str, float], str]:
    """Hold the familiarity of a file against torch's; return the figures, and why it fails, or "".

    Args:
        found: the file's, float32 [N] by the batch size, as `parity.Answers` has them.
        wanted: of all images by the net that the file was made from, float32 [N].
        exact: whether each must be equal within the tolerances of the logits; else the two must correlate.
    """
    scores = found[BATCH_SIZE]
    if scores.shape != wanted.shape or not np.isfinite(scores).all():
        return {}, "gives familiarities of another shape, or that are not finite"
    spread, varies = float(wanted.std()), bool(scores.std())
    difference = np.abs(scores - wanted)
    figures = {
        "max_abs_difference": float(difference.max()),
        # Of a constant there is none: two are as alike as can be, one tells nothing of the other.
        "correlation": float(np.corrcoef(scores, wanted)[0, 1]) if spread and varies else float(spread == varies),
    }
    for size, some in found.items():
        tolerance = ATOL + RTOL * np.abs(some) if exact else 0.5 * spread
        if not (np.abs(some - scores[: len(some)]) <= tolerance).all():  # not: nan fails, too, here and below
            return figures, f"gives other familiarities at batch size {size}"
    if exact and not (difference <= ATOL + RTOL * np.abs(wanted).max()).all():
        return figures, f"moves a familiarity by {difference.max():.1e}"
    if not figures["correlation"] >= MIN_CORRELATION:
        return figures, f"has familiarities that correlate with the net's by {figures['correlation']:.2f} only"
    return figures, ""


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
