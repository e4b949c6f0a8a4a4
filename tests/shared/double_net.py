"""A narrow Net in float64, where a ReLU does not take the other side by rounding, and weights part from there.

Importing this module adds it to the nets that a recipe can name, as "double".
"""

from __future__ import annotations

from narrow_net import NarrowNet
from torch import Tensor

from edgecifar.train.nets import NETS


class DoubleNet(NarrowNet):
    def __init__(self, classes: int, dropout: float = 0.5) -> None:
        super().__init__(classes, dropout)
        self.double()

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x.double())


NETS["double"] = DoubleNet
