"""The nets that a recipe can name, and how one is made for a data set's contract."""

from __future__ import annotations

from typing import Any, Protocol

from torch import nn

from ..runtime.contract import Contract
from ..runtime.errors import RunError
from .net import Net
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


def is_exported(name: str) -> bool:
    """Return whether a net of this name can be exported: Net, and not what it learns from."""
    return issubclass(NETS.get(name, object), Net)


def make_net(name: str, contract: Contract, dropout: float = 0.5) -> nn.Module:
    """Return an untrained net for the pictures and labels of `contract`.

    Raises:
        RunError: there is no such net, or it takes pictures of another size.
    """
    if name not in NETS:
        raise RunError(f"There is no net called {name!r} in this version of edgecifar: it has {', '.join(NETS)}.")
    architecture: Architecture = NETS[name]
    size = architecture.input_size
    if contract.size != size:
        raise RunError(
            f"The net {name!r} takes pictures of {size}x{size} pixels, and these have {contract.size}x{contract.size}: "
            f"scale them to {size} pixels."
        )
    return architecture(contract.classes, dropout)


def summarise(net: nn.Module, size: int) -> str:
    """Return a table of each layer's output shape, parameters and multiply-accumulates, for one picture of `size`."""
    from torchinfo import summary

    columns = ("output_size", "num_params", "mult_adds")
    shape = (1, 3, size, size)
    return str(summary(net, shape, col_names=columns, row_settings=("var_names",), verbose=0, device="cpu"))
