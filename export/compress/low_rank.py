"""Low rank: a large layer as two small ones, from the principal components of what it gives."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from ..graph import Deployed, channels_first, layer_of

FACTORED = ("fc1", "conv6", "conv5", "conv4")
"""These layers may be split in two, one after the other: those with the most weights come first."""

MAX_FACTORED_SHARE = 0.75
"""A layer is split only where its factors have at most this share of its multiply-adds."""

RANK_MULTIPLE = 8
"""Ranks are multiples of it: int8 kernels work on 8 or 16 channels at once."""

BATCH_SIZE = 250
"""The net is shown so many images at once."""


@dataclass(frozen=True)
class Principal:
    """The principal components of a layer's outputs, over images and, of a convolution, over places.

    Attributes:
        mean: float64 [outputs].
        directions: float64 [outputs, outputs], orthonormal columns, the one of the largest variance first.
        variances: float64 [outputs], of each direction.
    """

    mean: Tensor
    directions: Tensor
    variances: Tensor

    def rank(self, lost: float) -> int:
        """Return the smallest multiple of `RANK_MULTIPLE` that loses at most the share `lost` of the variance."""
        left = 1 - self.variances.cumsum(0) / self.variances.sum()
        needed = int((left > lost).sum()) + 1
        return -(-needed // RANK_MULTIPLE) * RANK_MULTIPLE


def principal_outputs(model: Deployed, images: np.ndarray) -> dict[str, Principal]:
    """Return the principal components of the outputs of each layer in `FACTORED`, before the ReLU.

    Args:
        model: the deployed net.
        images: uint8 [N, size, size, 3], of the training set.
    """
    sums = {name: [torch.zeros((), dtype=torch.float64)] * 3 for name in FACTORED}

    def add(name: str, outputs: Tensor) -> None:
        rows = outputs.movedim(1, -1).flatten(0, -2).double()  # [images * places, channels]
        count, total, products = sums[name]
        sums[name] = [count + len(rows), total + rows.sum(0), products + rows.T @ rows]

    def remember(name: str) -> Callable[..., None]:
        return lambda layer, inputs, outputs: add(name, outputs)

    hooks = [model.get_submodule(name).register_forward_hook(remember(name)) for name in FACTORED]
    try:
        with torch.inference_mode():
            for start in range(0, len(images), BATCH_SIZE):
                model(torch.from_numpy(images[start : start + BATCH_SIZE]))
    finally:
        for hook in hooks:
            hook.remove()
    found = {}
    for name, (count, total, products) in sums.items():
        mean = total / count
        variances, directions = torch.linalg.eigh(products / count - torch.outer(mean, mean))
        found[name] = Principal(mean, directions.flip(1), variances.flip(0).clamp(min=0))
    return found


def low_rank(layer: nn.Linear | nn.Conv2d, principal: Principal, rank: int) -> nn.Sequential:
    """Return layers that give the projection of `layer`'s outputs on their `rank` principal directions.

    With U the directions and m the mean, Wx + b becomes U (U'W x + U'(b - m)) + m, which among all maps of this rank
    loses the least of the outputs' variance on the images the directions were taken from; a convolution becomes one
    of the same window to `rank` channels and one of 1x1. `fc1` becomes a convolution whose window is all that it
    sees, [N, 512, 6, 6] to [N, rank, 1, 1], flattening, and a linear layer: int8 convolutions keep channels last, and
    so nothing large is transposed. What passes between the two is brought to unit variance in every channel, so that
    one int8 scale suits all of them.
    Source: the data-aware form of the truncated SVD in Girshick, Fast R-CNN, 2015, section 3.1; for convolutions
    Zhang et al., Accelerating Very Deep Convolutional Networks, 2015, section 3.1.
    """
    basis = principal.directions[:, :rank]
    deviation = principal.variances[:rank].sqrt().clamp(min=1e-6 * float(principal.variances[0].sqrt()))
    inward, outward = (basis / deviation).T, basis * deviation
    if layer.bias is None:
        raise ValueError("every layer of Net has a bias")
    weight, bias = layer.weight.double(), layer.bias.double()
    if isinstance(layer, nn.Linear):
        weight = channels_first(weight)
    outputs, inputs, height, width = weight.shape
    down = nn.Conv2d(inputs, rank, (height, width))
    down_weight = (inward @ weight.flatten(1)).unflatten(1, weight.shape[1:])
    down.load_state_dict({"weight": down_weight.float(), "bias": (inward @ (bias - principal.mean)).float()})
    flat = isinstance(layer, nn.Linear)
    up = nn.Linear(rank, outputs) if flat else nn.Conv2d(rank, outputs, 1)
    up.load_state_dict({"weight": outward.reshape(up.weight.shape).float(), "bias": principal.mean.float()})
    layers = (down, nn.Flatten(), up) if flat else (down, up)
    return nn.Sequential(*layers).requires_grad_(False)


def split(model: Deployed, name: str, principal: Principal, lost: float) -> tuple[Deployed, int]:
    """Return a copy of `model` whose layer `name` loses at most the share `lost` of its outputs' variance; its rank.

    Where splitting is not worth it, `model` itself is returned, and 0.
    """
    layer, rank = layer_of(model, name), principal.rank(lost)
    if rank * (layer.weight[0].numel() + len(layer.weight)) > MAX_FACTORED_SHARE * layer.weight.numel():
        return model, 0
    reduced = copy.copy(model)  # shares every layer but the one that is replaced
    reduced._modules = {**model._modules, name: low_rank(layer, principal, rank)}
    return reduced, rank
