"""What is left of the accuracy: every model of a bundle, and its run, on clean and on corrupted test images.

    python benchmarks/accuracy.py RUN/bundle --run RUN --save
    python benchmarks/accuracy.py RUN/bundle --model fp32 --model edge --corrupted 2000

The corrupted copies are made here, of the first `--corrupted` test images, in memory: noise, two blurs, JPEG,
brightness and contrast, each in five severities. Formulas and constants are those of CIFAR-10-C (Hendrycks and
Dietterich, Benchmarking Neural Network Robustness to Common Corruptions and Perturbations, ICLR 2019;
github.com/hendrycks/robustness, make_cifar_c.py), with its truncation to whole numbers. The noise is drawn anew, so
that figures are close to those on CIFAR-10-C's corruptions of the same names, but not equal.

    accuracy      share of the images classified correctly
    ECE           expected calibration error, 15 bins
    agreement     share of the images given the same class as by the run, or without it by the first model
    corrupted     mean over the six corruptions and five severities
"""

from __future__ import annotations

import argparse
import io
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import harness
import numpy as np
import report
from PIL import Image

from edgecifar.export import models
from edgecifar.runtime import Bundle, EdgecifarError
from edgecifar.runtime.metrics import Evaluation, evaluate
from edgecifar.train import data as datasets

SEVERITIES = (1, 2, 3, 4, 5)
CHUNK = 1000
"""Images corrupted at once: their copies in float64 take 25 MB."""

RUN = "run"
"""What the run folder is called among the models."""


def gaussian_noise(x: np.ndarray, scale: float, rng: np.random.Generator) -> np.ndarray:
    """Add normal noise of the standard deviation `scale`."""
    return x + rng.normal(scale=scale, size=x.shape)


def gaussian_blur(x: np.ndarray, sigma: float, rng: np.random.Generator) -> np.ndarray:  # noqa: ARG001
    """Blur by a Gaussian cut at four standard deviations; beyond the border the outermost pixel goes on."""
    radius = int(4 * sigma + 0.5)
    weights = _gaussian(sigma, radius)
    return _filter(x, np.outer(weights, weights), "edge")


def defocus_blur(x: np.ndarray, shape: tuple[float, float], rng: np.random.Generator) -> np.ndarray:  # noqa: ARG001
    """Blur by a disk of the radius `shape[0]` that is softened by a 3 x 3 Gaussian of `shape[1]`; borders reflect."""
    radius, sigma = shape
    reach = int(radius) + 1  # of the disk, and one for what softens it
    y, x_ = np.mgrid[-reach : reach + 1, -reach : reach + 1]
    disk = (x_**2 + y**2 <= radius**2).astype(np.float64)
    weights = _gaussian(sigma, 1)
    kernel = _filter((disk / disk.sum())[None, :, :, None], np.outer(weights, weights), "constant")[0, :, :, 0]
    return _filter(x, kernel, "reflect")


def jpeg(x: np.ndarray, quality: int, rng: np.random.Generator) -> np.ndarray:  # noqa: ARG001
    """Write each image as a JPEG of `quality`, by Pillow, and read it back."""
    read = []
    for image in np.rint(255 * x).astype(np.uint8):
        file = io.BytesIO()
        Image.fromarray(image).save(file, "JPEG", quality=quality)
        read.append(np.asarray(Image.open(file)))
    return np.stack(read) / 255


def brightness(x: np.ndarray, more: float, rng: np.random.Generator) -> np.ndarray:  # noqa: ARG001
    """Add `more` to the value of HSV, at most 1: as hue and saturation stay, the channels grow in proportion."""
    value = x.max(axis=-1, keepdims=True)
    raised = np.minimum(value + more, 1)
    return np.where(value > 0, x * raised / np.where(value > 0, value, 1), raised)  # black has no saturation


def contrast(x: np.ndarray, factor: float, rng: np.random.Generator) -> np.ndarray:  # noqa: ARG001
    """Shrink each channel's distance from its mean over the image to `factor` of it."""
    mean = x.mean(axis=(1, 2), keepdims=True)
    return (x - mean) * factor + mean


CORRUPTIONS: dict[str, tuple[Callable[..., np.ndarray], Sequence[Any]]] = {
    "gaussian noise": (gaussian_noise, (0.04, 0.06, 0.08, 0.09, 0.10)),
    "gaussian blur": (gaussian_blur, (0.4, 0.6, 0.7, 0.8, 1.0)),
    "defocus blur": (defocus_blur, ((0.3, 0.4), (0.4, 0.5), (0.5, 0.6), (1.0, 0.2), (1.5, 0.1))),
    "JPEG": (jpeg, (80, 65, 58, 50, 40)),
    "brightness": (brightness, (0.05, 0.1, 0.15, 0.2, 0.3)),
    "contrast": (contrast, (0.75, 0.5, 0.4, 0.3, 0.15)),
}
"""Name: the function, of images in 0 to 1, and what it takes at severity 1 to 5."""


def corrupt(images: np.ndarray, name: str, severity: int, seed: int = 0) -> np.ndarray:
    """Return corrupted copies of `images`, uint8 [N, H, W, 3]; equal for equal arguments.

    Args:
        images: uint8 [N, H, W, 3] RGB.
        name: of `CORRUPTIONS`.
        severity: 1 to 5.
        seed: of the noise, which is another one for every corruption and severity.
    """
    function, constants = CORRUPTIONS[name]
    rng = np.random.default_rng([seed, [*CORRUPTIONS].index(name), severity])
    done = [
        np.clip(function(images[start : start + CHUNK] / 255, constants[severity - 1], rng), 0, 1)
        for start in range(0, len(images), CHUNK)
    ]
    # CIFAR-10-C cuts off what is behind the point; the small number keeps 127 / 255 * 255 from becoming 126.
    return (255 * np.concatenate(done) + 1e-9).astype(np.uint8)


def _gaussian(sigma: float, radius: int) -> np.ndarray:
    """Return the weights of a Gaussian at -radius to radius; their sum is 1."""
    weights = np.exp(-(np.arange(-radius, radius + 1) ** 2) / (2 * sigma**2))
    return weights / weights.sum()


def _filter(x: np.ndarray, kernel: np.ndarray, border: Any) -> np.ndarray:
    """Filter each channel of x [N, H, W, C] by a symmetric kernel [K, K]; `border` is a mode of `np.pad`."""
    reach = len(kernel) // 2
    padded = np.pad(x, ((0, 0), (reach, reach), (reach, reach), (0, 0)), mode=border)
    height, width = x.shape[1:3]
    return sum(
        (
            weight * padded[:, row : row + height, column : column + width]
            for (row, column), weight in np.ndenumerate(kernel)
            if weight
        ),
        start=np.zeros_like(x),
    )


def find(bundle: Path, run: Path | None, wanted: Sequence[str]) -> dict[str, models.Model]:
    """Load the models of a bundle by the names of its variants, in its order, and the run.

    Args:
        bundle: the bundle's folder.
        run: the run's folder, or None.
        wanted: names; by default all of them.

    Raises:
        EdgecifarError: a name is not among them, or a model cannot be loaded.
    """
    opened = Bundle.open(bundle)
    variants = {variant.name: variant for variant in opened.manifest.variants}
    names = [*([RUN] if run else []), *variants]
    if unknown := sorted(set(wanted) - set(names)):
        raise EdgecifarError(f"There is no model called {unknown[0]} here: choose among {', '.join(names)}.")
    found = {}
    for name in names:
        if name in (wanted or names):
            if name == RUN and run:
                found[name] = models.load(run)
            elif variants[name].format == "onnx":
                found[name] = models.load(bundle, name, "cpu")
            else:
                opened.read(variants[name])  # its digest; torch reads the file itself
                found[name] = models.load(bundle / variants[name].file)
    return found


def measure(
    found: dict[str, models.Model], dataset: datasets.Dataset, clean: int, corrupted: int
) -> list[dict[str, Any]]:
    """Return a row a model: figures on the first `clean` test images and on copies of the first `corrupted`.

    All models see the same copies.
    """
    rows: dict[str, dict[str, Any]] = {
        name: {"model": name, "runs_on": model.provider} for name, model in found.items()
    }
    images, labels, names = dataset.test_images[:clean], dataset.test_labels[:clean], dataset.contract.labels
    harness.say(f"{len(images):,} clean images …")
    for name, figures in _all(found, images, labels, names).items():
        rows[name]["clean"] = figures
        rows[name]["corrupted"] = {}
    images, labels = dataset.test_images[:corrupted], dataset.test_labels[:corrupted]
    for corruption in CORRUPTIONS if len(images) else ():
        for severity in SEVERITIES:
            harness.say(f"{len(images):,} images with {corruption}, severity {severity} …")
            for name, figures in _all(found, corrupt(images, corruption, severity), labels, names).items():
                rows[name]["corrupted"].setdefault(corruption, []).append(figures)
    for row in rows.values():
        every = [figures for severities in row["corrupted"].values() for figures in severities]
        keys = ("accuracy", "ece", "agreement")
        row["mean_corrupted"] = {key: float(np.mean([figures[key] for figures in every])) for key in keys if every}
    return [*rows.values()]


def _all(
    found: dict[str, models.Model], images: np.ndarray, labels: np.ndarray, names: Sequence[str]
) -> dict[str, dict[str, Any]]:
    """Evaluate every model on the same images; agreement is with the first."""
    results: dict[str, Evaluation] = {}
    for name, model in found.items():
        results[name] = evaluate(model.probabilities, images, labels, names)
    first = next(iter(results.values()))
    return {
        name: {
            "images": result.images,
            "correct": result.correct,
            "accuracy": result.accuracy,
            "nll": result.nll,
            "ece": result.ece,
            "agreement": float((result.predictions == first.predictions).mean()),
        }
        for name, result in results.items()
    }


def table(rows: Sequence[dict[str, Any]]) -> str:
    """Return the rows as lines of text: the means of all, then accuracy by corruption and severity."""
    copies = [row for row in rows if row["mean_corrupted"]]
    header = ["model", "clean, %", "ECE, %", "agrees, %", "corrupted, %", "ECE, %", "agrees, %", "images", "copies"]
    lines = [header]
    for row in rows:
        copied = next(iter(row["corrupted"].values()))[0]["images"] if row in copies else 0
        corrupted = _percent(row["mean_corrupted"]) if row in copies else [""] * 3
        lines.append([row["model"], *_percent(row["clean"]), *corrupted, f"{row['clean']['images']:,}", f"{copied:,}"])
    text = f"{report.table(lines)}\n\nAgreement is with {rows[0]['model']}."
    if not copies:
        return text
    lines = [["corruption", "model", "clean", *(f"severity {severity}" for severity in SEVERITIES)]]
    for corruption in CORRUPTIONS:
        for row in copies:
            shown = [row["clean"], *row["corrupted"][corruption]]
            lines.append([corruption, row["model"], *(f"{100 * figures['accuracy']:.2f}" for figures in shown)])
    return f"{text}\nCopies are of each corruption and severity; accuracy in %:\n\n{report.table(lines, 2)}"


def _percent(figures: dict[str, float]) -> list[str]:
    return [f"{100 * figures[key]:.2f}" for key in ("accuracy", "ece", "agreement")]


def main() -> None:
    """Measure and report."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("bundle", type=Path, help="made by 'edgecifar export'")
    parser.add_argument("--run", type=Path, help="the run that the bundle was made from, to be measured too")
    parser.add_argument("--model", action="append", default=[], help=f"a variant or '{RUN}'; may be repeated")
    parser.add_argument("--data", help="folder with the CIFAR-10 files; by default $EDGECIFAR_DATA")
    parser.add_argument("--images", type=int, default=10_000, help="the first N test images (default: all 10,000)")
    parser.add_argument("--corrupted", type=int, default=1_000, help="of them, with each corruption (default: 1,000)")
    report.add_save(parser, "accuracy")
    given = parser.parse_args()
    if given.images < 1 or given.corrupted < 0:
        parser.error("--images must be at least 1 and --corrupted at least 0")
    found = find(given.bundle, given.run, given.model)
    dataset = datasets.load(given.data)
    for name, model in found.items():
        if model.dataset not in (None, dataset.name):
            harness.say(f"Note: {name} was trained on {model.dataset} data, not on {dataset.name}.")
    rows = measure(found, dataset, given.images, min(given.images, given.corrupted))
    settings = {
        "bundle": given.bundle.name,
        "models": report.digests(
            variant for variant in Bundle.open(given.bundle).manifest.variants if variant.name in found
        ),
        "dataset": dataset.name,
        "dataset_sha256": dataset.digest,
        "corruptions": {name: list(constants) for name, (_, constants) in CORRUPTIONS.items()},
        "agreement_with": rows[0]["model"],
        "run": given.run.name if given.run else None,
    }
    report.finish(report.document("accuracy", settings, rows), table(rows), given.save)


if __name__ == "__main__":
    harness.main(main)
