"""The models of a bundle: one small maker each."""

from __future__ import annotations

import functools
import logging
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from torch import nn

from ..runtime.contract import Contract
from ..runtime.errors import DataError, RunError
from ..runtime.manifest import MODELS, ONNX
from ..train.adapting import held_out_remark
from ..train.answers import Teachers
from ..train.data import Dataset
from ..train.devices import choose_device
from ..train.net import Net
from ..train.run import Run
from .compress import distill
from .compress.lossy import EDGE, NANO, TINY, LossyVariant, Wanted
from .compress.search import Made, Search, importance_subset
from .familiarity import NAME, Examples
from .formats import fp16, onnx, pt2, torchscript
from .graph import Deployed, InTorch
from .options import ExportOptions
from .parity import Limits
from .provenance import Provenance

log = logging.getLogger("edgecifar")

FP16_ACCURACY_DROP = 0.1
"""`fp16` may lose so many points of accuracy, in per cent, beyond three standard errors."""

FP16_MAX_PROBABILITY_DIFFERENCE = 0.02
"""A probability of `fp16` may differ by so much from the net's."""

INT8_GOLDEN_TOLERANCE = 0.05
"""A probability of int8 may differ by so much between processors: their kernels round differently."""

EXACT_GOLDEN_TOLERANCE = 1e-4
"""A probability of an exact format may differ by so much between machines."""

EXACT = "the net itself, normalisation and batch norm folded in"


@dataclass(frozen=True)
class Target:
    """A model file to make.

    Attributes:
        name: the variant's, such as "fp32".
        format: of `options.FORMATS`.
        precision: of its weights and arithmetic.
        limits: what the parity gate holds it to.
        make: writes the file at a path and returns how it was made.
        max_bytes: the file may be so large; None for any size.
    """

    name: str
    format: str
    precision: str
    limits: Limits
    make: Callable[[Path], Made]
    max_bytes: int | None = None

    @property
    def file(self) -> str:
        """The file's name in the bundle."""
        stem = "model" if self.limits.exact else f"model.{self.name}"
        return stem + MODELS[self.format]

    @property
    def golden_tolerance(self) -> float:
        """Largest difference of a probability that is accepted on another machine."""
        if self.limits.exact:
            return EXACT_GOLDEN_TOLERANCE
        return self.limits.max_probability_difference or INT8_GOLDEN_TOLERANCE


@dataclass(frozen=True)
class Source:
    """What the models are made from.

    Attributes:
        run: a run with at least one complete epoch.
        dataset: the one it was trained on; None where that is not at hand.
        options: what is asked for.
    """

    run: Run
    dataset: Dataset | None
    options: ExportOptions

    @functools.cached_property
    def provenance(self) -> Provenance:
        """Where the models come from."""
        return Provenance.of(self.run.record)

    @functools.cached_property
    def contract(self) -> Contract:
        """What the models take and give."""
        return self.run.record.contract

    @functools.cached_property
    def examples(self) -> Examples | None:
        """The pictures that familiarities are learnt from; None where there is no data set, or no ONNX file is made."""
        if self.dataset is None or ONNX not in self.options.formats:
            return None
        return Examples.of_dataset(self.dataset, self.provenance.recipe["held_out"])

    @property
    def onnx_contract(self) -> Contract:
        """What the ONNX files take and give, once they have a familiarity."""
        return replace(self.contract, familiarity_name=NAME)

    @functools.cached_property
    def net(self) -> nn.Module:
        """The trained net, in eval mode on the CPU.

        Raises:
            RunError: it cannot be read.
        """
        return self.run.net()

    @functools.cached_property
    def model(self) -> Deployed:
        """The graph that the exact formats hold.

        Raises:
            RunError: the run holds another net than Net.
        """
        if not isinstance(self.net, Net):
            raise RunError(
                f"{self.run.folder} holds a {self.run.record.recipe.net}, whose small students alone are exported: ask "
                "for them, such as --variant edge --variant tiny --fine-tune 20, or name the run of another recipe."
            )
        return Deployed(self.net, self.provenance.temperature)

    def metadata(self, variant: str, **more: Any) -> dict[str, Any]:
        """Return the provenance that goes into the ONNX file of a variant, as JSON values."""
        return {**self.provenance.as_json(), **more, "variant": variant}

    @functools.cached_property
    def search(self) -> Search:
        """The search for lossy variants, which share what it finds out.

        Raises:
            DataError: there is no data set, or there are too few images in it.
            RunError: the run held no images out.
        """
        if self.dataset is None:
            raise DataError("A lossy variant is calibrated on training images: name the data set.", option="data")
        folder, net, held_out_share = self.run.folder, self.net, self.provenance.recipe["held_out"]
        options, temperature = self.options, self.provenance.temperature
        trained_on, held_out = self.dataset.hold_out(held_out_share)
        if not len(held_out):
            if self.provenance.selection_run:
                raise RunError(
                    f"{folder} was trained on all images, and a lossy variant is decided on such as the net has not "
                    "seen: export it from the run that this one followed, or leave it out."
                )
            raise RunError(
                f"{folder} was trained without held-out images, and a lossy variant is decided on such: train with a "
                "tenth of the images held out."
            )
        if remark := held_out_remark(len(held_out), options.budget):
            log.warning("%s Allow a larger --budget, or train with more pictures held out.", remark)
        images, labels = self.dataset.train_images[held_out], self.dataset.train_labels[held_out]
        distiller = None
        if options.fine_tune:
            how = distill.recipe_of(self.run, self.dataset, options.fine_tune, options.corrupted)
            device = choose_device(options.device)
            distiller = distill.distiller_of(self.run, net, self.dataset, how, device, self._teachers)
        whole = Deployed(net, temperature, paired=True) if isinstance(net, Net) else InTorch(net, temperature)
        measured_on = importance_subset(self.dataset, trained_on)
        wanted = Wanted(options.students == "residual", options.max_bytes)
        return Search(whole, self.contract, measured_on, images, labels, distiller, wanted)

    @property
    def _teachers(self) -> Teachers | None:
        """The runs that students learn from: a teacher is the first of its own students' teachers."""
        runs = [Run(folder) for folder in self.options.teachers]
        if not isinstance(self.net, Net):
            runs = [self.run, *(run for run in runs if run.folder.resolve() != self.run.folder.resolve())]
        return Teachers(tuple(runs)) if runs else None


def fp32(source: Source) -> Target:
    """Return the target of the net itself as ONNX."""
    model = source.model  # a run without a usable net is refused now, not when the folder has been made

    def make(path: Path) -> Made:
        onnx.write(model, path, source.contract, source.metadata("fp32"))
        return Made(EXACT)

    return Target("fp32", "onnx", "fp32", Limits(), make)


def half(source: Source) -> Target:
    """Return the target of ONNX in half precision."""
    model = source.model

    def make(path: Path) -> Made:
        fp16.write(model, path, source.contract, source.metadata("fp16"))
        return Made(f"{EXACT}, half precision up to the last layer")

    return Target("fp16", "onnx", "fp16", Limits(FP16_ACCURACY_DROP, FP16_MAX_PROBABILITY_DIFFERENCE), make)


def lossy(source: Source, variant: LossyVariant) -> Target:
    """Return the target of a smaller net as int8 ONNX.

    Raises:
        RunError: it is a student, and nothing is to be fine-tuned.
    """
    search, options = source.search, source.options  # what it lacks is said now, before others are written and checked
    distiller = search.distiller_for(variant)
    if not distiller and search.is_residual(variant):
        raise RunError(
            f"{variant.name} must be trained: fine-tune it for some epochs, such as 20, or leave it out.",
            option="fine_tune",
        )
    tuning = {"fine_tuning": distiller.describe()} if distiller else {}

    def make(path: Path) -> Made:
        return search.write(path, variant, options.budget, source.metadata(variant.name, **tuning))

    limits = Limits(search.budget_multiplier(variant) * options.budget)
    return Target(variant.name, "onnx", "int8", limits, make, options.max_bytes)


def scripted(source: Source) -> Target:
    """Return the target of the net itself as TorchScript."""
    model = source.model

    def make(path: Path) -> Made:
        torchscript.write(model, path, source.contract)
        return Made(EXACT)

    return Target("torchscript", "torchscript", "fp32", Limits(), make)


def exported_program(source: Source) -> Target:
    """Return the target of the net itself as torch.export's program."""
    model = source.model

    def make(path: Path) -> Made:
        pt2.write(model, path, source.contract)
        return Made(EXACT)

    return Target("pt2", "pt2", "fp32", Limits(), make)


MAKERS: dict[str, Callable[[Source], Target]] = {
    "fp32": fp32,
    "fp16": half,
    "edge": functools.partial(lossy, variant=EDGE),
    "tiny": functools.partial(lossy, variant=TINY),
    "nano": functools.partial(lossy, variant=NANO),
    "torchscript": scripted,
    "pt2": exported_program,
}
"""What makes each model of `ExportOptions.wanted`."""


def targets(source: Source) -> list[Target]:
    """Return what is to be made, the most exact first.

    Raises:
        DataError, RunError: a lossy variant is wanted, and the images that it is decided on are not there.
    """
    return [MAKERS[name](source) for name in source.options.wanted]
