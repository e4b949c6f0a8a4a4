"""Which widths pay: residual students by size, measured latency, and what they learn in a few epochs.

    python benchmarks/widths.py runs/teacher --epochs 4 --save
    python benchmarks/widths.py runs/teacher --widths 16-32-64-96-96-96-128 --widths 16-48-64-96-96-96-128

RUN is what the students learn from: a finished run, of a teacher or of Net. Without --widths there is a row for each of
MIDDLES, the family that `export --max-bytes` chooses from.

Bytes and latency do not depend on what a net has learnt: they are those of its int8 file with untrained weights, timed
in turns with all others. The accuracy is that of the float net on the images that RUN held out, after so few epochs
that it says which widths are better, not how good they become. No test image is looked at. Finished trainings are kept
in RUN and not repeated; an interrupted one goes on from its last epoch.
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, cast

import harness
import numpy as np
import report
import torch
import torchinfo
from frontier import costs, frontier
from harness import Entry

from edgecifar.export.compress.distill import Distiller, distiller_of, recipe_of
from edgecifar.export.compress.quantize import CALIBRATORS, quantize
from edgecifar.export.compress.students import LAYERS, Residual, scaled
from edgecifar.export.formats import onnx as onnx_format
from edgecifar.runtime.contract import Contract
from edgecifar.runtime.errors import DataError
from edgecifar.runtime.session import Session
from edgecifar.train import data as datasets
from edgecifar.train.answers import Teachers
from edgecifar.train.data import Dataset
from edgecifar.train.devices import choose_device
from edgecifar.train.inference import all_logits
from edgecifar.train.run import Run

MIDDLES = (32, 40, 56, 72, 96, 112, 128, 144, 176)
"""Widths of the fourth to sixth convolution of the students that are tried."""

BATCHES = (1, 64)
"""Images a call: the first is what the frontier's latency is of."""


def untrained(widths: Sequence[int], contract: Contract) -> Residual:
    """Return a student as a training begins with it, but for biases that are not zero: a file leaves those out."""
    student = Residual.untrained(contract.classes, widths, seed=0)
    for norm in student.norms:
        torch.nn.init.constant_(cast("torch.nn.BatchNorm2d", norm).bias, 0.1)
    return student.eval()


def int8_file(student: Residual, contract: Contract, folder: Path) -> bytes:
    """Return the int8 file of a student, its ranges those of drawn images: for its size and its latency."""
    path = folder / "student.onnx"
    onnx_format.write(student.deployed(), path, contract, {})
    onnx_format.save(quantize(path, harness.random_images(50, contract), contract, CALIBRATORS[0]), path, contract, {})
    return path.read_bytes()


def learnt(distiller: Distiller, widths: Sequence[int], dataset: Dataset, held_out: np.ndarray) -> dict[str, Any]:
    """Return how many of the held-out images a student has right after the distiller's epochs, as a row's "test"."""
    student = Residual.untrained(dataset.contract.classes, widths, distiller.seed)
    logits = all_logits(distiller.tune(student, student.widths), dataset.train_images[held_out])
    correct = int((logits.argmax(1) == dataset.train_labels[held_out]).sum())
    return {"images": len(held_out), "correct": correct, "accuracy": correct / len(held_out)}


def measure(files: Mapping[str, bytes], contract: Contract, options: argparse.Namespace) -> list[dict[str, Any]]:
    """Return a row for each file, by its name, with latencies taken in turns."""
    sessions = {name: Session(file, provider="cpu", threads=options.threads) for name, file in files.items()}
    rows = [{"variant": name, "precision": "int8", "bytes": len(file), "latency": {}} for name, file in files.items()]
    for batch in BATCHES:
        images = harness.random_images(batch, contract)
        entries = [Entry({}, partial(session.probabilities, images), batch) for session in sessions.values()]
        harness.say(f"Batch {batch}: {len(entries)} files …")
        harness.alternate(entries, options.seconds)
        for row, entry in zip(rows, entries, strict=True):
            row["latency"][str(batch)] = entry.row()
    return rows


def table(rows: Sequence[Mapping[str, Any]]) -> str:
    """Return the rows as lines of text."""
    lines = [["widths", "M multiply-adds", "bytes", "p50 ms, batch 1", "images/s, batch 64", "held out, %", "frontier"]]
    for row in rows:
        one, many = (row["latency"][str(batch)] for batch in BATCHES)
        lines.append(
            [
                row["variant"],
                f"{row['multiply_adds'] / 1e6:.1f}",
                f"{row['bytes']:,}",
                f"{one['milliseconds']['p50']:.3f}",
                f"{many['images_per_second']:,.0f}",
                f"{100 * row['test']['accuracy']:.2f}" if row["test"] else "",
                "*" if row["frontier"] else "",
            ]
        )
    return report.table(lines)


def widths_of(text: str) -> tuple[int, ...]:
    """Return the widths that an option names, such as 16-32-64-96-96-96-128."""
    try:
        widths = tuple(map(int, text.split("-")))
        if min(widths) < 1:
            raise ValueError
        Residual(2, widths)
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text} is not {LAYERS} widths, the fourth and the sixth equal") from None
    return widths


def main(arguments: list[str] | None = None) -> None:
    """Make, measure, train, report."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path, metavar="RUN", help="what the students learn from")
    parser.add_argument("--widths", type=widths_of, action="append", help="such as 16-32-64-96-96-96-128; repeatable")
    parser.add_argument("--epochs", type=int, default=4, help="of each training; 0: only size and latency")
    parser.add_argument("--data", help="where the run's data are; by default $EDGECIFAR_DATA")
    parser.add_argument("--device", default="auto", help="what trains")
    parser.add_argument("--threads", type=harness.positive(int), default=2, help="of a call (default: 2)")
    parser.add_argument("--seconds", type=harness.positive(float), default=2.0, help="of each file at each batch size")
    report.add_save(parser, "widths")
    options = parser.parse_args(arguments)
    if options.epochs < 0:
        parser.error("--epochs must be at least 0")
    run, tried = Run(options.run), list(dict.fromkeys(options.widths or map(scaled, MIDDLES)))
    record = run.record
    dataset = datasets.load_for_export(record.dataset.name, options.data, record.dataset.origin)
    if dataset is None:
        raise DataError(f"{run.folder} was trained on {record.dataset.name}: name it with --data.")
    _, held_out = dataset.hold_out(record.recipe.held_out)
    if options.epochs and not len(held_out):
        raise DataError(f"{run.folder} held no images out, on which widths are compared: name a run that did.")
    contract, distiller = dataset.contract, None
    if options.epochs:
        device, how = choose_device(options.device), recipe_of(run, dataset, options.epochs)
        distiller = distiller_of(run, run.net(), dataset, how, device, Teachers((run,))).from_nothing(1)
    students = {"-".join(map(str, widths)): untrained(widths, contract) for widths in tried}
    with tempfile.TemporaryDirectory() as folder:
        files = {name: int8_file(student, contract, Path(folder)) for name, student in students.items()}
    rows = measure(files, contract, options)
    for row, widths, student in zip(rows, tried, students.values(), strict=True):
        harness.say(f"{row['variant']} …")
        summary = torchinfo.summary(student, (1, 3, contract.size, contract.size), verbose=0)
        row |= {"widths": widths, "multiply_adds": summary.total_mult_adds}
        row["test"] = distiller and learnt(distiller, widths, dataset, held_out)
    for row, best in zip(rows, frontier([costs(row) for row in rows]), strict=True):
        row["frontier"] = best and bool(row["test"])
    settings = {
        "dataset": dataset.name,
        "run": run.folder.name,
        "recipe": record.recipe.name,
        "held_out_accuracy": run.metrics[-1].get("held_out_accuracy"),
        "epochs": options.epochs,
        "training": distiller and distiller.describe(),
        "threads": options.threads,
        "seconds": options.seconds,
    }
    report.finish(report.document("widths", settings, rows), table(rows), options.save)


if __name__ == "__main__":
    harness.main(main)
