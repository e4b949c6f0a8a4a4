"""Narrowing: a net whose layers keep only the channels that matter most to what reads them."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from typing import cast

import numpy as np
import torch
from torch import Tensor, nn

from ...train.inference import logits_with
from ...train.net import LAST_LAYER, LAYERS, READERS, Net


def importance(net: Net, images: np.ndarray) -> dict[str, Tensor]:
    """Return how much each output of `LAYERS` contributes to the layer that reads it, float64 [outputs].

    That is the mean square of the output on the images times the squared norm of the weights that it meets.

    Args:
        net: a trained net; it is not changed.
        images: uint8 [N, size, size, 3], of the training set.
    """
    energies = _energies(net, images)
    met = {name: _layer(net, reader).weight.detach().flatten(1).pow(2).sum(0) for name, reader in READERS.items()}
    return {name: energy * met[name].view(len(energy), -1).sum(1) for name, energy in energies.items()}


def narrowed(net: Net, widths: Mapping[str, int], importances: Mapping[str, Tensor]) -> Net:
    """Return a copy of `net` whose layers have only so many outputs, the most important, for training on.

    What is left computes something else than before, and has to learn: structured pruning (Li et al., Pruning Filters
    for Efficient ConvNets, 2017, by the norms of weights alone).

    Args:
        net: a trained net; it is not changed.
        widths: the outputs of each of `LAYERS`, at most what it has.
        importances: what `importance` gives of it.
    """
    student = copy.deepcopy(net)
    channels = net.conv1.in_channels
    read = torch.arange(channels)
    for name in LAYERS:
        layer, kept = _layer(net, name), importances[name].topk(widths[name]).indices.sort().values
        setattr(student, name, _reduced(layer, channels, read, kept))
        norm = name.replace("conv", "norm")
        if norm != name:
            setattr(student, norm, _reduced_norm(net.get_submodule(norm), kept))
        read, channels = kept, len(layer.weight)
    last = _layer(net, LAST_LAYER)
    setattr(student, LAST_LAYER, _reduced(last, channels, read, torch.arange(len(last.weight))))
    return student.requires_grad_(True)


def _energies(net: Net, images: np.ndarray) -> dict[str, Tensor]:
    """Return the mean square of each output of `LAYERS` as the next layer reads it, that is after norm and ReLU."""
    sums: dict[str, Tensor] = {}

    def add(name: str, channels: int, inputs: tuple[Tensor]) -> None:
        squares = inputs[0].double().pow(2).unflatten(1, (channels, -1))  # what `fc1` reads is flat
        sums[name] = sums.get(name, 0) + squares.transpose(0, 1).flatten(1).sum(1)

    def listen(name: str) -> Callable[..., None]:
        channels = len(_layer(net, name).weight)
        return lambda _, inputs: add(name, channels, inputs)

    hooks = [_layer(net, reader).register_forward_pre_hook(listen(name)) for name, reader in READERS.items()]
    logits, training = logits_with(net), net.training
    try:
        for start in range(0, len(images), 250):
            logits(images[start : start + 250])
    finally:
        net.train(training)
        for hook in hooks:
            hook.remove()
    return {name: total / len(images) for name, total in sums.items()}


def _layer(net: Net, name: str) -> nn.Conv2d | nn.Linear:
    return cast("nn.Conv2d | nn.Linear", net.get_submodule(name))


def _reduced(layer: nn.Conv2d | nn.Linear, channels: int, read: Tensor, kept: Tensor) -> nn.Conv2d | nn.Linear:
    """Return `layer` with only the outputs `kept`, that reads only the channels `read` of `channels`."""
    weight = layer.weight.detach()[kept].flatten(1).unflatten(1, (channels, -1))[:, read]
    if isinstance(layer, nn.Conv2d):
        reduced = nn.Conv2d(len(read), len(kept), cast("tuple[int, int]", layer.kernel_size))
    else:
        reduced = nn.Linear(weight[0].numel(), len(kept))
    if layer.bias is None:
        raise ValueError("every layer of Net has a bias")
    reduced.load_state_dict({"weight": weight.reshape(reduced.weight.shape), "bias": layer.bias.detach()[kept]})
    return reduced


def _reduced_norm(norm: nn.Module, kept: Tensor) -> nn.BatchNorm2d:
    reduced = nn.BatchNorm2d(len(kept))
    state = {name: tensor[kept] if tensor.ndim else tensor for name, tensor in norm.state_dict().items()}
    reduced.load_state_dict(state)
    return reduced
