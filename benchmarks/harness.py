"""What latency.py, peers.py and variants.py share: turns taken in rounds, figures, ratios, table, picture and JSON.

It knows nothing of models; an entry is a function without arguments and what to call it.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from edgecifar.runtime import EdgecifarError, machine
from edgecifar.runtime.benchmark import percentile, take_turns
from edgecifar.runtime.contract import SIDE
from edgecifar.runtime.errors import ProviderError
from edgecifar.runtime.files import write_file
from edgecifar.runtime.session import PROVIDERS, Session

PERCENTILES = (50, 90, 99, 99.9)
LOAD = [round(value, 2) for value in os.getloadavg()] if hasattr(os, "getloadavg") else None
"""The machine's load averages when the script began: afterwards they would show its own work."""


Function = Callable[[np.ndarray], np.ndarray]
"""From uint8 [N, 32, 32, 3] to probabilities, float32 [N, 10]."""

CHECKED = 96
"""Images on which answers are compared, or a batch where that is more."""


def random_images(count: int, seed: int = 0) -> np.ndarray:
    """Return uint8 [count, 32, 32, 3] of random squares, 1 to 32 pixels wide: noise alone is all one class to a net."""
    rng = np.random.default_rng(seed)
    images = np.empty((count, SIDE, SIDE, 3), np.uint8)
    for index in range(count):
        side = 2 ** (index % 6)  # of a square
        squares = rng.integers(0, 256, (SIDE // side, SIDE // side, 3), np.uint8)
        images[index] = squares.repeat(side, 0).repeat(side, 1)
    return images


@dataclass
class Entry:
    """Something that is measured, or the reason why it is not.

    Attributes:
        labels: what tells it apart from the others; each is a column of the table.
        call: what is timed; None where there is nothing to time.
        images: how many images a call classifies.
        problem: why it cannot be measured and what to do, in a sentence.
        details: what else the line of JSON says of it, such as the nodes that each provider runs.
        bases: the entries that it is held against, by what the ratio is called.
        ceiling: images/s that the device could give if it computed at its peak all the time; None where nobody knows.
        rounds: the times of its calls in seconds, float64 [calls] a round.
    """

    labels: dict[str, Any]
    call: Callable[[], object] | None = None
    images: int = 1
    problem: str = ""
    details: dict[str, Any] = field(default_factory=dict)
    bases: dict[str, Entry] = field(default_factory=dict)
    ceiling: float | None = None
    rounds: list[np.ndarray] = field(default_factory=list)

    def row(self) -> dict[str, Any]:
        """Return what the line of JSON says of it; the figures are there only where it was measured."""
        row = {**self.labels, **self.details, "problem": self.problem or None}
        if not self.rounds:
            return row
        ratios = {name: ratio(self.rounds, base.rounds) for name, base in self.bases.items() if base.rounds}
        row |= figures(np.concatenate(self.rounds), self.images)
        if self.ceiling:
            row["peak_share"] = row["images_per_second"] / self.ceiling
        return {**row, "ratios": ratios}


def alternate(
    entries: Sequence[Entry],
    seconds: float,
    rounds: int = 10,
    clock: Callable[[], float] = time.perf_counter,
    seed: int = 0,
) -> None:
    """Time the calls of `entries` that have one, about `seconds` each, in turns, as `take_turns` says."""
    measured = [(entry, entry.call) for entry in entries if entry.call]
    turns = take_turns([call for _, call in measured], seconds, rounds, clock, seed)
    for (entry, _), times in zip(measured, turns, strict=True):
        entry.rounds += times


def figures(times: np.ndarray, images: int) -> dict[str, Any]:
    """Return n, mean, percentiles in ms and images/s of calls that took `times` seconds, float64 [calls].

    A percentile is None where `percentile` has none: 99.9 % takes 1,000 calls.
    """
    milliseconds: dict[str, float | None] = {"mean": float(1000 * times.mean())}
    milliseconds |= {f"p{p}": percentile(1000 * times, p) for p in PERCENTILES}
    return {
        "n": len(times),
        "milliseconds": milliseconds,
        "images_per_second": float(images * len(times) / times.sum()),
    }


def ratio(rounds: Sequence[np.ndarray], base: Sequence[np.ndarray]) -> dict[str, float]:
    """Return how many times as long as `base` it took, round by round by the medians: the median and the quartiles."""
    pairs = [np.median(mine) / np.median(other) for mine, other in zip(rounds, base, strict=True)]
    low, median, high = np.percentile(pairs, (25, 50, 75))
    return {"median": float(median), "low": float(low), "high": float(high)}


def ran_on(session: Session) -> dict[str, Any]:
    """Return the provider, how many nodes each provider of onnxruntime runs, and the share of the one asked for.

    Raises:
        ProviderError: not every node runs where it was told to; such a session is not measured.
    """
    return share(session.provider, PROVIDERS[session.provider][0], session.assignment())


def share(provider: str, full_name: str, nodes: Mapping[str, int] | None) -> dict[str, Any]:
    """As `ran_on`, of any `provider`, whose name in `nodes` is `full_name`; the share is None where nobody tells."""
    if nodes is None:
        return {"ran_on": provider, "nodes": None, "share": None}
    total, own = sum(nodes.values()), nodes.get(full_name, 0)
    if not total or own < total:
        raise ProviderError(
            f"Only {own} of {total} nodes run on {provider}, so it is not measured: choose another variant or provider."
        )
    return {"ran_on": provider, "nodes": dict(nodes), "share": own / total}


def problem(error: Exception) -> str:
    """Say in a sentence why something could not be measured; each engine has failures of its own."""
    if isinstance(error, EdgecifarError):
        return str(error)
    reason = (str(error).strip() or type(error).__name__).splitlines()[0][:200].rstrip(".")
    return f"it does not run here ({reason})."


def document(benchmark: str, entries: Sequence[Entry], settings: Mapping[str, Any], **versions: str) -> dict[str, Any]:
    """Return the JSON document of a run: the machine, what was asked for, and a row an entry."""
    described = machine.describe()
    found = described["versions"]
    described["versions"] = {**(found if isinstance(found, dict) else {}), **versions}
    return {
        "benchmark": benchmark,
        "machine": {**described, "gpus": gpus(), "load_average": LOAD},
        "settings": dict(settings),
        "rows": [entry.row() for entry in entries],
    }


def gpus() -> list[str]:
    """Return name, driver and memory of each NVIDIA GPU; none where its tool is not there."""
    tool = shutil.which("nvidia-smi")
    if not tool:
        return []
    query = [tool, "--query-gpu=name,driver_version,memory.total", "--format=csv,noheader"]
    done = subprocess.run(query, capture_output=True, text=True, check=False)
    return done.stdout.splitlines() if done.returncode == 0 else []


def table(entries: Sequence[Entry]) -> str:
    """Return the entries as lines of text; what could not be measured says why, below."""
    labels = list(dict.fromkeys(name for entry in entries for name in entry.labels))
    ratios = list(dict.fromkeys(name for entry in entries for name in entry.bases))
    names = [f"p{p}" for p in PERCENTILES] + ["mean"]
    shares = ["of peak"] if any(entry.ceiling for entry in entries) else []
    columns = [*labels, *(f"{name} ms" for name in names), "images/s", "calls", *shares]
    lines = [[*columns, *(f"of {name}" for name in ratios)]]
    notes = []
    for entry in entries:
        cells = [str(entry.labels.get(name, "")) for name in labels]
        row = entry.row()
        if "n" in row:
            known = [row["milliseconds"][name] for name in names]
            cells += ["" if value is None else f"{value:.3f}" for value in known]
            cells += [f"{row['images_per_second']:,.0f}", f"{row['n']:,}"]
            if shares:
                cells.append(f"{100 * row['peak_share']:.2f} %" if "peak_share" in row else "")
            for name in ratios:
                found = row["ratios"].get(name)
                cells.append(f"{found['median']:.3f} ({found['low']:.3f} to {found['high']:.3f})" if found else "")
        if entry.problem:
            notes.append(" ".join([*filter(None, cells[: len(labels)])]) + f": {entry.problem}")
        if "n" in row:
            lines.append(cells)
    return "\n".join([aligned(lines, len(labels)), *([""] if notes else []), *notes])


def aligned(lines: Sequence[Sequence[str]], labels: int) -> str:
    """Return lines of cells as text in columns, the first `labels` of them flush left, the others flush right."""
    widths = [max(len(line[column]) for line in lines) for column in range(len(lines[0]))]
    return "\n".join(
        "  ".join(
            cell.ljust(width) if column < labels else cell.rjust(width)
            for column, (cell, width) in enumerate(zip(line, widths, strict=True))
        ).rstrip()
        for line in lines
    )


def draw(entries: Sequence[Entry], path: Path, title: str) -> None:
    """Draw the median of each measured entry as a bar, with a line on to its highest known percentile, into a PNG.

    Entries that differ in the label "batch" get axes of their own.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    groups: dict[Any, list[Entry]] = {}
    for entry in entries:
        if entry.rounds:
            groups.setdefault(entry.labels.get("batch", ""), []).append(entry)
    if not groups:
        raise EdgecifarError("Nothing was measured, so there is nothing to draw: leave out --picture.")
    sizes = [len(group) for group in groups.values()]
    figure = Figure(figsize=(8, 0.6 + 0.25 * sum(sizes) + 0.7 * len(sizes)), layout="constrained")
    FigureCanvasAgg(figure)
    figure.suptitle(title, fontsize=10)
    parts = figure.subplots(len(groups), 1, squeeze=False, height_ratios=[size + 1 for size in sizes])[:, 0]
    for axes, (batch, group) in zip(parts, groups.items(), strict=True):
        rows = sorted(
            ((entry.row()["milliseconds"], entry.labels) for entry in group),
            key=lambda row: row[0]["p50"],
            reverse=True,
        )
        medians = [milliseconds["p50"] for milliseconds, _ in rows]
        highest = [max(value or 0 for value in milliseconds.values()) for milliseconds, _ in rows]
        axes.barh(range(len(rows)), medians, color="#4c72b0")
        axes.hlines(range(len(rows)), medians, highest, color="#444444", linewidth=1)
        for place, (median, high) in enumerate(zip(medians, highest, strict=True)):
            axes.text(high, place, f"  {median:.3g}" if median < 100 else f"  {median:,.0f}", fontsize=7, va="center")
        axes.set_yticks(range(len(rows)), [_name(labels) for _, labels in rows], fontsize=7)
        axes.set_xscale("log")
        axes.set_xlim(0.5 * min(medians), 2 * max(highest))
        axes.xaxis.set_major_formatter("{x:g}")
        some = "25" if max(highest) < 1000 * min(medians) else ""
        axes.xaxis.set_minor_formatter(lambda x, _, some=some: f"{x:g}" if f"{x:.0e}"[0] in some else "")
        axes.tick_params(axis="x", which="both", labelsize=7)
        axes.set_title(f"batch {batch}" if batch else "", fontsize=9)
    parts[-1].set_xlabel(
        "ms a call: the median, bar and number, and a line to the highest percentile known", fontsize=8
    )
    write_file(path, lambda staged: figure.savefig(staged, format="png", dpi=110))


def _name(labels: Mapping[str, Any]) -> str:
    """Say in a line what the labels say."""
    threads = labels.get("threads", "")
    shown = {**labels, "threads": threads and f"{threads} thread{'s' if threads > 1 else ''}"}
    return ", ".join(str(value) for name, value in shown.items() if name not in ("batch", "agree") and value != "")


def header(described: Mapping[str, Any]) -> str:
    """Return what `document` says of the machine, in a line."""
    gpus = "".join(f"; {gpu}" for gpu in described["gpus"])
    return (
        f"{described['cpu']}, {described['usable_cpus']} usable cores, quota {described['cpu_quota'] or 'none'}, "
        f"{' '.join(described['cpu_features'])}{gpus}; load before {described['load_average']}; "
        f"{', '.join(f'{name} {version}' for name, version in described['versions'].items())}"
    )


def report(
    benchmark: str,
    entries: Sequence[Entry],
    settings: Mapping[str, Any],
    picture: Path | None,
    remarks: Sequence[str] = (),
    **versions: str,
) -> None:
    """Print the table and `remarks`, draw the picture where one is wanted, and end with one line of JSON."""
    found = document(benchmark, entries, settings, **versions)
    described = found["machine"]
    print(f"{header(described)}\n")
    print("\n".join([table(entries), *([""] if remarks else []), *remarks]))
    hardware = [described["cpu"], f"{described['usable_cpus']} usable cores", *described["gpus"]]
    finish(found, picture, lambda path: draw(entries, path, f"{benchmark}: {', '.join(hardware)}"))


def finish(found: Mapping[str, Any], picture: Path | None, draw: Callable[[Path], object]) -> None:
    """Draw the picture where one is wanted, and end with one line of JSON, whatever became of the picture.

    Raises:
        EdgecifarError: it could not be drawn; the JSON was printed.
    """
    failure = None
    if picture:
        try:
            draw(picture)
            print(f"\nDrawn into {picture}.")
        except ModuleNotFoundError:
            failure = EdgecifarError("--picture needs matplotlib, which is not installed: pip install matplotlib.")
        except EdgecifarError as error:
            failure = error
    print()
    print(json.dumps(found, allow_nan=False, ensure_ascii=False), flush=True)
    if failure:
        raise failure


def positive(kind: type[int] | type[float]) -> Callable[[str], int | float]:
    """Return a reader of an option that must be more than 0, and finite."""

    def read(text: str) -> int | float:
        value = kind(text)
        if not 0 < value < float("inf"):
            raise argparse.ArgumentTypeError(f"{text} is not more than 0")
        return value

    return read


def add_picture(parser: argparse.ArgumentParser, script: str) -> None:
    """Add --picture, which without a path means a PNG beside `script`."""
    beside = Path(script).with_suffix(".png")
    parser.add_argument("--picture", type=Path, nargs="?", const=beside, help=f"draw a PNG, by default {beside.name}")


def say(line: str) -> None:
    """Print a line about what is going on, on stderr."""
    print(line, file=sys.stderr, flush=True)


def main(function: Callable[[], None]) -> None:
    """Run a script; a failure that a person can understand is one sentence on stderr and exit code 1."""
    try:
        function()
    except EdgecifarError as error:
        sys.exit(f"{Path(sys.argv[0]).name}: {error}")
