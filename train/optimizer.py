"""Optimizers: SGD, Adam, and Muon for the filters; which parameters they move, and which decay."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import SGD, Adam, Optimizer

from ..runtime.errors import RunError
from .devices import in_bfloat16
from .recipes import Recipe

NAMES = ("sgd", "adam", "muon")


class Muon(Optimizer):
    """Momentum whose step is made orthogonal, for convolution filters that batch norm follows.

    Each step replaces the (Nesterov) momentum of a filter bank, seen as a matrix [out, in * height * width], by the
    nearest matrix with singular values of about 1, so that no direction of the weights learns slower than another
    (K. Jordan et al., Muon: an optimizer for hidden layers in neural networks, 2024). As batch norm makes a bank's
    scale meaningless, the bank is first set to the norm that an orthogonal one has: the rate is then the relative
    size of a step, and weight decay has nothing to do.

    torch.optim.Muon takes matrices only, and computes in bfloat16 even where the processor emulates it.

    Args:
        params: filter banks, float32 [out, in, height, width].
        lr: the relative size of a step.
        momentum: 0 to 1.
        bfloat16: whether to find the nearest matrix in bfloat16, which it bears, or in the bank's own precision.
    """

    def __init__(
        self, params: Iterable[nn.Parameter], lr: float, momentum: float = 0.6, bfloat16: bool = False
    ) -> None:
        super().__init__(params, {"lr": lr, "momentum": momentum, "weight_decay": 0.0})
        self._bfloat16 = bfloat16

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> None:  # pyright: ignore[reportIncompatibleMethodOverride]
        """Move every filter bank by its gradient."""
        del closure  # part of the interface, used by none of ours
        for group in self.param_groups:
            for bank in group["params"]:
                state = self.state[bank]
                if not state:
                    state["momentum"] = torch.zeros_like(bank.grad)
                momentum = state["momentum"].mul_(group["momentum"]).add_(bank.grad)
                direction = bank.grad.add(momentum, alpha=group["momentum"]).flatten(1)
                nearest = orthogonal(direction.bfloat16() if self._bfloat16 else direction).to(bank.dtype)
                bank.mul_(len(bank) ** 0.5 / bank.norm())
                bank.sub_(nearest.view_as(bank) * group["lr"])  # not alpha=, which reads a tensor back from a GPU


def orthogonal(matrix: Tensor) -> Tensor:
    """Return `matrix` with its singular values brought to between 0.7 and 1.2.

    Five Newton-Schulz iterations with the coefficients that Jordan et al. chose for speed, in the matrix's precision.

    Args:
        matrix: floating point [rows, columns].
    """
    a, b, c = 3.4445, -4.7750, 2.0315
    x = matrix / (matrix.norm() + 1e-7)
    if tall := len(x) > x.shape[1]:
        x = x.T
    for _ in range(5):
        squared = x @ x.T
        polynomial = torch.addmm(squared, squared, squared, beta=b, alpha=c)
        x = torch.addmm(x, polynomial, x, beta=a)
    return x.T if tall else x


def make_optimizers(net: nn.Module, recipe: Recipe) -> list[Optimizer]:
    """Return what moves the parameters of `net`, each parameter by one of them.

    Weights decay; biases and batch norm's parameters do not, nor do filters that Muon moves. With "muon" the first
    convolution, whose filters see pixels, and the fully connected layers stay with SGD. These have the rate `head_lr`
    where there is one, with any optimizer; everything else that Muon does not move has `lr`.

    Raises:
        RunError: the recipe's optimizer is not known.
    """
    if recipe.optimizer not in NAMES:
        raise RunError(
            f"There is no optimizer called {recipe.optimizer}: choose {', '.join(NAMES[:-1])} or {NAMES[-1]}."
        )
    has_muon = recipe.optimizer == "muon"
    banks = [p for p in net.parameters() if p.ndim == 4][1:] if has_muon or recipe.head_lr else []
    apart = {id(bank) for bank in banks}
    parameters = [p for p in net.parameters() if p.requires_grad]
    groups: list[dict[str, Any]] = [
        {
            "params": [p for p in parameters if p.ndim > 1 and id(p) not in apart],
            "weight_decay": recipe.weight_decay,
            "lr": recipe.head_lr or recipe.lr,
        },
        {"params": [p for p in parameters if p.ndim == 1], "weight_decay": 0.0},
    ]
    if banks and not has_muon:
        groups.append({"params": banks, "weight_decay": recipe.weight_decay})
    device = parameters[0].device.type
    fused = device in ("cpu", "cuda")
    optimizers: list[Optimizer]
    if recipe.optimizer == "adam":
        optimizers = [Adam(groups, lr=recipe.lr, fused=fused, capturable=device == "cuda")]
    else:
        nesterov = recipe.nesterov and recipe.momentum > 0  # torch refuses the one without the other
        optimizers = [SGD(groups, recipe.lr, recipe.momentum, nesterov=nesterov, fused=fused)]
    if has_muon and banks:
        optimizers.append(Muon(banks, recipe.muon_lr, bfloat16=in_bfloat16(recipe, parameters[0].device)))
    for optimizer in optimizers:
        for group in optimizer.param_groups:
            group["max_lr"] = group["lr"]
    return optimizers
