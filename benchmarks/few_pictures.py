"""What beginning with another run's weights gains on few pictures: accuracy with `--from` and without.

    python benchmarks/few_pictures.py --each 20 100 500 --seeds 5 --out few-runs

CIFAR-10's first five classes are what a first net learns (`fast`, with its own settings); of the other five, so many
pictures a class are drawn by chance, another choice for each seed, as `edgecifar train --data FOLDER` would find them:
`fast`, adapted to their number, a tenth held out. Each choice is trained on twice, from nothing and from the first net.
Accuracy is that of all test images of these five classes, which no training and no decision sees.

Finished trainings are not repeated, interrupted ones go on from their last checkpoint: the same command goes on after
any stop. Nothing but the figures is kept of a finished one.
"""

from __future__ import annotations

import argparse
import json
import shutil
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from statistics import mean
from typing import Any

import harness
import numpy as np
import report
from training import Line, finished_run, part_of, spread

from edgecifar.runtime import EdgecifarError
from edgecifar.runtime.files import make_folder, write_file
from edgecifar.train import data, loop
from edgecifar.train.adapting import adapt
from edgecifar.train.data import Dataset
from edgecifar.train.devices import choose_device
from edgecifar.train.recipes import RECIPES, Recipe
from edgecifar.train.run import Run
from edgecifar.train.start import CHECKPOINT_SECONDS


@dataclass(frozen=True)
class Trial:
    """One training on few pictures.

    Attributes:
        each: pictures of each class.
        seed: of the choice of pictures, and of the training.
        begun_from: whether it begins with the first net's weights.
    """

    each: int
    seed: int
    begun_from: bool

    @property
    def name(self) -> str:
        """What its folder and its figures are called."""
        return f"{self.each}-{self.seed}-{'from' if self.begun_from else 'nothing'}"


def of_classes(dataset: Dataset, labels: list[int], each: int | None = None, seed: int = 0) -> Dataset:
    """Return the images of some classes as a data set of their own, as `train` takes a folder of pictures.

    Args:
        dataset: with all classes.
        labels: which classes, as indices.
        each: training images of each, drawn by chance; None for all.
        seed: of the choice.
    """
    part, rng = part_of(dataset, labels), np.random.default_rng(seed)
    chosen = [np.flatnonzero(part.train_labels == label) for label in range(len(labels))]
    if each is not None:
        chosen = [rng.permutation(rows)[:each] for rows in chosen]
    rows = np.sort(np.concatenate(chosen))
    return replace(
        part,
        name=f"{len(labels)} classes of {dataset.name}",
        train_images=part.train_images[rows],
        train_labels=part.train_labels[rows],
        digest=f"{dataset.digest} {labels} {each} {seed}",
        origin={"classes": list(part.contract.labels), "each": each, "seed": seed},
    )


def figures(trial: Trial, dataset: Dataset, first: Run, recipe: Recipe, options: argparse.Namespace) -> dict[str, Any]:
    """Return what a trial comes to, from its file where it was made before."""
    path = options.out / f"{trial.name}.json"
    if path.exists():
        return json.loads(path.read_bytes())
    half = dataset.contract.classes // 2
    few = of_classes(dataset, list(range(half, dataset.contract.classes)), trial.each, trial.seed)
    folder = options.out / trial.name
    asked = loop.TrainingOptions(
        device=choose_device(options.device),
        seed=trial.seed,
        listener=Line(trial.name),
        checkpoint_seconds=CHECKPOINT_SECONDS,
        begin_with=first if trial.begun_from else None,
    )
    record = finished_run(adapt(recipe, few, ()), few, folder, asked).record.as_json()
    found = {
        **asdict(trial),
        "accuracy": 100 * record["test"]["accuracy"],
        "images": len(few.test_labels),
        "epochs": record["recipe"]["epochs"],
        "batch_size": record["recipe"]["batch_size"],
        "seconds": record["training_seconds"],
    }
    write_file(path, json.dumps(found).encode())
    shutil.rmtree(folder)
    return found


def check_settings(options: argparse.Namespace, dataset: Dataset, device: str) -> None:
    """Keep in `options.out` what its trainings are of, and refuse to go on with those of something else.

    Raises:
        EdgecifarError: they are.
    """
    asked = {name: getattr(options, name) for name in ("epochs", "first_each", "net")}
    asked |= {"dataset": dataset.digest, "device": device}
    path = options.out / "settings.json"
    make_folder(options.out)
    before = json.loads(path.read_bytes()) if path.exists() else asked
    others = [f"{name} {before.get(name)}, not {value}" for name, value in asked.items() if before.get(name) != value]
    if others:
        raise EdgecifarError(f"{options.out} was begun with other settings ({', '.join(others)}): name another --out.")
    write_file(path, json.dumps(asked).encode())


def summarise(found: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return a row for each number of pictures: accuracies and their difference in points, over the seeds with both."""
    rows = []
    for each in sorted({one["each"] for one in found}):
        by_seed: dict[int, dict[bool, float]] = {}
        for one in (one for one in found if one["each"] == each):
            by_seed.setdefault(one["seed"], {})[one["begun_from"]] = one["accuracy"]
        pairs = [pair for pair in by_seed.values() if len(pair) == 2]
        if pairs:
            rows.append(
                {
                    "each": each,
                    "n": len(pairs),
                    "from_nothing": spread([pair[False] for pair in pairs]),
                    "from_a_run": spread([pair[True] for pair in pairs]),
                    "gain": spread([pair[True] - pair[False] for pair in pairs]),
                }
            )
    return rows


def table(rows: list[dict[str, Any]]) -> str:
    """Return the rows as a Markdown table."""

    def text(summary: dict[str, float]) -> str:
        deviation = f" ± {summary['std']:.1f}" if "std" in summary else ""
        return f"{summary['mean']:.1f}{deviation}"

    lines = ["| pictures a class | n | from nothing, % | `--from`, % | gain, points |", "|---|---|---|---|---|"]
    lines += [
        f"| {row['each']:,} | {row['n']} | {text(row['from_nothing'])} | {text(row['from_a_run'])} | "
        f"{text(row['gain'])} |"
        for row in rows
    ]
    return "\n".join(lines)


def main(arguments: list[str] | None = None) -> None:
    """Train what is asked for, and report."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--each", type=harness.positive(int), nargs="+", default=[20, 100, 500])
    says = "choices of pictures, seeds 0, 1, …; one number, or one for each of --each"
    parser.add_argument("--seeds", type=harness.positive(int), nargs="+", default=[5], help=says)
    parser.add_argument("--first-each", type=harness.positive(int), help="pictures a class of the first net; or all")
    parser.add_argument("--epochs", type=harness.positive(int), help="of the first net; by default the recipe's")
    parser.add_argument("--data", help="folder of the CIFAR-10 files, as 'edgecifar train' takes it")
    parser.add_argument("--net", default=RECIPES["fast"].net, help="what is trained, as a recipe names it")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--out", type=Path, default=Path("few-runs"), help="where the runs go")
    report.add_save(parser, "few_pictures")
    options = parser.parse_args(arguments)
    counts = options.seeds * len(options.each) if len(options.seeds) == 1 else options.seeds
    if len(counts) != len(options.each):
        parser.error(f"--seeds has {len(counts)} numbers and --each {len(options.each)}: give as many, or one.")
    dataset = data.load(options.data)
    device = choose_device(options.device)
    recipe = replace(RECIPES["fast"].on(device.type), net=options.net)
    check_settings(options, dataset, device.type)
    half = dataset.contract.classes // 2
    known = of_classes(dataset, list(range(half)), options.first_each)
    longer = replace(recipe, epochs=options.epochs or recipe.epochs)
    asked = loop.TrainingOptions(device=device, listener=Line("first"), checkpoint_seconds=CHECKPOINT_SECONDS)
    first = finished_run(longer, known, options.out / "first", asked)
    trials = [
        Trial(each, seed, begun_from)
        for each, count in zip(options.each, counts, strict=True)
        for seed in range(count)
        for begun_from in (False, True)
    ]
    found = [figures(trial, dataset, first, recipe, options) for trial in trials]
    record = first.record.as_json()
    described = {
        "epochs": record["recipe"]["epochs"],
        "accuracy": 100 * record["test"]["accuracy"],
        "seconds": record["training_seconds"],
        "hardware": record["hardware"],
        "precision": record["precision"],
    }
    settings = {
        "each": options.each,
        "seeds": counts,
        "first_each": options.first_each,
        "epochs": options.epochs,
        "net": options.net,
        "dataset": dataset.name,
    }
    rows = summarise(found)
    harness.say(
        f"The first net: {described['accuracy']:.1f} %; mean of {len(found)} trainings: "
        f"{mean(one['seconds'] for one in found):.0f} s."
    )
    document = report.document("few_pictures", settings, rows, first=described, trials=found)
    report.finish(document, table(rows), options.save)


if __name__ == "__main__":
    harness.main(main)
