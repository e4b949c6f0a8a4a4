"""Progress of long work on stderr: a bar where that is a terminal, a line now and then where it is a file."""

from __future__ import annotations

import sys
import time
from typing import TYPE_CHECKING, Any, Self

from .app import say

if TYPE_CHECKING:
    from rich.progress import Progress as Bar

BAR_AFTER = 1.0
"""Seconds before a bar appears: short work has none, and does not import what draws it."""

LINE_AFTER, LINE_EVERY = 10.0, 30.0
"""Seconds before the first line, and from one to the next."""


class Progress:
    """How many of `total` are done: a context that is told so, and leaves nothing on a terminal."""

    def __init__(self, total: int | None, unit: str = "pictures") -> None:
        """Begin.

        Args:
            total: how many there are; None where that is not known.
            unit: what they are.
        """
        self._total, self._unit = total, unit
        self._begin = time.perf_counter()  # Windows' other clock may stand still for 16 ms
        self._next = BAR_AFTER if sys.stderr.isatty() else LINE_AFTER
        self._bar: Bar | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def stop(self) -> None:
        """Take the bar away."""
        if self._bar:
            self._bar.stop()

    @property
    def seconds(self) -> float:
        """Since the beginning."""
        return time.perf_counter() - self._begin

    def update_of(self, done: int, total: int) -> None:
        """Show how far it is, where how many there are is known only now."""
        self._total = total
        self.update(done)

    def update(self, done: int, passed_over: int = 0, errors: int = 0) -> None:
        """Show how far it is.

        Args:
            done: how many were done.
            passed_over: how many more are not to be done, since they were before.
            errors: how many of those done failed.
        """
        seconds = self.seconds
        if self._bar:
            note = self._note(done, passed_over, errors, seconds)
            self._bar.update(self._bar.task_ids[0], total=self._total, completed=done + passed_over, note=note)
        elif seconds >= self._next:
            if sys.stderr.isatty():
                self._bar = self._draw()
                self.update(done, passed_over, errors)
            else:
                of = "" if self._total is None else f" of {self._total:,}"
                say(f"{done + passed_over:,}{of} {self._note(done, passed_over, errors, seconds)}")
                self._next = seconds + LINE_EVERY

    def _note(self, done: int, passed_over: int, errors: int, seconds: float) -> str:
        rate = done / seconds
        parts = [f"{self._unit}, {rate:,.0f}/s" if rate >= 1 else self._unit]
        if self._total is not None and rate:
            parts.append(f"{duration((self._total - done - passed_over) / rate)} left")
        if errors:
            parts.append(f"{errors:,} error{'s' * (errors != 1)}")
        return ", ".join(parts)

    def _draw(self) -> Bar:
        from rich.console import Console
        from rich.progress import BarColumn, MofNCompleteColumn, TextColumn
        from rich.progress import Progress as Bar

        columns: list[Any] = [BarColumn(), MofNCompleteColumn(), TextColumn("{task.fields[note]}")]
        bar = Bar(*columns, console=Console(stderr=True), transient=True)
        bar.add_task("", total=self._total, note="")
        bar.start()
        return bar


def duration(seconds: float) -> str:
    """Return a time as people say it."""
    if 0 < seconds < 9.95:
        return f"{seconds:.1f} s"
    seconds = round(max(seconds, 0))
    if seconds < 60:
        return f"{seconds} s"
    if seconds < 3600:
        return f"{seconds // 60} min {seconds % 60:02} s"
    return f"{seconds // 3600} h {seconds % 3600 // 60:02} min"
