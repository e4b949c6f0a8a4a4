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
    """Draw the confusion matrix of `result`, as shares of each true class, into a PNG."""
    figure, axes = new_figure(1, 1, (6.4, 5.6))
    labels = result.class_names
    total = result.confusion.sum(axis=1, keepdims=True).clip(min=1)
    share = 100 * result.confusion / total
    image = axes.imshow(share, cmap="Blues", vmin=0, vmax=100)
    for row in range(len(labels)):
        for column in range(len(labels)):
            if result.confusion[row, column]:
                colour = "white" if share[row, column] > 60 else "black"
                axes.text(column, row, f"{share[row, column]:.1f}", ha="center", va="center", color=colour, fontsize=7)
    axes.set_xticks(range(len(labels)), labels, rotation=45)
    axes.set_yticks(range(len(labels)), labels)
    axes.set(xlabel="predicted", ylabel="true", title=f"{100 * result.accuracy:.2f} % of {result.images:,} images")
    figure.colorbar(image, label="% of the true class", fraction=0.046)
    save_png(figure, path)


def sheet(
    rows: Sequence[tuple[str | Sequence[str], Sequence[np.ndarray]]], path: Path, title: str, cell: float = 0.8
) -> None:
    """Draw rows of pictures with captions into a PNG.

    Args:
        rows: the text of each row, or one of each picture, and the pictures, uint8 [height, width, 3].
        path: the file.
        title: what stands above all rows.
        cell: width of a picture with its margin, inches; a caption has as much.

    Raises:
        OutputError: the file cannot be written.
    """
    columns = max((len(pictures) for _, pictures in rows), default=1)
    figure, grid = new_figure(max(1, len(rows)), columns, (1 + cell * columns, 0.6 + (0.15 + cell) * max(1, len(rows))))
    figure.suptitle(title, fontsize=9)
    grid = np.array(grid).reshape(max(1, len(rows)), columns)
    for axes in grid.flat:
        axes.set_axis_off()
    for line, (text, pictures) in zip(grid, rows, strict=False):
        for axes, caption in zip(line, [text] if isinstance(text, str) else text, strict=False):
            axes.set_title(caption, fontsize=7, loc="left", parse_math=False)
        for axes, picture in zip(line, pictures, strict=False):
            axes.imshow(picture, interpolation="nearest")
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Glyph")  # a label in a script that the font lacks is drawn as boxes
        save_png(figure, path)


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
    write_file(path, lambda staged: figure.savefig(staged, format="png", dpi=dpi))
