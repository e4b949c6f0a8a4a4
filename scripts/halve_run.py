#!/usr/bin/env python3
"""Copy a finished run with its weights in half precision: what taught the shipped students is kept so, in few bytes.

    python scripts/halve_run.py RUN OUT
    python scripts/halve_run.py --students RUN

OUT is a run like any other, for `--teacher`, `evaluate` or `export`. Its weights are computed with in float32, after
rounding to half precision; its digest is another, so that what learns from it is not what learnt from RUN to the bit.
The test figures in its record are those of RUN.

With --students the students in RUN that are finished are rounded where they are, and RUN itself stays as it is: later
exports take them as they would have taken what was rounded.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Mapping
from pathlib import Path

import torch

from edgecifar.export.compress.distill import FOLDER
from edgecifar.runtime import EdgecifarError
from edgecifar.runtime.errors import RunError
from edgecifar.runtime.files import new_folder
from edgecifar.train.answers import store, stored
from edgecifar.train.run import Run


def check(state: Mapping[str, torch.Tensor], of: Path) -> None:
    """Make sure that half precision can hold these weights; a `RunError` names what it cannot hold."""
    for name, tensor in state.items():
        if tensor.is_floating_point() and not tensor.half().isfinite().all():
            raise RunError(f"{name} of {of} has values that half precision cannot hold: keep it as it is.")


def halve(run: Run, out: Path) -> Run:
    """Return the copy of `run` in the new folder `out`.

    Raises:
        RunError: `run` is not finished or damaged, or a weight is too large for half precision.
        OutputError: `out` exists or cannot be written.
    """
    record, net, metrics = run.record, run.net(), run.metrics
    if not record.is_finished:
        raise RunError(f"{run.folder} is not finished: resume it first.")
    check(net.state_dict(), run.folder)
    with new_folder(out) as folder:
        Run(folder).finish(net, record, metrics, torch.float16)
    return Run(out)


def halve_students(run: Run) -> list[Path]:
    """Round the finished students of `run` in place, and return their files.

    Raises:
        RunError: there is none, or a weight is too large for half precision.
        OutputError: a file cannot be written.
    """
    finished = []
    for path in sorted((run.folder / FOLDER).glob("*.state")):
        state = stored(path)
        if state is None or state.get("optimizers", True):  # damaged, not finished, or no student
            continue
        check(state["net"], path)
        halves = {name: t.half() if t.is_floating_point() else t for name, t in state["net"].items()}
        store(path, {**state, "net": halves})
        finished.append(path)
    if not finished:
        raise RunError(f"{run.folder} has no finished students: name the run that taught them.")
    return finished


def main() -> int:
    """Halve what is named."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path, metavar="RUN", help="a finished run")
    parser.add_argument("out", type=Path, metavar="OUT", nargs="?", help="the folder to make")
    parser.add_argument("--students", action="store_true", help="round the finished students of RUN instead")
    given = parser.parse_args()
    if given.students == (given.out is not None):
        parser.error("name OUT, or say --students")
    run = Run(given.run)
    try:
        files = halve_students(run) if given.students else [*halve(run, given.out).folder.iterdir()]
    except EdgecifarError as error:
        sys.exit(f"halve_run.py: {error}")
    for path in files:
        print(f"{path}: {path.stat().st_size:,} bytes")
    return 0


if __name__ == "__main__":
    sys.exit(main())
