"""The models that variants.py compares: a run's exported variants, and reference models made for the occasion."""

from __future__ import annotations

import functools
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any, cast

import harness
import numpy as np
import onnx
import torch
from onnx import TensorProto, numpy_helper

from edgecifar.export.compress import distill, low_rank
from edgecifar.export.compress.quantize import CALIBRATION_IMAGES, CALIBRATORS, quantize
from edgecifar.export.compress.search import Search, importance_subset, spread_over
from edgecifar.export.formats import onnx as onnx_format
from edgecifar.export.graph import Deployed
from edgecifar.runtime import Bundle
from edgecifar.runtime.contract import METADATA_PREFIX, Contract
from edgecifar.runtime.errors import BundleError, DataError, VariantError
from edgecifar.train.adapting import MIN_CALIBRATION_IMAGES
from edgecifar.train.data import Dataset
from edgecifar.train.net import LAYERS, Net
from edgecifar.train.run import Run

FULL = "fp32"

RANKS = (16, 32, 64, 128, 256)
"""The ranks of `fc1`, where it alone is split."""

LOSSES = (0.1, 0.05, 0.02, 0.01)
"""Shares of the variance of a layer's outputs that are lost where all layers are split that become smaller."""

VNNI = ("avx_vnni", "avx512_vnni", "amx_int8", "asimddp", "i8mm")
"""Features with which a processor adds products of bytes in 32 bits."""


@dataclass(frozen=True)
class Candidate:
    """An ONNX file to be measured, or the reason why there is none.

    Attributes:
        name: what it is called in the table.
        bundle: name of the bundle's folder; None where it was made here.
        precision: of its weights and arithmetic.
        made_by: how it was made, in a sentence.
        model: the file; empty where there is none.
        problem: why there is none.
    """

    name: str
    bundle: str | None
    precision: str
    made_by: str
    model: bytes = b""
    problem: str = ""


def of_bundles(bundles: Sequence[Bundle], run: Run) -> list[Candidate]:
    """Return the ONNX variants of bundles of `run`, a file that several have once; fp32 first.

    Raises:
        BundleError: a bundle was exported from another run, or a file in it is damaged.
        VariantError: a bundle has no ONNX variant, or two files would have the same name.
    """
    found: dict[str, tuple[Bundle, Any]] = {}
    for bundle in bundles:
        if bundle.manifest.provenance.get("checkpoint_sha256") != run.record.weights_sha256:
            raise BundleError(
                f"{bundle.folder} was not exported from {run.folder} as it is now (the checkpoints differ): name the "
                "run that it was exported from, or export it again."
            )
        onnx_variants = [variant for variant in bundle.manifest.variants if variant.format == "onnx"]
        if not onnx_variants:
            raise VariantError(f"{bundle.folder} has no ONNX variant to measure: export one with --format onnx.")
        for variant in onnx_variants:
            found.setdefault(variant.sha256, (bundle, variant))
    names = [variant.name for _, variant in found.values()]
    candidates = [
        Candidate(
            name=variant.name if names.count(variant.name) == 1 else f"{bundle.folder.name}/{variant.name}",
            bundle=bundle.folder.name,
            precision=variant.precision,
            made_by=variant.made_by,
            model=bundle.read(variant),
        )
        for bundle, variant in found.values()
    ]
    check_names(candidates)
    return sorted(candidates, key=lambda candidate: candidate.precision != FULL)


def check_names(candidates: Sequence[Candidate]) -> None:
    """Refuse two candidates of one name: the figures of one would stand beside the other.

    Raises:
        VariantError: there are two.
    """
    names = [candidate.name for candidate in candidates]
    if twice := [name for name in names if names.count(name) > 1]:
        raise VariantError(f"Two different variants would be called {twice[0]}: name bundles whose folders differ.")


def beside(bundle: Bundle, contract: Contract) -> list[Candidate]:
    """Return the int8 variants of any other bundle, such as one that shipped earlier, to be measured with the rest.

    Raises:
        BundleError: it classifies other pictures, or a file in it is damaged.
    """
    if bundle.contract.labels != contract.labels or bundle.contract.picture_shape != contract.picture_shape:
        raise BundleError(f"{bundle.folder} has other labels or takes other pictures than the run: leave it out.")
    return [
        Candidate(
            f"{bundle.folder.name}/{variant.name}", bundle.folder.name, "int8", variant.made_by, bundle.read(variant)
        )
        for variant in bundle.manifest.variants
        if variant.precision == "int8"
    ]


class ReferenceModels:
    """Makes the models that a run's variants are compared with.

    Args:
        run: with at least one complete epoch.
        dataset: the one that it was trained on.
        exported: the candidates of its bundles.
        folder: for temporary files.

    Attributes:
        makers: by the name of each model, the function that makes it.
    """

    def __init__(self, run: Run, dataset: Dataset, exported: Sequence[Candidate], folder: Path) -> None:
        self.run, self.dataset, self.folder = run, dataset, folder
        record, self._net = run.record, cast("Net", run.net())
        self.model, self.paired = (Deployed(self._net, record.temperature, paired) for paired in (False, True))
        self.provenance = {"checkpoint_sha256": record.weights_sha256, "dataset": asdict(record.dataset)}
        self.trained_on, self.held_out = dataset.hold_out(record.recipe.held_out)
        self._exported = next((candidate for candidate in exported if candidate.precision == FULL), None)
        self.makers: dict[str, Callable[[], Candidate]] = {} if self._exported else {FULL: lambda: self.full}
        for bits in (7, 8):
            self.makers[f"int8-{bits}bit"] = partial(self._whole, bits)
        for candidate in exported:
            if candidate.precision == "int8" and can_be_made_again(candidate):
                self.makers[f"{candidate.name}-8bit"] = partial(self._in_eight_bits, candidate)
        for rank in RANKS:
            self.makers[f"fc1-{rank}"] = partial(self._fc1, rank)
        for lost in LOSSES:
            self.makers[f"all-{lost:g}"] = partial(self._all, lost)

    @functools.cached_property
    def full(self) -> Candidate:
        """The net itself in fp32."""
        return self._exported or Candidate(FULL, None, "fp32", "the net itself", model=self._write(self.model, FULL))

    def check_held_out(self) -> None:
        """Make sure that int8 can be calibrated.

        Raises:
            DataError: too few images are held out.
        """
        if len(self.held_out) < MIN_CALIBRATION_IMAGES:
            raise DataError(
                f"{len(self.held_out)} held-out images are too few to calibrate int8 on ({MIN_CALIBRATION_IMAGES} at "
                "least): name a run whose recipe holds more out, or choose what is not int8, as with --variant "
                f"fc1-{RANKS[0]}."
            )

    @functools.cached_property
    def _few(self) -> np.ndarray:
        """Training images on which directions and importance are measured, uint8 [N, size, size, 3], as exports do."""
        return importance_subset(self.dataset, self.trained_on)

    @functools.cached_property
    def _principals(self) -> Mapping[str, low_rank.Principal]:
        harness.say(f"Principal directions of {len(self._few):,} training images …")
        return low_rank.principal_outputs(self.paired, self._few)

    def _student(self, outputs: Mapping[str, int], epochs: int) -> Deployed | None:
        """Return the fine-tuned net whose layers have these outputs as the export made it; None if RUN lacks it."""
        if not all(outputs.get(layer) for layer in LAYERS):
            return None  # exported before fine-tuning meant narrowing
        widths = {layer: outputs[layer] // (2 if layer == "conv1" else 1) for layer in LAYERS}  # pairs of pixels
        how = distill.recipe_of(self.run, self.dataset, epochs)
        distiller = distill.distiller_of(self.run, self._net, self.dataset, how, torch.device("cpu"))
        images, labels = self.dataset.train_images[self.held_out], self.dataset.train_labels[self.held_out]
        search = Search(self.paired, self.dataset.contract, self._few, images, labels, distiller)
        return search.stored_student(widths)

    def _split(self, model: Deployed, lost: Mapping[str, float]) -> tuple[Deployed, str]:
        """Return the net with its layers split by the shares that each may lose, and the ranks in words."""
        reduced, ranks = model, []
        for name, share in lost.items():
            reduced, rank = low_rank.split(reduced, name, self._principals[name], share)
            ranks += [f"{name} {rank}"] if rank else []
        return reduced, ", ".join(ranks)

    def _lost(self, name: str, rank: int) -> float:
        """Return the share of the variance of a layer's outputs that is lost at `rank`."""
        variances = self._principals[name].variances
        return float((1 - variances.cumsum(0) / variances.sum())[rank - 1])

    def _fc1(self, rank: int) -> Candidate:
        return self._low_rank(f"fc1-{rank}", {"fc1": self._lost("fc1", rank)})

    def _all(self, lost: float) -> Candidate:
        return self._low_rank(f"all-{lost:g}", dict.fromkeys(low_rank.FACTORED, lost))

    def _low_rank(self, name: str, lost: Mapping[str, float]) -> Candidate:
        reduced, ranks = self._split(self.model, lost)
        made_by = f"low rank by principal outputs ({ranks}), not fine-tuned"
        if not ranks:
            problem = "no layer becomes smaller by being split at such ranks."
            return Candidate(name, None, "fp32", made_by, problem=problem)
        return Candidate(name, None, "fp32", made_by, model=self._write(reduced, name))

    def _whole(self, bits: int) -> Candidate:
        return self._int8(f"int8-{bits}bit", "the whole net", self.full.model, bits, CALIBRATORS[0])

    def _in_eight_bits(self, exported: Candidate) -> Candidate:
        """Return an int8 variant with 8-bit weights; its float form is made again, and must have the same weights."""
        quantized = onnx.load_from_string(exported.model)
        outputs = {
            tensor.name.removesuffix(".weight_quantized"): tensor.dims[0]
            for tensor in quantized.graph.initializer
            if tensor.name.endswith(".weight_quantized")
        }
        settings = {entry.key: entry.value for entry in quantized.metadata_props}
        tuning = json.loads(settings.get(METADATA_PREFIX + "provenance", "{}")).get("fine_tuning")
        name = f"{exported.name}-8bit"
        if tuning:
            what = f"the fine-tuned net of {exported.name}"
            reduced = self._student({**outputs, "fc1": outputs.get("fc1.1", 0)}, tuning["epochs"])
            if not reduced:
                problem = f"{self.run.folder} does not hold {what} as it is made on a processor like this."
                return Candidate(name, None, "int8", what, problem=problem)
        else:
            ranks = {layer: rank for layer in low_rank.FACTORED if (rank := outputs.get(f"{layer}.0"))}
            lost = {layer: self._lost(layer, rank) for layer, rank in ranks.items()}
            reduced, shown = self._split(self.paired, lost)
            what = f"the factors of {exported.name} ({shown or 'none'})"
        source = self._write(reduced, name)
        if not same_weights(quantized, onnx.load_from_string(source)):
            problem = f"the run does not give the weights of {exported.name} again."
            return Candidate(name, None, "int8", what, problem=problem)
        calibrator = next((name for name in CALIBRATORS if name in exported.made_by), CALIBRATORS[0])
        return self._int8(name, what, source, 8, calibrator)

    def _int8(self, name: str, source_name: str, source: bytes, bits: int, calibrator: str) -> Candidate:
        """Return the int8 form of `source`, an fp32 file that `source_name` describes."""
        path, held_out = self.folder / "float.onnx", self.dataset.train_images[self.held_out]
        images = spread_over(held_out, CALIBRATION_IMAGES)
        path.write_bytes(source)
        quantized = quantize(path, images, self.dataset.contract, calibrator, reduce_range=bits == 7)
        onnx_format.save(quantized, path, self.dataset.contract, {**self.provenance, "variant": name})
        ranges = f"{calibrator} ranges of {len(images):,} held-out images"
        made_by = f"{source_name}, static int8 (QDQ, per channel, {bits}-bit weights, {ranges})"
        return Candidate(name, None, "int8", made_by, path.read_bytes())

    def _write(self, model: Deployed, name: str) -> bytes:
        path = self.folder / "float.onnx"
        onnx_format.write(model, path, self.dataset.contract, {**self.provenance, "variant": name})
        return path.read_bytes()


def can_be_made_again(candidate: Candidate) -> bool:
    """Return whether its run gives the float form of an int8 file: not of residual nets, nor of other teachers'."""
    model = onnx.load_from_string(candidate.model)
    settings = {entry.key: entry.value for entry in model.metadata_props}
    tuning = json.loads(settings.get(METADATA_PREFIX + "provenance", "{}")).get("fine_tuning") or {}
    return tuning.get("name") != "student" and not tuning.get("teachers")


def same_weights(quantized: onnx.ModelProto, source: onnx.ModelProto) -> bool:
    """Return whether the int8 weights of a QDQ model are those of the float model `source`, to a step of each scale.

    Threads change the rounding of the principal directions, and with it now and then a weight by one step.
    """
    tensors = {tensor.name: tensor for model in (source, quantized) for tensor in model.graph.initializer}
    for name, tensor in tensors.items():
        weight = name.removesuffix("_quantized")
        if tensor.data_type != TensorProto.INT8 or weight == name:
            continue
        steps, scale = numpy_helper.to_array(tensor), numpy_helper.to_array(tensors[f"{weight}_scale"])
        if weight not in tensors or [*tensors[weight].dims] != [*tensor.dims]:
            return False
        scales = scale.reshape(-1, *[1] * (steps.ndim - 1))
        if (np.abs(numpy_helper.to_array(tensors[weight]) - steps * scales) > 1.5 * scales).any():
            return False
    return True


def choose(
    exported: Sequence[Candidate], models: ReferenceModels | None, wanted: Sequence[str] | None
) -> list[Candidate]:
    """Return the candidates of the names `wanted`, by default all, making those that are missing; fp32 always, first.

    Args:
        exported: of the bundles.
        models: makes others; None where the run's own net is not exported, and so no other form of it.
        wanted: names; None for all.

    Raises:
        VariantError: there is none of a name, or none at all.
        DataError: an int8 model is to be made, and too few images are held out.
    """
    known = {candidate.name: candidate for candidate in exported}
    if not models and not known:
        raise VariantError("The net of this run is not exported, only its students: name a bundle with --bundle.")
    makers = models.makers if models else {}
    names = [*known, *(name for name in makers if name not in known)]
    if unknown := sorted({*(wanted or ())} - {*names}):
        raise VariantError(f"There is no variant called {unknown[0]} here: choose among {', '.join(names)}.")
    chosen = [name for name in names if name in (wanted or names)]
    if not models:
        return [known[name] for name in chosen]
    if any(name not in known and name.endswith("bit") for name in chosen):
        models.check_held_out()
    candidates = {models.full.name: models.full}
    for name in chosen:
        if name not in known and name != FULL:
            harness.say(f"Making {name} …")
        candidates.setdefault(name, known[name] if name in known else makers[name]())
    return [*candidates.values()]
