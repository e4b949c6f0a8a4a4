"""The variants `edge` and `tiny`: the large layers at low rank, then static int8, decided on held-out images."""

from __future__ import annotations

import bisect
import contextlib
import copy
import functools
import io
import logging
import tempfile
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import numpy as np
import onnx
import torch
from torch import Tensor, nn

from ..runtime.contract import INPUT_NAME, LOGITS
from ..runtime.errors import DataError, ParityError
from ..runtime.session import Session
from . import to_onnx
from .graph import Deployed
from .parity import in_batches

FACTORED = ("fc1", "conv6", "conv5", "conv4")
"""Layers that may be split in two, in the order in which they are: those with the most weights first."""

WORTH = 0.75
"""A layer is split only where its factors compute at most this share of what it does."""

STEP = 8
"""Ranks are multiples of it: int8 kernels work on 8 or 16 channels at once."""

LOST = (0.2, 0.14, 0.1, 0.07, 0.05, 0.035, 0.025, 0.018, 0.013, 0.009, 0.006, 0.004, 0.002, 0.001)
"""Shares of the variance of a layer's outputs that its factors may lose, the smallest variant first."""

CALIBRATION = 1_000
"""Held-out images that the int8 ranges are taken from."""

CALIBRATORS = ("MinMax", "Percentile", "Entropy")


@dataclass(frozen=True)
class Principal:
    """The principal components of a layer's outputs, over images and, of a convolution, over places.

    Attributes:
        mean: float64 [outputs].
        directions: float64 [outputs, outputs], orthonormal columns, the one of the largest variance first.
        variances: float64 [outputs], of each direction.
    """

    mean: Tensor
    directions: Tensor
    variances: Tensor

    def rank(self, lost: float) -> int:
        """Return the smallest multiple of `STEP` whose directions lose at most the share `lost` of the variance."""
        left = 1 - self.variances.cumsum(0) / self.variances.sum()
        needed = int((left > lost).sum()) + 1
        return -(-needed // STEP) * STEP


def principal_outputs(model: Deployed, images: np.ndarray) -> dict[str, Principal]:
    """Return the principal components of the outputs of each layer in `FACTORED`, before the ReLU.

    Args:
        model: the deployed net.
        images: uint8 [N, 32, 32, 3], of the training set.
    """
    sums = {name: [torch.zeros((), dtype=torch.float64)] * 3 for name in FACTORED}

    def add(name: str, outputs: Tensor) -> None:
        rows = outputs.movedim(1, -1).flatten(0, -2).double()  # [images * places, channels]
        count, total, products = sums[name]
        sums[name] = [count + len(rows), total + rows.sum(0), products + rows.T @ rows]

    def remember(name: str) -> Callable[..., None]:
        return lambda layer, inputs, outputs: add(name, outputs)

    hooks = [model.get_submodule(name).register_forward_hook(remember(name)) for name in FACTORED]
    try:
        with torch.inference_mode():
            for start in range(0, len(images), 250):
                model(torch.from_numpy(images[start : start + 250]))
    finally:
        for hook in hooks:
            hook.remove()
    found = {}
    for name, (count, total, products) in sums.items():
        mean = total / count
        variances, directions = torch.linalg.eigh(products / count - torch.outer(mean, mean))
        found[name] = Principal(mean, directions.flip(1), variances.flip(0).clamp(min=0))
    return found


def low_rank(layer: nn.Linear | nn.Conv2d, principal: Principal, rank: int) -> nn.Sequential:
    """Return two layers that give the projection of `layer`'s outputs on their `rank` principal directions.

    With U the directions and m the mean, Wx + b becomes U (U'W x + U'(b - m)) + m, which among all maps of this rank
    loses the least of the outputs' variance on the images the directions were taken from; a convolution becomes one
    of the same window to `rank` channels and one of 1x1. What passes between the two is brought to unit variance in
    every channel, so that one int8 scale suits all of them.
    Source: the data-aware form of the truncated SVD in Girshick, Fast R-CNN, 2015, section 3.1; for convolutions
    Zhang et al., Accelerating Very Deep Convolutional Networks, 2015, section 3.1.
    """
    basis = principal.directions[:, :rank]
    deviation = principal.variances[:rank].sqrt().clamp(min=1e-6 * float(principal.variances[0].sqrt()))
    inward, outward = (basis / deviation).T, basis * deviation
    if layer.bias is None:
        raise ValueError("every layer of Net has a bias")
    weight, bias = layer.weight.double(), layer.bias.double()
    down: nn.Module
    up: nn.Module
    if isinstance(layer, nn.Conv2d):
        height, width = layer.weight.shape[2:]
        down = nn.Conv2d(layer.in_channels, rank, (height, width))
        up = nn.Conv2d(rank, layer.out_channels, 1)
    else:
        down, up = nn.Linear(layer.in_features, rank), nn.Linear(rank, layer.out_features)
    down_weight = (inward @ weight.flatten(1)).unflatten(1, weight.shape[1:])
    up_weight = outward.reshape(*outward.shape, *([1] * (weight.ndim - 2)))
    down.load_state_dict({"weight": down_weight.float(), "bias": (inward @ (bias - principal.mean)).float()})
    up.load_state_dict({"weight": up_weight.float(), "bias": principal.mean.float()})
    return nn.Sequential(down, up).requires_grad_(False)


def split(model: Deployed, name: str, principal: Principal, lost: float) -> tuple[Deployed, int]:
    """Return a copy of `model` whose layer `name` loses at most the share `lost` of its outputs' variance; its rank.

    Where splitting is not worth it, `model` itself is returned, and 0.
    """
    layer = cast("nn.Linear | nn.Conv2d", model.get_submodule(name))
    rank, outputs = principal.rank(lost), len(layer.weight)
    if rank * (layer.weight[0].numel() + outputs) > WORTH * layer.weight.numel():
        return model, 0
    reduced = copy.copy(model)  # shares every layer but the one that is replaced
    reduced._modules = {**model._modules, name: low_rank(layer, principal, rank)}
    return reduced, rank


class EdgeExporter:
    """Searches the smallest variant of a net that stays within a budget of held-out accuracy.

    Args:
        model: the deployed net; it is not changed.
        training_images: uint8 [N, 32, 32, 3], for the principal directions.
        images: uint8 [M, 32, 32, 3], held out from training, for every decision.
        labels: integer [M].
        say: called with a line a trial.

    Raises:
        DataError: fewer held-out images than the calibration needs.
    """

    def __init__(
        self,
        model: Deployed,
        training_images: np.ndarray,
        images: np.ndarray,
        labels: np.ndarray,
        say: Callable[[str], object],
    ) -> None:
        if len(images) < CALIBRATION // 10:
            raise DataError(
                f"{len(images)} held-out images are too few to calibrate int8 on ({CALIBRATION // 10} at least): train "
                "with a recipe that holds images out, or on more images."
            )
        self.model, self.training_images = model, training_images
        self.images, self.labels, self.say = images, labels, say
        self.tried: list[dict[str, Any]] = []
        self._known: dict[str, float] = {}  # held-out accuracy by ranks: searches within other budgets meet them again

    def write(self, path: Path, provenance: dict[str, Any], budget: float) -> str:
        """Search, write the ONNX file of the variant found, and return a sentence on how it was made.

        The factors may take half of the budget; where their int8 form then does not keep all of it, a quarter, and at
        last nothing.

        Args:
            path: where to.
            provenance: JSON values that go into the file's metadata.
            budget: points of held-out accuracy, in per cent, that may be lost in all.

        Raises:
            ParityError: nothing tried stays within the budget; the best is named.
        """
        self.tried = []
        full = self._full
        self._note("fp32", full, full)
        for share in (1 / 2, 1 / 4, 0):
            reduced, shown = self._split_layers(share * budget, full)
            quantized, calibrator, accuracy = self._quantize(reduced, shown, full, provenance)
            if _within(budget, accuracy, full):
                to_onnx.save(quantized, path, provenance)
                return (
                    f"low rank by principal outputs ({shown}), then static int8 (QDQ, per channel, 7-bit weights, "
                    f"{calibrator} ranges of {min(CALIBRATION, len(self.images)):,} held-out images); "
                    f"held-out accuracy {100 * accuracy:.2f} % against {100 * full:.2f} %"
                )
        raise self._over_budget(budget)

    def _split_layers(self, budget: float, full: float) -> tuple[Deployed, str]:
        """Return the net with its layers split within `budget` points, and their ranks in words.

        One layer after the other gets the smallest rank that keeps the budget together with those before it; it is
        found by bisection, as if accuracy never fell where the rank rises.
        """
        model, ranks = self.model, ""
        for name in FACTORED:

            def keeps(lost: float, model: Deployed = model, name: str = name) -> bool:
                reduced, rank = split(model, name, self._principals[name], lost)
                if not rank:
                    return True
                shown = f"{ranks}{name} {rank}"  # noqa: B023
                if shown not in self._known:
                    self._known[shown] = self._accuracy(self._float_logits(reduced))
                self._note(f"ranks {shown}", self._known[shown], full)
                return _within(budget, self._known[shown], full)

            found = bisect.bisect_left(LOST, True, key=keeps)
            if found < len(LOST):
                model, rank = split(model, name, self._principals[name], LOST[found])
                ranks += f"{name} {rank}, " if rank else ""
        return model, ranks.removesuffix(", ") or "full"

    @functools.cached_property
    def _full(self) -> float:
        """The held-out accuracy of the whole net, 0 to 1."""
        return self._accuracy(self._float_logits(self.model))

    @functools.cached_property
    def _principals(self) -> dict[str, Principal]:
        return principal_outputs(self.model, self.training_images)

    def _quantize(
        self, model: Deployed, shown: str, full: float, provenance: dict[str, Any]
    ) -> tuple[onnx.ModelProto, str, float]:
        """Return the int8 form of `model` by the best calibrator, which that is, and its held-out accuracy, 0 to 1."""
        found = []
        with tempfile.TemporaryDirectory() as folder:
            source = Path(folder) / "float.onnx"
            to_onnx.write(model, source, provenance)
            for calibrator in CALIBRATORS:
                quantized = quantize(source, self.images[:CALIBRATION], calibrator)
                session = Session(quantized.SerializeToString(), "cpu")
                accuracy = self._accuracy(in_batches(session.logits, self.images))
                self._note(f"ranks {shown}, int8, {calibrator}", accuracy, full)
                found.append((quantized, calibrator, accuracy))
        return max(found, key=lambda trial: trial[2])

    def _float_logits(self, model: Deployed) -> np.ndarray:
        """Return the logits of the held-out images, float32 [M, 10]."""
        with torch.inference_mode():
            return in_batches(lambda images: model(torch.from_numpy(images))[1].numpy(), self.images)

    def _accuracy(self, logits: np.ndarray) -> float:
        return float((logits.argmax(1) == self.labels).mean())

    def _note(self, what: str, accuracy: float, full: float) -> None:
        self.tried.append({"tried": what, "held_out_accuracy": accuracy})
        self.say(f"  {what:<62} held-out {100 * accuracy:6.2f} %  ({100 * (accuracy - full):+.2f})")

    def _over_budget(self, budget: float) -> ParityError:
        candidates = [trial for trial in self.tried if "int8" in trial["tried"]]
        best = max(candidates, key=lambda trial: trial["held_out_accuracy"])
        lost = 100 * (self.tried[0]["held_out_accuracy"] - best["held_out_accuracy"])
        return ParityError(
            f"No variant that was tried keeps the budget of {budget:g} points: the closest "
            f"({best['tried']}) loses {lost:.2f}; allow more with --budget, or train longer."
        )


def _within(budget: float, accuracy: float, full: float) -> bool:
    return 100 * (full - accuracy) <= budget + 1e-9  # 5 of 5,000 images are 0.1 points, in floats a little more


def quantize(source: Path, images: np.ndarray, calibrator: str) -> onnx.ModelProto:
    """Return the static int8 form of an ONNX file of `Deployed`: QDQ, uint8 activations, int8 weights per channel.

    Weights use 7 of their 8 bits (`reduce_range`): on x86 without VNNI, products of two full-range bytes saturate the
    16-bit sums of `vpmaddubsw`, so that only this form gives the same answers on every processor.

    Args:
        source: the fp32 file.
        images: uint8 [N, 32, 32, 3], held out from training, that the activations' ranges are taken from.
        calibrator: one of `CALIBRATORS`.
    """
    with _quiet():
        from onnxruntime import quantization
        from onnxruntime.quantization.shape_inference import quant_pre_process

        class Reader(quantization.CalibrationDataReader):
            def __init__(self) -> None:
                self.batches = (images[start : start + 50] for start in range(0, len(images), 50))

            def get_next(self) -> Any:
                batch = next(self.batches, None)
                return None if batch is None else {INPUT_NAME: batch}

        with tempfile.TemporaryDirectory() as folder:
            prepared, result = Path(folder) / "prepared.onnx", Path(folder) / "int8.onnx"
            quant_pre_process(str(source), str(prepared))
            nodes = onnx.load(prepared).graph.node
            pixels = next(node.output[0] for node in nodes if node.op_type == "Cast")
            logits = next(node for node in nodes if node.output[0] == LOGITS)
            whole = {"scale": np.array(1, np.float32), "zero_point": np.array(0, np.uint8)}
            quantization.quantize_static(
                str(prepared),
                str(result),
                Reader(),
                quant_format=quantization.QuantFormat.QDQ,
                op_types_to_quantize=["Conv", "Gemm", "MaxPool", "Relu", "Reshape"],
                nodes_to_exclude=[logits.name],  # 2,570 weights: not worth logits in steps of a 256th
                per_channel=True,
                reduce_range=True,
                activation_type=quantization.QuantType.QUInt8,
                weight_type=quantization.QuantType.QInt8,
                calibrate_method=getattr(quantization.CalibrationMethod, calibrator),
                extra_options={"TensorQuantOverrides": {pixels: [whole]}},
            )
            model = onnx.load(result)
    _enter_as_uint8(model.graph, pixels)
    return model


def _enter_as_uint8(graph: onnx.GraphProto, pixels: str) -> None:
    """Let the uint8 pictures be conv1's quantized input, scale 1, instead of casting to float and quantizing again."""
    cast = next(node for node in graph.node if node.output[0] == pixels)
    quantize = next(node for node in graph.node if node.op_type == "QuantizeLinear" and node.input[0] == pixels)
    for node in graph.node:
        if node.op_type == "DequantizeLinear" and node.input[0] == quantize.output[0]:
            node.input[0] = cast.input[0]
    graph.node.remove(cast)
    graph.node.remove(quantize)


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Keep the quantizer's progress bars, log lines and warnings from the user."""
    level = logging.root.level
    logging.root.setLevel(logging.ERROR)
    try:
        sink = io.StringIO()
        with warnings.catch_warnings(), contextlib.redirect_stdout(sink), contextlib.redirect_stderr(sink):
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.root.setLevel(level)
