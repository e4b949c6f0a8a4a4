"""Several processes that train one net together, as `torchrun` starts them; it knows nothing of recipes or runs.

Every process holds the whole net and takes its part of every batch. Gradients, batch norm's statistics and the loss
are those of the whole batch, so that the number of processes changes a step by rounding only (which, where it decides
on which side of zero a ReLU's input lies, grows from step to step). Dropout is the exception: each process draws masks
of its own.
"""

from __future__ import annotations

import contextlib
import os
import re
import time
from collections.abc import Iterator
from datetime import timedelta
from typing import TYPE_CHECKING, Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from ..runtime.errors import RunError

if TYPE_CHECKING:
    from torch._C._distributed_c10d import Store

LAUNCH = ("torchrun", "--nproc-per-node")
"""How a training of several processes is started; their number, and what they run, follow."""

PATIENCE = timedelta(minutes=30)
"""How long one process may keep the others waiting, such as for a download, before they give up."""


class Group:
    """The processes that train together; made by `joined`, and a single process where it is made without arguments.

    Attributes:
        rank: number of this process, from 0.
        size: how many there are.
        is_main: whether this is the process that writes and prints.
    """

    def __init__(self, store: Store | None = None, rank: int = 0, size: int = 1) -> None:
        self.rank, self.size, self._store = rank, size, store
        self.is_main = rank == 0

    def connect(self, device: torch.device) -> torch.device:
        """Connect with the others, and return the device of this process: of that kind, a GPU for each.

        Raises:
            RunError: there are fewer GPUs than processes here, or the kind of device trains in one process only.
        """
        if self._store is None:
            return device
        if device.type not in ("cpu", "cuda"):
            raise RunError(
                f"Only cuda and cpu train in several processes, not {device.type}: use the CPU.", option="device"
            )
        if device.type == "cuda":
            here, gpus = int(os.environ["LOCAL_WORLD_SIZE"]), torch.cuda.device_count()
            if here > gpus:
                raise RunError(
                    f"torchrun started {here} processes on a machine with {gpus} GPU{'s' if gpus > 1 else ''}: "
                    f"use --nproc-per-node {gpus}, or train on the CPU.",
                    option="device",
                )
            device = torch.device("cuda", _local_rank())
            torch.cuda.set_device(device)
        dist.init_process_group(
            "nccl" if device.type == "cuda" else "gloo",
            store=self._store,
            rank=self.rank,
            world_size=self.size,
            timeout=PATIENCE,
            device_id=device if device.type == "cuda" else None,
        )
        return device

    def broadcast(self, text: str) -> str:
        """Return the main process's `text` in every process; to be called once."""
        if self._store is None:
            return text
        if self.is_main:
            self._store.set("edgecifar/broadcast", text)
        return self._store.get("edgecifar/broadcast").decode()

    @contextlib.contextmanager
    def main_process_first(self) -> Iterator[None]:
        """Let one process of each machine run the block before the others there: it may download, for example."""
        waits = self.size > 1 and _local_rank() > 0
        if waits:
            dist.barrier()
        yield
        if self.size > 1 and not waits:
            dist.barrier()

    def wrap(self, net: nn.Module) -> nn.Module:
        """Return what to call in place of `net` in training, so that the statistics and gradients are the batch's.

        `net` itself keeps its parameters and their names; its batch norm counts all processes from now on.
        """
        if self.size == 1:
            return net
        for module in net.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.__class__ = _WholeBatchNorm
        return DistributedDataParallel(net)

    def shard(self, count: int) -> slice:
        """Return which of a batch's `count` images are this process's; none where there are more processes."""
        return slice(self.rank * count // self.size, (self.rank + 1) * count // self.size)

    def scale_loss(self, loss: Tensor, count: int, of: int) -> Tensor:
        """Scale this process's loss so that the average of DistributedDataParallel is the mean over the whole batch.

        Args:
            loss: the mean over this process's images.
            count: the number of those.
            of: the number of images in the whole batch.
        """
        if self.size == 1:
            return loss
        # The mean of nothing is not a number, and its gradient is empty: there is nothing to keep out of the weights.
        return loss * (self.size * count / of) if count else loss.nan_to_num(0.0)

    def mean(self, value: Tensor) -> Tensor:
        """Return the mean of `value` over the processes, without a gradient."""
        return value.detach() if self.size == 1 else _total(value.detach()) / self.size


@contextlib.contextmanager
def joined() -> Iterator[Group]:
    """Yield the group that `torchrun` started this process in, or a single process where it did not.

    A failure of one process ends all of them, and only the first to fail says so: the others exit with code 1.

    Raises:
        RunError: another process has ended without a word, or keeps this one waiting for too long.
    """
    if not dist.is_available() or not dist.is_torchelastic_launched() or os.environ["WORLD_SIZE"] == "1":
        yield Group()
        return
    from torch.distributed.rendezvous import rendezvous  # not in every build of torch

    store, rank, size = next(rendezvous("env://", timeout=PATIENCE))
    try:
        yield Group(store, rank, size)
    except BaseException as error:
        if store.add("edgecifar/failures", 1) > 1:
            time.sleep(5)  # torchrun ends all when the first one ends: let that be the one that speaks
            raise SystemExit(1) from error
        if isinstance(error, RuntimeError) and _is_about_the_others(error):
            raise RunError(
                "Another process of this training has ended or hangs: see torchrun's report, and resume the run.",
                option="resume",
            ) from error
        raise
    dist.destroy_process_group()


def _is_about_the_others(error: RuntimeError) -> bool:
    return isinstance(error, dist.DistError) or bool(re.search("gloo|nccl|Connection", str(error), re.IGNORECASE))


def _local_rank() -> int:
    return int(os.environ["LOCAL_RANK"])


def _total(value: Tensor) -> Tensor:
    total = value.clone(memory_format=torch.contiguous_format)
    dist.all_reduce(total)
    return total


class _Sum(torch.autograd.Function):
    """The sum of a tensor over the processes. As each of them goes on with it, so is its gradient."""

    @staticmethod
    def forward(_ctx: Any, value: Tensor) -> Tensor:
        return _total(value)

    @staticmethod
    def backward(_ctx: Any, gradient: Tensor) -> Tensor:  # pyright: ignore[reportIncompatibleMethodOverride]
        return _total(gradient)


class _WholeBatchNorm(nn.BatchNorm2d):
    """Batch norm over the parts of all processes, which may be of unequal size or empty, at least in float32.

    torch's SyncBatchNorm does the same, but not on the CPU.
    """

    def forward(self, input: Tensor) -> Tensor:  # noqa: A002  as torch calls it
        if not self.training:
            return super().forward(input)
        wide, axes = input.to(torch.promote_types(input.dtype, torch.float32)), (0, 2, 3)
        count = wide.new_full((1,), wide.numel() / wide.shape[1])
        sums = _Sum.apply(torch.cat([wide.sum(axes), count]))
        mean, count = sums[:-1] / sums[-1], sums[-1]
        centred = wide - mean[:, None, None]
        variance = _Sum.apply(centred.square().sum(axes)) / count  # two passes: squares less the mean's lose digits
        with torch.no_grad():
            self.get_buffer("running_mean").lerp_(mean, self.momentum or 0.0)
            self.get_buffer("running_var").lerp_(variance * (count / (count - 1)), self.momentum or 0.0)
            self.get_buffer("num_batches_tracked").add_(1)
        scale = self.weight * torch.rsqrt(variance + self.eps)
        return torch.addcmul(self.bias[:, None, None], centred, scale[:, None, None]).to(input.dtype)
