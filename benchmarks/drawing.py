"""The one way in which matplotlib is used here: a figure without a display, labels that cover nothing, a whole file."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple

from edgecifar.runtime import EdgecifarError
from edgecifar.runtime.files import write_file

BLUE, RED, GREY = "#4c72b0", "#c44e52", "#777777"


def new_figure(inches: tuple[float, float], title: str = "") -> Any:
    """Return an empty figure of matplotlib.

    Raises:
        EdgecifarError: matplotlib is not installed.
    """
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
    except ModuleNotFoundError:
        raise EdgecifarError("Pictures are drawn by matplotlib, which is not installed: pip install matplotlib.") from (
            None
        )
    figure = Figure(figsize=inches, layout="constrained")
    FigureCanvasAgg(figure)
    if title:
        figure.suptitle(title, fontsize=10)
    return figure


def save(figure: Any, path: Path) -> None:
    """Write the figure as a PNG, whole or not at all."""
    write_file(path, lambda staged: figure.savefig(staged, format="png", dpi=110, metadata={"Software": None}))


def log_axis(axis: Any, many: bool = False) -> None:
    """Write plain numbers on a logarithmic axis, also at 2 and 5 unless `many` decades are shown."""
    some = "" if many else "25"
    axis.set_major_formatter("{x:g}")
    axis.set_minor_formatter(lambda x, _: f"{x:g}" if f"{x:.0e}"[0] in some else "")


class Point(NamedTuple):
    """A point to be labelled: where it is in the data, the radius of its marker in typographic points, its label."""

    x: float
    y: float
    radius: float
    label: str


def place_labels(axes: Any, points: Sequence[Point], line: Sequence[tuple[float, float]] = ()) -> list[Any]:
    """Write a label beside each point so that no label covers another, a marker, the line, or the border of the axes.

    Each label takes the nearest free place. A label that is not beside its point has a line to it.

    Args:
        axes: drawn before, as the places of points and texts in pixels must be known.
        points: the crowded ones should come first.
        line: the corners of a line of steps, in the data.

    Returns:
        The labels' boxes in pixels, in the order of the points.

    Raises:
        EdgecifarError: there is no room for a label.
    """
    from matplotlib.transforms import Bbox

    scale = axes.figure.dpi / 72  # pixels a typographic point
    frame = axes.get_window_extent()
    taken, boxes = [], []
    corners = axes.transData.transform(line) if line else []
    for (x0, y0), (x1, y1) in pairwise(corners):
        taken.append(Bbox([[min(x0, x1) - 1, min(y0, y1) - 1], [max(x0, x1) + 1, max(y0, y1) + 1]]))
    for point in points:
        x, y = axes.transData.transform((point.x, point.y))
        taken.append(Bbox.from_bounds(*(v - point.radius * scale for v in (x, y)), *[2 * point.radius * scale] * 2))
    for point in points:
        text = axes.text(point.x, point.y, point.label, fontsize=7.5)
        size = text.get_window_extent()
        text.remove()
        x, y = axes.transData.transform((point.x, point.y))
        for dx, dy, side in _places(point.radius):
            left = x + dx * scale - size.width * {"left": 0, "center": 0.5, "right": 1}[side]
            box = Bbox.from_bounds(left, y + dy * scale - size.height / 2, size.width, size.height).padded(2)
            inside = frame.x0 < box.x0 and box.x1 < frame.x1 and frame.y0 < box.y0 and box.y1 < frame.y1
            if inside and not any(box.overlaps(other) for other in (*taken, *boxes)):
                break
        else:
            raise EdgecifarError(f"There is no room for the label '{point.label}': draw a larger picture.")
        boxes.append(box)
        line_to_point = {"arrowstyle": "-", "color": GREY, "linewidth": 0.5, "shrinkA": 0, "shrinkB": point.radius}
        axes.annotate(
            point.label,
            (point.x, point.y),
            (dx, dy),
            textcoords="offset points",
            fontsize=7.5,
            ha=side,
            va="center",
            zorder=4,
            arrowprops=line_to_point if math.hypot(dx, dy) > point.radius + 8 else None,
        )
    return boxes


def _places(radius: float) -> Iterator[tuple[float, float, str]]:
    """Yield (dx, dy, horizontal alignment) in typographic points around a point, the nearest first."""
    for step in range(40):
        distance = radius + 4 + 5 * step
        for turn in range(16):
            angle = (turn + 1) // 2 * (1 if turn % 2 else -1) * math.pi / 8
            dx, dy = distance * math.cos(angle), distance * math.sin(angle)
            yield dx, dy, "left" if dx > 1 else "right" if dx < -1 else "center"
