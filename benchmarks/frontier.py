"""The frontier of variants: those that no other beats in accuracy, latency and size at once."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any


def costs(row: Mapping[str, Any]) -> tuple[float, float, float]:
    """Return what should be small in a measured row of variants.py or widths.py: images misclassified, ms, bytes.

    The milliseconds are those of one image. Where no images were classified, none is misclassified.
    """
    wrong = row["test"]["images"] - row["test"]["correct"] if row["test"] else 0
    return wrong, row["latency"]["1"]["milliseconds"]["p50"], row["bytes"]


def frontier(points: Sequence[Sequence[float]]) -> list[bool]:
    """Return of each point, whose coordinates should all be small, whether no other one is better.

    A point is better if it is nowhere larger and somewhere smaller; of two equal points neither is better.
    """

    def better(one: Sequence[float], other: Sequence[float]) -> bool:
        pairs = [*zip(one, other, strict=True)]
        return all(mine <= its for mine, its in pairs) and any(mine < its for mine, its in pairs)

    return [not any(better(other, point) for other in points) for point in points]
