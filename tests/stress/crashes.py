"""Kills training and export again and again, fills their disk, makes it read-only, and counts what was lost.

    python tests/stress/crashes.py [--kills 50] [--folder FOLDER]

It trains Net on drawn pictures and exports it by the command line, in children that get SIGKILL: before and after every
step that gives a file or folder its name, and at random moments of the whole run. Then on disks of their own, that are
too small, then read-only, then large enough. That needs root on Linux, or `unshare --map-root-user --mount python …`.

After every crash all that is on the disk must be whole: a run that can go on or is finished; the earlier bundle or the
new one, and none only where there was none before. The command, repeated, must end as if nothing had happened: the same
weights or the same bundle, bit for bit, and nothing left over. Where anything was lost, the exit code is 1.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib
import json
import os
import shutil
import sys
import tempfile
from collections.abc import Generator, Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any
from unittest import mock

import formatter
import onnx
import torch
from crash_trial import STEPS, Skipped, Trial, require
from PIL import Image
from safetensors.torch import load_file

from edgecifar.cli.app import app
from edgecifar.export import variants
from edgecifar.export.formats import onnx as onnx_format
from edgecifar.export.options import ExportOptions
from edgecifar.runtime import Bundle, files
from edgecifar.runtime.contract import Contract
from edgecifar.runtime.errors import RunError
from edgecifar.runtime.manifest import SUMS
from edgecifar.train import data
from edgecifar.train.run import METRICS, RECORD, RESUME, WEIGHTS, Run


def edgecifar(*arguments: object) -> None:
    """Run the command line in this process; it leaves by `SystemExit`."""
    app([str(argument) for argument in arguments], prog_name="edgecifar")


class Training(Trial):
    """`edgecifar train`, with `--resume` where the run was begun."""

    options = ("--epochs", 2, "--batch-size", 8, "--lr", 0.01, "--held-out", 0.5, "--device", "cpu")

    def begin(self, room: Path) -> None:
        self.folder = room / "run"

    def work(self) -> None:
        if not (self.folder / RECORD).exists():
            edgecifar("train", "--data", "synthetic", "--out", self.folder, *self.options)
        elif not Run(self.folder).record.is_finished:
            edgecifar("train", "--resume", "--out", self.folder, "--device", "cpu")
        elif (self.folder / RESUME).exists():
            with contextlib.suppress(RunError):  # it says that the run is finished, and deletes what is left over
                Run(self.folder).resume_state()

    def check(self) -> None:
        """Require every file to be whole, and the weights the record's unless training goes on without them."""
        run, present = Run(self.folder), {path.name for path in self.folder.glob("[!.]*")}
        if not present:
            return
        if not run.record.is_finished:
            run.resume_state()
        if METRICS in present:
            require(len(run.metrics) > 0, "its metrics are empty")
        if WEIGHTS in present:
            load_file(self.folder / WEIGHTS)
        for picture in self.folder.glob("[!.]*.png"):
            Image.open(picture).load()
        try:
            run.net()
        except RunError as error:
            require(not run.record.is_finished and "--resume" in str(error), str(error))

    def result(self) -> object:
        record, present = Run(self.folder).record, sorted(os.listdir(self.folder))
        return record.status, record.epochs_done, files.sha256(self.folder / WEIGHTS), present


class Exporting(Trial):
    """`edgecifar export` of `run`, with `--force` in the place of an `earlier` bundle, or where there is none."""

    def __init__(self, room: Path, run: Path, earlier: Path | None) -> None:
        super().__init__(room)
        self.run, self.earlier = run, earlier

    def begin(self, room: Path) -> None:
        self.folder = room / "bundle"
        if self.earlier:
            shutil.copytree(self.earlier, self.folder)

    def work(self) -> None:
        edgecifar("export", self.run, "--out", self.folder, *(["--force"] if self.folder.exists() else []))

    def check(self) -> None:
        """Require a bundle that is whole; none only where there was none before."""
        require(self.folder.exists() or not self.earlier, "there is no bundle any more")
        if self.folder.exists():
            failed = [
                f"{check.name}: {check.detail}" for check in Bundle.open(self.folder).verify() if not check.passed
            ]
            require(not failed, "; ".join(failed))

    def result(self) -> object:
        beside = sorted(os.listdir(self.folder.parent))  # nothing but the bundle may be there
        return (self.folder / SUMS).read_text(), sorted(os.listdir(self.folder)), beside

    def at_steps(self, steps: list[tuple[Any, str]] = STEPS) -> Iterator[str]:
        """As any trial; torch's exporter, which takes long, runs once."""
        with exported_once(self.run):
            yield from super().at_steps(steps)


@contextlib.contextmanager
def exported_once(folder: Path) -> Generator[None]:
    """Let torch's exporter run once for each temperature of a net; files are written as ever.

    Args:
        folder: where children find what was exported.
    """
    write = onnx_format.write

    def write_again(model: Any, path: Path, contract: Contract, provenance: Mapping[str, Any]) -> None:
        kept = folder / f"{model.temperature}.onnx"
        if not kept.exists():
            part = kept.with_suffix(".part")  # a kill leaves no half of it
            write(model, part, contract, {})
            part.replace(kept)
        onnx_format.save(onnx.load(kept), path, contract, provenance)

    with mock.patch.object(onnx_format, "write", write_again):
        yield


def prepare(training: Training, folder: Path) -> tuple[Exporting, Exporting]:
    """Make of a whole training the exports: into an empty place, and in the place of a bundle of other bytes."""
    run, other = folder / "run", folder / "other"
    training.whole()
    record = Run(training.folder).record
    deployed = variants.Source(Run(training.folder), None, ExportOptions(without_data=True)).model
    onnx_format.write(deployed, folder / "model.onnx", record.contract, {})  # half of it is imports: once, here
    shutil.copytree(training.folder, run)
    shutil.copytree(training.folder, other)
    hotter = replace(record, temperature=2 * record.temperature)
    (other / RECORD).write_text(json.dumps(hotter.as_json()))
    earlier = Exporting(folder / "earlier", other, None)
    earlier.whole()
    exports = Exporting(folder / "new", run, None), Exporting(folder / "replaced", run, earlier.folder)
    for export in exports:
        export.whole()
    require(exports[0].result() == exports[1].result() != earlier.result(), "exports are not reproducible")
    return exports


def prepare_process() -> None:
    """Do here, once, what every child would have to; but compute no gradient, after which torch does not let fork."""
    torch.set_num_threads(1)
    # `--data synthetic`: few pictures, as the disk is what is tried.
    data.synthetic.__defaults__ = (20, 10, *(data.synthetic.__defaults__ or ())[2:])
    importlib.import_module("edgecifar.cli.display")
    importlib.import_module("edgecifar.export.bom")
    importlib.import_module("matplotlib.backends.backend_agg")
    torch.optim.SGD(torch.nn.Linear(1, 1).parameters(), lr=1)


def main() -> int:
    """Crash everything in every way; return the exit code."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--kills", type=int, default=50, help="at random moments: of training, and of the exports")
    parser.add_argument("--folder", type=Path, help="where, on the disk to try; by default a temporary one")
    given = parser.parse_args()
    prepare_process()
    rows = []
    with tempfile.TemporaryDirectory(dir=given.folder) as name:
        folder = Path(name)
        training = Training(folder / "train")

        def trials() -> Iterator[tuple[str, Trial]]:
            training.whole()
            yield "train", training  # before the ONNX exporter is run here, after which no forked child can train
            yield from zip(("export", "export --force"), prepare(training, folder), strict=True)

        for trial_name, trial in trials():
            ways: dict[str, Iterator[str]] = {
                "killed at a step": trial.at_steps(),
                "killed at a random moment": trial.at_moments(given.kills if trial is training else given.kills // 2),
                "disk full, then read-only": trial.on_disks(),
            }
            for way, crashes in ways.items():
                row = {"command": trial_name, "way": way, "crashes": 0, "lost": 0, "seconds": round(trial.seconds, 1)}
                try:
                    for lost in crashes:
                        row["crashes"] += 1
                        row["lost"] += bool(lost)
                        print(lost or ".", end="\n" if lost else "", file=sys.stderr, flush=True)
                except Skipped as error:
                    row["skipped"] = str(error)
                rows.append(row)
    lines = [["command", "crashed", "times", "lost something", "skipped"]]
    for row in rows:
        lines.append([row["command"], row["way"], str(row["crashes"]), str(row["lost"]), row.get("skipped", "")])
    failures = sum(row["lost"] for row in rows)
    found = formatter.document("crashes", {"kills": given.kills}, rows, failures=failures)
    formatter.finish(found, "\n" + formatter.table(lines, 2))
    return int(failures > 0)


if __name__ == "__main__":
    formatter.main(main)
