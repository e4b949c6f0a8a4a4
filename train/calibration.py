"""The temperature that makes a net's confidence mean what it says."""

from __future__ import annotations

import math

import numpy as np


def fit_temperature(logits: np.ndarray, labels: np.ndarray) -> float:
    """Return the T from 0.05 to 20 that minimises the mean negative log-likelihood of softmax(logits / T).

    Where every image is classified right, as may be with few, that would be the smallest T, which says nothing: then 1.

    Args:
        logits: float [N, classes], of images that were not trained on.
        labels: integer [N].

    The loss is convex in 1/T, so its slope changes sign once, and halving finds where whatever the logits are.
    Source: Guo et al., On Calibration of Modern Neural Networks, 2017, section 4.2.
    """
    z = logits.astype(np.float64)
    z -= z.max(axis=1, keepdims=True)
    true = z[np.arange(len(labels)), labels]
    if (true == 0).all():  # no class is more probable than the true one
        return 1.0
    low, high = 1 / 20, 20.0  # bounds of 1/T
    for _ in range(60):
        middle = math.sqrt(low * high)
        weights = np.exp(middle * z)
        weights /= weights.sum(axis=1, keepdims=True)
        slope = ((weights * z).sum(axis=1) - true).mean()
        low, high = (middle, high) if slope < 0 else (low, middle)
    return 1 / math.sqrt(low * high)
