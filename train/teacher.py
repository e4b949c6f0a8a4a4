"""The teacher: a net that is more accurate than Net at a like cost of a step. What is exported are its students."""

from __future__ import annotations

from typing import ClassVar

import numpy as np
import torch
from torch import Tensor, nn

from .augment import normalise
from .inference import all_logits

LAYOUT = "seven convolutions, of which the first whitens, and a fully connected layer"
"""The layers in words."""

FIRST_WIDTH = 64
"""The first block has so many channels: its pictures are large, and it takes as long as a later, wider one."""

WIDTH = 256
"""The second and third block have so many channels unless told otherwise."""

BATCH_NORM_MOMENTUM = 0.4
"""A batch has this share of batch norm's running statistics: a short training needs them to follow soon."""

LOGIT_SCALE = 9.0
"""The logits are divided by it: the last layer's rate is large, and softmax would be too sure from the start."""

WHITENING_EPSILON = 1e-4
"""Added to each variance, so that directions that hold little but noise are not blown up; pixels are in [-1, 1]."""

WHITENING_IMAGES = 5_000
"""The whitening filters are computed from about so many pictures."""


class Teacher(nn.Module):
    """A whitened first layer and six padded 3x3 convolutions in three blocks, each of which halves the picture.

    It is a net of the kind of K. Jordan, 94% on CIFAR-10 in 3.29 seconds on a single GPU, 2024. With the default width
    it has 2.0 million parameters and takes 118 million multiply-adds a picture of CIFAR-10; Net takes 95.

    Args:
        classes: number of classes.
        dropout: probability used before the last layer.
        width: channels of the second and third block.
    """

    input_size: ClassVar[int] = 32

    def __init__(self, classes: int, dropout: float = 0.0, width: int = WIDTH) -> None:
        super().__init__()
        self.whiten = nn.Conv2d(3, 24, 2, bias=False)
        self.whiten.weight.requires_grad_(False)
        self.block1 = Block(24, FIRST_WIDTH)
        self.block2 = Block(FIRST_WIDTH, width)
        self.block3 = Block(width, width)
        self.head = nn.Linear(width, classes, bias=False)
        self.gelu = nn.GELU()
        self.dropout = nn.Dropout(dropout)

    @torch.no_grad()
    def whiten_with(self, pictures: Tensor) -> None:
        """Set the first layer's filters to those that make its outputs uncorrelated and equally strong.

        Args:
            pictures: float32 [N, 3, height, width] in [-1, 1], of the training set.

        These are the principal components of all 2x2 patches, each divided by its standard deviation, and their
        opposites. They are not trained.
        """
        patches = pictures.unfold(2, 2, 1).unfold(3, 2, 1)  # [N, 3, height - 1, width - 1, 2, 2]
        patches = patches.permute(0, 2, 3, 1, 4, 5).reshape(-1, 12).double().cpu()
        variances, components = torch.linalg.eigh(torch.cov(patches.T))
        filters = (components / (variances + WHITENING_EPSILON).sqrt()).T.reshape(12, 3, 2, 2)
        self.whiten.weight.copy_(torch.cat([filters, -filters]))

    def features(self, x: Tensor) -> Tensor:
        """Map `x`, float [N, 3, size, size] in [-1, 1], to the float [N, width] that the last layer reads."""
        x = self.gelu(self.whiten(x))  # [N, 24, 31, 31] where size is 32
        x = self.block1(x)  # [N, 64, 15, 15]
        x = self.block2(x)  # [N, width, 7, 7]
        x = self.block3(x)  # [N, width, 3, 3]
        return x.amax((2, 3))

    def forward(self, x: Tensor) -> Tensor:
        """Map `x`, float [N, 3, size, size] in [-1, 1], to logits, float [N, classes]."""
        return self.head(self.dropout(self.features(x))) / LOGIT_SCALE


class Block(nn.Module):
    """Two padded 3x3 convolutions, each with batch norm and GELU; the first is pooled by 2x2 before its norm.

    The filters begin as Dirac deltas, as far as there are input channels: each passes one of them on.

    Args:
        inputs: channels that come in.
        outputs: channels that go out.
    """

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, outputs, 3, padding=1, bias=False)
        self.pool = nn.MaxPool2d(2)
        self.norm1 = nn.BatchNorm2d(outputs, momentum=BATCH_NORM_MOMENTUM)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, padding=1, bias=False)
        self.norm2 = nn.BatchNorm2d(outputs, momentum=BATCH_NORM_MOMENTUM)
        self.gelu = nn.GELU()
        for conv in (self.conv1, self.conv2):
            nn.init.dirac_(conv.weight.data[: conv.in_channels])

    def forward(self, x: Tensor) -> Tensor:
        """Map `x`, float [N, inputs, height, width], to float [N, outputs, height // 2, width // 2]."""
        x = self.gelu(self.norm1(self.pool(self.conv1(x))))
        return self.gelu(self.norm2(self.conv2(x)))


def prepare(net: nn.Module, images: np.ndarray) -> None:
    """Whiten a teacher's first layer; any other net is left as it is.

    Args:
        net: before the first step.
        images: uint8 [N, size, size, 3], what it will be trained on.
    """
    if isinstance(net, Teacher):
        net.whiten_with(normalise(torch.from_numpy(images[:: max(1, len(images) // WHITENING_IMAGES)])))


def accuracy_flips_averaged(net: nn.Module, images: np.ndarray, labels: np.ndarray) -> float:
    """Return the share of `images` that the mean logits of both sides, as students learn them, classify correctly.

    Args:
        net: in whatever mode.
        images: uint8 [N, size, size, 3].
        labels: integer [N].
    """
    both = all_logits(net, images) + all_logits(net, np.ascontiguousarray(images[:, :, ::-1]))
    return float((both.argmax(1) == labels).mean())
