"""The temperature that makes a net's confidence mean what it says: one for all pictures, or one for each."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

MIN_SHARPNESS_IMAGES = 1_000
"""A temperature for each picture is fitted on at least so many: fewer say too little of the seldom wrong answers."""


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


@dataclass(frozen=True)
class Sharpness:
    """What the logits of a picture are multiplied by: a + b * gap + c * gap**2, a temperature for each picture.

    The gap is the distance between its two largest logits; those above the largest that was fitted on count as that.
    The class stays the same. Source: Tomani et al., Parameterized temperature scaling, 2022, which has a small net
    in place of the polynomial.

    Attributes:
        coefficients: a, b and c.
        largest: gap.
    """

    coefficients: tuple[float, float, float]
    largest: float

    def __call__(self, logits: Tensor) -> Tensor:
        """Map logits, float [N, classes], to factors, float [N, 1]."""
        top = logits.topk(2, dim=1).values
        gap = (top[:, :1] - top[:, 1:]).clamp(max=self.largest)
        a, b, c = self.coefficients
        return a + gap * (b + gap * c)

    @property
    def is_sound(self) -> bool:
        """Whether a picture with a wider gap always keeps it wider, so that no factor makes a sure answer unsure."""
        gap = torch.linspace(0, self.largest, 1_000, dtype=torch.float64)
        a, b, c = self.coefficients
        return bool(((gap * (a + gap * (b + gap * c))).diff() > 0).all())


def fit_sharpness(logits: np.ndarray, labels: np.ndarray, temperature: float) -> Sharpness | None:
    """Return the sharpness that makes the largest probability of softmax(logits * sharpness / temperature) mean most.

    That is: which minimises its log loss as the probability that the answer is right (Gupta and Ramdas, Top-label
    calibration, 2022). One temperature cannot: a small student of a teacher's soft answers is too sure in the middle
    and rightly sure at the top.

    Args:
        logits: float [N, classes], of images that were not trained on.
        labels: integer [N].
        temperature: that minimises the likelihood's loss, as `fit_temperature` says.

    Returns:
        None where there are too few images, all are right, or what was found is not sound.
    """
    right = torch.from_numpy(logits.argmax(1) == labels).double()
    if len(labels) < MIN_SHARPNESS_IMAGES or right.all():
        return None
    z = torch.from_numpy(logits).double() / temperature
    top = z.topk(2, dim=1).values
    gap = top[:, 0] - top[:, 1]
    unit = float(gap.mean())
    with torch.enable_grad():
        found = torch.tensor([1.0, 0.0, 0.0], dtype=torch.float64, requires_grad=True)
        optimizer = torch.optim.LBFGS([found], max_iter=200, line_search_fn="strong_wolfe")

        def loss() -> Tensor:
            optimizer.zero_grad()
            x = gap / unit
            factors = found[0] + x * (found[1] + x * found[2])
            sure = torch.log_softmax(z * factors[:, None], 1).amax(1)
            unsure = torch.log(-torch.expm1(sure.clamp(max=-1e-12)))
            mean = -(right * sure + (1 - right) * unsure).mean()
            mean.backward()
            return mean

        optimizer.step(loss)
    a, b, c = (float(value) / (unit * temperature) ** power for power, value in enumerate(found.detach()))
    sharpness = Sharpness((a, b, c), float(gap.max()) * temperature)
    return sharpness if sharpness.is_sound else None
