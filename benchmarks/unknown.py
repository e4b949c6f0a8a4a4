"""How well a bundle's models tell pictures of other things from those that they know.

    python benchmarks/unknown.py BUNDLE --save
    python benchmarks/unknown.py BUNDLE --kinds tuning            # those by which a score may be chosen
    python benchmarks/unknown.py --near RUNS --save               # trains five nets; goes on where it stopped

Far: pictures of `unknown_kinds.py`, which needs Debian's tuxpaint-stamps-default and fonts-noto-color-emoji, against
the test images. Near: of CIFAR-10 six classes are known and four are not, five times, each with a net that the recipe
`fast` trains on the six (ten minutes each on two cores); what its fp32 file says of the test images is compared.

    AUROC     how often a known picture has the higher score; 50 % is chance
    FPR95     share of the other pictures that pass where 95 % of the known ones do
    passed    share of them that pass the threshold in the manifest, which held-out pictures set
    rejected  share of the known test images, correctly classified, that do not pass it

The scores are those of `unknown_scores.py`; `familiarity` is what onnxruntime gives from the file. Noise: the test
images with normal noise, of the standard deviations in `NOISE`.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import harness
import numpy as np
import onnx
import report
from accuracy import corrupt
from training import finished_run, part_of
from unknown_kinds import REPORTED, TUNING, Kind
from unknown_scores import OURS, Answers, scores_of

from edgecifar.export import build, familiarity
from edgecifar.export.formats.onnx import last_layer
from edgecifar.export.options import ExportOptions
from edgecifar.runtime import Bundle, EdgecifarError
from edgecifar.runtime.contract import Contract
from edgecifar.runtime.manifest import Variant
from edgecifar.runtime.providers import import_onnxruntime
from edgecifar.train import data as datasets
from edgecifar.train.recipes import FAST

KINDS = {"tuning": TUNING, "reported": REPORTED}
"""Name: the kinds of other pictures."""

SPLITS = ((0, 1, 2, 4, 5, 9), (0, 3, 5, 7, 8, 9), (0, 1, 5, 6, 7, 8), (3, 4, 5, 7, 8, 9), (0, 1, 2, 3, 7, 8))
"""Near: the labels of the six classes of CIFAR-10 that are known."""

NOISE = {"gaussian noise": (1, 2, 5)}
"""Corruptions of `accuracy.py` and their severities: of noise, the standard deviations 0.04, 0.06 and 0.10."""


class Probe:
    """A variant's file, run so that it also gives what its last layer reads."""

    def __init__(self, bundle: Bundle, variant: Variant) -> None:
        self.contract: Contract = bundle.contract
        if self.contract.familiarity_name is None:
            raise EdgecifarError(f"{bundle.folder} has no familiarity score: export it again.")
        model = onnx.load_from_string(bundle.read(variant))
        self.head = familiarity.head_of(model, self.contract)
        hidden = last_layer(model, self.contract).input[0]
        model.graph.output.append(onnx.helper.make_tensor_value_info(hidden, onnx.TensorProto.FLOAT, None))
        self._names = [*self.contract.output_names, hidden]
        content = model.SerializeToString()
        self._session = import_onnxruntime().InferenceSession(content, providers=["CPUExecutionProvider"])

    def __call__(self, images: np.ndarray) -> Answers:
        """Return what the model says of `images`, uint8 [N, size, size, 3]."""
        parts = [
            self._session.run(self._names, {self.contract.input_name: images[start : start + 250]})
            for start in range(0, len(images), 250)
        ]
        return Answers(*(np.concatenate(values) for values in zip(*parts, strict=True)))


def figures(known: np.ndarray, other: np.ndarray) -> dict[str, float]:
    """Return AUROC and FPR95 of the scores of known and of other pictures."""
    return {
        "auroc": familiarity.auroc(known, other),
        "fpr95": familiarity.false_positive_rate(known, other),
        "images": len(other),
    }


def compared(probe: Probe, known: Answers, others: dict[str, Answers], train: tuple[Answers, np.ndarray]) -> Any:
    """Return for each score its figures on each of `others` and their means; every kind counts the same."""
    rows: dict[str, Any] = {}
    for name, score in scores_of(*train, *probe.head).items():
        own = score(known)
        kinds = {kind: figures(own, score(answers)) for kind, answers in others.items()}
        rows[name] = {**_means([*kinds.values()]), "kinds": kinds}
    return rows


def _means(found: Sequence[dict[str, float]]) -> dict[str, float]:
    """Return the means of `figures` of several kinds; each counts the same."""
    return {key: float(np.mean([each[key] for each in found])) for key in ("auroc", "fpr95")}


def rejections(answers: Answers, labels: np.ndarray, threshold: float | None) -> dict[str, float]:
    """Return the share of pictures of known classes that pass, and of those classified right and wrong that do not."""
    right = answers.logits.argmax(1) == labels
    found: dict[str, float] = {"images": len(labels), "accuracy": float(right.mean())}
    if threshold is None:
        return found
    passed = answers.familiarity >= threshold
    found["passed"] = float(passed.mean())
    found["right_rejected"] = float((~passed[right]).mean()) if right.any() else 0.0
    found["wrong_rejected"] = float((~passed[~right]).mean()) if (~right).any() else 0.0
    return found


def far(bundle: Bundle, dataset: datasets.Dataset, kinds: Sequence[Kind], limit: int) -> list[dict[str, Any]]:
    """Return a row a variant: all scores on all kinds, and what the threshold does to known pictures.

    Args:
        bundle: its ONNX variants are measured.
        dataset: what it was trained on.
        kinds: of other pictures.
        limit: the first so many test images are used, and of the training images up to twice as many, evenly spread.

    Raises:
        EdgecifarError: the bundle has other classes than the data set.
    """
    if bundle.contract.labels != dataset.contract.labels:
        raise EdgecifarError(f"{bundle.folder} has other classes than {dataset.name}: name a bundle that knows these.")
    trained_on, _ = dataset.hold_out(bundle.manifest.provenance["recipe"]["held_out"])
    trained_on = trained_on[:: max(1, len(trained_on) // limit)]
    pictures = {kind.name: kind.make(bundle.contract) for kind in kinds}
    images, labels = dataset.test_images[:limit], dataset.test_labels[:limit]
    rows: list[dict[str, Any]] = []
    for variant in (variant for variant in bundle.manifest.variants if variant.is_onnx):
        harness.say(f"{variant.name} …")
        probe = Probe(bundle, variant)
        known, others = probe(images), {name: probe(some) for name, some in pictures.items()}
        train = probe(dataset.train_images[trained_on]), dataset.train_labels[trained_on]
        scores, limits = compared(probe, known, others, train), variant.familiarity
        threshold = limits.threshold if limits else None
        noisy = [
            {
                "corruption": name,
                "severity": severity,
                **rejections(probe(corrupt(images, name, severity)), labels, threshold),
            }
            for name, severities in NOISE.items()
            for severity in severities
        ]
        parts: dict[str, list[str]] = {}
        for kind in kinds:
            parts.setdefault("found" if kind.found else "drawn", []).append(kind.name)
        passed = (
            {name: float((some.familiarity >= threshold).mean()) for name, some in others.items()} if limits else {}
        )
        rows.append(
            {
                "model": variant.name,
                "images": sum(map(len, pictures.values())),
                "auroc": scores[OURS]["auroc"],
                "fpr95": scores[OURS]["fpr95"],
                "parts": {
                    part: _means([scores[OURS]["kinds"][name] for name in names]) for part, names in parts.items()
                },
                "threshold": threshold,
                "passed": float(np.mean([*passed.values()])) if passed else None,
                "passed_by_kind": passed,
                "scores": scores,
                "known": rejections(known, labels, threshold),
                "noisy": noisy,
            }
        )
    return rows


def near(dataset: datasets.Dataset, folder: Path, epochs: int, splits: int) -> list[dict[str, Any]]:
    """Train, export and measure a net for each of the first `splits` of `SPLITS`; what is in `folder` is not redone.

    Args:
        dataset: of the classes that `SPLITS` number.
        folder: runs and bundles are kept in it.
        epochs: of the recipe `fast`.
        splits: how many.
    """
    rows: list[dict[str, Any]] = []
    for number, known in enumerate(SPLITS[:splits]):
        part, place = part_of(dataset, known), folder / f"split-{number}-{epochs}-epochs"
        bundle = place / "bundle"
        if not bundle.exists():
            harness.say(f"Split {number}: {', '.join(part.contract.labels)} …")
            run = finished_run(replace(FAST, epochs=epochs), part, place)
            build.export(run, bundle, part, ExportOptions())
        opened = Bundle.open(bundle)
        probe = Probe(opened, opened.variant("fp32"))
        trained_on, _ = part.hold_out(FAST.held_out)
        trained_on = trained_on[:: max(1, len(trained_on) // 10_000)]
        train = probe(part.train_images[trained_on]), part.train_labels[trained_on]
        own, strange = probe(part.test_images), probe(dataset.test_images[~np.isin(dataset.test_labels, known)])
        scores = compared(probe, own, {"other classes": strange}, train)
        rows.append(
            {
                "split": number,
                "known": list(part.contract.labels),
                "accuracy": float((own.logits.argmax(1) == part.test_labels).mean()),
                "scores": scores,
            }
        )
    return rows


def far_table(rows: Sequence[dict[str, Any]]) -> str:
    """Return the rows of `far` as lines of text."""
    lines = [["model", "score", "AUROC, %", "FPR95, %", *rows[0]["scores"][OURS]["kinds"]]]
    for row in rows:
        for name, found in row["scores"].items():
            cells = [f"{_percent(each['auroc'])} / {_percent(each['fpr95'])}" for each in found["kinds"].values()]
            lines.append([row["model"], name, _percent(found["auroc"]), _percent(found["fpr95"]), *cells])
    text = report.table(lines, 2)
    lines = [["model", "kinds", "AUROC, %", "FPR95, %"]]
    for row in rows:
        for part, means in row["parts"].items():
            lines.append([row["model"], part, _percent(means["auroc"]), _percent(means["fpr95"])])
    text += f"\n\n{OURS}, of pictures that others made and of those that are drawn here:\n\n{report.table(lines, 2)}"
    lines = [["model", "pictures", "passed, %", "right, rejected, %", "wrong, rejected, %", "accuracy, %"]]
    for row in rows:
        shown = [("other", {"passed": row["passed"]}), ("known", row["known"])]
        shown += [(f"{each['corruption']}, severity {each['severity']}", each) for each in row["noisy"]]
        for name, found in shown:
            keys = ("passed", "right_rejected", "wrong_rejected", "accuracy")
            lines.append([row["model"], name, *(_percent(found.get(key)) for key in keys)])
    return f"{text}\n\nBy the manifest's threshold:\n\n{report.table(lines, 2)}"


def near_table(rows: Sequence[dict[str, Any]]) -> str:
    """Return the rows of `near` as lines of text: AUROC and FPR95 of each score in each split, and the means."""
    names = [*rows[0]["scores"]]
    lines = [["split", "accuracy, %", *names]]
    for row in rows:
        cells = [f"{_percent(row['scores'][n]['auroc'])} / {_percent(row['scores'][n]['fpr95'])}" for n in names]
        lines.append([str(row["split"]), _percent(row["accuracy"]), *cells])
    means = [[float(np.mean([row["scores"][n][key] for row in rows])) for key in ("auroc", "fpr95")] for n in names]
    lines.append(["mean", "", *(" / ".join(map(_percent, pair)) for pair in means)])
    return report.table(lines)


def _percent(share: float | None) -> str:
    return "" if share is None else f"{100 * share:.1f}"


def main() -> None:
    """Measure and report."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("bundle", type=Path, nargs="?", help="by default the one installed with the package")
    parser.add_argument("--near", type=Path, metavar="RUNS", help="train and measure the 6-4 splits into this folder")
    parser.add_argument("--epochs", type=int, default=FAST.epochs, help="near: of the recipe fast")
    parser.add_argument("--splits", type=int, default=len(SPLITS), help="near: only the first so many")
    parser.add_argument("--kinds", choices=KINDS, default="reported", help="far: which pictures")
    parser.add_argument("--images", type=int, default=10_000, help="far: the first N test, up to 2 N training images")
    parser.add_argument("--data", help="folder with the CIFAR-10 files; by default $EDGECIFAR_DATA")
    report.add_save(parser, "unknown")
    given = parser.parse_args()
    if given.images < 1 or not 1 <= given.splits <= len(SPLITS) or given.epochs < 1:
        parser.error(f"--images and --epochs are at least 1, --splits 1 to {len(SPLITS)}")
    dataset = datasets.load(given.data)
    settings: dict[str, Any] = {"dataset": dataset.name, "dataset_sha256": dataset.digest}
    save = given.save
    if given.near:
        rows = near(dataset, given.near, given.epochs, given.splits)
        settings |= {
            "recipe": FAST.name,
            "epochs": given.epochs,
            "known": [list(known) for known in SPLITS[: given.splits]],
        }
        save = save.with_name("unknown-near.json") if save == report.RESULTS / "unknown.json" else save
        report.finish(report.document("unknown-near", settings, rows), near_table(rows), save)
        return
    bundle = Bundle.open(given.bundle)
    rows = far(bundle, dataset, KINDS[given.kinds], given.images)
    settings |= {
        "bundle": given.bundle.name if given.bundle else "the one that ships",
        "models": report.digests(variant for variant in bundle.manifest.variants if variant.is_onnx),
        "kinds": given.kinds,
        "images": given.images,
    }
    if given.kinds == "tuning" and save == report.RESULTS / "unknown.json":
        save = save.with_name("unknown-tuning.json")  # the other is of the kinds that nothing was chosen by
    report.finish(report.document("unknown", settings, rows), far_table(rows), save)


if __name__ == "__main__":
    harness.main(main)
