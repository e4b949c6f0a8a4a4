"""The variants `edge` and `tiny`: a smaller net, then static int8, all decided on held-out images."""

from __future__ import annotations

import bisect
import contextlib
import functools
import io
import logging
import tempfile
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import torch

from ..runtime.contract import INPUT_NAME, LOGITS, SIDE
from ..runtime.errors import DataError, ParityError
from ..runtime.session import Session
from ..train.calibration import fit_temperature
from ..train.data import Dataset
from ..train.net import Net
from . import to_onnx
from .distill import Tuner
from .graph import Deployed
from .low_rank import FACTORED, Principal, principal_outputs, split
from .narrow import LAYERS, importance, narrowed
from .parity import in_batches

LOST = (0.2, 0.14, 0.1, 0.07, 0.05, 0.035, 0.025, 0.018, 0.013, 0.009, 0.006, 0.004, 0.002, 0.001)
"""Shares of the variance of a layer's outputs that its factors may lose, the smallest variant first."""

WIDTHS = {
    "tiny": ((16, 32, 64, 64, 80, 128, 128, 64), (16, 32, 64, 80, 96, 144, 128, 64)),
    "edge": ((16, 32, 64, 128, 160, 192, 256, 128), (16, 32, 64, 128, 192, 256, 256, 128)),
}
"""Outputs of `narrow.LAYERS` at which a variant is fine-tuned, the smallest first: they decide its size and speed."""

JUDGED = 10_000
"""Training images, about so many, that principal directions and channels are judged by."""

CALIBRATION = 1_000
"""Held-out images that the int8 ranges are taken from."""

CALIBRATORS = ("MinMax", "Percentile", "Entropy")


def judged(dataset: Dataset, trained_on: np.ndarray) -> np.ndarray:
    """Return about `JUDGED` of the images that a net was trained on, uint8 [N, 32, 32, 3].

    Args:
        dataset: what it was trained on.
        trained_on: indices of its training images, as `Dataset.hold_out` gives them.
    """
    return dataset.train_images[trained_on[:: max(1, len(trained_on) // JUDGED)]]


class EdgeExporter:
    """Searches the smallest variant of a net that stays within a budget of held-out accuracy.

    Args:
        model: the deployed net; it is not changed.
        training_images: uint8 [N, 32, 32, 3], that principal directions and channels are judged by.
        images: uint8 [M, 32, 32, 3], held out from training, for every decision.
        labels: integer [M].
        say: called with a line a trial.
        tuner: fine-tunes what the net that `model` was made from is narrowed to; None to have it at low rank instead.

    Raises:
        DataError: fewer held-out images than the calibration needs, or not images and a label each.
    """

    def __init__(
        self,
        model: Deployed,
        training_images: np.ndarray,
        images: np.ndarray,
        labels: np.ndarray,
        say: Callable[[str], object],
        tuner: Tuner | None = None,
    ) -> None:
        if len(images) < CALIBRATION // 10:
            raise DataError(
                f"{len(images)} held-out images are too few to calibrate int8 on ({CALIBRATION // 10} at least): train "
                "with a recipe that holds images out, or on more images."
            )
        for some in (training_images, images):
            if some.dtype != np.uint8 or some.shape[1:] != (SIDE, SIDE, 3):
                raise DataError(
                    f"int8 is calibrated on images as Net takes them, uint8 [N, {SIDE}, {SIDE}, 3], not {some.dtype} "
                    f"{list(some.shape)}: convert them first."
                )
        if len(labels) != len(images):
            raise DataError(f"There are {len(labels):,} labels to {len(images):,} held-out images: give one for each.")
        self.model, self.training_images = model, training_images
        self.images, self.labels, self.say = images, labels, say
        self.tuner = tuner
        self.tried: list[dict[str, Any]] = []
        self._known: dict[str, float] = {}  # held-out accuracy by ranks: searches within other budgets meet them again

    def write(
        self,
        path: Path,
        provenance: dict[str, Any],
        budget: float,
        ladder: Sequence[Sequence[int]] = (),
        times: int = 1,
    ) -> str:
        """Search, write the ONNX file of the variant found, and return a sentence on how it was made.

        With a tuner, the first of the `ladder`'s nets whose fine-tuned int8 form keeps the budget. Without one, large
        layers at low rank, which may take half of the budget; where their int8 form then does not keep all of it, a
        quarter, and at last nothing.

        Args:
            path: where to.
            provenance: JSON values that go into the file's metadata; "variant" names it in an error.
            budget: points of held-out accuracy, in per cent, that may be lost in all.
            ladder: widths of `narrow.LAYERS` to fine-tune at, the smallest first.
            times: how many times the tuner's epochs they are fine-tuned for, and how many times what a user allows
                `budget` is.

        Raises:
            ParityError: nothing tried stays within the budget; the best is named.
        """
        self.tried = []
        full = self._full
        self._note("fp32", full, full)
        trials = self._fine_tuned(self.tuner.lasting(times), ladder) if self.tuner else self._untuned(budget)
        for reduced, shown, how in trials:
            quantized, calibrator, accuracy = self._quantize(reduced, shown, full, provenance)
            if _within(budget, accuracy, full):
                to_onnx.save(quantized, path, provenance)
                return (
                    f"{how}, then static int8 (QDQ, per channel, 7-bit weights, "
                    f"{calibrator} ranges of {min(CALIBRATION, len(self.images)):,} held-out images); "
                    f"held-out accuracy {100 * accuracy:.2f} % against {100 * full:.2f} %"
                )
        raise self._over_budget(provenance.get("variant", "variant"), budget, times)

    def _untuned(self, budget: float) -> Iterator[tuple[Deployed, str, str]]:
        """Yield nets at low rank, ever more exact, their ranks in words, and how they were made."""
        for share in (1 / 2, 1 / 4, 0):
            model, ranks = self._split_layers(share * budget, self._full)
            yield model, f"ranks {ranks}", f"low rank by principal outputs ({ranks})"

    def _fine_tuned(self, tuner: Tuner, ladder: Sequence[Sequence[int]]) -> Iterator[tuple[Deployed, str, str]]:
        """Yield narrowed nets, fine-tuned, ever larger, their widths in words, and how they were made."""
        if not ladder:
            raise ValueError("fine-tuning needs widths to begin with")
        for rung in ladder:
            widths: dict[str, int] = dict(zip(LAYERS, rung, strict=True))
            shown = f"widths {'-'.join(map(str, rung))}"
            model, accuracy = self._taught(tuner, self._narrowed(tuner, widths), widths)
            self._note(f"{shown}, fine-tuned", accuracy, self._full)
            epochs = f"{tuner.recipe.epochs} {'epoch' if tuner.recipe.epochs == 1 else 'epochs'}"
            how = f"narrowed ({LAYERS[0]} to {LAYERS[-1]}: {', '.join(map(str, rung))} outputs), fine-tuned for "
            yield model, shown, f"{how}{epochs} on labels and the whole net's answers"

    def stored_student(self, widths: Mapping[str, int]) -> Deployed | None:
        """Return the net narrowed to `widths` as it was fine-tuned before; None where the tuner has none.

        Raises:
            ValueError: there is no tuner.
        """
        if not self.tuner:
            raise ValueError("a student needs a tuner")
        student = self._narrowed(self.tuner, widths)
        return self._taught(self.tuner, student, widths)[0] if self.tuner.holds(student, widths) else None

    def _narrowed(self, tuner: Tuner, widths: Mapping[str, int]) -> Net:
        return narrowed(tuner.teacher, widths, self._importances)

    def _taught(self, tuner: Tuner, student: Net, widths: Mapping[str, int]) -> tuple[Deployed, float]:
        """Return `student` fine-tuned, its logits in the whole net's unit, and its held-out accuracy, 0 to 1.

        One temperature, the run's, then calibrates every variant.
        """
        model = Deployed(tuner.tune(student, widths), self.model.temperature, self.model.paired)
        logits = self._float_logits(model)
        scale = self.model.temperature / fit_temperature(logits, self.labels)
        for parameter in model.fc3.parameters():
            parameter.mul_(scale)
        return model, self._accuracy(logits)

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

    @functools.cached_property
    def _importances(self) -> dict[str, torch.Tensor]:
        return importance(self.tuner.teacher, self.training_images) if self.tuner else {}

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
                self._note(f"{shown}, int8, {calibrator}", accuracy, full)
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

    def _over_budget(self, name: str, budget: float, times: int) -> ParityError:
        candidates = [trial for trial in self.tried if "int8" in trial["tried"]]
        best = max(candidates, key=lambda trial: trial["held_out_accuracy"])
        lost = 100 * (self.tried[0]["held_out_accuracy"] - best["held_out_accuracy"])
        asked = f"{budget:g} points" + (f" ({times} times --budget)" if times > 1 else "")
        remedy = "fine-tune for more epochs" if self.tuner else "train longer, or fine-tune it with --fine-tune"
        return ParityError(
            f"No {name} that was tried keeps the budget of {asked}: the closest ({best['tried']}) loses {lost:.2f}; "
            f"allow more with --budget, {remedy}, or leave out --variant {name}."
        )


def _within(budget: float, accuracy: float, full: float) -> bool:
    return 100 * (full - accuracy) <= budget + 1e-9  # 5 of 5,000 images are 0.1 points, in floats a little more


def quantize(source: Path, images: np.ndarray, calibrator: str, reduce_range: bool = True) -> onnx.ModelProto:
    """Return the static int8 form of an ONNX file of `Deployed`: QDQ, uint8 activations, int8 weights per channel.

    Args:
        source: the fp32 file.
        images: uint8 [N, 32, 32, 3], held out from training, that the activations' ranges are taken from.
        calibrator: one of `CALIBRATORS`.
        reduce_range: whether weights use 7 of their 8 bits: on x86 without VNNI, products of two full-range bytes
            saturate the 16-bit sums of `vpmaddubsw`, so that only this form gives the same answers on every processor.
    """
    with _quiet():
        from onnxruntime import quantization
        from onnxruntime.quantization.shape_inference import quant_pre_process

        class Reader(quantization.CalibrationDataReader):
            def __init__(self) -> None:
                # All of one size, or the histograms of Percentile and Entropy cannot be made.
                size = next(size for size in range(50, 0, -1) if len(images) % size == 0)
                self.batches = (images[start : start + size] for start in range(0, len(images), size))

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
                reduce_range=reduce_range,
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
