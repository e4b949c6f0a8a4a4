"""A net of torch as a function of numpy arrays."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from torch import nn

from .augment import normalise

Function = Callable[[np.ndarray], np.ndarray]
"""Maps images, uint8 [N, size, size, 3], to a row each, float32 [N, ...]."""

BATCH_SIZE = 250
"""So many images are given to a net at once where nothing is trained."""


def logits_with(net: nn.Module) -> Function:
    """Return a function from uint8 [N, size, size, 3] to logits, float32 [N, classes], by `net` in eval mode."""
    device = next(net.parameters()).device

    @torch.inference_mode()
    def logits(images: np.ndarray) -> np.ndarray:
        net.eval()
        return net(normalise(torch.from_numpy(images).to(device))).float().cpu().numpy()

    return logits


def classify_with(net: nn.Module, temperature: float = 1.0) -> Function:
    """Return a function from uint8 [N, size, size, 3] to probabilities, float32 [N, classes], by `net` in eval mode."""
    logits = logits_with(net)
    return lambda images: torch.softmax(torch.from_numpy(logits(images)) / temperature, 1).numpy()


def all_logits(net: nn.Module, images: np.ndarray) -> np.ndarray:
    """Return the logits of any number of images, computed in batches."""
    return in_batches(logits_with(net), images)


def in_batches(function: Function, images: np.ndarray, size: int = BATCH_SIZE) -> np.ndarray:
    """Return what `function` gives for all `images`, a row an image, computed `size` at a time."""
    return np.concatenate([function(images[start : start + size]) for start in range(0, len(images), size)])
