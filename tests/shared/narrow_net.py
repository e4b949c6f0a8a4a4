"""Net with narrower layers, for tests of what is made from a net: 35 times fewer parameters, and soon exported.

Importing this module adds it to the nets that a recipe can name, as "narrow".
"""

from __future__ import annotations

from torch import nn

from edgecifar.train.net import LAYERS, Net
from edgecifar.train.nets import NETS

WIDTHS = dict(zip(LAYERS, (8, 16, 32, 64, 64, 96, 128, 64), strict=True))
"""The outputs of each hidden layer."""


class NarrowNet(Net):
    def __init__(self, classes: int, dropout: float = 0.5) -> None:
        super().__init__(classes, dropout)
        inputs = 3
        for name, outputs in WIDTHS.items():
            if name.startswith("conv"):
                setattr(self, name, nn.Conv2d(inputs, outputs, 3))
                setattr(self, name.replace("conv", "norm"), nn.BatchNorm2d(outputs))
            else:
                setattr(self, name, nn.Linear(36 * inputs if name == "fc1" else inputs, outputs))
            inputs = outputs
        self.fc3 = nn.Linear(inputs, classes)


NETS["narrow"] = NarrowNet
