"""Pictures of a run or an evaluation: curves over the epochs, and the confusion matrix; needs no torch."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ..runtime.files import write_file
from ..runtime.metrics import Evaluation
from .record import validation_accuracy

NAMED_CLASSES = 40
"""More classes than these have neither names nor figures in a confusion matrix: nobody could read them."""

TICK_LENGTH = 20
"""Characters of a label beside a confusion matrix; what is longer is cut."""


def curves(metrics: list[dict[str, Any]], path: Path) -> None:
    """Draw loss and accuracy over the epochs of `metrics` (lines of metrics.jsonl) into a PNG."""
    figure, (left, right) = new_figure(1, 2, (9, 3.6))
    epochs = [line["epoch"] for line in metrics]
    left.plot(epochs, [line["loss"] for line in metrics], marker=".")
    left.set(xlabel="epoch", ylabel="training loss")
    accuracies = [found for line in metrics if (found := validation_accuracy(line))]
    if accuracies:
        right.plot(epochs, [100 * accuracy for _, accuracy in accuracies], marker=".", label=accuracies[0][0])
        right.legend()
    right.set(xlabel="epoch", ylabel="accuracy, %")
    right.set_visible(bool(accuracies))  # a full-data run is not validated while it lasts
    for axes in (left, right):
        axes.grid(alpha=0.3)
        axes.xaxis.get_major_locator().set_params(integer=True)
    save_png(figure, path)


def confusion(result: Evaluation, path: Path) -> None:
    """Draw the confusion matrix of `result`, as shares of each true class, into a PNG.

    Beyond `NAMED_CLASSES` classes it is a map alone, with their numbers at its edges.
    """
    labels = result.class_names
    named = len(labels) <= NAMED_CLASSES
    inches = max(5.6, 0.42 * len(labels)) if named else 7.5
    figure, axes = new_figure(1, 1, (inches + 0.8, inches))
    total = result.confusion.sum(axis=1, keepdims=True).clip(min=1)
    share = 100 * result.confusion / total
    image = axes.imshow(share, cmap="Blues", vmin=0, vmax=100, interpolation="nearest" if named else "auto")
    if named:
        for row, column in np.argwhere(result.confusion):
            colour = "white" if share[row, column] > 60 else "black"
            axes.text(column, row, f"{share[row, column]:.1f}", ha="center", va="center", color=colour, fontsize=7)
        shown = [shorten(label, TICK_LENGTH) for label in labels]
        axes.set_xticks(range(len(labels)), shown, rotation=45, parse_math=False)
        axes.set_yticks(range(len(labels)), shown, parse_math=False)
    unit = "" if named else ", the number of the class in sorted order"
    axes.set(xlabel=f"predicted{unit}", ylabel="true")
    axes.set_title(f"{100 * result.accuracy:.2f} % of {result.images:,} images")
    figure.colorbar(image, label="% of the true class", fraction=0.046)
    save_png(figure, path)


def sheet(
    rows: Sequence[tuple[str | Sequence[str], Sequence[np.ndarray]]], path: Path, title: str, cell: float = 0.8
) -> None:
    """Draw rows of pictures with captions into a PNG.

    Args:
        rows: the text of each row, or one of each picture, and the pictures, uint8 [size, size, 3], all of one size.
        path: the file.
        title: what stands above all rows.
        cell: width of a picture with its margin, inches; a caption has as much.

    Raises:
        OutputError: the file cannot be written.
    """
    columns = max((len(pictures) for _, pictures in rows), default=1)
    size = next((len(picture) for _, pictures in rows for picture in pictures), 1)
    lines = max((text.count("\n") + 1 for texts, _ in rows for text in ([texts] if isinstance(texts, str) else texts)))
    # All pictures are parts of one image, since axes for each would take seconds to draw.
    width, above = size + max(1, size // 10), round(size * (0.05 + 0.13 * lines) / (0.9 * cell))
    height = size + above
    canvas = np.full((height * len(rows), width * columns, 3), 255, np.uint8)
    scale = cell / width  # inches a pixel
    figure, axes = new_figure(1, 1, (0.2 + scale * canvas.shape[1], 0.5 + scale * canvas.shape[0]))
    figure.suptitle(title, fontsize=9)
    for line, (texts, pictures) in enumerate(rows):
        for place, picture in enumerate(pictures):
            canvas[line * height + above : (line + 1) * height, place * width : place * width + size] = picture
        for place, text in enumerate([texts] if isinstance(texts, str) else texts):
            where = place * width - 0.5, line * height + above - 1.5
            axes.text(*where, text, fontsize=7, va="bottom", linespacing=1.1, parse_math=False)
    axes.imshow(canvas, interpolation="nearest")
    axes.set_axis_off()
    save_png(figure, path)


def shorten(text: str, length: int) -> str:
    """Return the beginning of a text, with an ellipsis where it is cut."""
    return text if len(text) <= length else f"{text[: length - 1]}…"


def new_figure(rows: int, columns: int, inches: tuple[float, float]) -> Any:
    """Return a figure that needs no display, and its axes as `Figure.subplots` gives them."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=inches, layout="constrained")
    FigureCanvasAgg(figure)
    return figure, figure.subplots(rows, columns)


def save_png(figure: Any, path: Path, dpi: int = 110) -> None:
    """Write a figure as a PNG, whole or not at all.

    Raises:
        OutputError: the disk is full, and so on.
    """
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Glyph")  # a label in a script that the font lacks is drawn as boxes
        write_file(path, lambda staged: figure.savefig(staged, format="png", dpi=dpi))
