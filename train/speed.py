"""Faster training on the CPU: the same results, or as good, in less time."""

from __future__ import annotations

import contextlib
import ctypes
import os
import sys
from collections.abc import Iterator

import numpy as np
import torch
from torch import Tensor, nn

MMAP_MAX, TRIM_THRESHOLD = -4, -1
"""Parameters of `mallopt`, from glibc's malloc.h."""

LARGE_PAGES = "THP_MEM_ALLOC_ENABLE"
"""With 1 in this variable torch asks Linux for pages of 2 MB for tensors of that size and more.

A step of `best` then takes 0.90 of the time (0.90, n = 2), one of `reference` 0.98 (0.91 to 0.98, n = 3; medians, in
turns, two cores with AMX). Where the variable is set, it stays as it is.
"""

os.environ.setdefault(LARGE_PAGES, "1")  # here, as torch reads it at its first tensor

SMALL_BATCH = 16
"""Images of a batch up to which linear layers take less time in float32 than in bfloat16 (`SmallBatchLinear`)."""


def speed_up(net: nn.Module, device: torch.device) -> None:
    """Replace modules of `net`, in place, by ones that take less time in training; its parameters stay as they are.

    Pools of 1x1, which are identities and copy their input, are left out, and on the CPU `ByteDropout` takes the place
    of dropout. Together they save a seventh of a step of Net there. `keep_freed_memory` then saves more, and so does
    `SmallBatchLinear` where a small batch is computed in bfloat16.
    """
    if device.type == "cpu":
        keep_freed_memory()
    for name, module in list(net.named_children()):
        if isinstance(module, nn.MaxPool2d) and module.kernel_size == 1:
            setattr(net, name, nn.Identity())
        elif isinstance(module, nn.Dropout) and device.type == "cpu":
            setattr(net, name, ByteDropout(module.p))
        elif isinstance(module, nn.Linear) and device.type == "cpu":
            setattr(net, name, SmallBatchLinear.of(module))


class ByteDropout(nn.Dropout):
    """Dropout whose masks are drawn a byte an element, by numpy, which takes a fraction of torch's time on a CPU.

    Like torch's, the masks follow from `torch.manual_seed`. The probability is rounded to a multiple of 1/256.
    """

    def forward(self, input: Tensor) -> Tensor:  # noqa: A002  as torch calls it
        """Return `input`, floating point of any shape, with elements set to zero and the rest scaled up in training."""
        below = round(self.p * 256)
        if not self.training or below == 0:
            return input
        if below == 256:
            return input * 0
        seed = int(torch.randint(2**63 - 1, ()))
        random_bytes = np.random.Generator(np.random.SFC64(seed)).bytes(input.numel())
        keep = torch.from_numpy(np.frombuffer(random_bytes, np.uint8) >= below)
        # One byte after another as the elements lie in memory, so that no pass over them has to jump.
        keep = keep.as_strided(input.shape, torch.empty_like(input).stride())
        return input * keep.to(input.dtype).mul_(256 / (256 - below))


class SmallBatchLinear(nn.Linear):
    """A linear layer that computes a small batch in float32 under autocast, too.

    Autocast converts the weights, and then their gradients, at each step. For 16 images that takes longer than
    bfloat16 saves: forward and backward, the first linear layer of Net takes 0.78 of the time in float32, for 32 images
    0.99, for 64 1.74 (two cores with AMX, medians of 12, in turns).
    """

    @classmethod
    def of(cls, linear: nn.Linear) -> SmallBatchLinear:
        """Return a layer that has the very parameters of `linear`."""
        made = cls(linear.in_features, linear.out_features, linear.bias is not None, device="meta")
        made.weight, made.bias = linear.weight, linear.bias
        return made.train(linear.training)

    def forward(self, input: Tensor) -> Tensor:  # noqa: A002  as torch calls it
        """Return what the layer makes of `input`, floating point [N, in_features]; float32 where N is small."""
        if not torch.is_autocast_enabled("cpu") or len(input) > SMALL_BATCH:
            return super().forward(input)
        with torch.autocast("cpu", enabled=False):
            return super().forward(input.to(self.weight.dtype))


@contextlib.contextmanager
def flushed_denormals(device: torch.device) -> Iterator[None]:
    """On the CPU, have this thread, and those that torch starts meanwhile, compute with zero for less than 1.2e-38.

    The momentum of a weight whose gradient stays zero decays to such numbers and stays there, as nine tenths of the
    smallest is rounded up to it. Processors take far longer for them: of `reference`, 7 % of the momenta of `fc1` were
    so small after eleven epochs, an epoch took 198 to 208 s, and the first one with zeros 172 s (two cores with AMX,
    n = 1). Threads that torch has started before are not reached: enter it first.
    """
    if device.type != "cpu":
        yield
        return
    torch.set_flush_denormal(True)
    try:
        yield
    finally:
        torch.set_flush_denormal(False)


def keep_freed_memory() -> None:
    """Have this process keep the memory that it frees, and use it again, where its C library is glibc.

    By itself, glibc returns each block of more than 32 MB to the system at once, and the next such block costs a page
    fault every 4 KB: the gradient of `fc1` alone, 75 MB, at every step. Without that a step of the recipe `reference`
    takes 0.74 of the time and one of `best` 0.88 (one core of a Zen 3, n = 2; its neighbour was busy).
    """
    if sys.platform != "linux":
        return
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)  # musl has none
    if mallopt:
        mallopt(MMAP_MAX, 0)
        mallopt(TRIM_THRESHOLD, 2**31 - 1)
