"""The temperature that makes a net's confidence mean what it says."""

from __future__ import annotations

import numpy as np


def fit_temperature(logits: np.ndarray, labels: np.ndarray) -> float:
    """Return the T > 0 that minimises the mean negative log-likelihood of softmax(logits / T).

    Args:
        logits: float [N, classes], of images that were not trained on.
        labels: integer [N].

    The loss is convex in 1/T, so Newton's method on it finds the minimum.
    Source: Guo et al., On Calibration of Modern Neural Networks, 2017, section 4.2.
    """
    z = logits.astype(np.float64)
    z -= z.max(axis=1, keepdims=True)
    true = z[np.arange(len(labels)), labels]
    beta = 1.0
    for _ in range(100):
        weights = np.exp(beta * z)
        weights /= weights.sum(axis=1, keepdims=True)
        mean = (weights * z).sum(axis=1)
        slope = (mean - true).mean()
        curvature = ((weights * z**2).sum(axis=1) - mean**2).mean()
        step = np.clip(slope / max(curvature, 1e-12), -beta / 2, beta)  # beta stays positive
        beta -= step
        if abs(step) < 1e-9 * beta:
            break
    return float(1 / np.clip(beta, 0.05, 20))
