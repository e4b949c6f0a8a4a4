"""Gives edgecifar's runtime tens of thousands of hostile inputs; only an answer or a refusal in a sentence is right.

    python tests/stress/robustness.py --cases 20000

Every case is a function of (seed, index): `--case INDEX` runs one again in this process, with its traceback. The cases
run in processes of their own with a limit on their address space, so that a crash is counted and known by its case;
the files of each failed case are kept. After every case the intact bundle must still give the same bits.

    accepted   there was an answer, of the right kind
    refused    an EdgecifarError: one printable sentence
    traceback  any other exception
    crash      the process died, or did not answer in time
    wrong      damage that was not found, or an answer that differs from what it must be
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
import random
import resource
import tempfile
import traceback
import warnings
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import formatter
from fuzz_arrays import array, folder
from fuzz_bundles import golden, manifest, model, unsealed
from fuzz_pictures import bomb, picture
from fuzz_world import Case, World, WrongAnswer

from edgecifar.runtime import EdgecifarError
from edgecifar.runtime.machine import usable_cpus

CHUNK = 1000
"""Cases that one process runs, at most."""
ADDRESS_SPACE = 6 << 30
"""Bytes that a process may map; beyond them, allocating memory fails."""
PEAK = 2 << 30
"""Bytes of memory in use above which the run has failed."""
SECONDS = 300
"""After so many seconds, a case that has not ended counts as a crash."""
STARTING = 600
"""Seconds that a process may take to start."""
FAILURES = ("traceback", "crash", "wrong")


KINDS: dict[str, tuple[int, Callable[[random.Random], Case]]] = {
    "picture": (11000, picture),
    "bomb": (1500, bomb),
    "unsealed bundle": (2500, unsealed),
    "manifest": (2500, manifest),
    "model": (800, model),
    "golden": (700, golden),
    "array": (2000, array),
    "folder": (4, folder),
}
"""Name of a kind of case: (its share, what makes one)."""


def case(seed: int, index: int) -> tuple[str, Case]:
    """Make a case."""
    rng = random.Random(f"{seed}/{index}")  # noqa: S311
    kind = rng.choices(list(KINDS), [share for share, _ in KINDS.values()])[0]
    return kind, KINDS[kind][1](rng)


# the processes that run them


def outcome(tried: Case, world: World) -> tuple[str, str]:
    """Run a case and return what came of it, with the details of a failure."""
    try:
        result = str(tried.run(world) or "accepted"), ""
    except EdgecifarError as error:
        said = str(error)
        plain = said.isprintable() and said.endswith(".")
        result = ("refused", "") if plain else ("wrong", f"refused, but not in a sentence: {said!r}")
    except WrongAnswer as error:
        result = "wrong", str(error)
    except Exception:
        result = "traceback", traceback.format_exc(limit=-4)
    if world.guard.probabilities(world.images).tobytes() != world.expected:
        return "wrong", f"the intact bundle gives other answers after this ({result})"
    return result


def work(connection: Any, scratch: str, seed: int, first: int, last: int) -> None:
    """Run the cases `first` to `last` of a process of our own; each is announced before it runs."""
    resource.setrlimit(resource.RLIMIT_AS, (ADDRESS_SPACE, ADDRESS_SPACE))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    warnings.simplefilter("error")
    os.dup2(os.open(os.devnull, os.O_WRONLY), 2)  # libtiff's complaints
    world = World(Path(scratch))
    connection.send("ready")
    for index in range(first, last):
        kind, tried = case(seed, index)
        connection.send((kind, index))
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss << 10
        connection.send((*outcome(tried, world), peak))
    connection.close()


def supervise(seed: int, first: int, last: int, keep: Path) -> Iterator[tuple[str, str, int]]:
    """Run the cases `first` to `last` in processes that may die; yield kind, outcome and peak memory of each."""
    context = multiprocessing.get_context("spawn")
    while first < last:
        with tempfile.TemporaryDirectory() as scratch:
            ours, theirs = context.Pipe(duplex=False)
            process = context.Process(target=work, args=(theirs, scratch, seed, first, last))
            process.start()
            theirs.close()
            kind, index, peak = "", -1, 0
            try:
                receive(ours, STARTING)
                while first < last:
                    kind, index = receive(ours)
                    came, detail, peak = receive(ours)
                    if came in FAILURES:
                        remember(keep, seed, index, came, detail)
                    yield kind, came, peak
                    first = index + 1
            except (EOFError, TimeoutError) as error:
                process.kill()
                process.join()
                if index < first:
                    raise RuntimeError(f"the process ended between cases, before case {first}") from None
                reason = str(error) or f"the process ended with exit code {process.exitcode}"
                remember(keep, seed, index, "crash", reason)
                yield kind, "crash", peak
                first = index + 1
            process.join()


def receive(connection: Any, seconds: float | None = None) -> Any:
    """Return the next message of a process, by default within `SECONDS`."""
    seconds = seconds or SECONDS
    if not connection.poll(seconds):
        raise TimeoutError(f"no answer in {seconds} seconds")
    return connection.recv()


def remember(keep: Path, seed: int, index: int, came: str, detail: str) -> None:
    """Keep the files of a case that failed, and what happened."""
    kind, tried = case(seed, index)
    place = keep / f"{seed}-{index}-{came}"
    place.mkdir(parents=True, exist_ok=True)
    for name, content in tried.files.items():
        (place / name).write_bytes(content)
    (place / "case.txt").write_text(f"{kind}: {tried.note}\n{detail}\n", errors="backslashreplace")
    formatter.say(f"case {index} ({kind}: {tried.note}): {came}, kept in {place}")


def main(arguments: list[str] | None = None) -> int:
    """Run the cases, print the table and the line of JSON; return 1 if any failed."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--cases", type=int, default=20_000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--workers", type=int, default=usable_cpus(), help="processes at a time")
    parser.add_argument("--keep", type=Path, default=Path("robustness-failures"), help="folder for failed cases")
    parser.add_argument("--case", type=int, help="run this case alone, in this process")
    options = parser.parse_args(arguments)
    if options.case is not None:
        kind, tried = case(options.seed, options.case)
        with tempfile.TemporaryDirectory() as scratch:
            print(kind, tried.note, *outcome(tried, World(Path(scratch))), sep="\n")
        return 0
    counts: dict[str, Counter[str]] = {kind: Counter() for kind in KINDS}
    peak = 0
    starts = range(0, options.cases, CHUNK)

    def part(start: int) -> list[tuple[str, str, int]]:
        return list(supervise(options.seed, start, min(start + CHUNK, options.cases), options.keep))

    with ThreadPoolExecutor(options.workers) as pool:
        for done, results in enumerate(pool.map(part, starts), 1):
            for kind, came, memory in results:
                counts[kind][came] += 1
                peak = max(peak, memory)
            formatter.say(f"{min(done * CHUNK, options.cases):,} cases, peak memory {peak / 2**20:.0f} MiB")
    outcomes = ("accepted", "refused", *FAILURES)
    total = sum(counts.values(), Counter())
    lines = [["kind", "cases", *outcomes]]
    for kind, count in {**counts, "all": total}.items():
        lines.append([kind, f"{count.total():,}", *(f"{count[name]:,}" for name in outcomes)])
    failures = sum(total[name] for name in FAILURES)
    rows = [{"kind": kind, "cases": count.total(), **count} for kind, count in counts.items()]
    memory = {"peak_bytes": peak, "peak_bytes_allowed": PEAK, "address_space_bytes": ADDRESS_SPACE}
    settings = {"seed": options.seed, "cases": options.cases}
    found = formatter.document("robustness", settings, rows, failures=failures, memory=memory)
    formatter.finish(found, formatter.table(lines))
    return int(failures > 0 or peak > PEAK)


if __name__ == "__main__":
    formatter.main(main)
