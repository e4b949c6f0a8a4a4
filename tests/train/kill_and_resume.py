"""Trains in child processes that are killed outright, resumes, and compares the weights; run by test_loop.py.

    kill_and_resume.py writes FOLDER    each child kills itself at another replacement of a file, small net
    kill_and_resume.py moments FOLDER   each child is killed at a random moment, Net itself

Children are forked, so that torch is imported once.
"""

from __future__ import annotations

import itertools
import os
import random
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path

import torch
from conftest import SmallNet

from edgecifar.runtime.files import write_file
from edgecifar.train import data, loop, plots
from edgecifar.train.recipes import Recipe
from edgecifar.train.run import Run

CPU = torch.device("cpu")


def work(folder: Path, dataset: data.Dataset, recipe: Recipe) -> None:
    """Begin the run, or go on with it, as a person would after a crash."""
    run = Run(folder)
    if (folder / "run.json").exists():
        if run.record["status"] == "running":
            loop.resume(run, dataset, CPU)
    else:
        loop.train(recipe, dataset, folder, CPU, seed=3)


def forked(function: Callable[[], object], kill_after: float | None = None) -> int:
    """Run `function` in a child, killed after so many seconds; return 0 or the number of the signal it died of."""
    child = os.fork()
    if child == 0:
        code = 1
        try:
            torch.set_num_threads(1)
            function()
            code = 0
        finally:
            os._exit(code)
    if kill_after is not None:
        time.sleep(kill_after)
        os.kill(child, signal.SIGKILL)
    _, status = os.waitpid(child, 0)
    if os.WIFEXITED(status) and os.WEXITSTATUS(status) != 0:
        sys.exit("a child failed")
    return os.WTERMSIG(status) if os.WIFSIGNALED(status) else 0


def digests(folder: Path) -> tuple[str, str, int]:
    record = Run(folder).record
    return record["status"], record["weights_sha256"], record["epochs_done"]


def die_at(count: int, before: bool) -> None:
    """Let this process kill itself before or after the `count`-th file from now is put in its place."""
    replace, calls = os.replace, itertools.count(1)

    def deadly(source, target):
        now = next(calls) == count
        if now and before:
            os.kill(os.getpid(), signal.SIGKILL)
        replace(source, target)
        if now:
            os.kill(os.getpid(), signal.SIGKILL)

    os.replace = deadly


def writes(root: Path) -> int:
    """Kill at each write of a run of two epochs, before and after it."""
    loop.Net = SmallNet
    for name in ("confusion", "curves"):
        setattr(plots, name, lambda _, path: write_file(path, b"drawn"))
    dataset, recipe = data.synthetic(40, 20), Recipe("tiny", 2, 8, lr=0.05, flip=True, shift=2, held_out=0.25)
    forked(lambda: work(root / "whole", dataset, recipe))
    wanted = digests(root / "whole")
    kills = 0
    for count in itertools.count(1):
        for before in (True, False):
            folder = root / f"{count}-{before}"

            def begin(count=count, before=before, folder=folder) -> None:
                die_at(count, before)
                work(folder, dataset, recipe)

            if forked(begin) != signal.SIGKILL:
                return kills
            kills += 1
            forked(lambda folder=folder: work(folder, dataset, recipe))
            if digests(folder) != wanted or list(folder.glob(".edgecifar-partial-*")):
                sys.exit(f"killed {'before' if before else 'after'} write {count}: {digests(folder)}, not {wanted}")
    return kills


def moments(root: Path) -> int:
    """Kill one run of the full net again and again, at random moments from its first step to its last write."""
    dataset, recipe = data.synthetic(20, 10), Recipe("tiny", 3, 8, lr=0.01, flip=True, shift=2, held_out=0.5)
    started = time.perf_counter()
    forked(lambda: work(root / "whole", dataset, recipe))
    seconds, rng = time.perf_counter() - started, random.Random(0)  # noqa: S311
    kills = 0
    while kills < 4:
        forked(lambda: work(root / "killed", dataset, recipe), kill_after=rng.uniform(0.1, 0.4) * seconds)
        kills += 1
    forked(lambda: work(root / "killed", dataset, recipe))
    if digests(root / "killed") != digests(root / "whole"):
        sys.exit(f"{digests(root / 'killed')}, not {digests(root / 'whole')}")
    return kills


if __name__ == "__main__":
    torch.optim.SGD(SmallNet().parameters(), lr=1)  # the first optimizer imports half of torch: not in each child
    sys.stdout.write(f"{globals()[sys.argv[1]](Path(sys.argv[2]))} kills\n")
