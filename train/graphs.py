"""The training step as a CUDA graph: recorded once, then replayed, so that no step waits for the host to launch it.

A step of a small net is hundreds of operations that each take a GPU a few microseconds, and the host longer to launch.
All that changes from step to step is read from buffers on the device by a counter that the step itself moves on: the
host only replays. Learning rates are a tensor there, as a number would be recorded as it was.
"""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from ..runtime.providers import first_sentence
from .epochs import Loss, Material, Steps
from .step import TrainingStep

log = logging.getLogger("edgecifar")

WARM_UP = 3
"""Steps before the recorded one: libraries are loaded, algorithms are searched, the optimizers make their state."""


@dataclass(frozen=True)
class _Buffers:
    """What the recorded step reads.

    Attributes:
        images: those that the epoch shows, batch after batch, uint8 [steps, batch, size, size, 3].
        labels: int64 [steps, batch].
        teacher: logits, float32 [steps, batch, classes], or None.
        rates: learning rates, float32 [groups, steps].
        counter: the number of the next step, int64 [1].
    """

    images: Tensor
    labels: Tensor
    teacher: Tensor | None
    rates: Tensor
    counter: Tensor


class GraphedSteps(Steps):
    """The steps of an epoch, those of a whole batch by replaying; a last, smaller batch as `Steps` takes it.

    Made after the state of an interrupted run was restored: loading an optimizer's state would replace the tensor that
    the graph reads its learning rate from. On the CPU the same is done without recording.

    Args:
        step: the training's.
        loss: likewise, of a single process.
        images: what is trained on, uint8 [count, size, size, 3]; at least a batch.
        labels: int64 [count].
        classes: of a teacher's logits; None without a teacher.
    """

    def __init__(
        self, step: TrainingStep, loss: Loss, images: Tensor, labels: Tensor, classes: int | None = None
    ) -> None:
        batch = step.recipe.batch_size
        super().__init__(step, loss, -(-len(labels) // batch))
        self._whole = len(labels) // batch
        size, device = self._whole * batch, step.device
        groups = [group for optimizer in step.optimizers for group in optimizer.param_groups]
        self._buffers = _Buffers(
            images=images[:size].clone().view(self._whole, batch, *images.shape[1:]),
            labels=labels[:size].clone().view(self._whole, batch),
            teacher=None if classes is None else torch.zeros(self._whole, batch, classes, device=device),
            rates=torch.zeros(len(groups), self._whole, device=device),
            counter=torch.zeros(1, dtype=torch.int64, device=device),
        )
        self._highest = torch.tensor([group["max_lr"] for group in groups], dtype=torch.float64)
        self._rates = torch.tensor([float(group["lr"]) for group in groups], device=device)
        for group, rate in zip(groups, self._rates, strict=True):
            group["lr"] = rate
        self.recorded = device.type == "cuda"
        self._replay: Callable[[], None] = self._record() if self.recorded else self._advance

    def run(self, material: Material) -> Iterator[int]:
        """Take the steps of an epoch; yield after each how many are done."""
        self._show(material)
        for index in range(len(self.losses)):
            if index < self._whole:
                self._replay()
            else:
                self._take(index, material)
            yield index + 1

    def _show(self, material: Material) -> None:
        """Fill the buffers for an epoch: its images are augmented batch by batch, in the order of `Steps`."""
        buffers, recipe, batches = self._buffers, self.step.recipe, material.plan.batches[: self._whole]
        order = torch.cat(batches)
        if not material.is_shown_as_it_is(recipe):
            for index, place in enumerate(buffers.images):
                place.copy_(material.shown(index, recipe))
        else:
            buffers.images.copy_(material.images[order].view_as(buffers.images))
        buffers.labels.copy_(material.labels[order].view_as(buffers.labels))
        if buffers.teacher is not None and material.teacher is not None:
            buffers.teacher.copy_(material.teacher[order].view_as(buffers.teacher))
        first = material.epoch * len(self.losses)
        factors = [recipe.lr_factor(first + index, self.step.steps) for index in range(self._whole)]
        buffers.rates.copy_(self._highest[:, None] * torch.tensor(factors, dtype=torch.float64))
        buffers.counter.zero_()

    def _advance(self) -> None:
        """Take the step that the counter says; everything is read from the buffers and written to the device."""
        buffers, at = self._buffers, self._buffers.counter
        self._rates.copy_(buffers.rates.index_select(1, at)[:, 0])
        images = buffers.images.index_select(0, at)[0]
        labels = buffers.labels.index_select(0, at)[0]
        teacher = None if buffers.teacher is None else buffers.teacher.index_select(0, at)[0]
        loss = self.step.advance(images, self.loss.of(labels, len(labels), teacher))
        self.losses.index_copy_(0, at, loss.reshape(1))
        at.add_(1)

    def _record(self) -> Callable[[], None]:
        """Record the step, and leave weights, statistics, optimizers and random state as they were."""
        stream = torch.cuda.Stream(self.step.device)
        current = torch.cuda.current_stream(self.step.device)
        graph = torch.cuda.CUDAGraph()
        self.step.net.train()
        with self._restored():
            stream.wait_stream(current)
            with torch.cuda.stream(stream):
                for _ in range(WARM_UP):
                    self._buffers.counter.zero_()
                    self._advance()
            current.wait_stream(stream)
            for parameter in self.step.net.parameters():
                parameter.grad = None  # made anew in the graph's own memory, and never added to
            with _as_before(current), torch.cuda.graph(graph, stream=stream):
                self._advance()
        return graph.replay

    @contextlib.contextmanager
    def _restored(self) -> Iterator[None]:
        """Put everything that steps change back in place at the end; state that an optimizer made anew becomes zero."""
        tensors = [*self.step.net.parameters(), *self.step.net.buffers()]
        before = [tensor.detach().clone() for tensor in tensors]
        states = [state for optimizer in self.step.optimizers for state in optimizer.state.values()]
        kept = {id(value): value.clone() for state in states for value in state.values() if torch.is_tensor(value)}
        device = self.step.device
        devices: list[int] = []
        if device.type == "cuda":
            devices = [torch.cuda.current_device() if device.index is None else device.index]
        try:
            with torch.random.fork_rng(devices):
                yield
        finally:
            with torch.no_grad():
                for tensor, value in zip(tensors, before, strict=True):
                    tensor.copy_(value)
                for optimizer in self.step.optimizers:
                    for state in optimizer.state.values():
                        for value in filter(torch.is_tensor, state.values()):
                            value.copy_(kept[id(value)]) if id(value) in kept else value.zero_()
                self._buffers.counter.zero_()


@contextlib.contextmanager
def _as_before(stream: torch.cuda.Stream) -> Iterator[None]:
    """Where recording fails, undo what torch leaves behind, so that what comes after it works.

    Args:
        stream: that was current before. Torch up to 2.11, at least, leaves the graph's own.
    """
    try:
        yield
    except BaseException:
        torch.cuda.set_stream(stream)
        # The default generator believes that it is still recorded, and would refuse to draw; a copy does not.
        generator = torch.cuda.default_generators[stream.device_index]
        generator.graphsafe_set_state(generator.clone_state())
        raise


def make_steps(
    step: TrainingStep, loss: Loss, images: Tensor, labels: Tensor, classes: int | None, graph: bool | None
) -> Steps:
    """Return the steps of a training: by a graph where that can be and is not declined.

    Args:
        step: as `GraphedSteps` takes it.
        loss: likewise, of one process or of several.
        images: likewise, of which there may be less than a batch.
        labels: likewise.
        classes: likewise.
        graph: None for a graph on CUDA, and none elsewhere. True on the CPU does the same without recording.
    """
    wanted = step.device.type == "cuda" if graph is None else graph
    plain = Steps(step, loss, -(-len(labels) // step.recipe.batch_size))
    if not wanted or loss.group.size > 1 or len(labels) < step.recipe.batch_size:
        return plain
    try:
        return GraphedSteps(step, loss, images, labels, classes)
    except torch.OutOfMemoryError:
        raise
    except RuntimeError as error:  # of CUDA, whose recording has many conditions
        reason = first_sentence(error)
        log.warning(
            "The training step cannot be recorded as a CUDA graph (%s): it goes on without, and slower.", reason
        )
        return plain
