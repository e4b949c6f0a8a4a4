"""TensorBoard event files of a run: the figures of metrics.jsonl, under the same names, and of the final test."""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..runtime.errors import RunError
from ..runtime.files import explained

if TYPE_CHECKING:
    from ..runtime.metrics import Evaluation
    from .listeners import Progress

FOLDER = "tensorboard"
"""What the folder of the event files is called in a run folder."""

SCALARS = ("loss", "held_out_accuracy", "test_accuracy", "learning_rate", "images_per_second")
"""Names in a line of metrics.jsonl, and of the scalars."""


class EventFiles:
    """A `Listener` that writes an epoch's figures for TensorBoard; a context that closes the file.

    What earlier processes wrote is purged when the first epoch is there, and the epochs of a resumed run are written
    again: each is then shown once, also where a process was killed before it wrote the last one, or wrote none.

    Args:
        run: the run folder; it need not be there yet.
        past: the lines of metrics.jsonl that a resumed run begins with.

    Raises:
        RunError: the package tensorboard is not installed.
    """

    def __init__(self, run: Path, past: Sequence[dict[str, Any]] = ()) -> None:
        try:
            from torch.utils.tensorboard import SummaryWriter
        except ModuleNotFoundError as error:
            raise RunError(
                f"Event files need {error.name}, which is not installed: pip install '.[tensorboard]' in the folder of "
                "edgecifar's source.",
                option="tensorboard",
            ) from None
        self._make, self._writer = SummaryWriter, None
        self._folder, self._past = run / FOLDER, past

    def __enter__(self) -> EventFiles:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if self._writer:  # where it failed once, closing fails again: what is said is the first failure
            with contextlib.suppress(OSError) if kind else explained(self._folder):
                self._writer.close()

    def progress(self, progress: Progress) -> None:
        """Do nothing."""

    def epoch(self, metrics: dict[str, Any]) -> None:
        """Write the scalars of a finished epoch.

        Raises:
            OutputError: the disk is full, and so on.
        """
        step = metrics["epoch"]
        self._write([(name, metrics[name], step) for name in SCALARS if name in metrics])

    def test(self, result: Evaluation, epochs: int) -> None:
        """Write the final figures on the test images, of a run of so many epochs; likewise."""
        self._write([(f"test/{name}", getattr(result, name), epochs) for name in ("accuracy", "nll", "ece")])

    def _write(self, scalars: list[tuple[str, float, int]]) -> None:
        with explained(self._folder):
            if self._writer is None:
                self._writer = self._make(str(self._folder), purge_step=0)
                for line in self._past:
                    self.epoch(line)
            for name, value, step in scalars:
                self._writer.add_scalar(name, value, step)
            self._writer.flush()
