"""Export a run: write each model, load it back, hold it against the net, and only then let the bundle appear."""

from __future__ import annotations

import json
import logging
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from torch import nn

from ..runtime import files, golden, machine
from ..runtime.bundle import Bundle
from ..runtime.errors import DataError, ModelError, OutputError, ParityError, RunError
from ..runtime.folder import write_sums
from ..runtime.manifest import BOM, CARD, GOLDEN, MANIFEST, ONNX, PARITY, Manifest, Variant
from ..train.data import SYNTHETIC, Dataset, synthetic
from ..train.inference import Function, in_batches, logits_with
from ..train.run import Run
from . import card, familiarity, models, parity
from .compress.search import Made, spread_over
from .familiarity import Added
from .options import ExportOptions
from .parity import Answers, Limits, Parity, Reference
from .provenance import Provenance
from .variants import Source, Target, targets

log = logging.getLogger("edgecifar")

GOLDEN_VECTORS = 32
"""Golden vectors are the probabilities of so many drawn images."""

INT8_LIMITS = Limits(0.5, agreement=0.9)
"""Quantization may cost so many points of accuracy, in per cent, beyond three standard errors, and must keep the class
of so many images, whatever their labels: of CIFAR-10 it keeps 98 to 99 %, and five times as many may be close calls."""

FEW_TEST_PICTURES = 100
"""With fewer, three standard errors are more than any budget: of nine, all may be lost."""

PARITY_PICTURES = 1_000
"""Parity is proved on at least so many pictures: where there are fewer test images, on training images too, since it
needs no labels; where there is no data set, on so many drawn pictures."""

DEFAULT_OPTIONS = ExportOptions()


def export(
    run: Run,
    out: Path,
    dataset: Dataset | None = None,
    options: ExportOptions = DEFAULT_OPTIONS,
) -> tuple[Bundle, dict[str, Parity]]:
    """Export `run` into the new bundle `out`; what is done is logged.

    Args:
        run: a run with at least one complete epoch.
        out: the folder to make; it appears only when every model passed the gate.
        dataset: the one the run was trained on; None, where `options.without_data` allows it, has parity proved on
            drawn pictures; accuracy then stays unknown, and no lossy variant can be made.
        options: what to make, and how.

    Returns:
        The bundle, and each model's parity.

    Raises:
        ParityError: a model does not agree with the net; no bundle is made, one that was at `out` stays.
        DataError: `dataset` is not what the run was trained on, or is missing and needed.
        RunError, OutputError: as reading the run and writing files say.
    """
    out = out.resolve()  # a signature is made over its name, which "." does not tell
    files.refuse_existing(out, options.replace, refuse_no_bundle)
    name = run.record.dataset.name
    if dataset is None and name == SYNTHETIC:
        dataset = synthetic()
    if dataset is None and not options.without_data:
        raise DataError(
            f"{name}, on which {run.folder} was trained, is not at hand, so that neither accuracy nor parity on its "
            "images can be measured: name the data set, or export without it.",
            option="without_data",
        )
    if dataset is not None:
        run.check_data(dataset)
        inside = dataset.pictures is not None and dataset.pictures.would_hold(out)
        if inside and not out.is_relative_to(run.folder.resolve()):  # what lies in a run is no class
            raise OutputError(
                f"The bundle {out} would lie among the pictures of {name}, as a class of the next training: choose a "
                "folder elsewhere.",
                option="out",
            )
    source = Source(run, dataset, options)
    provenance = source.provenance  # before the weights are read
    wanted = targets(source)
    with files.new_folder(out, options.replace, refuse_no_bundle) as folder:
        reference = _reference(source)
        if Provenance.of(run.record) != provenance:
            raise RunError(f"{run.folder} was trained on while it was read: export it again.")
        if any(not target.limits.exact for target in wanted):
            _warn_of_few(reference)
        made: dict[Target, Made] = {}
        added: dict[str, Added] = {}
        results: dict[str, Parity] = {}
        for target in wanted:
            path = folder / target.file
            log.info("Writing %s …", target.file)
            made[target] = target.make(path)
            problem = ""
            if target.format == ONNX and source.examples:
                try:
                    added[target.name] = familiarity.add(path, source.onnx_contract, source.examples)
                except ParityError as error:
                    problem = str(error)
            log.info("Checking %s …", target.file)
            in_torch = None
            if target.name in added:
                in_torch = added[target.name].in_torch(made[target].torch_form or source.model)
            result = _check(path, target, reference, made[target], in_torch)
            results[target.name] = replace(result, failure=problem) if result.passed and problem else result
        log.info("%s", parity.table(results))
        failed = {name: result for name, result in results.items() if not result.passed}
        if failed:
            reasons = "; ".join(f"{name} {result.failure}" for name, result in failed.items())
            raise ParityError(f"Not the same model, so no bundle was made: {reasons}.")
        _complete(folder, source, made, results, added)
        if options.signer:
            options.signer.sign(folder, out.name)
        bundle = Bundle.open(folder)  # before it takes the place of another one
    return replace(bundle, folder=out), results


def refuse_no_bundle(folder: Path) -> None:
    """Raise an OutputError unless a folder, which an export would replace, is a bundle."""
    if not (folder / MANIFEST).is_file():
        raise OutputError(f"{folder} is not a bundle, and only a bundle is replaced: choose another folder.")


def _reference(source: Source) -> Reference:
    """Return the images that models are compared on, and the net's own logits of them."""
    labels, name = None, source.run.record.dataset.name
    if source.dataset is None:
        images, data = synthetic(train=10, test=PARITY_PICTURES).test_images, "drawn pictures"
        log.warning(
            "WITHOUT THE DATA SET (%s): parity is proved on drawn pictures only, and accuracy stays unknown.", name
        )
    else:
        dataset = source.dataset
        images, labels, data = dataset.test_images, dataset.test_labels, f"{name} test"
        if more := max(0, PARITY_PICTURES - len(images)):
            images = np.concatenate([images, spread_over(dataset.train_images, more)])
            data += " and training"
    log.info("Computing the net's own logits of %s images (%s) …", f"{len(images):,}", data)
    eager = in_batches(logits_with(source.net), images)
    return Reference(images, data, eager, labels, source.provenance.temperature)


def _warn_of_few(reference: Reference) -> None:
    """Say where there are too few labelled images to tell whether a lossy model is as good as the net."""
    if reference.labels is not None and (count := len(reference.labels)) < FEW_TEST_PICTURES:
        log.warning(
            "%d labelled test pictures are too few to tell whether a lossy variant is as good as the net: have %d at "
            "least, or hold its accuracy for unknown.",
            count,
            FEW_TEST_PICTURES,
        )


def _check(path: Path, target: Target, reference: Reference, made: Made, in_torch: Function | None = None) -> Parity:
    """Return the parity of the model at `path`, loaded as whoever receives the bundle will.

    A quantized model is held against its own torch form too: only that tells what quantization did to it. `in_torch`
    maps images to the familiarity that the file's must agree with; None where it need not have one.
    """
    try:
        loaded = models.load(path, provider="cpu")
    except ModelError as error:
        result = parity.refused(reference, str(error).removesuffix(": export it again."))
    else:
        answers = parity.ask(loaded.outputs, reference)
        result = parity.compare(answers, reference, target.limits)
        if made.torch_form is not None and result.passed:
            result = _against_torch_form(result, answers, made.torch_form, reference)
        if in_torch is not None and result.passed:
            result = _with_familiarity(result, answers, in_torch(reference.images), target.limits.exact)
        if target.max_bytes is not None and result.passed and (size := path.stat().st_size) > target.max_bytes:
            result = replace(result, failure=f"has {size:,} bytes, and {target.max_bytes:,} are allowed")
    # The file is gone when this is read: the variant's name, which the reader sees beside it, says which it was.
    return replace(result, failure=result.failure.replace(f"{path} ", ""))


def _with_familiarity(result: Parity, answers: Answers, wanted: np.ndarray, exact: bool) -> Parity:
    """Return `result` with how the file's familiarity of the images agrees with torch's, `wanted`, float32 [N]."""
    if (found := answers.output(2)) is None:
        return replace(result, failure="has no familiarity")
    figures, failure = familiarity.compare(found, wanted, exact)
    return replace(result, familiarity=figures, failure=failure)


def _against_torch_form(result: Parity, answers: Answers, form: nn.Module, reference: Reference) -> Parity:
    """Return `result` with how the model agrees with its torch form, and a failure where it does not."""

    @torch.inference_mode()
    def logits(images: np.ndarray) -> np.ndarray:
        return form(torch.from_numpy(images))[1].numpy()

    own = replace(reference, logits=in_batches(logits, reference.images))
    found = parity.compare(answers, own, INT8_LIMITS)
    figures: dict[str, float] = {"agree": found.agree}
    if found.max_probability_difference is not None:
        figures["max_probability_difference"] = found.max_probability_difference
    if own.labels is not None:
        figures["accuracy"] = float((own.logits[: len(own.labels)].argmax(1) == own.labels).mean())
    failure = f"is not its torch form any more: it {found.failure}" if found.failure else ""
    return replace(result, torch_form=figures, failure=failure)


def _complete(
    folder: Path, source: Source, made: dict[Target, Made], results: dict[str, Parity], added: dict[str, Added]
) -> None:
    """Write all beside the models: golden vectors and pictures, parity, manifest, card, bill of materials, digests."""
    variants = tuple(
        Variant(
            name=target.name,
            file=target.file,
            format=target.format,
            precision=target.precision,
            bytes=(folder / target.file).stat().st_size,
            sha256=files.sha256(folder / target.file),
            accuracy=results[target.name].accuracy,
            parity=results[target.name].as_json(),
            made_by=how.made_by,
            golden_tolerance=target.golden_tolerance,
            familiarity=added[target.name].threshold if target.name in added else None,
        )
        for target, how in made.items()
    )
    held_out = {target.name: how.held_out_accuracy for target, how in made.items()}
    manifest = Manifest(
        contract=source.onnx_contract if added else source.contract,
        variants=variants,
        default_variant=choose_default(variants, held_out),
        dataset=source.run.record.dataset.name,
        provenance=source.provenance.as_json(),
    )
    write = files.write_file
    images = synthetic(train=10, test=GOLDEN_VECTORS).test_images  # drawn: a bundle carries no data set's images
    loaded = {v.name: models.load(folder / v.file, provider="cpu") for v in variants}
    classifiers = {v.name: loaded[v.name].probabilities for v in variants if v.is_onnx}
    scores = {name: model.familiarity for name, model in loaded.items() if model.familiarity}
    vectors = {name: model.probabilities(images) for name, model in loaded.items()}
    vectors |= {f"{manifest.contract.familiarity_name}/{name}": score(images) for name, score in scores.items()}
    write(folder / GOLDEN, lambda path: _save_npz(path, {source.contract.input_name: images, **vectors}))
    golden.write(folder, source.contract, classifiers, scores)
    write(folder / PARITY, (json.dumps({n: r.as_json() for n, r in results.items()}, indent=2) + "\n").encode())
    describe(folder, manifest)


def describe(folder: Path, manifest: Manifest) -> None:
    """Write what says of a bundle's other files what they are: manifest, card, bill of materials, digests.

    Raises:
        OutputError: they cannot be written.
    """
    files.write_file(folder / MANIFEST, manifest.as_json().encode())
    files.write_file(folder / CARD, card.text(manifest).encode())
    _write_bill(folder, manifest)
    write_sums(folder)


def _write_bill(folder: Path, manifest: Manifest) -> None:
    """Write the bill of materials, where the package is there that writes it."""
    try:
        from . import bom
    except ModuleNotFoundError as error:
        if not str(error.name).startswith("cyclonedx"):
            raise
        log.warning("The bundle has no %s: 'pip install cyclonedx-python-lib' to have it.", BOM)
        return
    files.write_file(folder / BOM, bom.text(manifest, machine.versions()).encode())


def choose_default(variants: tuple[Variant, ...], held_out: dict[str, float | None]) -> str:
    """Return the name of the variant to use unless told otherwise.

    That is `edge`, or what is smaller and no less accurate on the held-out images, which is then logged; where there is
    no `edge`, the first of `fp32` and the smaller variants; of a bundle without ONNX, the first.

    Args:
        variants: the bundle's, the most exact first.
        held_out: the accuracy of each on the held-out images, 0 to 1; None where it was not measured.
    """
    onnx = {variant.name: variant for variant in variants if variant.is_onnx and variant.precision != "fp16"}
    if not onnx:
        return variants[0].name
    default = onnx.get("edge") or onnx.get("fp32") or next(iter(onnx.values()))
    if default.name != "edge":
        return default.name
    least = held_out["edge"] or 0
    better = [v for v in onnx.values() if v.bytes < default.bytes and (held_out[v.name] or 0) >= least]
    if not better:
        return default.name
    best = max(better, key=lambda variant: (held_out[variant.name] or 0, -variant.bytes))
    log.warning(
        "%s is smaller than %s (%.2f MB against %.2f) and no less accurate on the held-out images (%.2f %% against "
        "%.2f): it is the bundle's default. Fine-tune narrower nets for a better edge.",
        best.name,
        default.name,
        best.bytes / 1e6,
        default.bytes / 1e6,
        100 * (held_out[best.name] or 0),
        100 * least,
    )
    return best.name


def _save_npz(path: Path, arrays: dict[str, np.ndarray]) -> None:
    with path.open("wb") as file:
        np.savez(file, **arrays)  # pyright: ignore[reportArgumentType]: no array is called allow_pickle
