"""Accuracy over latency over size: every variant of a run, in one table and one picture with the frontier drawn.

    python benchmarks/variants.py RUN --bundle RUN/bundle --beside earlier-bundle --save
    python benchmarks/variants.py RUN --bundle RUN/bundle --variant edge --variant int8-7bit --images 2000

RUN is the folder of a finished training run. Measured are the ONNX variants of the bundles that were exported of it,
and forms to compare them with, made for the occasion in a temporary folder, none of them trained for it. Of a teacher,
which is not exported itself, there are none: all is then held against the first variant.

    fp32          the net itself, where no bundle has it; every figure is held against it
    int8-7bit     static int8 of the whole net, weights in 7 bits: the same answers on every processor
    int8-8bit     likewise, weights in all 8 bits: on x86 without VNNI, sums of two products may saturate in 16 bits
    NAME-8bit     the bundle's int8 variant NAME with weights in 8 bits, where RUN still gives its float form
    fc1-R         fc1 alone at rank R, in fp32
    all-L         fc1, conv6, conv5 and conv4, each at the smallest rank that loses the share L of its outputs' variance

Accuracy is that of onnxruntime on this processor. What is int8 is measured a second time in a session without graph
optimizations, which computes quantizing and dequantizing in float: as the file defines it, free of what a processor's
integer instructions do. Latency is that of `Session`, which `Classifier` calls, in turns with all the others and with a
plain InferenceSession on the fp32 file, which the ratios are to.
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from hashlib import sha256
from pathlib import Path
from typing import Any

import harness
import numpy as np
import report
from candidates import VNNI, Candidate, ReferenceModels, beside, check_names, choose, of_bundles
from frontier import costs, frontier
from harness import PLAIN, Entry, PlainSession

from edgecifar.export.parity import mcnemar
from edgecifar.runtime import Bundle
from edgecifar.runtime.errors import DataError
from edgecifar.runtime.machine import cpu_info
from edgecifar.runtime.metrics import Evaluation, evaluate
from edgecifar.runtime.session import Session
from edgecifar.train import data as datasets
from edgecifar.train.net import Net
from edgecifar.train.run import Run

BATCHES = (1, 64)
"""Images a call: the first is what the frontier's latency is of, the second what throughput is of."""


@dataclass(frozen=True)
class Timing:
    """How long candidates are timed: threads of a call, seconds of each at each batch size, turns of each."""

    threads: int = 2
    seconds: float = 4.0
    rounds: int = 10


def against(result: Evaluation, reference: Evaluation, labels: np.ndarray) -> dict[str, Any]:
    """Return the figures of a classifier of test images, and how it compares with the reference on the same images."""
    right, right_before = result.predictions == labels, reference.predictions == labels
    return {
        "images": result.images,
        "correct": result.correct,
        "accuracy": result.accuracy,
        "points": 100 * (result.correct - reference.correct) / result.images,
        "agreement": float((result.predictions == reference.predictions).mean()),
        "p_value": mcnemar(right, right_before),
        "nll": result.nll,
        "ece": result.ece,
    }


def measure(
    candidates: Sequence[Candidate], dataset: datasets.Dataset, count: int, timing: Timing
) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    """Measure accuracy and latency of every candidate.

    Args:
        candidates: the first is the exact one; all are compared with it.
        dataset: whose first `count` test images are classified.
        count: of them.
        timing: how long.

    Returns:
        A row for each candidate, and the figures of plain onnxruntime on the first candidate's file by batch size.
    """
    images, labels, contract = dataset.test_images[:count], dataset.test_labels[:count], dataset.contract
    rows = [_row(candidate, len(candidates[0].model)) for candidate in candidates]
    sessions: dict[str, Session] = {}
    reference: Evaluation | None = None
    for candidate, row in zip(candidates, rows, strict=True):
        if candidate.problem:
            continue
        harness.say(f"{candidate.name}: {len(images):,} images …")
        try:
            session = Session(candidate.model, provider="cpu", threads=timing.threads, name=candidate.name)
            result = evaluate(session.probabilities, images, labels, contract.labels)
            reference = reference or result
            row["test"] = against(result, reference, labels)
            if candidate.precision == "int8":
                defined = PlainSession(candidate.model, contract, timing.threads, optimised=False)
                as_defined = evaluate(defined.probabilities, images, labels, contract.labels)
                row["test_as_defined"] = against(as_defined, reference, labels)
        except Exception as error:  # onnxruntime raises a dozen types that share no base of their own
            if reference is None:
                raise
            row["problem"] = harness.problem(error)
            continue
        sessions[candidate.name] = session
    plain = PlainSession(candidates[0].model, contract, timing.threads)
    baseline: dict[str, Any] = {}
    for batch in BATCHES:
        some = np.ascontiguousarray(np.resize(images, (batch, *images.shape[1:])))
        base = Entry({"variant": PLAIN}, partial(plain.probabilities, some), batch)
        entries = {
            name: Entry({"variant": name}, partial(session.probabilities, some), batch, bases={PLAIN: base})
            for name, session in sessions.items()
        }
        harness.say(f"Batch {batch}: {len(entries)} candidates and plain onnxruntime in {timing.rounds} rounds …")
        harness.alternate([base, *entries.values()], timing.seconds, timing.rounds)
        baseline[str(batch)] = _times(base)
        for row in rows:
            if row["variant"] in entries:
                row["latency"][str(batch)] = _times(entries[row["variant"]])
    measured = [row for row in rows if row["latency"]]
    for row, best in zip(measured, frontier([costs(row) for row in measured]), strict=True):
        row["frontier"] = best
    return rows, baseline


def _row(candidate: Candidate, full_bytes: int) -> dict[str, Any]:
    """Return a candidate's row before anything was measured."""
    return {
        "variant": candidate.name,
        "bundle": candidate.bundle,
        "precision": candidate.precision,
        "made_by": candidate.made_by,
        "bytes": len(candidate.model) or None,
        "sha256": sha256(candidate.model).hexdigest() if candidate.model else None,
        "bytes_ratio": len(candidate.model) / full_bytes or None,
        "test": None,
        "test_as_defined": None,
        "latency": {},
        "frontier": False,
        "problem": candidate.problem or None,
    }


def _times(entry: Entry) -> dict[str, Any]:
    return {key: value for key, value in entry.row().items() if key not in ("variant", "problem")}


def table(rows: Sequence[Mapping[str, Any]], baseline: Mapping[str, Any]) -> str:
    """Return the rows as lines of text; below, why some could not be measured."""
    one, many = (str(batch) for batch in BATCHES)
    header = [
        "variant",
        "bytes",
        f"of {rows[0]['variant']}",
        "accuracy, %",
        "points",
        "p",
        "agrees, %",
        "ECE, %",
        "as defined, %",
    ]
    header += [f"p50 ms, batch {one}", "faster", f"images/s, batch {many}", "more", "frontier"]
    lines = [header]
    for row in rows:
        if not row["latency"]:
            continue
        test, defined, single, batch = row["test"], row["test_as_defined"], row["latency"][one], row["latency"][many]
        lines.append(
            [
                row["variant"],
                f"{row['bytes']:,}",
                f"{row['bytes_ratio']:.4f}",
                f"{100 * test['accuracy']:.2f}",
                f"{test['points']:+.2f}",
                f"{test['p_value']:.2g}",
                f"{100 * test['agreement']:.2f}",
                f"{100 * test['ece']:.2f}",
                f"{100 * defined['accuracy']:.2f}" if defined else "",
                f"{single['milliseconds']['p50']:.3f}",
                f"{1 / single['ratios'][PLAIN]['median']:.2f}x",
                f"{batch['images_per_second']:,.0f}",
                f"{1 / batch['ratios'][PLAIN]['median']:.2f}x",
                "*" if row["frontier"] else "",
            ]
        )
    base = [PLAIN, *[""] * 8, f"{baseline[one]['milliseconds']['p50']:.3f}", "1.00x"]
    lines.append([*base, f"{baseline[many]['images_per_second']:,.0f}", "1.00x", ""])
    notes = [f"{row['variant']}: {row['problem']}" for row in rows if row["problem"]]
    return "\n".join([report.table(lines), *([""] if notes else []), *notes])


def main() -> None:
    """Parse, make, measure, report."""
    parser = argparse.ArgumentParser(description=str(__doc__).splitlines()[0])
    parser.add_argument("run", type=Path, metavar="RUN", help="the folder of a finished run")
    parser.add_argument("--bundle", type=Path, action="append", default=[], help="exported of it; may be repeated")
    says = "another bundle, of whose int8 variants the table shall have rows, too; may be repeated"
    parser.add_argument("--beside", type=Path, action="append", default=[], metavar="BUNDLE", help=says)
    parser.add_argument("--variant", action="append", help="of a bundle, or made here; may be repeated; default: all")
    parser.add_argument("--data", help="where CIFAR-10 is; by default $EDGECIFAR_DATA")
    parser.add_argument("--images", type=int, default=10_000, help="the first N test images (default: all 10,000)")
    parser.add_argument("--threads", type=int, default=2, help="of a call (default: 2)")
    parser.add_argument("--seconds", type=float, default=4.0, help="of each candidate at each batch size")
    parser.add_argument("--rounds", type=int, default=10, help="turns of each candidate")
    report.add_save(parser, "variants")
    given = parser.parse_args()
    if min(given.images, given.rounds, given.threads) < 1:
        parser.error("--images, --rounds and --threads must be at least 1")

    run = Run(given.run)
    net = run.net()  # its weights are there and those that run.json describes
    exported = of_bundles([Bundle.open(folder) for folder in given.bundle], run)
    trained_on = run.record.dataset
    dataset = datasets.load_for_export(trained_on.name, given.data, trained_on.origin)
    if dataset is None or dataset.digest != trained_on.sha256:
        raise DataError(f"{run.folder} was trained on other data ({trained_on.name}): name those with --data.")
    with tempfile.TemporaryDirectory() as folder:
        models = ReferenceModels(run, dataset, exported, Path(folder)) if isinstance(net, Net) else None
        candidates = choose(exported, models, given.variant)
    candidates += [one for folder in given.beside for one in beside(Bundle.open(folder), dataset.contract)]
    check_names(candidates)
    timing = Timing(given.threads, given.seconds, given.rounds)
    rows, baseline = measure(candidates, dataset, given.images, timing)
    settings = {
        "run": run.folder.name,
        "bundles": [folder.name for folder in given.bundle],
        "dataset": dataset.name,
        "dataset_sha256": dataset.digest,
        "threads": given.threads,
        "seconds": given.seconds,
        "rounds": given.rounds,
        "batches": list(BATCHES),
        "vnni": not cpu_info()[1].isdisjoint(VNNI),
    }
    threads = f"{given.threads} thread{'s' if given.threads > 1 else ''}"
    text = f"{rows[0]['test']['images']:,} {dataset.name} test images, {threads}\n\n{table(rows, baseline)}"
    if not settings["vnni"]:
        text += "\n\nThis processor has no VNNI: sums of products of 8-bit weights may saturate, unlike 'as defined'."
    report.finish(report.document("variants", settings, rows, **{PLAIN: baseline}), text, given.save)


if __name__ == "__main__":
    harness.main(main)
