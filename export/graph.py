"""The deployed graph: uint8 pictures in, probabilities and logits out; nothing in it is specific to a format."""

from __future__ import annotations

from typing import cast

import torch
from torch import Tensor, nn

from ..train.augment import normalise
from ..train.net import FEATURES, Net


class Deployed(nn.Module):
    """Net as a device runs it: normalisation and batch norm folded into the convolutions, identities gone.

    In exact arithmetic it equals softmax(Net(x / 127.5 - 1) / temperature); the folding is done in float64.

    Args:
        net: the trained net, or one narrower (`narrow.narrowed`), whose numbers of channels are then smaller than
            those named here; it is not changed.
        temperature: what the logits are divided by before the softmax.
        paired: whether `conv1` computes two neighbouring pixels at once, as a convolution over pairs of pixels. That is
            a third more arithmetic, and for int8, which copies each window of 27 values to multiply it, less work.
    """

    def __init__(self, net: Net, temperature: float = 1.0, paired: bool = False) -> None:
        super().__init__()
        # Annotated here, not in the class's body: torch.jit.script reads those there, and knows no modules' types.
        self.conv1 = fold_normalisation(fold(net.conv1, net.norm1))
        self.conv2 = fold(net.conv2, net.norm2)
        self.conv3 = fold(net.conv3, net.norm3)
        self.conv4 = fold(net.conv4, net.norm4)
        self.conv5 = fold(net.conv5, net.norm5)
        self.conv6 = fold(net.conv6, net.norm6)
        self.fc1 = nn.Sequential(FlattenChannelsLast(), _channels_last(net.fc1))
        self.fc2, self.fc3 = _copy(net.fc2), _copy(net.fc3)
        self.temperature, self.paired = temperature, paired
        if paired:
            self.conv1 = pair(self.conv1)
        self.eval().requires_grad_(False)

    def features(self, images: Tensor) -> Tensor:
        """Map uint8 [N, size, size, 3] to the float32 [N, 512, 6, 6] that `fc1` reads."""
        if self.paired:
            x = apart(torch.relu(self.conv1(in_pairs(images))))  # [N, 16, 30, 30]
        else:
            x = torch.relu(self.conv1(images.permute(0, 3, 1, 2).to(torch.float32)))  # [N, 16, 30, 30]
        x = torch.max_pool2d(torch.relu(self.conv2(x)), 2)  # [N, 32, 14, 14]
        x = torch.relu(self.conv3(x))  # [N, 64, 12, 12]
        x = torch.relu(self.conv4(x))  # [N, 128, 10, 10]
        x = torch.relu(self.conv5(x))  # [N, 256, 8, 8]
        return torch.relu(self.conv6(x))  # [N, 512, 6, 6]

    def hidden(self, images: Tensor) -> Tensor:
        """Map uint8 [N, size, size, 3] to the float32 [N, 256] that the last layer, `fc3`, reads."""
        x = torch.relu(self.fc1(self.features(images)))
        return torch.relu(self.fc2(x))

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Map uint8 [N, size, size, 3] RGB to probabilities and logits, float32 [N, classes] each."""
        logits = self.fc3(self.hidden(images))
        return torch.softmax(logits / self.temperature, dim=1), logits


class InTorch(nn.Module):
    """A net that is not exported behind the face of those that are: its students are held against it.

    Args:
        net: maps float32 [N, 3, size, size] in [-1, 1] to logits, float32 [N, classes]; it is not changed.
        temperature: what the logits are divided by before the softmax.
    """

    paired = True
    """Its students compute two pixels at once, as `Deployed` says."""

    def __init__(self, net: nn.Module, temperature: float = 1.0) -> None:
        super().__init__()
        self.net, self.temperature = net.eval(), temperature

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Map uint8 [N, size, size, 3] RGB to probabilities and logits, float32 [N, classes] each."""
        logits = self.net(normalise(images))
        return torch.softmax(logits / self.temperature, dim=1), logits


def layer_of(model: Deployed, name: str) -> nn.Linear | nn.Conv2d:
    """Return the layer `name` of a model in which it is whole; of `fc1` what follows the flattening."""
    layer = model.get_submodule(name)
    layer = layer[-1] if isinstance(layer, nn.Sequential) else layer
    return cast("nn.Linear | nn.Conv2d", layer)


class FlattenChannelsLast(nn.Module):
    """Maps [N, channels, height, width] to [N, height * width * channels].

    int8 convolutions keep channels last, and what they give is then flat as it lies in memory.
    """

    def forward(self, x: Tensor) -> Tensor:
        """Flatten `x`, the channel changing fastest."""
        return x.permute(0, 2, 3, 1).flatten(1)


def channels_first(weight: Tensor) -> Tensor:
    """Return the weights of a linear layer after `FlattenChannelsLast`, [N, 36 * C], as Net has them, [N, C, 6, 6]."""
    return weight.unflatten(1, (*FEATURES[1:], -1)).permute(0, 3, 1, 2)


def _channels_last(layer: nn.Linear) -> nn.Linear:
    """Return `fc1` as it reads what `FlattenChannelsLast` gives."""
    copy = _copy(layer)
    weight = layer.weight.detach().unflatten(1, (-1, *FEATURES[1:])).permute(0, 2, 3, 1).flatten(1)
    copy.load_state_dict({"weight": weight}, strict=False)
    return copy


def in_pairs(images: Tensor) -> Tensor:
    """Map uint8 [N, height, width, 3] to float32 [N, 6, height, width / 2], the input of a `pair`ed convolution."""
    return images.unflatten(2, (-1, 2)).flatten(3).permute(0, 3, 1, 2).to(torch.float32)


def apart(x: Tensor) -> Tensor:
    """Map what a `pair`ed convolution gives, [N, 2 * C, height, width], to [N, C, height, 2 * width]."""
    return x.permute(0, 2, 3, 1).unflatten(3, (2, -1)).flatten(2, 3).permute(0, 3, 1, 2)


def _copy(layer: nn.Linear) -> nn.Linear:
    copy = nn.Linear(layer.in_features, layer.out_features)
    copy.load_state_dict(layer.state_dict())
    return copy


def _convolution(weight: Tensor, bias: Tensor, padding: int | tuple[int, ...] | str = 0) -> nn.Conv2d:
    outputs, inputs, height, width = weight.shape
    layer = nn.Conv2d(inputs, outputs, (height, width), padding=padding)  # pyright: ignore[reportArgumentType]
    layer.load_state_dict({"weight": weight.float(), "bias": bias.float()})
    return layer


def _parameters(layer: nn.Conv2d) -> tuple[Tensor, Tensor]:
    """Return the weight and the bias, zeros where there is none, in float64."""
    weight = layer.weight.double()
    return weight, weight.new_zeros(len(weight)) if layer.bias is None else layer.bias.double()


def fold(convolution: nn.Conv2d, norm: nn.BatchNorm2d) -> nn.Conv2d:
    """Return the convolution that equals `norm(convolution(x))` in eval mode."""
    weight, bias = _parameters(convolution)
    mean, variance = norm.get_buffer("running_mean").double(), norm.get_buffer("running_var").double()
    scale = norm.weight.double() / torch.sqrt(variance + norm.eps)
    bias = (bias - mean) * scale + norm.bias.double()
    return _convolution(weight * scale[:, None, None, None], bias, convolution.padding)


def fold_normalisation(convolution: nn.Conv2d) -> nn.Conv2d:
    """Return the convolution that equals `convolution(x / 127.5 - 1)`; exact, as there is no padding."""
    weight, bias = _parameters(convolution)
    return _convolution(weight / 127.5, bias - weight.sum(dim=(1, 2, 3)))


def pair(convolution: nn.Conv2d) -> nn.Conv2d:
    """Return the convolution over pairs of pixels, [N, 6, 32, 16], that gives pairs of outputs, [N, 2 * C, 30, 15].

    Of the four pixels in a window of two pairs, the first output of a pair reads the first three, the second the
    last three; the other weights are zero.
    """
    weight, bias = _parameters(convolution)
    paired = weight.new_zeros(2, len(weight), 2, 3, 3, 2)  # output of the pair, channel; pixel, colour, row, pair
    for output in range(2):
        for column in range(3):
            column_of_pair, pixel = divmod(output + column, 2)
            paired[output, :, pixel, :, :, column_of_pair] = weight[:, :, :, column]
    return _convolution(paired.flatten(2, 3).flatten(0, 1), bias.repeat(2))
