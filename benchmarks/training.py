"""How soon and how well the recipes train: time to an accuracy, final accuracy, images/s, calibration.

    python benchmarks/training.py --recipe reference:3 --recipe fast --recipe best --seeds 3 --out training-runs

Trains each recipe (`NAME:EPOCHS` for other epochs than its own; `NAME,SETTING=VALUE,…` for other settings, as an
ablation needs) with each seed, in turn, into a folder of its own under --out, then reports. Finished runs are not
trained again, interrupted ones are resumed: the same command goes on after any stop. `--run FOLDER` adds a run from
elsewhere, finished or not.

Times count training alone: steps and augmentation, not the evaluation after each epoch, nor reading the data. An
accuracy counts as reached at the end of the first epoch whose images outside of training are classified that well.
These are the held-out images; the test images for a recipe that holds none out, as the reference. Nothing is compiled.
"""

from __future__ import annotations

import argparse
import json
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import asdict, fields, replace
from hashlib import sha256
from itertools import accumulate
from math import isnan, nan
from pathlib import Path
from statistics import mean, median, stdev
from typing import Any

import harness
import numpy as np
import report

from edgecifar.runtime.errors import RunError
from edgecifar.train import data, loop
from edgecifar.train.devices import choose_device
from edgecifar.train.listeners import Silent
from edgecifar.train.recipes import RECIPES, Recipe
from edgecifar.train.record import validation_accuracy
from edgecifar.train.run import RECORD, Run

LEVELS = (60.0, 78.0, 90.0)
"""Accuracies in per cent: one that the reference reaches in minutes, its final one, and a higher one."""


Finished = tuple[dict[str, Any], list[dict[str, Any]]]
"""A run: its record, and the lines of its metrics."""


class Line(Silent):
    """Prints a line an epoch."""

    def __init__(self, name: str) -> None:
        self.name = name

    def epoch(self, metrics: dict[str, Any]) -> None:
        """Print the epoch's accuracy."""
        harness.say(f"  {self.name}: epoch {metrics['epoch']}, {100 * accuracy(metrics):.2f} %")


def accuracy(line: dict[str, Any]) -> float:
    """Return the accuracy in a line of metrics.jsonl, 0 to 1; NaN in a full-data run, which is tested at its end."""
    found = validation_accuracy(line)
    return found[1] if found else nan


def course(metrics: list[dict[str, Any]]) -> list[tuple[float, float]]:
    """Return (seconds of training so far, accuracy in per cent) at the end of each epoch."""
    return [
        (seconds, 100 * accuracy(line))
        for seconds, line in zip(accumulate(line["seconds"] for line in metrics), metrics, strict=True)
    ]


def time_to(level: float, metrics: list[dict[str, Any]]) -> float | None:
    """Return the seconds of training after which `level` per cent were first reached; None if they were not."""
    return next((seconds for seconds, reached in course(metrics) if reached >= level), None)


def spread(values: list[float]) -> dict[str, float | int]:
    """Return n, the mean, and the sample's standard deviation where n is 2 or more."""
    summary: dict[str, float | int] = {"n": len(values), "mean": mean(values)}
    return {**summary, "std": stdev(values)} if len(values) > 1 else summary


def changed(recipe: dict[str, Any]) -> dict[str, Any]:
    """Return in which settings, but for its epochs, a recorded recipe differs from the one that has its name now."""
    own = asdict(RECIPES[recipe["name"]]) if recipe["name"] in RECIPES else recipe
    return {
        name: value
        for name, value in recipe.items()
        if value != own.get(name, value) and name not in ("epochs", "cuda_epochs")
    }


def _settings(values: dict[str, Any]) -> str:
    return "".join(f",{name}={value}" for name, value in values.items())


def conditions(record: dict[str, Any]) -> dict[str, Any]:
    """Return under what a run was made, beside its recipe: only where all of it is equal may times be compared.

    The name of a processor may be that of several generations, so that its features tell more.
    """
    known = {name: record.get(name) for name in ("hardware", "device", "precision", "processes", "threads")}
    return {
        **known,
        "cpu_features": record["machine"]["cpu_features"],
        "data": record["dataset"]["sha256"],
        "resumed": record.get("resumed", []),
    }


def _comparable(row: dict[str, Any]) -> str:
    """Return what two rows must have in common for their times to be compared; precision is part of a recipe."""
    return json.dumps([row[name] for name in ("hardware", "device", "processes", "threads", "cpu_features", "data")])


def summarise(runs: list[Finished], levels: list[float]) -> list[dict[str, Any]]:
    """Return a row for all runs that differ in nothing but the seed.

    The time to a level is None unless every run of the row reached it. Held-out accuracy is that of the last epoch.
    """
    groups: dict[str, list[Finished]] = defaultdict(list)
    for record, metrics in runs:
        groups[json.dumps({"recipe": record["recipe"], **conditions(record)}, sort_keys=True)].append((record, metrics))
    rows = []
    for members in groups.values():
        recipe = members[0][0]["recipe"]
        held_out = [
            100 * metrics[-1]["held_out_accuracy"] for _, metrics in members if "held_out_accuracy" in metrics[-1]
        ]
        tests = [record["test"] for record, _ in members if record.get("test")]
        times = {level: [time_to(level, metrics) for _, metrics in members] for level in levels}
        rows.append(
            {
                "recipe": recipe["name"],
                "changed": changed(recipe),
                "epochs": recipe["epochs"],
                "epochs_done": min(len(metrics) for _, metrics in members),
                "batch_size": recipe["batch_size"],
                **conditions(members[0][0]),
                "runs": len(members),
                "finished": len(tests),
                "images_per_second": median(line["images_per_second"] for _, metrics in members for line in metrics),
                "training_seconds": spread([course(metrics)[-1][0] for _, metrics in members]),
                "seconds_to": {
                    f"{level:g} %": spread([t for t in reached if t is not None]) if None not in reached else None
                    for level, reached in times.items()
                },
                "held_out_accuracy": spread(held_out) if held_out else None,
                "test_accuracy": spread([100 * test["accuracy"] for test in tests]) if tests else None,
                "nll": spread([test["nll"] for test in tests]) if tests else None,
                "ece": spread([100 * test["ece"] for test in tests]) if tests else None,
                "versions": members[0][0]["machine"]["versions"],
            }
        )
    return rows


def _shown(value: dict[str, Any] | None, digits: int) -> str:
    if value is None:
        return "—"
    return f"{value['mean']:.{digits}f}" + (f" ± {value['std']:.{digits}f}" if "std" in value else "")


def table(rows: list[dict[str, Any]]) -> str:
    """Return the rows as text, with each speed-up relative to the reference."""
    reference: dict[tuple[str, str], float] = {}
    for row in rows:
        for level, reached in row["seconds_to"].items():
            if row["recipe"] == "reference" and not row["changed"] and reached:
                key = _comparable(row), level
                reference[key] = min(reached["mean"], reference.get(key, reached["mean"]))
    levels = list(rows[0]["seconds_to"])
    header = [
        "recipe",
        "epochs",
        "n",
        "images/s",
        *(f"s to {level}" for level in levels),
        "s in all",
        "held-out %",
        "test %",
        "ECE %",
    ]
    lines = [header]
    for row in rows:
        done, epochs = row["epochs_done"], row["epochs"]
        lasted = str(epochs) if done == epochs else f"{done} of {epochs}"
        cells = [row["recipe"] + _settings(row["changed"]), lasted, str(row["runs"])]
        cells.append(f"{row['images_per_second']:.0f}")
        for level in levels:
            own, other = row["seconds_to"][level], reference.get((_comparable(row), level))
            sooner = f" ({other / own['mean']:.1f}x)" if own and other and row["recipe"] != "reference" else ""
            cells.append(_shown(own, 0) + sooner)
        cells.append(_shown(row["training_seconds"], 0))
        cells += [_shown(row[name], 2) for name in ("held_out_accuracy", "test_accuracy", "ece")]
        lines.append(cells)
    return report.table(lines)


def curves(runs: list[Finished]) -> list[dict[str, Any]]:
    """Return accuracy in per cent over seconds of training for each run, which `draw.py` draws."""
    return [
        {
            "recipe": record["recipe"]["name"] + _settings(changed(record["recipe"])),
            "seed": record["seed"],
            "points": [[seconds, None if isnan(reached) else reached] for seconds, reached in course(metrics)],
        }
        for record, metrics in runs
    ]


def _recipe(text: str) -> Recipe:
    """Return the recipe that NAME[:EPOCHS][,SETTING=VALUE]… means."""
    first, *settings = text.split(",")
    name, _, epochs = first.partition(":")
    if name not in RECIPES or (epochs and not epochs.isdecimal()):
        raise argparse.ArgumentTypeError(f"{text} is not NAME or NAME:EPOCHS with NAME of {', '.join(RECIPES)}")
    recipe = RECIPES[name]
    if epochs == "0":
        raise argparse.ArgumentTypeError("epochs cannot be 0")
    if epochs:
        recipe = replace(recipe, epochs=int(epochs), cuda_epochs=0)
    kinds = {field.name: type(getattr(recipe, field.name)) for field in fields(Recipe)}
    for setting in settings:
        key, _, value = setting.partition("=")
        if key not in set(kinds) - {"name", "epochs", "cuda_epochs"}:
            raise argparse.ArgumentTypeError(f"{key} is no setting of a recipe")
        try:
            read = {"True": True, "False": False}[value] if kinds[key] is bool else kinds[key](value)
        except (KeyError, ValueError):
            raise argparse.ArgumentTypeError(f"{value} is no value for {key}, such as {getattr(recipe, key)}") from None
        try:
            recipe = replace(recipe, **{key: read})
        except ValueError as error:
            raise argparse.ArgumentTypeError(str(error)) from None
    return recipe


def _folder(recipe: Recipe, seed: int) -> str:
    return f"{recipe.name}-{recipe.epochs}{_settings(changed(asdict(recipe)))}-seed{seed}"


def finished_run(
    recipe: Recipe, dataset: data.Dataset, folder: Path, options: loop.TrainingOptions | None = None
) -> Run:
    """Return the finished run in `folder`, and train what it lacks."""
    run = Run(folder)
    if not (folder / RECORD).exists():
        loop.train(recipe, dataset, folder, options)
    elif not run.record.is_finished:
        loop.resume(run, dataset, options)
    return run


def part_of(dataset: data.Dataset, known: Sequence[int]) -> data.Dataset:
    """Return the pictures of the classes `known`, which are numbered anew, in this order."""
    places = np.full(dataset.contract.classes, -1)
    places[list(known)] = np.arange(len(known))
    chosen = [np.flatnonzero(places[labels] >= 0) for labels in (dataset.train_labels, dataset.test_labels)]
    names = tuple(dataset.contract.labels[label] for label in known)
    return replace(
        dataset,
        contract=replace(dataset.contract, labels=names),
        name=f"{dataset.name}, {len(known)} classes",
        train_images=dataset.train_images[chosen[0]],
        train_labels=places[dataset.train_labels[chosen[0]]],
        test_images=dataset.test_images[chosen[1]],
        test_labels=places[dataset.test_labels[chosen[1]]],
        digest=sha256(f"{dataset.digest} {list(known)}".encode()).hexdigest(),
    )


def _train(recipe: Recipe, seed: int, dataset: data.Dataset, folder: Path, device: str) -> Run:
    where = choose_device(device)
    if (folder / RECORD).exists():
        made = Run(folder).record
        if made.dataset.sha256 != dataset.digest or made.conditions.device != str(where):
            raise RunError(
                f"{folder} was trained on other data or another device ({made.dataset.name}, "
                f"{made.conditions.device}): choose another --out."
            )
    return finished_run(recipe, dataset, folder, loop.TrainingOptions(where, seed, Line(folder.name)))


def main(arguments: list[str] | None = None) -> None:
    """Train what is asked for, and report."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--recipe", type=_recipe, action="append", default=[], metavar="NAME[:EPOCHS][,SETTING=VALUE…]")
    parser.add_argument("--seeds", type=harness.positive(int), default=1, help="runs of each recipe, seeds 0, 1, …")
    parser.add_argument("--run", type=Path, action="append", default=[], help="a run folder to report beside them")
    parser.add_argument("--level", type=float, action="append", help="an accuracy in per cent to report the time to")
    parser.add_argument("--data", help="folder of the CIFAR-10 files, as 'edgecifar train' takes it")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--out", type=Path, default=Path("training-runs"), help="where the runs go")
    report.add_save(parser, "training")
    options = parser.parse_args(arguments)
    found = [Run(folder) for folder in options.run]
    if options.recipe:
        recipes = [recipe.on(choose_device(options.device).type) for recipe in options.recipe]
        dataset = data.load(options.data)
        found += [
            _train(recipe, seed, dataset, options.out / _folder(recipe, seed), options.device)
            for seed in range(options.seeds)  # seeds outside: a slow hour hits every recipe
            for recipe in recipes
        ]
    runs = [(run.record.as_json(), run.metrics) for run in found]
    runs = [(record, metrics) for record, metrics in runs if metrics]
    if not runs:
        parser.error("there is nothing to report: name a --recipe, or a --run with at least one complete epoch")
    rows = summarise(runs, options.level or list(LEVELS))
    settings = {"levels": options.level or list(LEVELS), "seeds": options.seeds}
    report.finish(report.document("training", settings, rows, curves=curves(runs)), table(rows), options.save)


if __name__ == "__main__":
    harness.main(main)
