"""A net for tests of training: the kinds of layers that Net has, 3,000 times fewer parameters.

Importing this module adds it to the nets that a recipe can name, as "small".
"""

from __future__ import annotations

from typing import ClassVar

from torch import nn

from edgecifar.train.nets import NETS


class SmallNet(nn.Sequential):
    input_size: ClassVar[int] = 32

    def __init__(self, classes: int, dropout: float = 0.5) -> None:
        super().__init__(
            nn.Conv2d(3, 8, 3, stride=4),
            nn.BatchNorm2d(8),
            nn.ReLU(),
            nn.Conv2d(8, 8, 3, padding=1),
            nn.ReLU(),
            nn.Flatten(),
            nn.Dropout(dropout),
            nn.Linear(8 * 8 * 8, classes),
        )


NETS["small"] = SmallNet
