"""Calls with buffers in a GPU's memory, whose work is recorded once as a CUDA graph and then replayed.

What onnxruntime's CUDA provider asks for, and does not check:

- A graph reads and writes the buffers that it was recorded with, so that each has a binding that stays.
- It belongs to the thread that recorded it. Another thread that asks for it records it anew.
- While one thread records, no other may allocate, copy or wait on the GPU, in whichever session: the recording fails.
- The first run of a graph is three: two that allocate, and the one that is recorded.
"""

from __future__ import annotations

import logging
import threading
from collections import Counter
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from .contract import Contract
from .providers import first_sentence, gpu_lock, import_onnxruntime

if TYPE_CHECKING:
    import onnxruntime

log = logging.getLogger("edgecifar")

GRAPH_ID = "gpu_graph_id"
"""The entry of a run's options that says which graph it records or replays."""

NO_GRAPH = -1
"""The graph of runs that neither record nor replay one."""

CALLS_BEFORE = 2
"""Calls of a batch size by a thread before its graph is recorded: that costs three runs and stays in memory."""

MAX_GRAPHS = 8
"""Batch sizes that have a graph, for each thread. The ones that come later run without."""


class Bound:
    """A model's input and outputs for one batch size, in a device's memory; one call at a time.

    Args:
        session: whose model is called.
        contract: the model's.
        batch: images a call.
        device: onnxruntime's name of the kind of device, such as "cuda".
        graph: number of the graph that the calls record and replay, where the session has graphs enabled.
    """

    def __init__(
        self,
        session: onnxruntime.InferenceSession,
        contract: Contract,
        batch: int,
        device: str = "cuda",
        graph: int = NO_GRAPH,
    ) -> None:
        ort = import_onnxruntime()
        self._session: Any = session  # whose types know no run options
        self._binding, self._options = session.io_binding(), ort.RunOptions()
        self._options.add_run_config_entry(GRAPH_ID, str(graph))
        self._given = ort.OrtValue.ortvalue_from_numpy(np.zeros((batch, *contract.picture_shape), np.uint8), device, 0)
        self._binding.bind_ortvalue_input(contract.input_name, self._given)
        self._results = {
            name: ort.OrtValue.ortvalue_from_shape_and_type((batch, *shape), np.float32, device, 0)
            for name, shape in contract.output_shapes.items()
        }
        for name, result in self._results.items():
            self._binding.bind_ortvalue_output(name, result)

    def resident(self) -> None:
        """Compute the outputs of what is on the device, leave them there, and wait until that is done."""
        self._session.run_with_iobinding(self._binding, self._options)
        self._binding.synchronize_outputs()

    def outputs(self, images: np.ndarray, names: Sequence[str]) -> list[np.ndarray]:
        """Copy `images`, uint8 [batch, size, size, 3], to the device; return the outputs of these names, float32."""
        self._given.update_inplace(np.ascontiguousarray(images))
        self._session.run_with_iobinding(self._binding, self._options)
        return [np.array(self._results[name].numpy()) for name in names]  # a CPU's buffer would be seen as it is


class Graphs:
    """The calls of a session that has CUDA graphs enabled; safe to use from several threads.

    Args:
        session: whose model is called.
        contract: the model's.
        name: what messages call the model.
        device: where the buffers are; tests have them on the CPU.
    """

    def __init__(
        self, session: onnxruntime.InferenceSession, contract: Contract, name: str, device: str = "cuda"
    ) -> None:
        self._session: Any = session  # as above
        self._contract, self._name, self._device = contract, name, device
        self._mine = threading.local()
        self._enabled = True
        self._plain = import_onnxruntime().RunOptions()
        self._plain.add_run_config_entry(GRAPH_ID, str(NO_GRAPH))

    def run(self, images: np.ndarray, names: Sequence[str]) -> list[np.ndarray]:
        """Return the outputs of `images`, uint8 [N, size, size, 3], by their names.

        Raises:
            Exception: whatever onnxruntime raises where a run without a graph fails.
        """
        with gpu_lock:
            if self._enabled:
                try:
                    bound = self._bound(len(images))
                    if bound:
                        return bound.outputs(images, names)
                except Exception as error:  # onnxruntime raises a dozen types that share no base of their own
                    self._enabled = False
                    reason = first_sentence(error)
                    log.warning("%s runs on CUDA without graphs from now on, and slower (%s).", self._name, reason)
            return self._session.run(list(names), {self._contract.input_name: images}, self._plain)

    def _bound(self, batch: int) -> Bound | None:
        """Return this thread's buffers for a batch size, and None where it has no graph, or none yet."""
        bound: dict[int, Bound] = self._mine.__dict__.setdefault("bound", {})
        if batch in bound:
            return bound[batch]
        calls: Counter[int] = self._mine.__dict__.setdefault("calls", Counter())
        calls[batch] += 1
        if calls[batch] <= CALLS_BEFORE or len(bound) == MAX_GRAPHS:
            return None
        bound[batch] = Bound(self._session, self._contract, batch, self._device, graph=batch)
        return bound[batch]
