"""The nets that a recipe can name, and how one is made for a data set's contract."""

from __future__ import annotations

from typing import Any, Protocol

import torch
from torch import nn

from ..runtime.contract import Contract
from ..runtime.errors import RunError
from .net import LAYOUT, Net
from .teacher import LAYOUT as TEACHER_LAYOUT
from .teacher import Teacher


class Architecture(Protocol):
    """A class of nets: called with the number of classes and the dropout probability, it gives an untrained one."""

    input_size: int
    """Height and width of the pictures that it takes."""

    def __call__(self, classes: int, dropout: float = 0.5) -> nn.Module:
        """Return a net that maps float32 [N, 3, size, size] in [-1, 1] to logits, float32 [N, classes]."""
        ...


NETS: dict[str, Any] = {"net": Net, "teacher": Teacher}
"""Each `Architecture` by the name that a recipe calls it (`Recipe.net`)."""


def layout(name: str) -> str:
    """Return the layers of the net of this name in words."""
    return TEACHER_LAYOUT if is_teacher(name) else LAYOUT


def describe(name: str, classes: int) -> str:
    """Return a phrase that says what the net of this name is, for cards and tables.

    Raises:
        RunError: there is no such net.
    """
    with torch.device("meta"):
        parameters = sum(parameter.numel() for parameter in _architecture(name)(classes).parameters())
    return f"{'The teacher' if is_teacher(name) else 'Net'}, {layout(name)}, {parameters:,} parameters"


def is_teacher(name: str) -> bool:
    """Return whether a net of this name is there for others to learn from: it is not exported, its students are."""
    return issubclass(NETS.get(name, object), Teacher)


def make_net(name: str, contract: Contract, dropout: float = 0.5) -> nn.Module:
    """Return an untrained net for the pictures and labels of `contract`.

    Raises:
        RunError: there is no such net, or it takes pictures of another size.
    """
    architecture = _architecture(name)
    size = architecture.input_size
    if contract.size != size:
        raise RunError(
            f"The net {name!r} takes pictures of {size}x{size} pixels, and these have {contract.size}x{contract.size}: "
            f"scale them to {size} pixels."
        )
    return architecture(contract.classes, dropout)


def _architecture(name: str) -> Architecture:
    if name not in NETS:
        raise RunError(f"There is no net called {name!r} in this version of edgecifar: it has {', '.join(NETS)}.")
    return NETS[name]


def summarise(net: nn.Module, size: int) -> str:
    """Return a table of each layer's output shape, parameters and multiply-accumulates, for one picture of `size`."""
    from torchinfo import summary

    columns = ("output_size", "num_params", "mult_adds")
    shape = (1, 3, size, size)
    return str(summary(net, shape, col_names=columns, row_settings=("var_names",), verbose=0, device="cpu"))
