"""Export a run: write each format, load it back, hold it against the net, and only then let the bundle appear."""

from __future__ import annotations

import functools
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from ..runtime import files, machine
from ..runtime.bundle import BOM, CARD, GOLDEN, MANIFEST, MODELS, PARITY, SUMS, Bundle, Manifest, Variant
from ..runtime.contract import INPUT_NAME, LABELS
from ..runtime.errors import DataError, ModelError, OutputError, ParityError, RunError
from ..runtime.signing import Signer
from ..train.data import SYNTHETIC, Dataset, synthetic
from ..train.loop import choose_device, logits_with
from ..train.run import Run
from . import bom, card, distill, edge, models, parity, to_fp16, to_onnx, to_pt2, to_torchscript
from .graph import Deployed

GOLDEN_PICTURES = 32
TINY = 5
"""How many times the budget of `edge` the variant `tiny` may lose, and how many times its epochs it learns."""

LOSSY_TOLERANCE = 0.05
"""Largest difference of a probability that int8 may show between processors: their kernels round differently."""

HALF_BUDGET, HALF_TOLERANCE = 0.1, 0.02
"""Points of accuracy that `fp16` may lose, and the largest difference of a probability from the net's."""


@dataclass(frozen=True)
class _Target:
    """A model file to make.

    Attributes:
        budget: points of accuracy that a lossy variant may lose; None for one that must agree exactly.
        write: gets the file's path and returns how it was made, in a sentence.
        within: largest difference of a probability from the net's; None where the budget alone counts.
    """

    name: str
    format: str
    precision: str
    budget: float | None
    write: Callable[[Path], str]
    within: float | None = None

    @property
    def exact(self) -> bool:
        return self.budget is None

    @property
    def file(self) -> str:
        stem = "model" if self.exact else f"model.{self.name}"
        return stem + MODELS[self.format]


def export(
    run: Run,
    out: Path,
    formats: Sequence[str] = ("onnx",),
    variants: Sequence[str] = ("fp32",),
    dataset: Dataset | None = None,
    budget: float = 0.2,
    replace: bool = False,
    signer: Signer | None = None,
    say: Callable[[str], object] = lambda line: None,
    fine_tune: int = 0,
    device: str = "auto",
) -> tuple[Bundle, dict[str, parity.Parity]]:
    """Export `run` into the new bundle `out`.

    Args:
        run: a run with at least one complete epoch.
        out: the folder to make; it appears only when every model passed the gate.
        formats: of "onnx", "torchscript" and "pt2".
        variants: of the ONNX format, of "fp32", "fp16", "edge" and "tiny".
        dataset: the one the run was trained on; None where it is not at hand: parity is then proved on drawn
            pictures, accuracy stays unknown, and `edge` and `tiny` cannot be made.
        budget: points of held-out accuracy that `edge` may lose; `tiny` may lose `TINY` times as many.
        replace: whether a bundle at `out` may be replaced.
        signer: signs the bundle, the last thing before it appears; None leaves it unsigned.
        say: called with a line about each step.
        fine_tune: epochs for which a narrower net learns to be `edge`, and `TINY` times as many to be `tiny`; they are
            kept in the run. With 0 the lossy variants are the net itself at low rank.
        device: what fine-tunes, as `train.loop.choose_device` takes it.

    Returns:
        The bundle, and each model's parity.

    Raises:
        ParityError: a model does not agree with the net; no bundle is made, one that was at `out` stays.
        DataError: `dataset` is not what the run was trained on, or is missing and needed.
        RunError, OutputError: as reading the run and writing files say.
    """
    if replace and out.exists() and not (out / MANIFEST).is_file():
        raise OutputError(f"{out} is not a bundle, and only a bundle is replaced: choose another folder.")
    record, net = run.record, run.net()
    provenance = _provenance(record)
    name = provenance["dataset"]["name"]
    if dataset is not None and dataset.digest != record["dataset"]["sha256"]:
        raise DataError(f"{run.folder} was trained on other data ({name}): name those with --data.")
    if name == SYNTHETIC and dataset is None:
        dataset = synthetic()
    if dataset is None:
        drawn = synthetic(train=10, test=1_000)
        images, labels, data = drawn.test_images, None, "drawn pictures"
    else:
        images, labels, data = dataset.test_images, dataset.test_labels, f"{name} test"
    targets = _targets(net, record, formats, variants, dataset, budget, provenance, say, run.folder, fine_tune, device)
    with files.new_folder(out, replace) as folder:
        say(f"Computing the net's own logits of {len(images):,} {data} images …")
        eager = parity.in_batches(logits_with(net), images)
        made, results = {}, {}
        for target in targets:
            say(f"Writing {target.file} …")
            made[target] = target.write(folder / target.file)
            say(f"Checking {target.file} …")
            results[target.name] = _check(
                folder / target.file, eager, images, data, labels, target, record.get("temperature", 1.0)
            )
        say(parity.table(results))
        failed = {name: result for name, result in results.items() if not result.passed}
        if failed:
            reasons = "; ".join(f"{name} {result.failure}" for name, result in failed.items())
            raise ParityError(f"Not the same model, so no bundle was made: {reasons}.")
        _complete(folder, made, results, name, provenance)
        if signer:
            signer.sign(folder, out.name)
    return Bundle.open(out), results


def _targets(
    net: Any,
    record: dict[str, Any],
    formats: Sequence[str],
    variants: Sequence[str],
    dataset: Dataset | None,
    budget: float,
    provenance: dict[str, Any],
    say: Callable[[str], object],
    folder: Path,
    fine_tune: int,
    device: str,
) -> list[_Target]:
    """Return what is to be made, the most exact first; the arguments are those of `export`, and the run's folder.

    Raises:
        DataError, RunError: the edge variant is wanted, and the images that it is decided on are not there.
    """
    model = Deployed(net, record.get("temperature", 1.0))
    wanted = {(format_, variant) for format_ in formats for variant in (variants if format_ == "onnx" else [""])}

    def exactly(write: Callable[[Path], None]) -> Callable[[Path], str]:
        def call(path: Path) -> str:
            write(path)
            return "the net itself, normalisation and batch norm folded in"

        return call

    @functools.cache
    def search() -> edge.EdgeExporter:
        if dataset is None:
            raise DataError("A lossy variant is calibrated on training images: name the data set with --data.")
        trained_on, held_out = dataset.hold_out(record["recipe"]["held_out"])
        if not len(held_out):
            if "trial" in record:
                raise RunError(
                    f"{folder} was trained on all images, and a lossy variant is decided on such as the net has not "
                    "seen: export it from the run that --final named, or leave it out."
                )
            raise RunError(
                f"{folder} was trained without held-out images, and a lossy variant is decided on such: "
                "train with --held-out 0.1."
            )
        images, labels = dataset.train_images, dataset.train_labels
        tuner = None
        if fine_tune:
            tuner = distill.tuner_of(folder, record, net, dataset, fine_tune, choose_device(device), say)
        paired = Deployed(net, model.temperature, paired=True)
        return edge.EdgeExporter(
            paired, edge.judged(dataset, trained_on), images[held_out], labels[held_out], say, tuner
        )

    def lossy(name: str, times: int = 1) -> _Target:
        searching = search()  # what it lacks is said now, not when other models are written and checked
        tuning = {"fine_tuning": distill.describe(times * fine_tune)} if fine_tune else {}
        origin, widths = {**provenance, **tuning, "variant": name}, edge.WIDTHS[name]
        return _Target(
            name,
            "onnx",
            "int8",
            times * budget,
            lambda path: searching.write(path, origin, times * budget, widths, times),
        )

    def write_onnx(path: Path) -> None:
        to_onnx.write(model, path, {**provenance, "variant": "fp32"})

    def write_half(path: Path) -> str:
        return to_fp16.write(model, path, {**provenance, "variant": "fp16"})

    makers: dict[tuple[str, str], Callable[[], _Target]] = {
        ("onnx", "fp32"): lambda: _Target("fp32", "onnx", "fp32", None, exactly(write_onnx)),
        ("onnx", "fp16"): lambda: _Target("fp16", "onnx", "fp16", HALF_BUDGET, write_half, HALF_TOLERANCE),
        ("onnx", "edge"): lambda: lossy("edge"),
        ("onnx", "tiny"): lambda: lossy("tiny", TINY),
        ("torchscript", ""): lambda: _Target(
            "torchscript", "torchscript", "fp32", None, exactly(lambda path: to_torchscript.write(model, path))
        ),
        ("pt2", ""): lambda: _Target("pt2", "pt2", "fp32", None, exactly(lambda path: to_pt2.write(model, path))),
    }
    return [make() for key, make in makers.items() if key in wanted]


def _provenance(record: dict[str, Any]) -> dict[str, Any]:
    """Return what the manifest says of the run. Times are the run's, so that exporting again gives the same bytes."""
    test = record.get("test")
    return {
        "edgecifar": record["machine"]["versions"].get("edgecifar", ""),
        "recipe": record["recipe"],
        "seed": record["seed"],
        "epochs_done": record["epochs_done"],
        "temperature": record.get("temperature", 1.0),
        "dataset": record["dataset"],
        "training_images": record["dataset"]["trained_on"],
        **({"trial": record["trial"]} if "trial" in record else {}),
        "checkpoint_sha256": record["weights_sha256"],
        "checkpoint_test_accuracy": test["accuracy"] if test else None,
        "started": record["started"],
        "finished": record.get("finished"),
        "trained_with": {"hardware": record["hardware"], "device": record["device"], **record["machine"]["versions"]},
    }


def _check(
    path: Path,
    eager: np.ndarray,
    images: np.ndarray,
    data: str,
    labels: np.ndarray | None,
    target: _Target,
    temperature: float,
) -> parity.Parity:
    """Return the parity of the model at `path`, loaded as whoever receives the bundle will."""
    try:
        exported = models.load(path, provider="cpu").logits
    except ModelError as error:
        result = parity.refused(images, data, str(error).removesuffix(": export it again."))
    else:
        result = parity.compare(exported, eager, images, data, labels, target.budget, temperature, target.within)
    # The file is gone when this is read: the variant's name, which the reader sees beside it, says which it was.
    return replace(result, failure=result.failure.replace(f"{path} ", ""))


def _complete(
    folder: Path,
    made: dict[_Target, str],
    results: dict[str, parity.Parity],
    dataset: str,
    provenance: dict[str, Any],
) -> None:
    """Write everything beside the models: golden vectors, parity, manifest, card, bill of materials, digests."""
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
            made_by=sentence,
            golden_tolerance=1e-4 if target.exact else target.within or LOSSY_TOLERANCE,
        )
        for target, sentence in made.items()
    )
    onnx_names = [variant.name for variant in variants if variant.format == "onnx"]
    default = next((name for name in ("edge", "fp32", "tiny") if name in onnx_names), variants[0].name)
    manifest = Manifest(LABELS, variants, default, dataset, provenance)
    pictures = synthetic(train=10, test=GOLDEN_PICTURES).test_images  # drawn: a bundle carries no data set's images
    golden = {INPUT_NAME: pictures}
    for variant in variants:
        golden[variant.name] = models.load(folder / variant.file, provider="cpu").probabilities(pictures)
    write = files.write_file
    write(folder / GOLDEN, lambda path: _save_npz(path, golden))
    write(folder / PARITY, (json.dumps({n: r.as_json() for n, r in results.items()}, indent=2) + "\n").encode())
    write(folder / MANIFEST, manifest.as_json().encode())
    write(folder / CARD, card.text(manifest).encode())
    write(folder / BOM, bom.text(manifest, machine.versions()).encode())
    sums = "".join(f"{files.sha256(path)}  {path.name}\n" for path in sorted(folder.iterdir()))
    write(folder / SUMS, sums.encode())


def _save_npz(path: Path, arrays: dict[str, np.ndarray]) -> None:
    with path.open("wb") as file:
        np.savez(file, allow_pickle=False, **arrays)
