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
import itertools
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from unittest import mock

import formatter
import torch
from PIL import Image
from safetensors.torch import load_file

from edgecifar.cli.main import app
from edgecifar.export import build, to_onnx
from edgecifar.runtime import files
from edgecifar.runtime.bundle import SUMS, Bundle
from edgecifar.runtime.errors import RunError
from edgecifar.train import data, net
from edgecifar.train.run import FINISHED, METRICS, RECORD, RESUME, WEIGHTS, Run

STEPS = [(os, "mkdir"), (os, "rename"), (os, "replace"), (os, "rmdir"), (files, "_exchange")]
"""What `runtime.files` does to names. Flushing is none of it: a kill cannot show whether that was done."""
PAGE = 4096


class Skipped(Exception):  # noqa: N818
    """A trial that this machine does not allow."""


def require(kept: bool, promise: str) -> None:
    """Raise an `AssertionError` that names the `promise`, unless it was `kept`."""
    if not kept:
        raise AssertionError(promise)


def edgecifar(*arguments: object) -> None:
    """Run the command line in this process; it leaves by `SystemExit`."""
    app([str(argument) for argument in arguments], prog_name="edgecifar")


def forked(function: Callable[[], object], kill_after: float | None = None) -> tuple[int, str]:
    """Run `function` in a child, so that torch is imported once; kill it after so many seconds.

    Returns:
        The child's exit code, -9 where it was killed, and what it wrote to stdout and stderr.
    """
    sys.stdout.flush()
    with tempfile.TemporaryFile() as words:
        child = os.fork()
        if child == 0:
            code = 1
            try:
                os.dup2(words.fileno(), 1)
                os.dup2(words.fileno(), 2)
                function()
                code = 0
            except SystemExit as error:
                code = error.code if isinstance(error.code, int) else int(error.code is not None)
            except BaseException:
                traceback.print_exc()
            finally:
                sys.stdout.flush()
                sys.stderr.flush()
                os._exit(code)
        if kill_after is not None:
            time.sleep(kill_after)
            os.kill(child, signal.SIGKILL)
        _, status = os.waitpid(child, 0)
        words.seek(0)
        return os.waitstatus_to_exitcode(status), words.read().decode(errors="replace")


def die_at(count: int, before: bool, steps: list[tuple[Any, str]]) -> None:
    """Let this process kill itself before or after the `count`-th of `steps` from now."""
    calls = itertools.count(1)

    def deadly(step: Callable) -> Callable:
        def call(*args: object, **options: object) -> object:
            now = next(calls) == count
            if now and before:
                os.kill(os.getpid(), signal.SIGKILL)
            try:
                return step(*args, **options)
            finally:
                if now:
                    os.kill(os.getpid(), signal.SIGKILL)

        return call

    for owner, name in steps:
        setattr(owner, name, deadly(getattr(owner, name)))


@contextlib.contextmanager
def disk(folder: Path, size: int) -> Iterator[Callable[[str], object]]:
    """Mount a file system of `size` bytes in memory at `folder`; yield a function that mounts it anew, otherwise."""

    def mount(*options: str) -> None:
        subprocess.run(["mount", "-t", "tmpfs", "-o", ",".join(options), "tmpfs", folder], check=True)

    folder.mkdir(parents=True, exist_ok=True)
    try:
        mount(f"size={size}")
    except (OSError, subprocess.CalledProcessError):
        raise Skipped("only root on Linux can mount a small disk, or a process under unshare") from None
    try:
        yield lambda options: mount("remount", options)
    finally:
        subprocess.run(["umount", folder], check=True)


class Trial:
    """A command that is made to crash; each way to crash yields what was lost each time, "" where nothing was."""

    folder: Path
    wanted: object = None

    def __init__(self, room: Path) -> None:
        self.room = room

    def begin(self, room: Path) -> None:
        """Set `folder` to a place in `room`, which is empty, and put there what is there before the command."""
        raise NotImplementedError

    def work(self) -> None:
        """Run the command as a person does who does not know how the last time ended."""
        raise NotImplementedError

    def check(self) -> None:
        """Require what must hold at every instant."""
        raise NotImplementedError

    def result(self) -> object:
        """Return what must be the same at the end, however often it crashed."""
        raise NotImplementedError

    def restart(self) -> None:
        """Begin anew."""
        shutil.rmtree(self.room, ignore_errors=True)
        self.room.mkdir(parents=True)
        self.begin(self.room)

    def whole(self) -> None:
        """Do it once without a crash, and remember the result and the time it took."""
        self.restart()
        started = time.perf_counter()
        code, words = forked(self.work)
        self.seconds = time.perf_counter() - started
        require(code == 0, words)
        self.wanted = self.result()

    def aftermath(self, repeat: bool = True) -> str:
        """Return what a crash lost: at once, and after the command was repeated."""

        def compare() -> None:
            require(self.result() == self.wanted, f"{self.result()}, not {self.wanted}")

        for function in (self.check, self.work, self.check, compare) if repeat else (self.check,):
            code, words = forked(function)
            if code:
                return words
        return ""

    def at_steps(self, steps: list[tuple[Any, str]] = STEPS) -> Iterator[str]:
        """Kill it before and after each of `steps`."""
        for count in itertools.count(1):
            for before in (True, False):

                def die(count: int = count, before: bool = before) -> None:
                    die_at(count, before, steps)
                    self.work()

                self.restart()
                code, words = forked(die)
                if code == 0:
                    return
                yield words if code != -signal.SIGKILL else self.aftermath()

    def at_moments(self, kills: int, seed: int = 0) -> Iterator[str]:
        """Kill it so often, at moments drawn evenly from the whole time it takes; half the time once more at once."""
        rng, afresh = random.Random(seed), True  # noqa: S311
        while kills:
            if afresh:
                self.restart()
            code, words = forked(self.work, kill_after=rng.uniform(0, self.seconds))
            killed = code == -signal.SIGKILL
            afresh = not killed or kills == 1 or rng.random() < 0.5
            lost = words if code > 0 else self.aftermath(repeat=afresh)
            afresh = afresh or bool(lost)
            if killed or lost:
                kills -= 1
                yield lost

    def on_disks(self, count: int = 6) -> Iterator[str]:
        """Let it run out of space at so many stages, the last a page too early; then read-only; then with space."""
        place = self.room.with_name("disk")

        def used() -> int:
            now = os.statvfs(place)
            return (now.f_blocks - now.f_bfree) * now.f_frsize

        def peak() -> None:
            most, replace = [used()], os.replace
            with mock.patch.object(os, "replace", lambda *paths: (most.append(used()), replace(*paths))):
                with contextlib.suppress(SystemExit):
                    self.work()
                print(max(most))

        with disk(place, 1 << 30):
            self.begin(place)
            before, most = used(), int(forked(peak)[1].split()[-1])
        for part in range(1, count + 1):
            with disk(place, before + ((most - before) * part // count // PAGE - 1) * PAGE) as remount:
                self.begin(place)
                lost = self.refusal("is full") or self.aftermath(repeat=False)
                kept = {path: files.sha256(path) for path in place.rglob("*") if path.is_file()}
                remount("ro")
                lost = lost or self.refusal("read-only file system") or self.aftermath(repeat=False)
                now = {path: files.sha256(path) for path in place.rglob("*") if path.is_file()}
                remount(f"rw,size={2 * most}")
                yield lost or ("" if now == kept else f"{kept} has become {now}") or self.aftermath()

    def refusal(self, reason: str) -> str:
        """Return what is wrong with how the command says that it cannot write, "" where nothing is."""
        code, words = forked(self.work)
        sentences = [line for line in words.splitlines() if line.startswith("edgecifar: ")]
        says = len(sentences) == 1 and reason in sentences[0] and "Traceback" not in words
        return "" if code == 1 and says else f"exit code {code}, not a sentence with '{reason}':\n{words}"


class Training(Trial):
    """`edgecifar train`, with `--resume` where the run was begun."""

    options = ("--epochs", 2, "--batch-size", 8, "--lr", 0.01, "--held-out", 0.5, "--device", "cpu")

    def begin(self, room: Path) -> None:
        self.folder = room / "run"

    def work(self) -> None:
        if not (self.folder / RECORD).exists():
            edgecifar("train", "--data", "synthetic", "--out", self.folder, *self.options)
        elif Run(self.folder).record["status"] != FINISHED or (self.folder / RESUME).exists():
            edgecifar("train", "--resume", "--out", self.folder, "--device", "cpu")

    def check(self) -> None:
        """Require every file to be whole, and the weights the record's unless training goes on without them."""
        run, present = Run(self.folder), {path.name for path in self.folder.glob("[!.]*")}
        if not present:
            return
        if run.record["status"] != FINISHED or RESUME in present:
            run.resume_state()
        if METRICS in present:
            [json.loads(line) for line in (self.folder / METRICS).read_text().splitlines()]
        if WEIGHTS in present:
            load_file(self.folder / WEIGHTS)
        for picture in self.folder.glob("[!.]*.png"):
            Image.open(picture).load()
        try:
            run.net()
        except RunError as error:
            require(run.record["status"] != FINISHED and "--resume" in str(error), str(error))

    def result(self) -> object:
        record, present = Run(self.folder).record, sorted(os.listdir(self.folder))
        return record["status"], record["epochs_done"], files.sha256(self.folder / WEIGHTS), present


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
        """Kill it before and after each of `steps`; ONNX's writer, which takes long, copies what it wrote before."""
        model = shutil.copy(self.folder / "model.onnx", self.run)
        with mock.patch.object(to_onnx, "write", lambda model_, path, provenance: shutil.copy(model, path)):
            yield from super().at_steps(steps)


def prepare(training: Training, folder: Path) -> tuple[Exporting, Exporting]:
    """Make of a whole training the exports: into an empty place, and in the place of a bundle of other bytes."""
    run, other = folder / "run", folder / "other"
    training.whole()
    to_onnx.write(build.Deployed(net.Net().eval()), folder / "model.onnx", {})  # half of it is imports: once, here
    shutil.copytree(training.folder, run)
    shutil.copytree(training.folder, other)
    record = Run(other).record
    (other / RECORD).write_text(json.dumps({**record, "temperature": 2 * record["temperature"]}))
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
    data.synthetic.__defaults__ = (20, 10, 0)  # `--data synthetic`: few pictures, as the disk is what is tried
    importlib.import_module("edgecifar.cli.display")
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
