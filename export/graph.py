"""The deployed graph: uint8 pictures in, probabilities and logits out; nothing in it is specific to a format."""

from __future__ import annotations

from typing import cast

import torch
from torch import Tensor, nn

from ..train.net import Net


class Deployed(nn.Module):
    """Net as a device runs it: normalisation and batch norm folded into the convolutions, identities gone.

    In exact arithmetic it equals softmax(Net(x / 127.5 - 1) / temperature); the folding is done in float64.

    Args:
        net: the trained net, some of whose layers may be factored (`low_rank.factored`); it is not changed.
        temperature: what the logits are divided by before the softmax.
    """

    def __init__(self, net: Net, temperature: float = 1.0) -> None:
        super().__init__()
        # Annotated here, not in the class's body: torch.jit.script reads those there, and knows no modules' types.
        self.conv1 = _fold_normalisation(_fold_norm(net.conv1, net.norm1))
        self.conv2 = _fold(net.conv2, net.norm2)
        self.conv3 = _fold(net.conv3, net.norm3)
        self.conv4 = _fold(net.conv4, net.norm4)
        self.conv5 = _fold(net.conv5, net.norm5)
        self.conv6 = _fold(net.conv6, net.norm6)
        self.fc1 = _fold_head(net.fc1)
        self.fc2, self.fc3 = _copy(net.fc2), _copy(net.fc3)
        self.temperature = temperature
        self.eval().requires_grad_(False)

    def features(self, images: Tensor) -> Tensor:
        """Map uint8 [N, 32, 32, 3] to the float32 [N, 512, 6, 6] that `fc1` reads."""
        x = images.permute(0, 3, 1, 2).to(torch.float32)
        x = torch.relu(self.conv1(x))  # [N, 16, 30, 30]
        x = torch.max_pool2d(torch.relu(self.conv2(x)), 2)  # [N, 32, 14, 14]
        x = torch.relu(self.conv3(x))  # [N, 64, 12, 12]
        x = torch.relu(self.conv4(x))  # [N, 128, 10, 10]
        x = torch.relu(self.conv5(x))  # [N, 256, 8, 8]
        return torch.relu(self.conv6(x))  # [N, 512, 6, 6]

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Map uint8 [N, 32, 32, 3] RGB to probabilities and logits, float32 [N, 10] each."""
        x = torch.relu(self.fc1(self.features(images)))
        x = torch.relu(self.fc2(x))
        logits = self.fc3(x)
        return torch.softmax(logits / self.temperature, dim=1), logits


def layer_of(model: Deployed, name: str) -> nn.Linear | nn.Conv2d:
    """Return the layer `name` of a model in which it is whole; of `fc1` what follows the flattening."""
    layer = model.get_submodule(name)
    layer = layer[-1] if isinstance(layer, nn.Sequential) else layer
    return cast("nn.Linear | nn.Conv2d", layer)


def _fold(layer: nn.Module, norm: nn.Module) -> nn.Module:
    """Fold batch norm into a convolution, or into the two it is factored into, the first with a norm of its own."""
    if isinstance(layer, nn.Sequential):
        down, between, up = layer
        return nn.Sequential(_fold(down, between), _fold(up, norm))
    return _fold_norm(cast("nn.Conv2d", layer), cast("nn.BatchNorm2d", norm))


def _fold_head(layer: nn.Module) -> nn.Sequential:
    """Return `fc1` as it reads [N, 512, 6, 6]: flattening and itself, or the convolution that its first factor is."""
    if isinstance(layer, nn.Sequential):
        _, down, between, flatten, up = layer
        return nn.Sequential(_fold(down, between), flatten, _copy(cast("nn.Linear", up)))
    return nn.Sequential(nn.Flatten(), _copy(cast("nn.Linear", layer)))


def _copy(layer: nn.Linear) -> nn.Linear:
    copy = nn.Linear(layer.in_features, layer.out_features)
    copy.load_state_dict(layer.state_dict())
    return copy


def _convolution(weight: Tensor, bias: Tensor) -> nn.Conv2d:
    outputs, inputs, height, width = weight.shape
    layer = nn.Conv2d(inputs, outputs, (height, width))
    layer.load_state_dict({"weight": weight.float(), "bias": bias.float()})
    return layer


def _parameters(layer: nn.Conv2d) -> tuple[Tensor, Tensor]:
    """Return the weight and the bias in float64."""
    if layer.bias is None:
        raise ValueError("every convolution of Net has a bias")
    return layer.weight.double(), layer.bias.double()


def _fold_norm(convolution: nn.Conv2d, norm: nn.BatchNorm2d) -> nn.Conv2d:
    """Return the convolution that equals `norm(convolution(x))` in eval mode."""
    weight, bias = _parameters(convolution)
    mean, variance = norm.get_buffer("running_mean").double(), norm.get_buffer("running_var").double()
    scale = norm.weight.double() / torch.sqrt(variance + norm.eps)
    return _convolution(weight * scale[:, None, None, None], (bias - mean) * scale + norm.bias.double())


def _fold_normalisation(convolution: nn.Conv2d) -> nn.Conv2d:
    """Return the convolution that equals `convolution(x / 127.5 - 1)`; exact, as there is no padding."""
    weight, bias = _parameters(convolution)
    return _convolution(weight / 127.5, bias - weight.sum(dim=(1, 2, 3)))
