"""The `edge` variant: `fc1` at low rank, then static int8, each decided on held-out images."""

from __future__ import annotations

import contextlib
import functools
import io
import logging
import tempfile
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, cast

import numpy as np
import onnx
import torch
from torch import nn

from ..runtime.contract import INPUT_NAME, LOGITS
from ..runtime.errors import DataError, ParityError
from ..runtime.session import Session
from . import to_onnx
from .graph import Deployed
from .parity import in_batches

RANKS = (8, 12, 16, 24, 32, 48, 64, 96, 128, 192, 256)
CALIBRATION = 1_000
"""Held-out images that the int8 ranges are taken from."""

CALIBRATORS = ("MinMax", "Percentile", "Entropy")


def principal_outputs(model: Deployed, images: np.ndarray) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the mean, float64 [1024], and principal directions, float64 [1024, 1024], of `fc1`'s outputs.

    Args:
        model: the deployed net.
        images: uint8 [N, 32, 32, 3], of the training set.

    Returns:
        The directions are columns, the one of the largest variance first.
    """
    outputs = []
    with torch.inference_mode():
        for start in range(0, len(images), 250):
            outputs.append(model.fc1(model.features(torch.from_numpy(images[start : start + 250]))).double())
    stacked = torch.cat(outputs)
    mean = stacked.mean(0)
    centred = stacked - mean
    return mean, torch.linalg.eigh(centred.T @ centred).eigenvectors.flip(1)


def low_rank(layer: nn.Linear, mean: torch.Tensor, directions: torch.Tensor, rank: int) -> nn.Sequential:
    """Return two layers that give the projection of `layer`'s outputs on their `rank` principal directions.

    With U the directions and m the mean, Wx + b becomes U (U'W x + U'(b - m)) + m, which among all maps of this rank
    loses the least of the outputs' variance on the images the directions were taken from.
    Source: the data-aware form of the truncated SVD in Girshick, Fast R-CNN, 2015, section 3.1.
    """
    basis = directions[:, :rank]
    weight, bias = layer.weight.double(), layer.bias.double()
    down = nn.Linear(layer.in_features, rank)
    up = nn.Linear(rank, layer.out_features)
    down.load_state_dict({"weight": (basis.T @ weight).float(), "bias": (basis.T @ (bias - mean)).float()})
    up.load_state_dict({"weight": basis.float(), "bias": mean.float()})
    return nn.Sequential(down, up).requires_grad_(False)


class EdgeExporter:
    """Searches the smallest `edge` variant of a net that stays within a budget of held-out accuracy.

    Args:
        model: the deployed net.
        training_images: uint8 [N, 32, 32, 3], for the principal directions.
        images: uint8 [M, 32, 32, 3], held out from training, for every decision.
        labels: integer [M].
        budget: points of held-out accuracy, in per cent, that may be lost in all.
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
        budget: float,
        say: Callable[[str], object],
    ) -> None:
        if len(images) < CALIBRATION // 10:
            raise DataError(
                f"{len(images)} held-out images are too few to calibrate int8 on ({CALIBRATION // 10} at least): train "
                "with a recipe that holds images out, or on more images."
            )
        self.model, self.training_images = model, training_images
        self.images, self.labels, self.budget, self.say = images, labels, budget, say
        self.tried: list[dict[str, Any]] = []

    def write(self, path: Path, provenance: dict[str, Any]) -> str:
        """Search, write the ONNX file of the variant found, and return a sentence on how it was made.

        Raises:
            ParityError: nothing tried stays within the budget; the best is named.
        """
        full = self._accuracy(self._head_logits(self.model.fc1))
        self._note("fp32", full, full)
        rank = self._search_rank(full)
        name, accuracy = self._search_int8(rank, full, path, provenance)
        return (
            f"fc1 at rank {rank} by its principal outputs, then static int8 (QDQ, per channel, 7-bit weights, "
            f"{name} ranges of {min(CALIBRATION, len(self.images)):,} held-out images); "
            f"held-out accuracy {100 * accuracy:.2f} % against {100 * full:.2f} %"
        )

    def _search_rank(self, full: float) -> int:
        """Return the smallest rank that keeps half of the budget for int8."""
        mean, directions = principal_outputs(self.model, self.training_images)
        original = cast("nn.Linear", self.model.fc1)
        for rank in RANKS:
            self.model.fc1 = low_rank(original, mean, directions, rank)
            accuracy = self._accuracy(self._head_logits(self.model.fc1))
            self._note(f"rank {rank}", accuracy, full)
            if 100 * (full - accuracy) <= self.budget / 2:
                return rank
        raise self._over_budget()

    def _search_int8(self, rank: int, full: float, path: Path, provenance: dict[str, Any]) -> tuple[str, float]:
        """Write the best int8 form at `rank`; return its calibrator and its held-out accuracy, 0 to 1."""
        found: list[tuple[float, str, onnx.ModelProto]] = []
        with tempfile.TemporaryDirectory() as folder:
            source = Path(folder) / "float.onnx"
            to_onnx.write(self.model, source, provenance)
            for calibrator in CALIBRATORS:
                quantized = quantize(source, self.images[:CALIBRATION], calibrator)
                session = Session(quantized.SerializeToString(), "cpu")
                accuracy = self._accuracy(in_batches(session.logits, self.images))
                self._note(f"rank {rank}, int8, {calibrator}", accuracy, full)
                found.append((accuracy, calibrator, quantized))
        accuracy, calibrator, quantized = max(found, key=lambda trial: trial[0])
        if 100 * (full - accuracy) > self.budget:
            raise self._over_budget()
        to_onnx.save(quantized, path, provenance)
        return calibrator, accuracy

    def _head_logits(self, fc1: nn.Module) -> np.ndarray:
        """Return the logits of the held-out images with `fc1` in its place, float32 [M, 10]."""
        with torch.inference_mode():
            hidden = torch.relu(fc1(self._features))
            return self.model.fc3(torch.relu(self.model.fc2(hidden))).numpy()

    @functools.cached_property
    def _features(self) -> torch.Tensor:
        """What `fc1` reads for the held-out images, float32 [M, 18432]."""
        with torch.inference_mode():
            batches = np.array_split(self.images, max(1, len(self.images) // 250))
            return torch.cat([self.model.features(torch.from_numpy(batch)) for batch in batches])

    def _accuracy(self, logits: np.ndarray) -> float:
        return float((logits.argmax(1) == self.labels).mean())

    def _note(self, what: str, accuracy: float, full: float) -> None:
        self.tried.append({"tried": what, "held_out_accuracy": accuracy})
        self.say(f"  {what:<28} held-out {100 * accuracy:6.2f} %  ({100 * (accuracy - full):+.2f})")

    def _over_budget(self) -> ParityError:
        candidates = [trial for trial in self.tried if "int8" in trial["tried"]] or self.tried[1:]
        best = max(candidates, key=lambda trial: trial["held_out_accuracy"])
        lost = 100 * (self.tried[0]["held_out_accuracy"] - best["held_out_accuracy"])
        return ParityError(
            f"No edge variant that was tried keeps the budget of {self.budget:g} points: the closest "
            f"({best['tried']}) loses {lost:.2f}; allow more with --budget, or train longer."
        )


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
