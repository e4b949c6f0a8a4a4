"""Who is told how training goes on, such as a display."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Protocol


@dataclass(frozen=True)
class Progress:
    """The state of a running epoch; made about five times a second, as reading the loss waits for the device.

    Attributes:
        epoch: counted from 1.
        step: steps done in this epoch.
        steps: steps in an epoch.
        loss: mean of the epoch so far.
        images_per_second: of the epoch so far.
    """

    epoch: int
    step: int
    steps: int
    loss: float
    images_per_second: float


class Listener(Protocol):
    """Anything that is told how training goes on."""

    def progress(self, progress: Progress) -> None:
        """Take the state of the running epoch."""

    def epoch(self, metrics: dict[str, Any]) -> None:
        """Take the finished epoch's line of metrics.jsonl."""


class Silent:
    """A listener that does nothing."""

    def progress(self, progress: Progress) -> None:
        """Do nothing."""

    def epoch(self, metrics: dict[str, Any]) -> None:
        """Do nothing."""


class Listeners:
    """Several listeners as one; each is told everything, in order."""

    def __init__(self, *listeners: Listener) -> None:
        self.listeners = listeners

    def progress(self, progress: Progress) -> None:
        """Tell each."""
        for listener in self.listeners:
            listener.progress(progress)

    def epoch(self, metrics: dict[str, Any]) -> None:
        """Tell each."""
        for listener in self.listeners:
            listener.epoch(metrics)
