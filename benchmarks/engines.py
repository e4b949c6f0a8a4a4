"""What engines of any device share in peers.py: one of them at a precision, and the net that all of them run."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import harness
import numpy as np
import torch
from harness import Function

from edgecifar.export.options import ExportOptions
from edgecifar.export.variants import Source
from edgecifar.runtime import Bundle
from edgecifar.runtime.errors import VariantError
from edgecifar.runtime.machine import usable_cpus
from edgecifar.train.inference import classify_with
from edgecifar.train.run import Run

OURS, COMPILED = "edgecifar", "torch.compile"

RESIDENT = "resident"
"""The name of the call that leaves input and output on the device."""


@dataclass(frozen=True)
class Peer:
    """An engine at a precision.

    Attributes:
        engine: its name.
        precision: of its weights and arithmetic; only "fp32" must agree with the net on every arg-max.
        make: makes, for a batch size, the function that is timed; if it raises, the table says why.
        packages: the packages that must be installed.
        call: which of its calls is timed, where there are several; "resident" is that of `OnDevice`.
    """

    engine: str
    precision: str
    make: Callable[[int], Function]
    packages: tuple[str, ...] = ()
    call: str = ""


@dataclass(frozen=True)
class OnDevice:
    """An engine on a device, for one batch size; it is a `Function`.

    Attributes:
        probabilities: copies images to the device, classifies them, and copies the probabilities back.
        resident: on a GPU, classifies what was copied last, leaves the answer there, and waits until that is done.
        details: what else the JSON says of it.
    """

    probabilities: Function
    resident: Callable[[], object] | None = None
    details: dict[str, Any] = field(default_factory=dict)

    def __call__(self, images: np.ndarray) -> np.ndarray:
        """As `probabilities`."""
        return self.probabilities(images)


@contextlib.contextmanager
def all_threads() -> Iterator[None]:
    """Let torch use every processor meanwhile."""
    before = torch.get_num_threads()
    torch.set_num_threads(usable_cpus())
    try:
        yield
    finally:
        torch.set_num_threads(before)


class Engines:
    """What the engines of any device share: the net, and the bundle that was exported of it.

    Attributes:
        device: "cpu" or "cuda".
        all: the engines.
        contract: the bundle's.
        reference: the run's net in eager torch on the CPU; the engines' answers are compared with its answers.
        deployed: the graph as it is exported, for the engines of torch.
        onnx: the bundle's ONNX variants.
        full: the first of them that is fp32; model: its file.
    """

    device = "cpu"
    all: list[Peer]

    def __init__(self, run: Run, bundle: Bundle, threads: int) -> None:
        source = Source(run, None, ExportOptions())
        self.deployed = source.model  # of another net than Net it says so
        self.reference: Function = classify_with(source.net, run.record.temperature)
        self.bundle, self.contract, self.threads = bundle, bundle.contract, threads
        self.onnx = [variant for variant in bundle.manifest.variants if variant.format == "onnx"]
        full = [variant for variant in self.onnx if variant.precision == "fp32"]
        if not full:
            raise VariantError(f"{bundle.folder} has no fp32 ONNX variant: export one with --format onnx.")
        self.full, self.model = full[0], bundle.read(full[0])
        self._checked: dict[int, tuple[np.ndarray, np.ndarray]] = {}
        torch.set_num_threads(threads)

    def checked(self, batch: int) -> tuple[np.ndarray, np.ndarray]:
        """Return the images that answers at a batch size are compared on, and the reference's answers, computed once.

        Args:
            batch: images a call.

        Returns:
            uint8 [N, size, size, 3], N a multiple of `batch`, and probabilities, float32 [N, classes].
        """
        if batch not in self._checked:
            images = harness.images_to_check(batch, self.contract)
            with all_threads():
                self._checked[batch] = images, self.reference(images)
        return self._checked[batch]

    def settings(self) -> dict[str, Any]:
        """Return what the line of JSON says of them all."""
        return {}

    def ceiling(self, precision: str) -> float | None:  # noqa: ARG002
        """Return the images/s that the device could compute at its peak, or None where that is not measured."""
        return None
