"""Everything about a GPU in minutes: training, parity, latency, throughput, the reference; the same again on a CPU.

    python benchmarks/gpu.py --minutes 8 --out DIR --data DIR    # on a machine with a CUDA device
    python benchmarks/gpu.py --rehearse --out DIR                # on a processor, on drawn pictures, in two minutes

Tasks in the order of their worth, in seven steps:

    1  smoke       30 steps of each recipe, eagerly and as a CUDA graph: milliseconds, equal losses, no waiting
    2  training    `fast` and `best`, three seeds: seconds to an accuracy, apart from the first use of CUDA's libraries
    3  parity      fp32 and fp16 exported and held against eager torch on the device; fp16 against its own gate
    4  provider    the CUDA provider bare, bound, by a graph, resident and as `Classifier`
    5  reference   50 epochs, loss and accuracy by class beside what the experiment reported
    6  engines     torch compiled and not, plain onnxruntime and ours in turns; the share of the card's peak
    7  more training   `fast` in 20 and in 2 epochs, `teacher`, `best` taught by it

A task begins only where the time that it is expected to take is left. Each writes its rows to DIR/gpu.json and
DIR/gpu.txt at once. The same command goes on: what is done is not done again, and trainings go on where they were.
What did not fit, and what failed, is named with its reason, and the exit code is then 1. DIR is best in memory, such
as /dev/shm: a checkpoint is 250 MB. What can be kept of it is small: --copy-to writes it to another folder as well,
every time. Needs onnxruntime-gpu for steps 4 and 6 and for parity: docs/gpu.md.
"""

from __future__ import annotations

import argparse
import io
import json
import math
import time
import zipfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import gpu_tasks
import harness
import report
import torch
from gpu_setup import Setup, Sizes
from gpu_tasks import OutOfTimeError, Row

from edgecifar.runtime.errors import DataError
from edgecifar.runtime.files import make_folder, write_file
from edgecifar.train import data
from edgecifar.train.devices import choose_device, describe_device
from edgecifar.train.run import METRICS, RECORD

STEPS = dict(enumerate(("smoke", "training", "parity", "provider", "reference", "engines", "more training"), 1))
"""What the steps are called."""

DONE, LEFT_OUT, FAILED, STOPPED, UNDER_WAY = "done", "left out", "failed", "stopped", "under way"
"""What becomes of a task."""

RESERVE = 5.0
"""Seconds at the end for what is under way to be written."""

REHEARSAL = Sizes(
    steps=1,
    batch_size=8,
    epochs=1,
    seeds=1,
    lengths=(),
    batches=(1,),
    seconds=0.02,
    rounds=2,
    product=64,
    engines=("torch eager", "TorchScript", "onnxruntime", "edgecifar"),  # compiling takes a minute on a processor
)


@dataclass(frozen=True)
class Task:
    """A part that is done whole or not at all.

    Attributes:
        step: its number.
        name: what the tables call it.
        seconds: that it is expected to take on an H100; it does not begin where less is left.
        measure: yields its rows, given the time when a training must stop.
    """

    step: int
    name: str
    seconds: float
    measure: Callable[[float], Iterator[Row]]

    @property
    def key(self) -> str:
        """What tells it from all others."""
        return f"{self.step} {self.name}"


def tasks(setup: Setup) -> list[Task]:
    """Return all tasks, the first ones first."""
    found = [
        Task(1, name, 10, lambda end, n=name: gpu_tasks.smoke(setup, n, end))
        for name in ("fast", "best", "reference", "teacher")
    ]

    seeds, batches = setup.sizes.seeds, setup.sizes.batches

    def training(step: int, name: str, seed: int, seconds: float, teacher: str = "") -> Task:
        said = f"{name}{f' taught by {teacher}' * bool(teacher)}, seed {seed}"
        return Task(step, said, seconds, partial(_train, setup, name, seed, teacher))

    found += [training(2, "fast", seed, 12) for seed in range(seeds)]
    found += [training(2, "best", seed, 45) for seed in range(seeds)]
    # Most of an export is the CPU's, as is the reference of the parity.
    found.append(Task(3, "export of best, seed 0", 100, lambda end: gpu_tasks.export(setup, end)))
    for variant, settings in (("fp16", {}), ("fp32", {}), ("fp32", {"use_tf32": "0"})):
        name = f"{variant} on {setup.kind}{' without TF32' * bool(settings)}"
        found.append(Task(3, name, 10, lambda end, v=variant, s=settings: gpu_tasks.parity(setup, v, s, end)))
    found += [Task(4, f"provider, batch {batch}", 15, partial(gpu_tasks.latency, setup, batch)) for batch in batches]
    # It goes on where it was: what is left is worth beginning.
    found.append(Task(5, "reference, 50 epochs", 20, lambda end: gpu_tasks.experiment(setup, end)))
    engines = partial(gpu_tasks.other_engines, setup)
    found += [Task(6, f"engines, batch {batch}", 80, partial(engines, batch)) for batch in batches]
    found += [training(7, name, seed, 15) for name in setup.sizes.lengths for seed in range(seeds)]
    found += [training(7, "teacher", 0, 30), training(7, "best", 0, 70, "teacher")]
    return found


def _train(setup: Setup, name: str, seed: int, teacher: str, end: float) -> Iterator[Row]:
    return gpu_tasks.train(setup, name, seed, end, teacher)


class Results:
    """What was measured, in a folder: written after every task, read when the same command goes on.

    Args:
        folder: where gpu.json and gpu.txt are, and the runs.
        settings: of this call.
        card: the name of the device, which each row has.
        copies: a folder where the two are written, too, and an archive of what is small in the runs; None for none.
    """

    def __init__(self, folder: Path, settings: Mapping[str, Any], card: str, copies: Path | None = None) -> None:
        self.path, self.settings, self.card, self.copies = folder / "gpu.json", dict(settings), card, copies
        self.running: Task | None = None
        self.tasks: dict[str, dict[str, Any]] = {}
        self.rows: list[Row] = []
        if self.path.exists():
            try:
                before = json.loads(self.path.read_text())
                self.tasks, self.rows = {task["task"]: task for task in before["tasks"]}, before["rows"]
                settings_before = before["settings"]
            except (ValueError, KeyError, TypeError):
                raise DataError(f"{self.path} is damaged: choose another --out.") from None
            if settings_before.get("rehearsal") != settings["rehearsal"]:
                raise DataError(
                    f"{self.path} is of {'a rehearsal' * settings_before['rehearsal'] or 'a GPU'}: "
                    "choose another --out."
                )

    def is_done(self, task: Task) -> bool:
        """Return whether a task was done before."""
        return self.tasks.get(task.key, {}).get("status") == DONE

    def add(self, task: Task, status: str, seconds: float, why: str = "", rows: Sequence[Row] = ()) -> None:
        """Take the end of a task, and write everything; a number that is not finite becomes None, as JSON has none."""
        self.tasks[task.key] = {"task": task.key, "status": status, "seconds": seconds, "why": why or None}
        named = [{"step": task.step, "task": task.name, "card": self.card, **_finite(row)} for row in rows]
        if rows:
            self.rows = [row for row in self.rows if (row["step"], row["task"]) != (task.step, task.name)] + named
        self.write()

    def begin(self, task: Task) -> None:
        """Take the beginning of a task: if all ends in it, it is known what did, and `keep` is its."""
        self.running = task
        self.keep(())

    def keep(self, rows: Sequence[Row]) -> None:
        """Take what the task that is under way has so far, and write everything."""
        if self.running:
            self.add(self.running, UNDER_WAY, 0.0, "It was cut off: the same command goes on.", rows)

    def document(self) -> dict[str, Any]:
        """Return all as JSON values."""
        versions = {"CUDA": str(torch.version.cuda), "cuDNN": str(torch.backends.cudnn.version())}
        rows = sorted(self.rows, key=lambda row: row["step"])
        return report.document("gpu", self.settings, rows, tasks=[*self.tasks.values()], versions=versions)

    def write(self) -> None:
        """Write gpu.json and gpu.txt, and the copies."""
        found, folder = self.document(), self.path.parent
        files = {
            self.path.name: f"{json.dumps(found, indent=1, ensure_ascii=False, allow_nan=False)}\n".encode(),
            "gpu.txt": f"{report.header(found['machine'])}\n\n{self.text()}\n".encode(),
        }
        for name, content in files.items():
            write_file(folder / name, content)
        if self.copies:
            for name, content in {**files, "runs.zip": _records(folder)}.items():
                write_file(self.copies / name, content)

    def text(self) -> str:
        """Return a table for each step, and below what is missing."""
        parts = []
        for step, name in STEPS.items():
            rows = [row for row in self.rows if row["step"] == step]
            parts += [f"{step} {name}", table(rows), ""] if rows else []
        missing = [task for task in self.tasks.values() if task["status"] != DONE]
        parts += [f"{task['task']}: {task['status']}. {task['why']}" for task in missing]
        return "\n".join(parts).rstrip()


def _finite(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: _finite(item) for name, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_finite(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _records(folder: Path) -> bytes:
    """Return a ZIP archive of what is small in the runs of a folder: their records and the lines of their epochs."""
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w", zipfile.ZIP_DEFLATED) as archive:
        for path in sorted([*folder.glob(f"*/{RECORD}"), *folder.glob(f"*/{METRICS}")]):
            archive.write(path, path.relative_to(folder))
    return packed.getvalue()


def table(rows: Sequence[Row]) -> str:
    """Return rows as text; a column that is empty throughout is left out, problems stand below."""
    hidden = ("step", "card", "ratios", "problem")
    shown = [{key: value for key, value in row.items() if key not in hidden} for row in rows]
    every = dict.fromkeys(key for row in shown for key in row)
    columns = [name for name in every if any(row.get(name) not in (None, "") for row in shown)]
    lines = [columns, *([_cell(row.get(name)) for name in columns] for row in shown)]
    problems = [
        f"{row['task']}, {row.get('engine') or row.get('variant') or row.get('recipe')}: {row['problem']}"
        for row in rows
        if row.get("problem")
    ]
    return "\n".join([report.table(lines), *problems])


def _cell(value: Any) -> str:
    if value is None:
        return ""
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.4g}"
    return str(value)


def measure(wanted: Sequence[Task], results: Results, minutes: float, clock: Callable[[], float]) -> None:
    """Do what fits into so many minutes; what was done before is passed over."""
    end = clock() + 60 * minutes - RESERVE
    for task in wanted:
        if results.is_done(task):
            harness.say(f"{task.key}: done before")
            continue
        left = end - clock()
        if task.seconds > left:
            why = f"It takes about {task.seconds:.0f} s, and {max(left, 0):.0f} s were left."
            results.add(task, LEFT_OUT, 0.0, why)
            harness.say(f"{task.key}: left out. {why}")
            continue
        harness.say(f"{task.key} …")
        results.begin(task)
        started, rows, status, why = clock(), [], DONE, ""
        try:
            for row in task.measure(end):
                rows.append(row)
        except OutOfTimeError as error:
            status, why = STOPPED, str(error)
        except Exception as error:  # each part has failures of its own, and none may cost the others' figures
            status, why = FAILED, harness.problem(error)
        results.add(task, status, clock() - started, why, rows)
        harness.say(f"{task.key}: {status}, {clock() - started:.1f} s. {why}".rstrip(" ."))
        try:
            torch.cuda.empty_cache()  # nothing where there is no CUDA
        except RuntimeError as error:  # a graph whose recording failed can prevent it
            harness.say(f"The GPU's memory could not be given back: {harness.problem(error)}")


def main(arguments: list[str] | None = None) -> int:
    """Parse, measure, report; return 1 where something is missing."""
    parser = argparse.ArgumentParser(description=str(__doc__), formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=harness.positive(float), default=8.0, help="that all takes; default: 8")
    parser.add_argument("--out", type=Path, required=True, help="folder of the results, the runs and the bundle")
    copies = "write gpu.json and gpu.txt here as well, and runs.zip: run.json and metrics.jsonl of every run"
    parser.add_argument("--copy-to", type=Path, metavar="DIR", help=copies)
    parser.add_argument("--data", help="folder of the CIFAR-10 files, as 'edgecifar train' takes it")
    parser.add_argument("--rehearse", action="store_true", help="on a processor, on drawn pictures, in small")
    parser.add_argument("--step", type=int, action="append", choices=STEPS, help="only this one; may be repeated")
    given = parser.parse_args(arguments)
    if given.rehearse:
        device, dataset, sizes = torch.device("cpu"), data.synthetic(30, 20), REHEARSAL
        gpu_tasks.rehearse_on_a_cpu()
    else:
        device, sizes = choose_device("cuda"), Sizes()
        # The smoke test draws its pictures: it may come before the data is there.
        dataset = data.synthetic(10, 10) if given.step == [1] else data.load(given.data, download=False)
    for folder in filter(None, (given.out, given.copy_to)):
        make_folder(folder)
    settings = {"minutes": given.minutes, "rehearsal": given.rehearse, "dataset": dataset.name}
    results = Results(given.out, settings, describe_device(device), given.copy_to)
    setup = Setup(device, given.out, dataset, sizes, keep=results.keep)
    wanted = [task for task in tasks(setup) if task.step in (given.step or STEPS)]
    measure(wanted, results, given.minutes, time.perf_counter)
    report.finish(results.document(), results.text())
    return int(any(not results.is_done(task) for task in wanted))


if __name__ == "__main__":
    harness.main(main)
