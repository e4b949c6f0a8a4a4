"""How every benchmark and stress test reports: a table for people, one line of JSON, and a file to keep.

The JSON says which machine and versions, what was asked for, and a row for each result, with n and spread.
"""

from __future__ import annotations

import argparse
import functools
import json
import os
import shutil
import subprocess
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from harness import PERCENTILES, Entry

from edgecifar.runtime import machine
from edgecifar.runtime.files import write_file
from edgecifar.runtime.manifest import Variant

RESULTS = Path(__file__).parent / "results"
"""Where the last results are kept; `draw.py` draws its pictures from them."""

LOAD = [round(value, 2) for value in os.getloadavg()] if hasattr(os, "getloadavg") else None
"""The machine's load averages when the script began; later they would show its own work."""


def document(name: str, settings: Mapping[str, Any], rows: Sequence[Mapping[str, Any]], **rest: Any) -> dict[str, Any]:
    """Return the JSON document of a run.

    Args:
        name: of the benchmark.
        settings: what was asked for.
        rows: one for each result.
        rest: more fields; "versions", a dict, is added to the machine's.
    """
    described = machine.describe()
    known = described["versions"]
    described["versions"] = {**(known if isinstance(known, dict) else {}), **rest.pop("versions", {})}
    described |= {"gpus": gpus(), "load_average": LOAD}
    return {"benchmark": name, "machine": described, "settings": dict(settings), **rest, "rows": [*rows]}


def digests(variants: Iterable[Variant]) -> dict[str, str]:
    """Return the SHA-256 of the files of `variants` by their names: a result is of these, whatever ships later."""
    return {variant.name: variant.sha256 for variant in variants}


@functools.cache
def gpus() -> list[str]:
    """Return name, driver and memory of each NVIDIA GPU, asked for once; none if nvidia-smi is missing."""
    tool = shutil.which("nvidia-smi")
    if not tool:
        return []
    query = [tool, "--query-gpu=name,driver_version,memory.total", "--format=csv,noheader"]
    done = subprocess.run(query, capture_output=True, text=True, check=False)
    return done.stdout.splitlines() if done.returncode == 0 else []


def header(described: Mapping[str, Any]) -> str:
    """Return what `document` says of the machine, in a line."""
    gpus = "".join(f"; {gpu}" for gpu in described["gpus"])
    return (
        f"{described['cpu']}, {described['usable_cpus']} usable cores, quota {described['cpu_quota'] or 'none'}, "
        f"{' '.join(described['cpu_features'])}{gpus}; load before {described['load_average']}; "
        f"{', '.join(f'{name} {version}' for name, version in described['versions'].items())}"
    )


def table(lines: Sequence[Sequence[str]], labels: int = 1) -> str:
    """Return lines of cells as text in columns, the first `labels` of them flush left, the others flush right."""
    widths = [max(len(line[column]) for line in lines) for column in range(len(lines[0]))]
    return "\n".join(
        "  ".join(
            cell.ljust(width) if column < labels else cell.rjust(width)
            for column, (cell, width) in enumerate(zip(line, widths, strict=True))
        ).rstrip()
        for line in lines
    )


def shown(ratio: Mapping[str, float] | None, digits: int = 3) -> str:
    """Return a median with its quartiles, such as "1.018 (1.009 to 1.028)"; nothing for None."""
    if ratio is None:
        return ""
    return f"{ratio['median']:.{digits}f} ({ratio['low']:.{digits}f} to {ratio['high']:.{digits}f})"


def entry_table(entries: Sequence[Entry]) -> str:
    """Return the entries as lines of text; below, why some could not be measured."""
    labels = list(dict.fromkeys(name for entry in entries for name in entry.labels))
    ratios = list(dict.fromkeys(name for entry in entries for name in entry.bases))
    names = [f"p{p}" for p in PERCENTILES] + ["mean"]
    shares = ["of peak"] if any(entry.ceiling for entry in entries) else []
    columns = [*labels, *(f"{name} ms" for name in names), "images/s", "calls", *shares]
    lines, notes = [[*columns, *(f"of {name}" for name in ratios)]], []
    for entry in entries:
        cells = [str(entry.labels.get(name, "")) for name in labels]
        row = entry.row()
        if entry.problem:
            notes.append(" ".join(filter(None, cells)) + f": {entry.problem}")
        if "n" not in row:
            continue
        known = [row["milliseconds"][name] for name in names]
        cells += ["" if value is None else f"{value:.3f}" for value in known]
        cells += [f"{row['images_per_second']:,.0f}", f"{row['n']:,}"]
        if shares:
            cells.append(f"{100 * row['peak_share']:.2f} %" if "peak_share" in row else "")
        lines.append([*cells, *(shown(row["ratios"].get(name)) for name in ratios)])
    return "\n".join([table(lines, len(labels)), *([""] if notes else []), *notes])


def add_save(parser: argparse.ArgumentParser, name: str) -> None:
    """Add --save, which without a path means the file in benchmarks/results/ that draw.py reads."""
    default = RESULTS / f"{name}.json"
    says = f"keep the results as JSON, by default in benchmarks/results/{default.name}; draw.py draws from there"
    parser.add_argument("--save", type=Path, nargs="?", const=default, metavar="FILE", help=says)


def finish(found: Mapping[str, Any], text: str, save: Path | None = None) -> None:
    """Print the machine, the table and one line of JSON, and then write the JSON to the file `save`.

    Raises:
        OutputError: the file cannot be written; everything was printed before.
    """
    print(f"{header(found['machine'])}\n\n{text}\n")
    print(json.dumps(found, allow_nan=False, ensure_ascii=False), flush=True)
    if save:
        write_file(save, (json.dumps(found, allow_nan=False, ensure_ascii=False, indent=1) + "\n").encode())
