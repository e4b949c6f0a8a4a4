"""The search for a lossy variant: a smaller net, then static int8, all decided on held-out images."""

from __future__ import annotations

import bisect
import functools
import logging
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import numpy as np
import onnx
import torch
from torch import nn

from ...runtime.contract import Contract
from ...runtime.errors import DataError, ParityError
from ...runtime.files import temporary_folder
from ...runtime.session import Session
from ...train.adapting import MIN_CALIBRATION_IMAGES
from ...train.calibration import fit_sharpness, fit_temperature
from ...train.data import Dataset
from ...train.inference import in_batches
from ...train.net import LAYERS, Net
from ..formats import onnx as onnx_format
from ..graph import Deployed, InTorch
from .distill import Distiller
from .lossy import LossyVariant, Wanted
from .low_rank import FACTORED, Principal, principal_outputs, split
from .narrow import importance, narrowed
from .quantize import CALIBRATION_IMAGES, CALIBRATORS, quantize
from .sizes import expected_bytes
from .students import MIDDLE_WIDTHS, DeployedResidual, Residual, describe_widths, scaled

log = logging.getLogger("edgecifar")

Lossy = Deployed | DeployedResidual
"""A graph that is quantized."""

Whole = Deployed | InTorch
"""What smaller nets are held against; only the first has layers that can be narrowed or split."""

LOST_VARIANCE = (0.2, 0.14, 0.1, 0.07, 0.05, 0.035, 0.025, 0.018, 0.013, 0.009, 0.006, 0.004, 0.002, 0.001)
"""These shares of the variance of a layer's outputs, 0 to 1, may its factors lose; the smallest variant is first."""

IMPORTANCE_IMAGES = 10_000
"""Principal directions and the importance of channels are measured on about so many training images."""


@dataclass(frozen=True)
class Made:
    """How a model file was made.

    Attributes:
        made_by: how, in a sentence without its full stop.
        held_out_accuracy: share of the held-out images classified correctly, 0 to 1; None where it was not measured.
        torch_form: of a quantized model, what it was before. None of others.
    """

    made_by: str
    held_out_accuracy: float | None = None
    torch_form: Lossy | None = None


def importance_subset(dataset: Dataset, trained_on: np.ndarray) -> np.ndarray:
    """Return about `IMPORTANCE_IMAGES` of the images that a net was trained on, uint8 [N, size, size, 3].

    Args:
        dataset: what it was trained on.
        trained_on: indices of its training images, as `Dataset.hold_out` gives them.
    """
    return dataset.train_images[trained_on[:: max(1, len(trained_on) // IMPORTANCE_IMAGES)]]


def spread_over(images: np.ndarray, count: int) -> np.ndarray:
    """Return `count` of the images, or all where they are fewer, evenly spread: they may be in the order of classes."""
    return images[np.linspace(0, len(images) - 1, min(count, len(images))).round().astype(int)]


class Search:
    """Searches the smallest variant of a net that stays within a budget of held-out accuracy.

    Args:
        model: the run's net; it is not changed.
        contract: what the model takes and gives.
        training_images: uint8 [N, size, size, 3], on which principal directions and importance are measured.
        images: uint8 [M, size, size, 3], held out from training, for every decision.
        labels: integer [M].
        distiller: fine-tunes smaller nets; None to search low ranks instead.
        wanted: what kind of net is fine-tuned, and how large its file may be.

    Attributes:
        calibration: the images whose activations the ranges of int8 cover, uint8 [at most 1,000, size, size, 3].
        trials: what was tried for the last variant, and its held-out accuracy, 0 to 1.

    Raises:
        DataError: fewer images in all than the calibration needs, or not images and a label each.
    """

    def __init__(
        self,
        model: Whole,
        contract: Contract,
        training_images: np.ndarray,
        images: np.ndarray,
        labels: np.ndarray,
        distiller: Distiller | None = None,
        wanted: Wanted = Wanted(),  # noqa: B008  it cannot be changed
    ) -> None:
        if (count := len(images) + len(training_images)) < MIN_CALIBRATION_IMAGES:
            raise DataError(
                f"{count} images are too few to calibrate int8 on ({MIN_CALIBRATION_IMAGES} at least): train on more "
                "images, or leave out the int8 variants."
            )
        for some in (training_images, images):
            if some.dtype != np.uint8 or some.shape[1:] != contract.picture_shape:
                raise DataError(
                    f"int8 is calibrated on images as the net takes them, uint8 {['N', *contract.picture_shape]}, not "
                    f"{some.dtype} {list(some.shape)}: convert them first."
                )
        if len(labels) != len(images):
            raise DataError(f"There are {len(labels):,} labels to {len(images):,} held-out images: give one for each.")
        self.model, self.contract, self.training_images = model, contract, training_images
        self.images, self.labels, self.distiller, self.wanted = images, labels, distiller, wanted
        # Ranges need no labels: where few images are held out, training images stand in.
        lacking = max(0, CALIBRATION_IMAGES - len(images))
        spread = spread_over(training_images, lacking)
        self.calibration = np.concatenate([spread_over(images, CALIBRATION_IMAGES), spread])
        self.trials: list[tuple[str, float]] = []
        self._quantized: list[tuple[str, float]] = []  # those of the trials that are int8
        self._provenance: Mapping[str, Any] = {}  # of the file that is written
        self._smallest = sys.maxsize  # bytes of the smallest file that was thought of
        self._known: dict[str, float] = {}  # held-out accuracy by ranks: searches within other budgets meet them again

    def write(self, path: Path, variant: LossyVariant, budget: float, provenance: Mapping[str, Any]) -> Made:
        """Search and write the ONNX file of the variant found.

        With a distiller, that is the first candidate whose fine-tuned int8 form keeps the budget. Without one, large
        layers at low rank, which may take half of the budget; where their int8 form then does not keep all of it, a
        quarter, and at last nothing.

        Args:
            path: where to.
            variant: which one.
            budget: points of held-out accuracy, in per cent, that a user allows; the variant multiplies it.
            provenance: JSON values that go into the file's metadata.

        Raises:
            ParityError: nothing is small enough, or nothing tried stays within the budget; the best is named.
        """
        self.trials, self._quantized, self._provenance = [], [], provenance
        full, allowed = self._full, self.budget_multiplier(variant) * budget
        self._note("the net", full)
        distiller = self.distiller_for(variant)
        if not distiller:
            reductions: Iterator[tuple[Lossy, str, str]] = self._low_ranks(allowed)
        elif self.is_residual(variant):
            reductions = self._students(distiller, self._residual_widths(variant))
        else:
            reductions = self._fine_tuned(distiller, variant.candidates)
        for model, shown, how in reductions:
            quantized, calibrator, accuracy = self._quantize(model, shown)
            if _within(allowed, accuracy, full):
                onnx_format.save(quantized, path, self.contract, provenance)
                return Made(
                    f"{how}, then static int8 (QDQ, per channel, 7-bit weights, {calibrator} ranges of "
                    f"{self._calibrated_on()}); held-out accuracy {100 * accuracy:.2f} % against {100 * full:.2f} %",
                    accuracy,
                    model,
                )
        if not self._quantized:
            raise self._too_large(variant)
        raise self._over_budget(variant, budget)

    def _residual_widths(self, variant: LossyVariant) -> Sequence[Sequence[int]]:
        """Return the widths of the residual students to try."""
        if self.wanted.max_bytes is None:
            return variant.residual
        fitting: list[tuple[int, ...]] = []
        for middle in MIDDLE_WIDTHS:
            with torch.device("meta"):
                student = Residual(self.contract.classes, scaled(middle))
                model = DeployedResidual(student, paired=self.model.paired)
            if not self._fits(model):
                break
            fitting.append(scaled(middle))
        return fitting[-1:]

    def _fits(self, model: Lossy) -> bool:
        """Return whether the int8 file of `model` is small enough."""
        if self.wanted.max_bytes is None:
            return True
        expected = expected_bytes(model, self.contract, self._provenance)
        self._smallest = min(self._smallest, expected)
        return expected <= self.wanted.max_bytes

    def _calibrated_on(self) -> str:
        held_out = min(len(self.images), len(self.calibration))
        if held_out == len(self.calibration):
            return f"{held_out:,} held-out images"
        return f"{len(self.calibration):,} images, {held_out:,} of them held out"

    def is_residual(self, variant: LossyVariant) -> bool:
        """Return whether a variant is a residual student, if nets are fine-tuned at all."""
        only = not variant.candidates or not isinstance(self.model, Deployed)
        return bool(variant.residual) and (self.wanted.residual or only)

    def budget_multiplier(self, variant: LossyVariant) -> int:
        """Return by what a variant multiplies the user's budget."""
        residual = self.distiller and self.is_residual(variant)
        return variant.residual_budget if residual else variant.multiplier

    def distiller_for(self, variant: LossyVariant) -> Distiller | None:
        """Return what fine-tunes a variant; None where nothing does."""
        if self.distiller and self.is_residual(variant):
            return self.distiller.from_nothing(variant.residual_multiplier)
        return self.distiller and self.distiller.lasting(variant.multiplier)

    def _low_ranks(self, budget: float) -> Iterator[tuple[Lossy, str, str]]:
        """Yield nets at low rank, ever more exact, their ranks in words, and how they were made."""
        for share in (1 / 2, 1 / 4, 0):
            model, ranks = self._split_layers(share * budget)
            if not self._fits(model):
                return  # those that follow are larger
            yield model, f"ranks {ranks}", f"low rank by principal outputs ({ranks})"

    def _fine_tuned(
        self, distiller: Distiller, candidates: Sequence[Sequence[int]]
    ) -> Iterator[tuple[Lossy, str, str]]:
        """Yield narrowed nets, fine-tuned, ever larger, their widths in words, and how they were made."""
        for candidate in candidates:
            widths: dict[str, int] = dict(zip(LAYERS, candidate, strict=True))
            shown, student = f"widths {'-'.join(map(str, candidate))}", self._narrowed(distiller, widths)
            if not self._fits(Deployed(student, paired=self.model.paired)):
                continue
            self._announce(distiller, student, widths, shown)
            model, accuracy = self._taught(distiller, student, widths)
            self._note(f"{shown}, fine-tuned", accuracy)
            outputs = f"narrowed ({LAYERS[0]} to {LAYERS[-1]}: {', '.join(map(str, candidate))} outputs)"
            yield model, shown, f"{outputs}, fine-tuned for {_learnt(distiller)}"

    def _students(self, distiller: Distiller, candidates: Sequence[Sequence[int]]) -> Iterator[tuple[Lossy, str, str]]:
        """Yield residual students, ever larger, their widths in words, and how they were made."""
        for candidate in candidates:
            shown = f"residual {'-'.join(map(str, candidate))}"
            student = Residual.untrained(self.contract.classes, candidate, distiller.seed)
            self._announce(distiller, student, student.widths, shown)
            model = distiller.tune(student, student.widths).deployed(self.model.temperature, self.model.paired)
            self._note(f"{shown}, trained", self._calibrated(model, model.head))
            yield model, shown, f"residual net ({describe_widths(candidate)}), trained for {_learnt(distiller)}"

    def _announce(self, distiller: Distiller, student: nn.Module, widths: Mapping[str, int], shown: str) -> None:
        """Say that another net is trained where the one before it lost too much: it takes as long again, or longer."""
        if self._quantized and not distiller.holds(student, widths):
            log.warning(
                "  That is more than the budget: %s is trained, too, for as many epochs. To have the one before "
                "instead, stop this, and export with a larger budget: it is kept.",
                shown,
            )

    def stored_student(self, widths: Mapping[str, int]) -> Deployed | None:
        """Return the net narrowed to `widths` as it was fine-tuned before; None where the distiller has none.

        Raises:
            ValueError: there is no distiller.
        """
        if not self.distiller:
            raise ValueError("a student needs a distiller")
        student = self._narrowed(self.distiller, widths)
        stored = self.distiller.holds(student, widths)
        return self._taught(self.distiller, student, widths)[0] if stored else None

    def _narrowed(self, distiller: Distiller, widths: Mapping[str, int]) -> Net:
        return narrowed(cast("Net", distiller.teacher), widths, self._importances)

    def _taught(self, distiller: Distiller, student: Net, widths: Mapping[str, int]) -> tuple[Deployed, float]:
        """Return `student` fine-tuned, its logits in the whole net's unit, and its held-out accuracy, 0 to 1.

        One temperature, the run's, then calibrates every variant.
        """
        model = Deployed(distiller.tune(student, widths), self.model.temperature, self.model.paired)
        return model, self._calibrated(model, model.fc3)

    def _calibrated(self, model: Lossy, last_layer: nn.Linear) -> float:
        """Bring the logits of `model` into the whole net's unit, and return its held-out accuracy, 0 to 1."""
        logits = self._float_logits(model)
        scale = self.model.temperature / fit_temperature(logits, self.labels)
        for parameter in last_layer.parameters():
            parameter.mul_(scale)
        if isinstance(model, DeployedResidual):
            model.sharpness = fit_sharpness(scale * logits, self.labels, self.model.temperature)
        return self._accuracy(logits)

    def _split_layers(self, budget: float) -> tuple[Deployed, str]:
        """Return the net with its layers split within `budget` points, and their ranks in words.

        One layer after the other gets the smallest rank that keeps the budget together with those before it; it is
        found by bisection, as if accuracy never fell where the rank rises.
        """
        model, ranks = cast("Deployed", self.model), ""
        for name in FACTORED:

            def keeps(lost: float, model: Deployed = model, name: str = name, before: str = ranks) -> bool:
                reduced, rank = split(model, name, self._principals[name], lost)
                if not rank:
                    return True
                shown = f"{before}{name} {rank}"
                if shown not in self._known:
                    self._known[shown] = self._accuracy(self._float_logits(reduced))
                self._note(f"ranks {shown}", self._known[shown])
                return _within(budget, self._known[shown], self._full)

            found = bisect.bisect_left(LOST_VARIANCE, True, key=keeps)
            if found < len(LOST_VARIANCE):
                model, rank = split(model, name, self._principals[name], LOST_VARIANCE[found])
                ranks += f"{name} {rank}, " if rank else ""
        return model, ranks.removesuffix(", ") or "full"

    @functools.cached_property
    def _full(self) -> float:
        """The held-out accuracy of the whole net, 0 to 1."""
        return self._accuracy(self._float_logits(self.model))

    @functools.cached_property
    def _principals(self) -> dict[str, Principal]:
        return principal_outputs(cast("Deployed", self.model), self.training_images)

    @functools.cached_property
    def _importances(self) -> dict[str, torch.Tensor]:
        return importance(cast("Net", self.distiller.teacher), self.training_images) if self.distiller else {}

    def _quantize(self, model: Lossy, shown: str) -> tuple[onnx.ModelProto, str, float]:
        """Return the int8 form of `model` by the best calibrator, which that is, and its held-out accuracy, 0 to 1."""
        found = []
        with temporary_folder() as folder:
            source = folder / "float.onnx"
            onnx_format.write(model, source, self.contract, {})
            for calibrator in CALIBRATORS:
                quantized = quantize(source, self.calibration, self.contract, calibrator)
                session = Session(quantized.SerializeToString(), contract=self.contract, provider="cpu")
                accuracy = self._accuracy(in_batches(session.logits, self.images))
                self._note(f"{shown}, int8, {calibrator}", accuracy, quantized=True)
                found.append((quantized, calibrator, accuracy))
        return max(found, key=lambda trial: trial[2])

    def _float_logits(self, model: Lossy | InTorch) -> np.ndarray:
        """Return the logits of the held-out images, float32 [M, classes]."""
        with torch.inference_mode():
            return in_batches(lambda images: model(torch.from_numpy(images))[1].numpy(), self.images)

    def _accuracy(self, logits: np.ndarray) -> float:
        return float((logits.argmax(1) == self.labels).mean())

    def _note(self, tried: str, accuracy: float, quantized: bool = False) -> None:
        self.trials.append((tried, accuracy))
        if quantized:
            self._quantized.append(self.trials[-1])
        lost = 100 * (accuracy - self._full)
        log.info("  %-62s held-out %6.2f %%  (%+.2f)", tried, 100 * accuracy, lost)

    def _too_large(self, variant: LossyVariant) -> ParityError:
        remedy = "" if self.is_residual(variant) else ", or fine-tune residual students, which are smaller"
        return ParityError(
            f"No {variant.name} that can be made fits into {self.wanted.max_bytes:,} bytes: the smallest has some "
            f"{self._smallest:,}; allow more{remedy}.",
            option="max_bytes",
        )

    def _over_budget(self, variant: LossyVariant, budget: float) -> ParityError:
        tried, accuracy = max(self._quantized, key=lambda trial: trial[1])
        multiplier = self.budget_multiplier(variant)
        asked = f"{multiplier * budget:g} points"
        if multiplier > 1:
            asked += f" ({multiplier} times {budget:g})"
        remedy = "fine-tune for more epochs" if self.distiller else "train longer, or fine-tune narrower nets"
        return ParityError(
            f"No {variant.name} that was tried keeps the budget of {asked}: the closest ({tried}) loses "
            f"{100 * (self._full - accuracy):.2f}; {remedy}, leave out the variant {variant.name}, or allow a larger "
            "budget.",
            option="budget",
        )


def _learnt(distiller: Distiller) -> str:
    """Return how long students learnt, and from what, in words."""
    epochs = f"{distiller.recipe.epochs} {'epoch' if distiller.recipe.epochs == 1 else 'epochs'}"
    records = [run.record for run in distiller.teachers.runs] if distiller.teachers else []
    named = [f"a run by {record.recipe.name} (weights {(record.weights_sha256 or '')[:12]})" for record in records]
    taught = f"the logits of {' and '.join(named)}" if named else "the net's logits"
    share = distiller.recipe.corrupted
    corrupted = f", {100 * share:g} % of the pictures corrupted" if share else ""
    return f"{epochs} on labels and {taught}{corrupted}"


def _within(budget: float, accuracy: float, full: float) -> bool:
    return 100 * (full - accuracy) <= budget + 1e-9  # 5 of 5,000 images are 0.1 points, in floats a little more
