"""`edgecifar serve` at its limits: overload, new bundles and the end under load, and long runs.

    python benchmarks/serving_limits.py overload --seconds 60
    python benchmarks/serving_limits.py updates --times 50
    python benchmarks/serving_limits.py ends --times 50
    python benchmarks/serving_limits.py soak --seconds 3600

    overload   one connection alone, then --connections that ask again at once whatever they are answered
    updates    another bundle takes the place of the one in service, and SIGHUP, again and again under load
    ends       SIGTERM at a random time under load, again and again
    soak       16 connections for long; with --pause 0.1, some 150 requests/s

Server and client each have a core of their own. Every request has a picture of its own, and every answer is held
against the one computed in process. The exit code is 1 if an answer was wrong or a request was lost.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import shutil
import signal
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import harness
import numpy as np
import report
from serving import PICTURES, pinned, started
from serving_load import Outcome, Request, ask_binary, drive, merged, used
from serving_peers import Contender

from edgecifar.runtime import Bundle, EdgecifarError
from edgecifar.runtime.files import new_folder, sha256

SAMPLE_EVERY = 1.0
"""Seconds between two samples of the server's memory."""


class Bench:
    """A bundle, what is asked of it, and a server of it."""

    def __init__(self, options: argparse.Namespace, folder: Path) -> None:
        source = Bundle.open(options.bundle)
        self.options, self.log, self.name = options, folder / "log", source.folder.name
        self.bundle = folder / "bench"
        shutil.copytree(source.folder, self.bundle, copy_function=shutil.copyfile)
        variant = self.variant = source.variant(options.variant)
        images = harness.random_images(PICTURES, source.contract)
        expected = source.load(variant, provider="cpu", threads=1).probabilities(images)
        path = f"/v2/models/bench-{variant.name}/infer"
        self.requests = [
            Request(ask_binary(path, image), row) for image, row in zip(images[:, None], expected, strict=True)
        ]
        command = [sys.executable, "-m", "edgecifar.cli", "serve", "--port", "{port}", "--threads", "1"]
        command += ["--provider", "cpu", "--bundle", f"bench={self.bundle}", "--variant", variant.name]
        command += ["--queue", str(options.queue)]
        self.server = Contender("edgecifar serve", [*command, "--drain", str(options.drain)], path, {}, binary=True)

    @contextmanager
    def serve(self) -> Iterator[tuple[int, int]]:
        """Run the server; yield its port and its process."""
        with started(self.server, self.options.server_core, self.log, self.requests[0]) as (port, pid, _):
            yield port, pid

    def replace_bundle(self, note: str) -> None:
        """Put another bundle of the same models in the place of the one that is served, in one step."""
        with new_folder(self.bundle, replace=True) as staged:
            for path in self.bundle.iterdir():
                shutil.copyfile(path, staged / path.name)
            manifest = json.loads((staged / "manifest.json").read_text())
            manifest["provenance"]["note"] = note
            (staged / "manifest.json").write_text(json.dumps(manifest))
            files = sorted(path for path in staged.iterdir() if path.name != "SHA256SUMS")
            sums = "".join(f"{sha256(path)}  {path.name}\n" for path in files)
            (staged / "SHA256SUMS").write_bytes(sums.encode())


@contextmanager
def sampled(pid: int) -> Iterator[list[float]]:
    """Sample the server's resident MB within the block."""
    found: list[float] = []
    stop = threading.Event()

    def sample() -> None:
        while not stop.wait(SAMPLE_EVERY):
            found.append(used(pid)[1])

    thread = threading.Thread(target=sample)
    thread.start()
    try:
        yield found
    finally:
        stop.set()
        thread.join()


def overload(bench: Bench) -> list[dict[str, Any]]:
    """Return a row of one connection alone, of 16, and of many that never wait."""
    options = bench.options
    with bench.serve() as (port, pid):
        drive(port, bench.requests, 2.0, 1)
        few = [drive(port, bench.requests, max(2.0, options.seconds / 6), connections) for connections in (1, 16)]
        with sampled(pid) as memory:
            many = drive(port, bench.requests, options.seconds, options.connections)
    rows = [row("1 connection", few[0]), row("16 connections", few[1])]
    rows.append(row(f"{options.connections} connections", many, memory_mb=memory))
    asked = (len(many.latencies) + len(many.rejections)) / many.seconds
    rows[-1]["asked_times_capacity"] = asked / rows[1]["requests_per_second"]
    times = rows[-1]["milliseconds"]
    for other in rows[:2]:
        if "p99" in times and "p99" in other["milliseconds"]:
            rows[-1][f"p99_times_{other['load'].split()[0]}"] = times["p99"] / other["milliseconds"]["p99"]
    return rows


def updates(bench: Bench) -> list[dict[str, Any]]:
    """Return the row of a load during which the bundle changes."""
    options, outcomes, done = bench.options, [], 0
    with bench.serve() as (port, pid):

        def change() -> None:
            nonlocal done
            for count in range(1, options.times + 1):
                bench.replace_bundle(f"version {count}")
                os.kill(pid, signal.SIGHUP)
                began = time.monotonic()
                while (done := bench.log.read_text().count('"event": "updated"')) < count:
                    if time.monotonic() - began > 60:
                        return
                    time.sleep(0.02)

        changer = threading.Thread(target=change)
        changer.start()
        while changer.is_alive():
            outcomes.append(drive(port, bench.requests, 2.0, 16))
        changer.join()
    if done < options.times:
        raise EdgecifarError(f"Bundle {done + 1} was not taken up: {bench.log.read_text().splitlines()[-1]}.")
    return [row(f"{done} updates", merged(outcomes))]


def ends(bench: Bench) -> list[dict[str, Any]]:
    """Return the row of loads during which the server is told to end."""
    outcomes = []
    rng = random.Random(bench.options.seed)  # noqa: S311
    for _ in range(bench.options.times):
        with bench.serve() as (port, pid):
            timer = threading.Timer(rng.uniform(0.3, 1.0), os.kill, (pid, signal.SIGTERM))
            timer.start()
            outcomes.append(drive(port, bench.requests, 30.0, 16))
            timer.join()
        if '"event": "stopped"' not in bench.log.read_text():
            raise EdgecifarError(f"The server did not end as it should: {bench.log.read_text().splitlines()[-1]}.")
    return [row(f"{len(outcomes)} ends", merged(outcomes))]


def soak(bench: Bench) -> list[dict[str, Any]]:
    """Return the row of a long load, with the memory at its beginning and at its end."""
    pause = bench.options.pause
    with bench.serve() as (port, pid):
        drive(port, bench.requests, 5.0, 16)
        with sampled(pid) as memory:
            outcome = drive(port, bench.requests, bench.options.seconds, 16, pause=pause)
    load = f"16 connections, a pause of {pause:g} s after each answer" if pause else "16 connections"
    return [row(load, outcome, memory_mb=memory)]


KINDS: dict[str, Callable[[Bench], list[dict[str, Any]]]] = {
    function.__name__: function for function in (overload, updates, ends, soak)
}


def row(load: str, outcome: Outcome, memory_mb: Sequence[float] = ()) -> dict[str, Any]:
    """Return what the JSON says of a load: its figures, and how it went in up to 300 parts of equal length."""
    parts = max(1, min(300, int(outcome.seconds)))
    places = np.minimum((np.array(outcome.ends) * parts / outcome.seconds).astype(int), parts - 1)
    latencies = 1000 * np.array(outcome.latencies)
    groups = [latencies[places == part] for part in range(parts)]
    series = {"seconds": [(part + 0.5) * outcome.seconds / parts for part in range(parts)]}
    series["answers_per_second"] = [len(group) * parts / outcome.seconds for group in groups]
    for percentile in (50, 99):
        series[f"p{percentile}"] = [float(np.percentile(group, percentile)) if len(group) else 0.0 for group in groups]
    found = {"load": load, **outcome.figures(), "series": series}
    if memory_mb:
        found["memory_mb"] = {"first": memory_mb[0], "last": memory_mb[-1], "most": max(memory_mb)}
    return found


def main() -> None:
    """Run the benchmark."""
    parser = argparse.ArgumentParser(description="edgecifar serve at its limits.")
    parser.add_argument("kind", choices=list(KINDS))
    parser.add_argument("--bundle", type=Path, help="by default the one installed")
    parser.add_argument("--variant", default="tiny")
    parser.add_argument("--seconds", type=harness.positive(float), default=60.0)
    parser.add_argument("--times", type=harness.positive(int), default=50)
    parser.add_argument("--connections", type=harness.positive(int), default=160, help="of the overload")
    parser.add_argument("--pause", type=float, default=0.0, help="of the soak: seconds between answer and request")
    parser.add_argument("--drain", type=float, default=0.3, help="as edgecifar serve takes it")
    parser.add_argument("--queue", type=harness.positive(int), default=32, help="as edgecifar serve takes it")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--server-core", type=int, default=0)
    parser.add_argument("--client-core", type=int, default=1)
    report.add_save(parser, "serving_KIND")
    options = parser.parse_args()
    with pinned(options.client_core, options.server_core), tempfile.TemporaryDirectory() as temporary:
        bench = Bench(options, Path(temporary))
        rows = KINDS[options.kind](bench)
    settings: dict[str, Any] = {name: str(value) for name, value in vars(options).items() if name != "save"}
    settings |= {"bundle": bench.name, "models": report.digests([bench.variant])}
    found = report.document(f"serving_{options.kind}", settings, rows)
    shown = [{name: value for name, value in entry.items() if name != "series"} for entry in rows]
    save = options.save and options.save.with_name(options.save.name.replace("KIND", options.kind))
    report.finish(found, "\n".join(json.dumps(entry) for entry in shown), save)
    lost = sum(entry["wrong"] + entry["broken"] + sum(entry["other_statuses"].values()) for entry in rows)
    if lost:
        raise EdgecifarError(f"{lost} requests were lost or answered wrongly.")


if __name__ == "__main__":
    harness.main(main)
