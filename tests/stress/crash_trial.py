"""How crashes.py makes a command crash: killed at a step or at a moment, on a disk that is full or read-only."""

from __future__ import annotations

import contextlib
import itertools
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

from edgecifar.runtime import files

STEPS = [(os, "mkdir"), (os, "rename"), (os, "replace"), (os, "rmdir"), (files, "_exchange")]
"""What `runtime.files` does to names. Flushing is none of it: a kill cannot show whether that was done."""
PAGE = 4096


class Skipped(Exception):  # noqa: N818
    """A trial that this machine does not allow."""


def require(kept: bool, promise: str) -> None:
    """Raise an `AssertionError` that names the `promise`, unless it was `kept`."""
    if not kept:
        raise AssertionError(promise)


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
        """Kill it before each of `steps`, and after the last: after another one is as before the next, or less."""

        def killed(count: int, before: bool) -> tuple[int, str]:
            def die() -> None:
                die_at(count, before, steps)
                self.work()

            self.restart()
            return forked(die)

        def lost(code: int, words: str) -> str:
            return words if code != -signal.SIGKILL else self.aftermath()

        taken = 0
        while (end := killed(taken + 1, before=True))[0] != 0:
            yield lost(*end)
            taken += 1
        require(taken > 0, "it takes no step")
        yield lost(*killed(taken, before=False))

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
