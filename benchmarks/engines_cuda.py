"""Engines on a CUDA device: torch, onnxruntime and this project, each told the batch size beforehand."""

from __future__ import annotations

import copy
import time
import warnings
from collections.abc import Callable, Hashable, Iterator
from functools import partial
from typing import Any

import harness
import numpy as np
import torch
from engines import COMPILED, OURS, RESIDENT, Engines, OnDevice, Peer
from harness import PLAIN, PlainSession, random_images
from onnx_entries import BARE, GRAPH, NO_GRAPH, Bound
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from edgecifar.export.graph import Deployed
from edgecifar.runtime import Bundle, Classifier
from edgecifar.runtime.benchmark import time_calls
from edgecifar.runtime.errors import VariantError
from edgecifar.runtime.manifest import Variant
from edgecifar.runtime.session import Session
from edgecifar.train.run import Run

DTYPES = {"tf32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}
"""The data types of the precisions on a GPU."""

MODES = ("max-autotune", "reduce-overhead")
"""Modes of torch.compile that record CUDA graphs; the first also searches kernels, for minutes."""

PRODUCTS, SIZE = 10, 8192
"""Products of matrices that are timed at once for a device's peak, and the rows of one matrix."""

RECORDING = 3
"""Calls after which an engine that records its work on the GPU replays it."""


class Cast(nn.Module):
    """Converts to `dtype`."""

    def __init__(self, dtype: torch.dtype) -> None:
        super().__init__()
        self.dtype = dtype

    def forward(self, x: Tensor) -> Tensor:
        """Convert `x`."""
        return x.to(self.dtype)


def in_precision(deployed: Deployed, dtype: torch.dtype) -> Deployed:
    """Return a copy with weights and arithmetic in `dtype` up to the last layer, as the variant `fp16` has them."""
    model: Any = copy.deepcopy(deployed)  # its layers are replaced by others
    if dtype != torch.float32:
        model.to(dtype)
        model.conv1 = nn.Sequential(Cast(dtype), model.conv1)
        model.fc3 = nn.Sequential(Cast(torch.float32), copy.deepcopy(deployed.fc3))
    return model


def operations(deployed: Deployed, picture_shape: tuple[int, int, int]) -> int:
    """Return the floating-point operations of an image in convolutions and linear layers, two a multiply-add."""
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        deployed(torch.zeros((1, *picture_shape), dtype=torch.uint8))
    return counter.get_total_flops()


def peak(dtype: torch.dtype, device: str, size: int, seconds: float = 1.0) -> float:
    """Return the operations a second of a product of two square matrices of `size` rows, the fastest of some seconds.

    They hold random numbers: a GPU multiplies zeros with less power, and so with a higher clock.
    """
    left, right = (torch.randn(size, size, device=device).to(dtype) for _ in range(2))
    result = torch.empty_like(left)

    def multiply() -> None:
        for _ in range(PRODUCTS):
            torch.mm(left, right, out=result)
        wait(device)

    return PRODUCTS * 2 * size**3 / float(time_calls(multiply, seconds).min())


def wait(device: str) -> None:
    """Return when the device has done what it was told; a CPU always has."""
    if device != "cpu":
        torch.cuda.synchronize(device)


class CudaEngines(Engines):
    """All engines on a CUDA device, for one run and its bundle; it changes torch's settings for the whole process.

    Engines of one batch size share what is costly to make; it is freed when another batch size is asked for.

    Args:
        run: a finished run.
        bundle: what was exported of it; it has an fp32 ONNX variant.
        threads: of the CPU, for every engine.
        mode: one of `MODES`.
        device: as torch, onnxruntime and the runtime call it.
    """

    def __init__(self, run: Run, bundle: Bundle, threads: int, mode: str = MODES[0], device: str = "cuda") -> None:
        super().__init__(run, bundle, threads)
        self.mode, self.device = mode, device
        self.operations = operations(self.deployed, self.contract.picture_shape)
        self.peaks: dict[str, float] = {}
        self._batch, self._made = 0, {}
        torch.set_float32_matmul_precision("high")  # TF32, as convolutions have by default
        torch.backends.cudnn.benchmark = True
        self.all = [
            *(self._peer("torch eager", precision, "numpy") for precision in DTYPES),
            *(self._peer("TorchScript", precision, "numpy") for precision in ("tf32", "fp16")),
            *(self._peer(COMPILED, precision, call) for precision in ("tf32", "fp16") for call in ("numpy", RESIDENT)),
            Peer(PLAIN, "tf32", self._plain, call=BARE),
            *self._ours(),
        ]

    def settings(self) -> dict[str, Any]:
        """Return torch.compile's mode, the operations of an image, and the measured peaks, in operations/s."""
        return {"mode": self.mode, "operations_per_image": self.operations, "peaks": self.peaks}

    def ceiling(self, precision: str) -> float:
        """Return the images/s that the device could compute at its peak in `precision`."""
        if precision not in self.peaks:
            self.peaks[precision] = peak(DTYPES[precision], self.device, SIZE)
        return self.peaks[precision] / self.operations

    def _once(self, batch: int, key: Hashable, make: Callable[[], OnDevice]) -> OnDevice:
        """Return what `make` gives, recorded where it records; made once for a batch size."""
        if batch != self._batch:
            self._made.clear()
            torch.compiler.reset()  # it compiles a module for a few shapes only
            if self.device != "cpu":
                torch.cuda.empty_cache()
            self._batch = batch
        if key not in self._made:
            start = time.perf_counter()
            made = make()
            for _ in range(RECORDING):
                made(random_images(batch, self.contract))
            made.details["ready_seconds"] = time.perf_counter() - start
            self._made[key] = made
        return self._made[key]

    def _peer(self, engine: str, precision: str, call: str) -> Peer:
        def make(batch: int) -> OnDevice:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # of the compiler's own modules; torch.jit is deprecated as a whole
                return self._once(batch, (engine, precision), partial(self._torch, engine, precision, batch))

        return Peer(engine, precision, make, call=call)

    def _torch(self, engine: str, precision: str, batch: int) -> OnDevice:
        module: Any = in_precision(self.deployed, DTYPES[precision])
        module = module.to(self.device, memory_format=torch.channels_last)
        given = torch.zeros((batch, *self.contract.picture_shape), dtype=torch.uint8, device=self.device)
        mode: Any = torch.inference_mode
        if engine == "TorchScript":
            module = torch.jit.freeze(torch.jit.script(module))
        elif engine == COMPILED:
            # What cannot be compiled is an error: it would be run eagerly without a word.
            module = torch.compile(module, mode=self.mode, dynamic=False, fullgraph=True)
            torch._dynamo.mark_static_address(given)  # or its graph would begin with a copy of the input
            mode = torch.no_grad

        @mode()
        def probabilities(images: np.ndarray) -> np.ndarray:
            given.copy_(torch.from_numpy(images))
            return module(given)[0].cpu().numpy()

        @mode()
        def resident() -> None:
            module(given)
            wait(self.device)

        return OnDevice(probabilities, resident)

    def _plain(self, batch: int) -> OnDevice:
        def make() -> OnDevice:
            self.bundle.load(self.full, self.device, self.threads)  # where it cannot run, this says what is missing
            session = PlainSession(self.model, self.contract, self.threads, self.device)
            return OnDevice(session.probabilities, None, session.ran_on())

        return self._once(batch, PLAIN, make)

    def _ours(self) -> Iterator[Peer]:
        """Yield the peers of the bundle's fp32 and fp16 variants; one that is not there is a peer that says so."""
        for precision, name in {"fp32": "tf32", "fp16": "fp16"}.items():
            variants = [variant for variant in self.onnx if variant.precision == precision]
            if not variants:
                yield Peer(f"{OURS} {precision}", name, partial(self._absent, precision))
            for variant in variants:
                for call in ("Classifier", "bound", "graph", RESIDENT):
                    yield Peer(f"{OURS} {variant.name}", name, partial(self._session, variant, call), call=call)

    def _absent(self, precision: str, batch: int) -> OnDevice:  # noqa: ARG002
        raise VariantError(f"{self.bundle.folder} has no {precision} variant: export one with --variant {precision}.")

    def _session(self, variant: Variant, call: str, batch: int) -> OnDevice:
        def classifier() -> OnDevice:
            made = Classifier(self.bundle, variant.name, self.device, self.threads)
            return OnDevice(made.probabilities, None, harness.ran_on(made.session))

        def bound(settings: dict[str, str]) -> OnDevice:
            name = str(self.bundle.folder / variant.file)
            session = Session(
                self.bundle.read(variant), provider=self.device, threads=self.threads, name=name, settings=settings
            )
            made = Bound(session, random_images(batch, self.contract), self.device)
            return OnDevice(made.probabilities, made.resident, harness.ran_on(session))

        if call == "Classifier":
            return self._once(batch, (variant.name, call), classifier)
        settings = NO_GRAPH.get(self.device, {}) if call == "bound" else GRAPH[self.device]
        return self._once(batch, (variant.name, call == "bound"), partial(bound, settings))
