"""Students that are nets of their own shape: small, residual, taught from nothing, and run as one int8 graph."""

from __future__ import annotations

from collections.abc import Sequence
from typing import cast

import torch
from torch import Tensor, nn

from ...train.calibration import Sharpness
from ..graph import apart, fold, fold_normalisation, in_pairs, pair

LAYERS = 7
"""A residual student has so many convolutions."""

UNPADDED = 2
"""So many of the first convolutions have no padding: normalisation is folded into the first, which padding forbids."""

POOLED = (2, 3, 6)
"""After these convolutions, counted from 1, the picture is halved, and after a skip that ends there."""

SKIPPED = (5, 6)
"""Over these convolutions, counted from 1, leads the skip: their input is added to their output."""


MIDDLE_WIDTHS = range(16, 513, 8)
"""Widths of the fourth to sixth convolution from which a student is chosen that fits into a file of some size."""


def scaled(middle: int) -> tuple[int, ...]:
    """Return the widths of a residual student by that of its fourth to sixth convolution, a multiple of 8.

    The first has 16 channels; the others grow with the middle, in steps of 16, which int8 kernels compute at once. The
    last is the widest: it sees so small a picture that it takes little time.
    """

    def part(share: float) -> int:
        return max(16, 16 * round(share * middle / 16))

    return (16, part(1 / 3), part(2 / 3), middle, middle, middle, part(2))


def describe_widths(widths: Sequence[int]) -> str:
    """Return what a student of these widths is, in words."""
    return f"{LAYERS} 3x3 convolutions: {', '.join(map(str, widths))} channels"


class Residual(nn.Module):
    """Seven 3x3 convolutions with one skip, global maximum and mean, and one linear layer, as it is trained.

    The first two convolutions have no padding, the others are padded by one pixel; each is followed by batch norm and
    ReLU. Over the fifth and sixth leads a skip, for which the fourth and the sixth must be equally wide. Pools of 2x2
    follow the second, the third, and the skip.

    Args:
        classes: number of classes.
        widths: output channels of the seven convolutions.

    Attributes:
        arrangement: what the shapes of its parameters do not tell; a training is kept for nets of this arrangement.

    Raises:
        ValueError: there are not seven widths, or the skip cannot be added.
    """

    arrangement = (UNPADDED, POOLED, SKIPPED)

    def __init__(self, classes: int, widths: Sequence[int]) -> None:
        super().__init__()
        if len(widths) != LAYERS or widths[SKIPPED[0] - 2] != widths[SKIPPED[1] - 1]:
            raise ValueError(f"{list(widths)} are not {LAYERS} widths of which the fourth and the sixth are equal")
        inputs = (3, *widths)
        self.convs = nn.ModuleList(
            nn.Conv2d(inputs[i], inputs[i + 1], 3, padding=int(i >= UNPADDED), bias=False) for i in range(LAYERS)
        )
        self.norms = nn.ModuleList(nn.BatchNorm2d(width) for width in widths)
        self.head = nn.Linear(2 * widths[-1], classes)

    def forward(self, x: Tensor) -> Tensor:
        """Map `x`, float [N, 3, size, size] in [-1, 1], to logits, float [N, classes]."""
        skip = x
        for number, (conv, norm) in enumerate(zip(self.convs, self.norms, strict=True), 1):
            if number == SKIPPED[0]:
                skip = x
            x = norm(conv(x))
            if number == SKIPPED[1]:
                x = torch.relu(x) + skip
            if number in POOLED:  # before ReLU, which then has a quarter to do; the two may change places
                x = torch.max_pool2d(x, 2)
            x = torch.relu(x)  # of a skip it changes nothing
        return self.head(torch.cat([x.amax((2, 3)), x.mean((2, 3))], 1))

    @classmethod
    def untrained(cls, classes: int, widths: Sequence[int], seed: int) -> Residual:
        """Return a student as a training with this seed begins with it; torch's random state stays as it is."""
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            return cls(classes, widths)

    @property
    def widths(self) -> dict[str, int]:
        """The output channels of each convolution, by names such as "conv1"."""
        convs = cast("list[nn.Conv2d]", [*self.convs])
        return {f"conv{number}": conv.out_channels for number, conv in enumerate(convs, 1)}

    def deployed(self, temperature: float = 1.0, paired: bool = True) -> DeployedResidual:
        """Return the net as a device runs it; the arguments are those of `DeployedResidual`."""
        return DeployedResidual(self, temperature, paired)


class DeployedResidual(nn.Module):
    """A residual student as a device runs it: uint8 pictures in, normalisation and batch norm folded in.

    In exact arithmetic it equals softmax(student(x / 127.5 - 1) / temperature) until it is given a sharpness; the
    folding is done in float64.

    Args:
        student: the trained net; it is not changed.
        temperature: what the logits are divided by before the softmax.
        paired: whether the first convolution computes two neighbouring pixels at once, as in `graph.Deployed`.

    Attributes:
        sharpness: what the logits are multiplied by, picture by picture; None for nothing.
    """

    def __init__(self, student: Residual, temperature: float = 1.0, paired: bool = True) -> None:
        super().__init__()
        folded = [
            fold(cast("nn.Conv2d", conv), cast("nn.BatchNorm2d", norm))
            for conv, norm in zip(student.convs, student.norms, strict=True)
        ]
        folded[0] = fold_normalisation(folded[0])
        if paired:
            folded[0] = pair(folded[0])
        self.convs = nn.ModuleList(folded)
        self.head = nn.Linear(student.head.in_features, student.head.out_features)
        self.head.load_state_dict(student.head.state_dict())
        self.temperature, self.paired = temperature, paired
        self.sharpness: Sharpness | None = None
        self.eval().requires_grad_(False)

    def hidden(self, images: Tensor) -> Tensor:
        """Map uint8 [N, size, size, 3] to the float32 [N, 2 * channels] that the last layer, `head`, reads."""
        x = in_pairs(images) if self.paired else images.permute(0, 3, 1, 2).to(torch.float32)
        skip = x
        for number, conv in enumerate(self.convs, 1):
            if number == SKIPPED[0]:
                skip = x
            x = torch.relu(conv(x))
            if number == 1 and self.paired:
                x = apart(x)
            if number == SKIPPED[1]:
                x = x + skip
            if number in POOLED:
                x = torch.max_pool2d(x, 2)
        # As a pool the maximum is int8's, too; as a reduction it would be computed in float.
        largest = torch.max_pool2d(x, (x.shape[2], x.shape[3])).flatten(1)
        return torch.cat([largest, x.mean((2, 3))], 1)

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Map uint8 [N, size, size, 3] RGB to probabilities and logits, float32 [N, classes] each."""
        logits = self.head(self.hidden(images))
        if self.sharpness:
            logits = logits * self.sharpness(logits)
        return torch.softmax(logits / self.temperature, dim=1), logits
