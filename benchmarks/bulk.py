"""Many pictures: `edgecifar predict --out` on all cores, against one job, its parts, and peers.

    python benchmarks/bulk.py [--only jpeg png memory kills peers ray] [--jobs N] [--ultralytics PYTHON] [--short]

    jpeg    2,000 JPEG of 1600x1200: one job, all jobs, and bare Pillow decoding in one process and in as many
    png     50,000 PNG of the net's size: all jobs, decoding alone, inference alone; the share of
            1 / (1/decoding + 1/inference)
    memory  peak memory of 100,000 pictures over that of 1,000
    kills   SIGKILL 50 times at random, each time gone on with: every picture exactly once
    peers   2,000 JPEG and 10,000 PNG by a torchvision DataLoader with onnxruntime, and by ultralytics classify, whose
            Python is named by --ultralytics (`python -m venv E; E/bin/pip install ultralytics onnxruntime`)
    ray     10,000 PNG by a local Ray, its workers' start counted but not `ray.init`, against --jobs

`--save` replaces the sections that were run and keeps the others, where machine and versions are the same.

Every run is a process of its own; runs that are compared change places from round to round. Images/s are counted from
the loaded model to the last row, starting of processes included; of a script, likewise. Memory is of all processes of a
run, shared pages counted once a process. `--short` takes a tenth of the pictures, to try it.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib.util
import json
import os
import re
import signal
import subprocess
import sys
import sysconfig
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import harness
import numpy as np
import report
from bulk_scripts import BARE, DATALOADER, DECODING, INFERENCE, RAY, ULTRALYTICS
from PIL import Image

from edgecifar.runtime import Bundle, EdgecifarError
from edgecifar.runtime.machine import usable_cpus

SECTIONS = ("jpeg", "png", "memory", "kills", "peers", "ray")
ROUNDS = 3
UNIQUE = {"jpeg": 20, "png": 1_000}
"""Different files; the others are links to them, so that the disk does not count."""

EDGECIFAR = Path(sysconfig.get_path("scripts"), "edgecifar")


@dataclass(frozen=True)
class Ran:
    """A process that ended: images/s as it says itself, wall time of the whole, peak of all its processes in MiB."""

    rate: float
    seconds: float
    mib: float


def make_pictures(folder: Path, kind: str, count: int, size: int) -> Path:
    """Make a folder of `count` pictures of a kind, those as PNG `size` pixels wide and high, and return it."""
    folder.mkdir(parents=True)
    random = np.random.default_rng(0)
    for number in range(count):
        path = folder / f"{number:06}.{'jpg' if kind == 'jpeg' else 'png'}"
        if number >= UNIQUE[kind]:
            os.link(folder / f"{number % UNIQUE[kind]:06}{path.suffix}", path)
        elif kind == "jpeg":
            small = Image.fromarray(random.integers(0, 256, (9, 12, 3), np.uint8))
            smooth = np.asarray(small.resize((1600, 1200), Image.Resampling.BICUBIC), np.int16)
            noisy = smooth + random.integers(-12, 13, smooth.shape, np.int16)  # as much detail as a photograph has
            Image.fromarray(noisy.clip(0, 255).astype(np.uint8)).save(path, quality=90)
        else:
            small = Image.fromarray(random.integers(0, 256, (8, 8, 3), np.uint8))
            small.resize((size, size), Image.Resampling.BICUBIC).save(path)
    return folder


def run(command: Sequence[str | Path]) -> Ran:
    """Run a command that says images/s in its last line of stderr or stdout, and watch its memory.

    Raises:
        EdgecifarError: it fails.
    """
    begin = time.perf_counter()
    with tempfile.TemporaryFile() as output:
        arguments = [*map(str, command)]
        process = subprocess.Popen(arguments, start_new_session=True, stdout=output, stderr=subprocess.STDOUT)
        peak = 0.0
        try:
            while process.poll() is None:
                peak = max(peak, _memory(process.pid))
                with contextlib.suppress(subprocess.TimeoutExpired):
                    process.wait(0.2)
        finally:
            if process.poll() is None:  # Ctrl-C does not reach it, as it has a session of its own
                os.killpg(process.pid, signal.SIGKILL)
                process.wait()
        seconds = time.perf_counter() - begin
        output.seek(0)
        said = output.read().decode(errors="replace")
    rates = re.findall(r"([\d,.]+)/s\b", said)
    if process.returncode or not rates:
        last = (said.strip().splitlines() or ["it says nothing"])[-1]
        raise EdgecifarError(f"'{' '.join(map(str, command))[:200]}' fails ({last}): run it by hand.")
    return Ran(float(rates[-1].replace(",", "")), seconds, peak)


def _memory(session: int) -> float:
    """Return the resident memory of all processes of a session in MiB; 0 where /proc does not say."""
    pages = 0
    for status in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError, IndexError):
            fields = status.read_text().rpartition(")")[2].split()
            pages += int(fields[21]) if int(fields[3]) == session else 0
    return pages * os.sysconf("SC_PAGESIZE") / 2**20 if pages else 0.0


def in_turns(runs: dict[str, Callable[[], Ran]], rounds: int) -> dict[str, list[Ran]]:
    """Run each `rounds` times, in an order that turns from round to round."""
    found: dict[str, list[Ran]] = {name: [] for name in runs}
    names = [*runs]
    for turn in range(rounds):
        for name in names[turn % len(names) :] + names[: turn % len(names)]:
            harness.say(f"{name}, {turn + 1} of {rounds} …")
            found[name].append(runs[name]())
    return found


def row(section: str, name: str, pictures: int, ran: Sequence[Ran], **more: Any) -> dict[str, Any]:
    """Return what the JSON says of several runs: medians, and the extremes of images/s."""
    rates = [one.rate for one in ran]
    return {
        "section": section,
        "what": name,
        "pictures": pictures,
        "n": len(ran),
        "images_per_second": float(np.median(rates)),
        "least": min(rates),
        "most": max(rates),
        "seconds": float(np.median([one.seconds for one in ran])),
        "peak_mib": float(np.median([one.mib for one in ran])),
        **more,
    }


class Bench:
    """The sections, on pictures in a temporary folder."""

    def __init__(self, scratch: Path, given: argparse.Namespace) -> None:
        self.scratch, self.jobs, self.ultralytics = scratch, given.jobs, given.ultralytics
        self.scale = 10 if given.short else 1
        self.bundle = Bundle.open(given.bundle)
        self.variant = self.bundle.variant(given.variant)
        self.size = self.bundle.contract.size
        self._outputs = 0

    def _folder(self, kind: str, count: int) -> tuple[Path, int]:
        count //= self.scale
        folder = self.scratch / f"{kind}-{count}"
        return (folder if folder.exists() else make_pictures(folder, kind, count, self.size)), count

    def _predict(self, folder: Path, jobs: int) -> Ran:
        self._outputs += 1
        out = self.scratch / f"{self._outputs}.jsonl"
        model = ["--bundle", self.bundle.folder, "--variant", self.variant.name, "--provider", "cpu"]
        return run([EDGECIFAR, "predict", folder, *model, "--jobs", str(jobs), "--out", out])

    def _script(self, text: str, *arguments: object, python: str = sys.executable) -> Ran:
        path = self.scratch / f"{abs(hash(text))}.py"
        path.write_text(text)
        return run([python, str(path), *map(str, arguments)])

    @property
    def _model(self) -> Path:
        return self.bundle.folder / self.variant.file

    def jpeg(self) -> list[dict[str, Any]]:
        """Large photographs: one job, all jobs, and Pillow alone."""
        folder, count = self._folder("jpeg", 2_000)
        found = in_turns(
            {
                "one job": lambda: self._predict(folder, 1),
                f"{self.jobs} jobs": lambda: self._predict(folder, self.jobs),
                "bare Pillow, one process": lambda: self._script(BARE, folder, 1, self.size),
                f"bare Pillow, {self.jobs} processes": lambda: self._script(BARE, folder, self.jobs, self.size),
            },
            ROUNDS,
        )
        one, all_jobs, bare_one, bare = (float(np.median([r.rate for r in runs])) for runs in found.values())
        ratios = {
            f"{self.jobs} jobs": {"times_one_job": all_jobs / one, "share_of_bare": all_jobs / bare},
            f"bare Pillow, {self.jobs} processes": {"times_one_process": bare / bare_one},
        }
        return [row("jpeg", name, count, runs, **ratios.get(name, {})) for name, runs in found.items()]

    def png(self) -> list[dict[str, Any]]:
        """Small pictures: all jobs, and the two parts alone."""
        folder, count = self._folder("png", 50_000)
        found = in_turns(
            {
                f"{self.jobs} jobs": lambda: self._predict(folder, self.jobs),
                "decoding alone": lambda: self._script(DECODING, folder, self.jobs, self.bundle.folder),
                "inference alone": lambda: self._script(INFERENCE, self.bundle.folder, self.variant.name, count // 4),
            },
            2,
        )
        ours, decoding, inference = (float(np.median([r.rate for r in runs])) for runs in found.values())
        share = ours * (1 / decoding + 1 / inference)
        ratios = {f"{self.jobs} jobs": {"share_of_parts": share}}
        return [row("png", name, count, runs, **ratios.get(name, {})) for name, runs in found.items()]

    def memory(self) -> list[dict[str, Any]]:
        """Peak memory of few pictures and of many."""
        few, count = self._folder("png", 1_000 * self.scale)
        rows = [row("memory", "few pictures", count, [self._predict(few, self.jobs)])]
        many, count = self._folder("png", 100_000)
        rows.append(row("memory", "many pictures", count, [self._predict(many, self.jobs)]))
        rows[-1]["more_mib"] = rows[-1]["peak_mib"] - rows[0]["peak_mib"]
        return rows

    def kills(self) -> list[dict[str, Any]]:
        """Kill at random, go on, and count the rows."""
        folder, count = self._folder("png", 50_000)
        out = self.scratch / "killed.jsonl"
        command = [EDGECIFAR, "predict", folder, "--bundle", self.bundle.folder, "--out", out, "--resume"]
        random = np.random.default_rng(0)
        killed = 0
        wanted = 50 // self.scale
        for _ in range(wanted):
            process = subprocess.Popen([*map(str, command)], stderr=subprocess.DEVNULL)
            before = out.stat().st_size if out.exists() else 0
            while process.poll() is None and (not out.exists() or out.stat().st_size == before):
                time.sleep(0.005)
            time.sleep(random.uniform(0, 0.1))
            process.kill()
            killed += process.wait() != 0
        last = run(command)
        rows = Counter(json.loads(line)["source"] for line in out.read_text().splitlines())
        right = rows == Counter(str(path) for path in folder.iterdir())
        return [row("kills", "gone on with", count, [last], killed=killed, each_exactly_once=right)]

    def peers(self) -> list[dict[str, Any]]:
        """Give the same pictures to others."""
        rows: list[dict[str, Any]] = []
        for kind, count in (("jpeg", 2_000), ("png", 10_000)):
            folder, count = self._folder(kind, count)
            runs = {f"{self.jobs} jobs": lambda folder=folder: self._predict(folder, self.jobs)}
            if importlib.util.find_spec("torchvision"):
                runs["DataLoader, onnxruntime"] = lambda folder=folder: self._script(
                    DATALOADER, folder, self._model, self.size, self.jobs
                )
            if self.ultralytics:
                runs["ultralytics classify"] = lambda folder=folder: self._script(
                    ULTRALYTICS, folder, self.size, python=self.ultralytics
                )
            rows += [row(f"peers, {kind}", name, count, ran) for name, ran in in_turns(runs, 2).items()]
        if not importlib.util.find_spec("torchvision"):
            harness.say("Left out: the DataLoader needs torchvision (pip install '.[train]').")
        if not self.ultralytics:
            harness.say("Left out: ultralytics, whose Python is named by --ultralytics.")
        return rows

    def ray(self) -> list[dict[str, Any]]:
        """Ray on one machine against processes of our own."""
        if not importlib.util.find_spec("ray"):
            harness.say("Left out: Ray is not installed (pip install '.[ray]').")
            return []
        folder, count = self._folder("png", 10_000)
        there = self._script(RAY, folder, self.bundle.folder, self.variant.name, self.jobs, self.scratch / "ray")
        here = self._predict(folder, self.jobs)
        return [row("ray", "Ray", count, [there], share=there.rate / here.rate), row("ray", "--jobs", count, [here])]


def with_kept(found: dict[str, Any], earlier: Path) -> dict[str, Any]:
    """Return the document with the rows of those sections of an earlier one that it does not have.

    Args:
        found: what was measured now.
        earlier: the file that was kept; one of another machine, other versions or settings, a damaged one, or none,
            gives nothing.
    """
    volatile, new = {"load_average": None}, {one["section"] for one in found["rows"]}
    try:
        kept = json.loads(earlier.read_bytes())
        same = kept["machine"] | volatile == found["machine"] | volatile and kept["settings"] == found["settings"]
        rows = [one for one in kept["rows"] if one["section"] not in new] + found["rows"]
        rows.sort(key=lambda one: SECTIONS.index(one["section"].partition(",")[0]))
    except FileNotFoundError:
        return found
    except (OSError, ValueError, LookupError, TypeError, AttributeError):  # what was measured now is not lost with it
        harness.say(f"{earlier} is not what this script kept: nothing of it is kept.")
        return found
    if not same:
        harness.say(f"{earlier} is of another machine, other versions or settings: its other sections are not kept.")
        return found
    return found | {"rows": rows}


def table(rows: Sequence[dict[str, Any]]) -> str:
    """Return the rows as lines of text."""
    lines = [["section", "what", "pictures", "n", "images/s", "least to most", "MiB", ""]]
    usual = {"section", "what", "pictures", "n", "images_per_second", "least", "most", "seconds", "peak_mib"}
    for one in rows:
        more = ", ".join(
            f"{name.replace('_', ' ')} {value:.2f}" if isinstance(value, float) else f"{name.replace('_', ' ')} {value}"
            for name, value in one.items()
            if name not in usual
        )
        figures = [f"{one['images_per_second']:,.0f}", f"{one['least']:,.0f} to {one['most']:,.0f}"]
        lines.append([one["section"], one["what"], f"{one['pictures']:,}", str(one["n"]), *figures,
                      f"{one['peak_mib']:,.0f}", more])  # fmt: skip
    return report.table(lines, labels=2)


def main() -> None:
    """Measure and report."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--only", nargs="+", choices=SECTIONS, default=SECTIONS, help="by default all")
    parser.add_argument(
        "--jobs", type=harness.positive(int), default=usable_cpus(), help="by default one a usable core"
    )
    parser.add_argument("--bundle", type=Path, help="by default the one that is installed")
    parser.add_argument("--variant", help="by default the bundle's own choice")
    parser.add_argument("--ultralytics", help="the Python of an environment with ultralytics")
    parser.add_argument("--short", action="store_true", help="a tenth of the pictures")
    report.add_save(parser, "bulk")
    given = parser.parse_args()
    rows: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as scratch:
        bench = Bench(Path(scratch), given)
        failed = ""
        for section in given.only:
            try:
                rows += getattr(bench, section)()
            except EdgecifarError as error:  # the rows of the other sections are not lost
                failed = f"{section}: {error}"
                harness.say(failed)
    settings = {"jobs": given.jobs, "variant": bench.variant.name, "short": given.short}
    found = report.document("bulk", settings | {"models": report.digests([bench.variant])}, rows)
    report.finish(with_kept(found, given.save) if given.save else found, table(rows), given.save)
    if failed:
        raise EdgecifarError(failed)


if __name__ == "__main__":
    harness.main(main)
