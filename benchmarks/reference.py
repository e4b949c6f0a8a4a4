"""A run of the recipe `reference` beside the experiment that it reproduces: loss curve, accuracy, accuracy by class.

    python benchmarks/training.py --recipe reference --device cpu --out RUNS     # goes on after any stop
    python benchmarks/reference.py RUNS/reference-50-seed0 --save --readme
    python benchmarks/draw.py reference

`experiment.json` holds what the experiment reported: the mean loss of the first 2,000 mini-batches of some epochs, and
the accuracy on the test images after the last one. A run may be in its middle: --data then tests the weights that it
has so far. With --data the net is tested in training mode, too, as if `net.eval()` had been forgotten. Prints Markdown
and a line of JSON; --save keeps the latter, and --readme puts the former between two marks in README.md.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import harness
import numpy as np
import report
import torch
from torch import nn

from edgecifar.runtime.errors import DataError
from edgecifar.runtime.files import write_file
from edgecifar.runtime.metrics import evaluate
from edgecifar.train import data
from edgecifar.train.augment import normalise
from edgecifar.train.data import Dataset
from edgecifar.train.inference import Function, classify_with, in_batches
from edgecifar.train.loop import WINDOW
from edgecifar.train.record import validation_accuracy
from edgecifar.train.run import Run

EXPERIMENT: dict[str, Any] = json.loads((Path(__file__).parent / "experiment.json").read_text())
"""What the experiment reported."""

README = Path(__file__).parent / "README.md"
MARKS = "<!-- reference -->", "<!-- end of reference -->"
"""Between them in README.md stands what --readme writes."""


def loss_of(line: Mapping[str, Any]) -> float:
    """Return the mean loss of an epoch's first 2,000 mini-batches; of all of them where there are fewer."""
    windows = line[f"loss_per_{WINDOW}"]
    return windows[0] if windows else line["loss"]


def curve(metrics: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Return a row for each epoch of a run: its loss, what the experiment reported, and the accuracy so far in %."""
    rows = []
    for line in metrics:
        reported, reached = EXPERIMENT["loss"].get(str(line["epoch"])), validation_accuracy(line)
        loss = loss_of(line)
        rows.append(
            {
                "epoch": line["epoch"],
                "loss": loss,
                "reported": reported,
                "difference": None if reported is None else loss - reported,
                "accuracy": None if reached is None else 100 * reached[1],
                "seconds": line["seconds"],
            }
        )
    return rows


def classes(test: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Return a row for each class: the share of its test images that the run has right, in %, and what was reported."""
    return [
        {"class": label, "accuracy": 100 * share, "reported": EXPERIMENT["per_class"].get(label)}
        for label, share in test["per_class"].items()
    ]


def tested(classify: Function, dataset: Dataset) -> dict[str, Any]:
    """Return the evaluation of a function from images to probabilities on the test images, as JSON values."""
    return evaluate(classify, dataset.test_images, dataset.test_labels, dataset.contract.labels).as_json()


def in_training_mode(run: Run) -> Function:
    """Return a function from images to probabilities, by the weights that a run has so far, as if it still trained.

    Dropout drops, and batch norm takes the statistics of each batch: a test without `net.eval()` comes out like that.
    """
    net, size = run.net().train(), run.record.recipe.batch_size
    for module in net.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.momentum = 0.0  # the test changes no statistics

    @torch.no_grad()
    def probabilities(images: np.ndarray) -> np.ndarray:
        return net(normalise(torch.from_numpy(images))).softmax(1).numpy()

    torch.manual_seed(0)
    return partial(in_batches, probabilities, size=size)


def comparison(run: Run, dataset: Dataset | None = None) -> dict[str, Any]:
    """Return all that is compared, as JSON values.

    Args:
        run: of the recipe.
        dataset: what the net is tested on in training mode, and a run in its middle at all; None for neither.

    Raises:
        DataError: no epoch of the run is complete, or it was trained on other data.
    """
    record, metrics = run.record, run.metrics
    if not metrics:
        raise DataError(f"{run.folder} has no complete epoch yet: train it first.")
    if dataset:
        run.check_data(dataset)
    test = record.as_json().get("test") or (tested(classify_with(run.net()), dataset) if dataset else None)
    return {
        "recipe": record.recipe.name,
        "epochs": record.recipe.epochs,
        "epochs_done": metrics[-1]["epoch"],
        "seed": record.seed,
        "hardware": record.conditions.hardware,
        "device": record.conditions.device,
        "precision": record.conditions.precision,
        "threads": record.conditions.threads,
        "dataset": record.dataset.name,
        "training_seconds": sum(line["seconds"] for line in metrics),
        "accuracy": 100 * test["accuracy"] if test else None,
        "reported_accuracy": EXPERIMENT["accuracy"],
        "curve": curve(metrics),
        "classes": classes(test) if test else [],
        "in_training_mode": tested(in_training_mode(run), dataset) if dataset else None,
    }


def markdown(found: Mapping[str, Any]) -> str:
    """Return the comparison as Markdown: a sentence and two tables."""
    done, epochs = found["epochs_done"], found["epochs"]
    named = [row for row in found["curve"] if row["reported"] is not None or row["epoch"] in (1, done)]
    lines = [
        f"`{found['recipe']}` in {found['precision']}, seed {found['seed']}, {done} of {epochs} epochs on "
        f"{found['dataset']}, n = 1.",
        f"{found['training_seconds']:,.0f} s of training on {found['hardware']} ({found['device']}, threads: "
        f"{found['threads']}).",
        "Loss: the mean of an epoch's first 2,000 mini-batches.",
        "",
        "| epoch | loss | reported | difference | test accuracy, % |",
        "|---|---|---|---|---|",
        *(_line(row) for row in named),
    ]
    if found["classes"]:
        cells = [*found["classes"]]
        lines += [
            "",
            f"| after epoch {done}, % | all | " + " | ".join(row["class"] for row in cells) + " |",
            "|---" * (2 + len(cells)) + "|",
            f"| this run | {found['accuracy']:.2f} | " + " | ".join(f"{row['accuracy']:.1f}" for row in cells) + " |",
            *_training_mode(found),
            f"| reported | {found['reported_accuracy']} | "
            + " | ".join(_shown(row["reported"], 1) for row in cells)
            + " |",
        ]
    return "\n".join(lines)


def _training_mode(found: Mapping[str, Any]) -> list[str]:
    if not (test := found["in_training_mode"]):
        return []
    shares = [f"{100 * test['per_class'][row['class']]:.1f}" for row in found["classes"]]
    return [f"| this run, in training mode | {100 * test['accuracy']:.2f} | {' | '.join(shares)} |"]


def _line(row: Mapping[str, Any]) -> str:
    difference = _shown(row["difference"], 3, "+")
    cells = [str(row["epoch"]), f"{row['loss']:.3f}", _shown(row["reported"], 3), difference]
    return f"| {' | '.join([*cells, _shown(row['accuracy'], 2)])} |"


def _shown(value: float | None, digits: int, sign: str = "") -> str:
    return "" if value is None else f"{value:{sign}.{digits}f}"


def put_into(path: Path, text: str) -> None:
    """Replace what stands between `MARKS` in a Markdown file.

    Raises:
        DataError: the marks are not there.
    """
    before, mark, rest = path.read_text().partition(MARKS[0])
    _, end, after = rest.partition(MARKS[1])
    if not mark or not end:
        raise DataError(f"{path} has no lines {MARKS[0]} and {MARKS[1]}: put them where the comparison shall stand.")
    write_file(path, f"{before}{mark}\n{text}\n{end}{after}".encode())


def main(arguments: list[str] | None = None) -> None:
    """Compare, and report."""
    parser = argparse.ArgumentParser(description=str(__doc__).splitlines()[0])
    parser.add_argument("run", type=Path, metavar="RUN", help="the folder of a run of the recipe, finished or not")
    parser.add_argument("--data", help="the CIFAR-10 files, as 'edgecifar train' takes them, to test on")
    parser.add_argument("--readme", action="store_true", help="put the tables into benchmarks/README.md, too")
    report.add_save(parser, "reference")
    given = parser.parse_args(arguments)
    found = comparison(Run(given.run), data.load(given.data) if given.data else None)
    text = markdown(found)
    rows = found.pop("curve")
    report.finish(report.document("reference", found, rows), text, given.save)
    if given.readme:
        put_into(README, text)


if __name__ == "__main__":
    harness.main(main)
