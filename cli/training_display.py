"""What is seen of training and evaluating: a bar and a line an epoch on stderr, and the table of an evaluation."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

from ..runtime.paths import RUN_RECORD
from .display import bar, draws, padded, width_of
from .streams import visible

if TYPE_CHECKING:
    from ..runtime.metrics import Evaluation
    from ..train.listeners import Progress
    from ..train.start import TrainingPlan


MATRIX_CLASSES = 20
"""The confusion matrix of more classes fits no terminal and is left out."""

LABEL_WIDTH = 30
"""Columns beyond which a label does not widen its table."""


def interval(limits: tuple[float, float]) -> str:
    """Return an interval of a share, 0 to 1, in per cent; the sign is left to the reader."""
    return " to ".join(f"{100 * limit:.1f}" for limit in limits)


def evaluation_table(result: Evaluation, dataset: str, images: str = "test images") -> str:
    """Return an evaluation as lines of text: the figures, a line a class, and the confusion matrix."""
    lines = [
        f"{100 * result.accuracy:.2f} % of the {result.images:,} {visible(dataset)} {images} ({result.correct:,} "
        f"correct; 95 % interval {interval(result.interval)} %)",
        f"NLL {result.nll:.4f}   ECE {100 * result.ece:.2f} %   {result.images_per_second:,.0f} images/s",
        "",
    ]
    if not result.is_balanced:
        lines.insert(
            1,
            f"{100 * result.balanced_accuracy:.2f} % balanced accuracy: each class counts the same (95 % interval "
            f"{interval(result.balanced_interval)} %)",
        )
    names, limits = result.class_names, result.per_class_interval
    longest = min(LABEL_WIDTH, max(map(width_of, names)))
    for label, accuracy in result.per_class.items():
        shown = "    —"
        if not math.isnan(accuracy):
            shown = f"{100 * accuracy:5.1f} %  {interval(limits[label]):>13}  {bar(accuracy)}"
        lines.append(f"  {padded(label, longest)} {shown}")
    if len(names) > MATRIX_CLASSES:
        return "\n".join(lines)
    width = max(longest + 1, len(str(result.confusion.max())) + 1)
    lines += ["", "true (rows) against predicted (columns), images:"]
    lines.append(" " * (longest + 2) + "".join(padded(label, width, ">") for label in names))
    for label, row in zip(names, result.confusion, strict=True):
        lines.append(f"  {padded(label, longest)}" + "".join(f"{count or '·':>{width}}" for count in row.tolist()))
    return "\n".join(lines)


class TrainingDisplay:
    """A `Display` of training: a bar an epoch on stderr, then a line; only the lines where it is no terminal."""

    def __init__(self, plan: TrainingPlan) -> None:
        from rich.console import Console
        from rich.progress import BarColumn, TextColumn, TimeRemainingColumn
        from rich.progress import Progress as Bar

        from ..train.nets import make_net, summarise

        self.plan, recipe, dataset = plan, plan.recipe, plan.dataset
        self.console = Console(stderr=True, highlight=False, soft_wrap=True)
        columns = (
            TextColumn("{task.description}"),
            BarColumn(),
            TextColumn("{task.fields[note]}"),
            TimeRemainingColumn(),
        )
        self.bar = Bar(*columns, console=self.console, transient=True, disable=not draws(self.console))
        self._say(summarise(make_net(recipe.net, dataset.contract), dataset.contract.size))
        held_out = f", {len(dataset.hold_out(recipe.held_out)[1]):,} of them held out" if recipe.held_out else ""
        processes = f", {plan.processes} processes" if plan.processes > 1 else ""
        epochs = f"{recipe.epochs} epoch{'s' * (recipe.epochs > 1)}"
        self._say(
            f"Recipe {recipe.name}: {epochs} of {len(dataset.train_labels):,} images of {dataset.name}{held_out}, "
            f"batch size {recipe.batch_size}, on {plan.hardware} ({plan.device}){processes}. Ctrl-C stops; "
            f"'{plan.resume_command}' continues."
        )

    def _say(self, text: str) -> None:
        self.console.print(text, markup=False)

    def __enter__(self) -> TrainingDisplay:
        self.bar.start()
        self.task = self.bar.add_task("", total=None, note="")
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: object) -> None:
        self.bar.stop()
        if isinstance(error, KeyboardInterrupt) and (self.plan.run.folder / RUN_RECORD).exists():  # it has begun
            self._say(f"To go on from the last checkpoint: {self.plan.resume_command}")

    def progress(self, progress: Progress) -> None:
        """Move the bar."""
        note = f"loss {progress.loss:.3f}  {progress.images_per_second:,.0f} images/s"
        name = f"epoch {progress.epoch}/{self.plan.recipe.epochs}"
        self.bar.update(self.task, description=name, total=progress.steps, completed=progress.step, note=note)

    def epoch(self, metrics: dict[str, Any]) -> None:
        """Print the line of a finished epoch."""
        from ..train.record import validation_accuracy

        found = validation_accuracy(metrics)
        accuracy = f"{found[0]} {100 * found[1]:.2f} %  " if found else ""
        windows = "".join(f", first 2,000 batches {loss:.3f}" for loss in metrics["loss_per_2000"][:1])
        self._say(
            f"epoch {metrics['epoch']:>3}/{self.plan.recipe.epochs}  loss {metrics['loss']:.3f}{windows}  "
            f"{accuracy}{metrics['seconds']:.0f} s  {metrics['images_per_second']:,.0f} images/s"
        )
        self.bar.reset(self.task)  # a bar that was full once shows no time left ever after
