"""Draws the pictures of the documentation from the results that the benchmarks kept.

    python benchmarks/draw.py                 # all that benchmarks/results/ has figures for
    python benchmarks/draw.py variants peers  # these

`python benchmarks/NAME.py … --save` writes benchmarks/results/NAME.json; this script draws benchmarks/pictures/NAME.png
from it. Nothing is measured here.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import drawing
import harness
from drawing import BLUE, GREY, RED, Point
from frontier import costs, frontier
from report import RESULTS

from edgecifar.runtime import EdgecifarError

MLPERF_TINY = {"MLPerf Tiny IC01": (98_496, 85.0), "MLPerf Tiny IC02": (512_024, 91.0)}
"""Bytes and accuracy, in per cent, of the references that image classification has in MLPerf Tiny."""

RESULTS_OF = {"sizes": "variants"}
"""Pictures that are drawn from the results of another name."""

PICTURES = RESULTS.parent / "pictures"


def title(found: Mapping[str, Any]) -> str:
    """Return the hardware that a document was measured on."""
    described = found["machine"]
    return ", ".join([described["cpu"], f"{described['usable_cpus']} cores", *described.get("gpus", [])])


def bars(found: Mapping[str, Any]) -> Any:
    """Draw the median of each row as a bar, with a line on to its highest known percentile; axes for each batch size.

    Of latency.py and peers.py.
    """
    groups: dict[Any, list[Mapping[str, Any]]] = {}
    for row in found["rows"]:
        if row.get("milliseconds", {}).get("p50"):
            groups.setdefault(row.get("batch", ""), []).append(row)
    sizes = [len(group) for group in groups.values()]
    figure = drawing.new_figure((8, 0.6 + 0.25 * sum(sizes) + 0.7 * len(sizes)), title(found))
    parts = figure.subplots(len(groups), 1, squeeze=False, height_ratios=[size + 1 for size in sizes])[:, 0]
    for axes, (batch, group) in zip(parts, groups.items(), strict=True):
        rows = sorted(group, key=lambda row: row["milliseconds"]["p50"], reverse=True)
        medians = [row["milliseconds"]["p50"] for row in rows]
        highest = [max(value or 0 for value in row["milliseconds"].values()) for row in rows]
        axes.barh(range(len(rows)), medians, color=BLUE)
        axes.hlines(range(len(rows)), medians, highest, color=GREY, linewidth=1)
        for place, (median, high) in enumerate(zip(medians, highest, strict=True)):
            axes.text(high, place, f"  {median:.3g}" if median < 100 else f"  {median:,.0f}", fontsize=7, va="center")
        axes.set_yticks(range(len(rows)), [_name(row) for row in rows], fontsize=7)
        axes.set_xscale("log")
        axes.set_xlim(0.5 * min(medians), 2 * max(highest))
        drawing.log_axis(axes.xaxis, max(highest) > 1000 * min(medians))
        axes.tick_params(axis="x", which="both", labelsize=7)
        axes.set_title(f"batch {batch}" if batch else "", fontsize=9)
    parts[-1].set_xlabel("ms a call: the median (bar, number), and a line to the highest percentile known", fontsize=8)
    return figure


def _name(row: Mapping[str, Any]) -> str:
    """Return a row's labels in a line."""
    known = ("engine", "precision", "provider", "variant", "call")
    threads = row.get("threads")
    count = [f"{threads} thread{'s' * (threads > 1)}"] if threads else []
    return ", ".join([*(row[name] for name in known if row.get(name)), *count])


def variants(found: Mapping[str, Any]) -> Any:
    """Draw accuracy over latency at batch 1, areas in proportion to bytes, a label beside each point.

    Of variants.py and widths.py. The line is the highest accuracy within a latency, whatever the size. Filled points
    are on the frontier where size counts too.
    """
    rows = [row for row in found["rows"] if row["latency"] and row["test"]]
    points = [(costs(row)[1], 100 * row["test"]["accuracy"]) for row in rows]
    threads = found["settings"]["threads"]
    figure = drawing.new_figure((9, 5), f"{found['settings']['dataset']} on {title(found)}, {threads} threads")
    axes = figure.subplots()
    best = sorted(point for point, is_on in zip(points, frontier([(x, -y) for x, y in points]), strict=True) if is_on)
    best.append((max(x for x, _ in points), best[-1][1]))  # nothing slower is more accurate than the last
    steps = [corner for (x, y), (next_x, _) in pairwise(best) for corner in ((x, y), (next_x, y))] + best[-1:]
    axes.plot(*zip(*steps, strict=True), color="#999999", linewidth=1, zorder=1)
    largest = max(row["bytes"] for row in rows)
    areas = [30 + 1200 * row["bytes"] / largest for row in rows]
    for (x, y), area, row in zip(points, areas, rows, strict=True):
        colour = RED if row["precision"] == "int8" else BLUE
        face = colour if row["frontier"] else "none"
        axes.scatter(x, y, s=area, edgecolor=colour, facecolor=face, alpha=0.7, zorder=2)
    axes.set_xscale("log")
    axes.margins(0.14, 0.14)
    drawing.log_axis(axes.xaxis)
    axes.grid(alpha=0.3)
    says = "ms an image at batch 1, median (red: int8; blue: float; area: bytes; filled: on the frontier)"
    axes.set_xlabel(says, fontsize=9)
    epochs = found["settings"].get("epochs")
    measured_on = f"held-out images after {epochs} epochs" if epochs else "test images"
    axes.set_ylabel(f"accuracy on the {measured_on}, %", fontsize=9)
    figure.canvas.draw()  # from here on the places of all points are known
    figure.set_layout_engine("none")
    labels = [f"{row['variant']}, {row['bytes'] / 1e6:.3g} MB" for row in rows]
    placed = [Point(x, y, area**0.5 / 2, label) for (x, y), area, label in zip(points, areas, labels, strict=True)]
    drawing.place_labels(axes, sorted(placed, key=lambda point: -point.y), steps)
    return figure


def sizes(found: Mapping[str, Any]) -> Any:
    """Draw accuracy over bytes of variants.py's int8 rows, beside MLPerf Tiny's two references."""
    rows = [row for row in found["rows"] if row["test"] and row["precision"] == "int8"]
    figure = drawing.new_figure((7, 4.6), f"{found['settings']['dataset']}, int8, on {title(found)}")
    axes = figure.subplots()
    labels = [f"{row['variant']}, {row['latency']['1']['milliseconds']['p50']:.3f} ms" for row in rows]
    points = [
        Point(row["bytes"], 100 * row["test"]["accuracy"], 4, text) for row, text in zip(rows, labels, strict=True)
    ]
    references = [Point(size, reached, 4, name) for name, (size, reached) in MLPERF_TINY.items()]
    for group, marker, colour in ((points, "o", RED), (references, "x", GREY)):
        axes.scatter([point.x for point in group], [point.y for point in group], marker=marker, color=colour, zorder=2)
    axes.set_xscale("log")
    axes.margins(0.16, 0.16)
    axes.grid(alpha=0.3)
    axes.set_xlabel("bytes of the file (x: what MLPerf Tiny's references have; this is no MLPerf result)", fontsize=9)
    axes.set_ylabel("accuracy on the test images, %", fontsize=9)
    figure.canvas.draw()
    figure.set_layout_engine("none")
    drawing.place_labels(axes, sorted([*points, *references], key=lambda point: -point.y))
    return figure


def accuracy(found: Mapping[str, Any]) -> Any:
    """Draw accuracy over severity: axes for each corruption, a line for each model; severity 0 is the clean images."""
    rows = [row for row in found["rows"] if row["corrupted"]]
    corruptions = [*rows[0]["corrupted"]] if rows else []
    called = {row["model"]: row["model"] for row in rows} | {"run": found["settings"].get("run") or "run"}
    figure = drawing.new_figure((9, 5.4), f"{found['settings']['dataset']} test images, corrupted as in CIFAR-10-C")
    every = figure.subplots(2, 3, sharex=True, sharey=True)
    for axes, corruption in zip(every.flat, corruptions, strict=True):
        for row in rows:
            figures = [row["clean"], *row["corrupted"][corruption]]
            axes.plot([100 * one["accuracy"] for one in figures], marker=".", label=called.get(row["model"]), alpha=0.8)
        axes.set_title(corruption, fontsize=9)
        axes.grid(alpha=0.3)
    for axes in every[-1]:
        axes.set_xlabel("severity", fontsize=8)
    for axes in every[:, 0]:
        axes.set_ylabel("accuracy, %", fontsize=8)
    lines, names = every.flat[0].get_legend_handles_labels()
    figure.legend(lines, names, loc="outside lower center", ncols=len(names), fontsize=8)
    return figure


def training(found: Mapping[str, Any]) -> Any:
    """Draw accuracy over seconds of training, a curve for each run."""
    curves: Sequence[Mapping[str, Any]] = found["curves"]
    figure = drawing.new_figure((7, 4.6), title(found))
    axes = figure.subplots()
    names = list(dict.fromkeys(curve["recipe"] for curve in curves))
    for curve in curves:
        seconds, reached = zip(*curve["points"], strict=True)
        colour = f"C{names.index(curve['recipe'])}"
        axes.plot(seconds, reached, marker=".", color=colour, label=f"{curve['recipe']}, seed {curve['seed']}")
    axes.set(xlabel="seconds of training", ylabel="accuracy outside of training, %", xscale="log")
    axes.grid(alpha=0.3)
    figure.legend(loc="outside lower center", ncols=2, fontsize=8)
    return figure


def reference(found: Mapping[str, Any]) -> Any:
    """Draw the loss of a run of the reference's recipe over its epochs beside what the experiment reported."""
    settings, rows = found["settings"], found["rows"]
    figure = drawing.new_figure((7, 4.2), f"{settings['recipe']} on {settings['hardware']}, seed {settings['seed']}")
    axes = figure.subplots()
    reported = [(row["epoch"], row["reported"]) for row in rows if row["reported"] is not None]
    axes.plot([row["epoch"] for row in rows], [row["loss"] for row in rows], color=BLUE, label="this run, loss")
    axes.plot(*zip(*reported, strict=True), linestyle="none", marker="o", color=RED, label="reported, loss")
    axes.set(xlabel="epoch", ylabel="mean loss of the first 2,000 mini-batches")
    axes.grid(alpha=0.3)
    reached = [(row["epoch"], row["accuracy"]) for row in rows if row["accuracy"] is not None]
    beside = axes.twinx()
    beside.plot(*zip(*reached, strict=True), color=GREY, label="this run, test accuracy")
    beside.axhline(settings["reported_accuracy"], color=GREY, linestyle=":", label="reported, after the last epoch")
    beside.set_ylabel("accuracy, %")
    figure.legend(loc="outside lower center", ncols=2, fontsize=8)
    return figure


def load(found: Mapping[str, Any]) -> Any:
    """Draw the last load of serving_limits.py: answers a second, and their median and 99th percentile, over time."""
    row = found["rows"][-1]
    figure = drawing.new_figure((8, 4.5), f"edgecifar serve, {row['load']}: {title(found)}")
    above, below = figure.subplots(2, 1, sharex=True)
    seconds = row["series"]["seconds"]
    above.plot(seconds, row["series"]["answers_per_second"], color=BLUE)
    above.set_ylabel("answers a second")
    above.set_ylim(bottom=0)
    for name, colour in (("p50", BLUE), ("p99", RED)):
        below.plot(seconds, row["series"][name], color=colour, label=name)
    below.set_ylabel("ms")
    below.set_ylim(bottom=0)
    below.set_xlabel("seconds")
    below.legend()
    return figure


DRAWERS: dict[str, Callable[[Mapping[str, Any]], Any]] = {
    "variants": variants,
    "sizes": sizes,
    "widths": variants,
    "peers": bars,
    "latency": bars,
    "accuracy": accuracy,
    "training": training,
    "reference": reference,
    "serving_overload": load,
    "serving_updates": load,
    "serving_soak": load,
}


def lacks(found: Mapping[str, Any]) -> str:
    """Return why there is nothing to draw, "" where there is something."""
    if found["benchmark"] == "training":
        return "" if found.get("curves") else "it keeps no accuracy by the epoch"
    if found["benchmark"] == "accuracy":
        return "" if any(row["corrupted"] for row in found["rows"]) else "no corrupted images were classified"
    if found["benchmark"] == "reference":
        return "" if any(row["reported"] is not None for row in found["rows"]) else "no epoch has a reported loss"
    if found["benchmark"] == "widths":
        return "" if any(row["test"] for row in found["rows"]) else "nothing was trained"
    measured = [row for row in found["rows"] if row.get("latency") or row.get("milliseconds")]
    return "" if measured else "nothing was measured"


def _command(stem: str) -> str:
    """Return what keeps the results called `stem`."""
    kind = stem.removeprefix("serving_")
    return f"benchmarks/{stem}.py" if kind == stem else f"benchmarks/serving_limits.py {kind}"


def read(path: Path) -> dict[str, Any]:
    """Read a document of results.

    Raises:
        EdgecifarError: it is missing, or not what a benchmark kept.
    """
    again = f"run {_command(path.stem)} with --save"
    try:
        found = json.loads(path.read_bytes())
        known = {"benchmark", "machine", "settings", "rows"} <= {*found}
    except FileNotFoundError:
        raise EdgecifarError(f"{path} is not there: {again} first.") from None
    except (OSError, ValueError, TypeError) as error:
        raise EdgecifarError(f"{path} cannot be read ({error}): {again}.") from None
    if not known:
        raise EdgecifarError(f"{path} is not what a benchmark kept: {again}.")
    return found


def main() -> None:
    """Draw what is asked for."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("name", nargs="*", help=f"of {', '.join(DRAWERS)}; by default all that were kept")
    parser.add_argument("--results", type=Path, default=RESULTS, help="folder of the results")
    parser.add_argument("--pictures", type=Path, default=PICTURES, help="folder for the pictures")
    given = parser.parse_args()
    if unknown := [name for name in given.name if name not in DRAWERS]:
        parser.error(f"there is no picture of {unknown[0]}: choose among {', '.join(DRAWERS)}")
    files = {name: given.results / f"{RESULTS_OF.get(name, name)}.json" for name in DRAWERS}
    for name in given.name or [name for name, file in files.items() if file.exists()]:
        found = read(files[name])
        if reason := lacks(found):
            harness.say(f"{name}: not drawn, {reason}.")
            continue
        path = given.pictures / f"{name}.png"
        drawing.save(DRAWERS[name](found), path)
        harness.say(f"{name}: drawn into {path}.")


if __name__ == "__main__":
    harness.main(main)
