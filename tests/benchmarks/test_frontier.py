"""The frontier of known points and of random ones."""

from __future__ import annotations

import numpy as np
import pytest
from frontier import costs, frontier


@pytest.mark.parametrize(
    ("points", "wanted"),
    [
        ([(1, 1, 1)], [True]),
        ([(1, 2, 3), (3, 2, 1), (2, 2, 2)], [True, True, True]),
        ([(1, 2, 3), (1, 2, 4)], [True, False]),  # larger in one, equal in the others
        ([(2, 2, 2), (1, 1, 1), (1, 1, 3)], [False, True, False]),
        ([(5, 5), (5, 5)], [True, True]),  # neither is better than the other
        ([], []),
    ],
)
def test_known_points(points, wanted):
    assert frontier(points) == wanted


def test_random_points():
    """Whoever is not on it is beaten by one that is, and those on it do not beat one another."""
    points = np.random.default_rng(0).integers(0, 6, (60, 3))
    best = np.array(frontier(points.tolist()))
    assert 0 < best.sum() < len(points)
    beaten = (points[best][:, None] <= points).all(-1) & (points[best][:, None] < points).any(-1)
    assert beaten.any(0).tolist() == (~best).tolist()


def test_costs_of_a_row():
    """More right is better, though the coordinates should be small."""
    row = {"test": {"images": 1000, "correct": 901}, "latency": {"1": {"milliseconds": {"p50": 2.0}}}, "bytes": 30}
    assert costs(row) == (99, 2.0, 30)
