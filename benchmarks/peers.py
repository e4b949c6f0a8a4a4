"""The same net in other engines, on the same images with as many threads, in turns: ratios, not only times.

    python benchmarks/peers.py RUN --bundle RUN/bundle --threads 2 --seconds 6
    python benchmarks/peers.py RUN --bundle RUN/bundle --device cuda --batch 1 --batch 64 --batch 1024

RUN is the folder of a finished training run, the bundle what was exported of it. Measured where they are installed,
else a line that says what to install; the last three are not among the project's own dependencies:

    torch          eager, TorchScript (frozen; and optimised for inference), torch.compile (frozen weights; needs a C++
                   compiler): the deployed graph, batch norm and normalisation folded in as in the exports
    onnxruntime    InferenceSession on model.onnx with its default options, but for the thread count
    edgecifar      Classifier.probabilities on each ONNX variant of the bundle
    OpenVINO       model.onnx, its batch size fixed: fp32; bf16 where the processor has it; int8 by nncf's
                   post-training quantization of the full net: 'pip install openvino nncf'
    ncnn           converted by pnnx, one image after another, as it knows no batches: 'pip install ncnn pnnx'

nncf and pnnx may want other versions than the project does: then install them into an environment of their own.

First the answers: every engine classifies random images, and an fp32 one must give the arg-max that the run's net
gives in eager torch on all of them, or it is not timed. Of a lossy one the agreement is told. Everything takes uint8
[N, 32, 32, 3] in numpy and gives probabilities in numpy, so that no engine is spared a conversion.

With --device cuda the engines are those that run on a GPU, each told the batch size beforehand:

    torch          eager, TorchScript (frozen), torch.compile (with CUDA graphs; --mode says how): channels last,
                   cuDNN's algorithms searched; in fp32, and in half precision up to the last layer
    onnxruntime    InferenceSession on model.onnx with CUDAExecutionProvider's default options
    edgecifar      the bundle's fp32 and fp16 variants

and "call" says what is timed, to the end of the work on the GPU:

    numpy, session.run, Classifier   pictures copied to the GPU, probabilities copied back
    bound, graph, resident           as in latency.py; of torch.compile, "resident" is its graph without the copies

fp32 is called tf32 there: its products are TF32's where the GPU has them, which is what onnxruntime does as it comes
and what torch is told to do. It is lossy, so the agreement is told. "of peak" is the share of the GPU's peak: images/s
times the operations of an image in the deployed net (two a multiply-add; convolutions and linear layers), over those
that a product of two matrices of 8,192 x 8,192 does in a second, in the same run and precision. Compiling, searching
and recording are done before, and how long that took is said below the table.
"""

from __future__ import annotations

import argparse
import contextlib
import copy
import functools
import importlib.util
import logging
import subprocess
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Hashable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property, partial
from importlib import metadata
from pathlib import Path
from typing import Any

import harness
import numpy as np
import torch
from harness import CHECKED, Entry, Function, random_images
from latency import BARE, GRAPH, Bound
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from edgecifar.export import to_torchscript
from edgecifar.export.graph import Deployed
from edgecifar.runtime import Bundle, Classifier
from edgecifar.runtime.benchmark import time_calls
from edgecifar.runtime.bundle import Variant
from edgecifar.runtime.contract import INPUT_NAME, PROBABILITIES, SIDE
from edgecifar.runtime.errors import VariantError
from edgecifar.runtime.machine import usable_cpus
from edgecifar.runtime.session import PROVIDERS, RECORD_ASSIGNMENT, Session, assignment, import_onnxruntime
from edgecifar.train import data
from edgecifar.train.loop import choose_device, classify_with
from edgecifar.train.run import Run

PLAIN, OURS, COMPILED = "onnxruntime", "edgecifar", "torch.compile"
RESIDENT = "resident"
"""What the call is named that leaves input and output on the device."""
DTYPES = {"tf32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}
"""Of the precisions on a GPU."""
MODES = ("max-autotune", "reduce-overhead")
"""Of torch.compile, those that record CUDA graphs; the first also searches kernels, for minutes."""
PRODUCTS, SIZE = 10, 8192
"""Products of matrices that are timed at once for a device's peak, and the rows of one."""
RECORDING = 3
"""Calls until an engine that records its work on the GPU replays it."""
LEAST_AGREEMENT = 0.5
"""Share of the arg-maxes that a lossy engine of the same net must have in common with it, or it is not timed. No more,
as the images are drawn, and a net is sure of few of them: a good int8 form has about 80 % of them in common."""
CALIBRATION = 300
"""Images for nncf, as many as it takes by default."""


@dataclass(frozen=True)
class Peer:
    """An engine at a precision.

    Attributes:
        engine: its name.
        precision: of its weights and arithmetic; only "fp32" must agree with the net on every arg-max.
        make: gives, for a batch size, the function that is timed. What it raises is told as why there is none.
        packages: what must be installed.
        call: what is timed of it, where there is more than one; "resident" is that of `OnDevice`.
    """

    engine: str
    precision: str
    make: Callable[[int], Function]
    packages: tuple[str, ...] = ()
    call: str = ""


@dataclass(frozen=True)
class OnDevice:
    """An engine on a device, for one batch size, and what is told of it; it is a `Function`.

    Attributes:
        probabilities: copies images to the device, classifies them, and copies the probabilities back.
        resident: of a GPU: classifies what was copied last, and leaves the answer there; it ends when that is done.
        details: what the line of JSON says of it.
    """

    probabilities: Function
    resident: Callable[[], object] | None = None
    details: dict[str, Any] = field(default_factory=dict)

    def __call__(self, images: np.ndarray) -> np.ndarray:
        """As `probabilities`."""
        return self.probabilities(images)


class Engines:
    """What the engines of any device have in common: the net, and the bundle that was exported of it.

    Attributes:
        device: "cpu" or "cuda".
        all: the engines.
        reference: the answers that theirs are held against, of the run's net in eager torch on the CPU.
        deployed: the graph as it is exported, for the engines of torch.
        onnx: the bundle's ONNX variants.
        full: the first of them that is fp32; model: its file.
    """

    device = "cpu"
    all: list[Peer]

    def __init__(self, run: Run, bundle: Bundle, threads: int) -> None:
        net, temperature = run.net(), run.record.get("temperature", 1.0)
        self.reference: Function = classify_with(net, temperature)
        self.bundle, self.threads = bundle, threads
        self.deployed = Deployed(net, temperature)
        self.onnx = [variant for variant in bundle.manifest.variants if variant.format == "onnx"]
        full = [variant for variant in self.onnx if variant.precision == "fp32"]
        if not full:
            raise VariantError(f"{bundle.folder} has no fp32 ONNX variant: export one with --format onnx.")
        self.full, self.model = full[0], bundle.read(full[0])
        torch.set_num_threads(threads)

    def settings(self) -> dict[str, Any]:
        """Return what the line of JSON says of them all."""
        return {}

    def ceiling(self, precision: str) -> float | None:  # noqa: ARG002
        """Return the images/s that the device could compute at its peak, or None where that is not measured."""
        return None


class Peers(Engines):
    """All engines on the CPU for one run and its bundle.

    Args:
        run: a finished run.
        bundle: what was exported of it; it has an fp32 ONNX variant.
        threads: of every engine.
        calibration: uint8 [N, 32, 32, 3], what nncf observes.
        folder: where conversions may write.
    """

    def __init__(self, run: Run, bundle: Bundle, threads: int, calibration: np.ndarray, folder: Path) -> None:
        super().__init__(run, bundle, threads)
        self.calibration, self.folder = calibration, folder
        self.all = [
            Peer("torch eager", "fp32", self._eager),
            Peer("TorchScript", "fp32", self._torchscript),
            Peer("TorchScript optimised", "fp32", partial(self._torchscript, optimise=True)),
            Peer(COMPILED, "fp32", self._compiled),
            Peer(PLAIN, "fp32", self._plain),
            *(Peer(f"{OURS} {v.name}", v.precision, partial(self._ours, variant=v.name)) for v in self.onnx),
            Peer("OpenVINO", "fp32", partial(self._ov, precision="f32"), ("openvino",)),
            Peer("OpenVINO", "bf16", partial(self._ov, precision="bf16"), ("openvino",)),
            Peer("OpenVINO", "int8", self._ov_int8, ("openvino", "nncf")),
            Peer("ncnn", "fp32", self._run_ncnn, ("ncnn", "pnnx")),
        ]

    def _eager(self, batch: int) -> Function:  # noqa: ARG002
        return self._torch(self._channels_last())

    def _channels_last(self) -> Deployed:
        """Return the graph with its filters laid out as the pictures are: torch's fastest on a CPU."""
        return copy.deepcopy(self.deployed).to(memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue]

    def _torchscript(self, batch: int, optimise: bool = False) -> Function:  # noqa: ARG002
        path = self.folder / "model.pt"
        to_torchscript.write(self.deployed, path)
        module = to_torchscript.read(path)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # torch.jit is deprecated as a whole
            return self._torch(torch.jit.optimize_for_inference(module) if optimise else module)

    def _compiled(self, batch: int) -> Function:
        module = torch.compile(self._channels_last(), dynamic=False, fullgraph=True, options={"freezing": True})
        function = self._torch(module, torch.no_grad)  # freezing knows no inference mode
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of the compiler's own modules
            function(random_images(batch))
        return function

    @staticmethod
    def _torch(module: Callable[[torch.Tensor], Any], mode: Any = torch.inference_mode) -> Function:
        @mode()
        def function(images: np.ndarray) -> np.ndarray:
            return module(torch.from_numpy(images))[0].numpy()

        return function

    def _plain(self, batch: int) -> Function:  # noqa: ARG002
        ort = import_onnxruntime()
        options = ort.SessionOptions()
        options.intra_op_num_threads = self.threads
        session = ort.InferenceSession(self.model, options, providers=["CPUExecutionProvider"])
        return lambda images: session.run([PROBABILITIES], {INPUT_NAME: images})[0]

    def _ours(self, batch: int, variant: str) -> Function:  # noqa: ARG002
        classifier = Classifier(self.bundle, variant, "cpu", self.threads)
        return OnDevice(classifier.probabilities, None, harness.ran_on(classifier._session))

    @cached_property
    def _openvino(self) -> tuple[Any, Any]:
        import openvino

        core = openvino.Core()
        return core, core.read_model(self.model)

    @property
    def _openvino_has_bf16(self) -> bool:
        return "BF16" in self._openvino[0].get_property("CPU", "OPTIMIZATION_CAPABILITIES")

    def _ov(self, batch: int, precision: str) -> Function:
        if precision == "bf16" and not self._openvino_has_bf16:
            raise RuntimeError("this processor has no bf16")
        return self._compile_openvino(batch, self._openvino[1], precision)

    def _ov_int8(self, batch: int) -> Function:
        rest = "bf16" if self._openvino_has_bf16 else "f32"  # for what is not int8
        return self._compile_openvino(batch, self._quantized, rest)

    @cached_property
    def _quantized(self) -> Any:
        import nncf

        logging.getLogger("nncf").setLevel(logging.ERROR)
        images = list(self.calibration[:, None])  # one at a time
        with contextlib.redirect_stdout(sys.stderr):  # its progress bar is no result
            return nncf.quantize(self._openvino[1], nncf.Dataset(images), subset_size=len(images))

    def _compile_openvino(self, batch: int, model: Any, precision: str) -> Function:
        settings = {
            "INFERENCE_NUM_THREADS": self.threads,
            "PERFORMANCE_HINT": "LATENCY",  # all threads for one call
            "INFERENCE_PRECISION_HINT": precision,
        }
        fixed = model.clone()
        fixed.reshape([batch, SIDE, SIDE, 3])
        request = self._openvino[0].compile_model(fixed, "CPU", settings).create_infer_request()

        def function(images: np.ndarray) -> np.ndarray:
            request.infer({INPUT_NAME: images}, share_inputs=True)
            return request.get_tensor(PROBABILITIES).data.copy()

        return function

    @cached_property
    def _ncnn(self) -> Any:
        import ncnn
        import pnnx

        class Planes(torch.nn.Module):
            def __init__(self, deployed: Deployed) -> None:
                super().__init__()
                self.deployed = deployed

            def forward(self, x: torch.Tensor) -> torch.Tensor:
                return self.deployed(x.permute(0, 2, 3, 1))[0]

        path = self.folder / "net.pt"
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # torch.jit is deprecated as a whole
            torch.jit.trace(Planes(self.deployed).eval(), torch.zeros(1, 3, SIDE, SIDE)).save(path)
        command = [pnnx.EXEC_PATH, path.name, f"inputshape=[1,3,{SIDE},{SIDE}]", "fp16=0"]
        subprocess.run(command, cwd=self.folder, capture_output=True, check=True)
        net = ncnn.Net()
        net.opt.num_threads = self.threads
        for name in ("use_fp16_packed", "use_fp16_storage", "use_fp16_arithmetic", "use_bf16_storage"):
            setattr(net.opt, name, False)
        net.load_param(str(path.with_suffix(".ncnn.param")))
        net.load_model(str(path.with_suffix(".ncnn.bin")))
        return net

    def _run_ncnn(self, batch: int) -> Function:  # noqa: ARG002
        import ncnn

        net, kind = self._ncnn, ncnn.Mat.PixelType.PIXEL_RGB

        def function(images: np.ndarray) -> np.ndarray:
            rows = []
            for image in images:
                extractor = net.create_extractor()
                extractor.input("in0", ncnn.Mat.from_pixels(image, kind, SIDE, SIDE))
                rows.append(np.array(extractor.extract("out0")[1]))
            return np.stack(rows)

        return function


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
    model = copy.deepcopy(deployed)
    if dtype != torch.float32:
        model.to(dtype)
        model.conv1 = nn.Sequential(Cast(dtype), model.conv1)
        model.fc3 = nn.Sequential(Cast(torch.float32), copy.deepcopy(deployed.fc3))
    return model


def operations(deployed: Deployed) -> int:
    """Return the floating-point operations of an image in convolutions and linear layers, two a multiply-add."""
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        deployed(torch.zeros((1, SIDE, SIDE, 3), dtype=torch.uint8))
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


class CudaPeers(Engines):
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
        self.operations = operations(self.deployed)
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
                made(random_images(batch))
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
        given = torch.zeros((batch, SIDE, SIDE, 3), dtype=torch.uint8, device=self.device)
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
            ort, name = import_onnxruntime(), PROVIDERS[self.device][0]
            options = ort.SessionOptions()
            options.intra_op_num_threads = self.threads
            options.add_session_config_entry(*RECORD_ASSIGNMENT)
            session = ort.InferenceSession(self.model, options, providers=[name])
            details = harness.share(self.device, name, assignment(session))
            return OnDevice(lambda images: session.run([PROBABILITIES], {INPUT_NAME: images})[0], None, details)

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
            return OnDevice(made.probabilities, None, harness.ran_on(made._session))

        def bound(settings: dict[str, str]) -> OnDevice:
            name = str(self.bundle.folder / variant.file)
            session = Session(self.bundle.read(variant), self.device, self.threads, name, settings)
            made = Bound(session._session, random_images(batch), self.device)
            return OnDevice(made.probabilities, made.resident, harness.ran_on(session))

        if call == "Classifier":
            return self._once(batch, (variant.name, call), classifier)
        settings = {} if call == "bound" else GRAPH[self.device]
        return self._once(batch, (variant.name, *settings), partial(bound, settings))


def entry(peer: Peer, batch: int, threads: int, reference: Function) -> Entry:
    """Return the entry of `peer` at a batch size; one whose answers are wrong, or that is not here, has no call."""
    labels: dict[str, Any] = {"engine": peer.engine, "precision": peer.precision}
    labels |= {"call": peer.call} if peer.call else {}
    labels |= {"batch": batch, "threads": threads}
    missing = [package for package in peer.packages if not _installed(package)]
    if missing:
        return Entry(labels, problem=f"{' and '.join(missing)} must be installed: 'pip install {' '.join(missing)}'.")
    try:
        function = peer.make(batch)
        images = random_images(max(CHECKED // batch, 1) * batch)
        answers = np.concatenate([function(images[at : at + batch]) for at in range(0, len(images), batch)])
    except Exception as error:  # each engine has failures of its own, and none may cost the others' figures
        return Entry(labels, problem=harness.problem(error))
    if not np.isfinite(answers).all():
        return Entry(labels, problem="its answers are not finite.")
    expected = reference(images)
    agree = int((answers.argmax(1) == expected.argmax(1)).sum())
    difference = float(np.abs(answers - expected).max())
    labels["agree"] = f"{agree}/{len(images)}"
    details = {"agree": agree, "checked": len(images), "largest_difference": difference}
    details |= getattr(function, "details", {})
    same_net = not (peer.engine.startswith(OURS) and peer.precision == "int8")  # ours in int8 are narrower nets
    least = len(images) if peer.precision == "fp32" else LEAST_AGREEMENT * len(images) * same_net
    if agree < least:
        problem = f"only {agree} of {len(images)} arg-maxes are those of eager torch: it is not the same net."
        return Entry(labels, problem=problem, details=details)
    shown = images[:batch].copy()
    call = function.resident if peer.call == RESIDENT else lambda: function(shown)
    return Entry(labels, call, batch, details=details)


def _installed(package: str) -> bool:
    return importlib.util.find_spec(package) is not None


def set_bases(entries: Sequence[Entry], device: str = "cpu") -> None:
    """Hold measured entries of one batch size against plain onnxruntime, and the fastest peers that are not ours.

    On a GPU torch.compile is one of these, and what copies nothing is held only against its like.
    """

    def median(candidate: Entry) -> float:
        return float(np.median(np.concatenate(candidate.rounds)))

    for resident in (False, True):
        measured = [entry for entry in entries if entry.rounds and resident == (entry.labels.get("call") == RESIDENT)]
        peers = [candidate for candidate in measured if not candidate.labels["engine"].startswith(OURS)]
        exact = [candidate for candidate in peers if candidate.labels["precision"] in ("fp32", "bf16")]
        plain = [candidate for candidate in peers if candidate.labels["engine"] == PLAIN]
        compiled = [candidate for candidate in peers if candidate.labels["engine"] == COMPILED]
        bases = {PLAIN: plain[:1], "fastest peer": sorted(peers, key=median)[:1]}
        if device == "cpu":
            bases["fastest fp32/bf16"] = sorted(exact, key=median)[:1]
        else:
            bases[f"fastest {COMPILED}"] = sorted(compiled, key=median)[:1]
        for candidate in measured:
            candidate.bases = {name: found[0] for name, found in bases.items() if found}


def best_batches(entries: Sequence[Entry]) -> list[Entry]:
    """Return of each engine the measured entry with the most images/s, the highest first.

    Empty where no more than one batch size was measured, as there was no choice.
    """
    best: dict[tuple[str, ...], Entry] = {}
    measured = [entry for entry in entries if entry.rounds]
    for candidate in measured:
        key = tuple(str(candidate.labels.get(name, "")) for name in ("engine", "precision", "call"))
        if key not in best or _images_per_second(candidate) > _images_per_second(best[key]):
            best[key] = candidate
    several = len({candidate.labels["batch"] for candidate in measured}) > 1
    return sorted(best.values(), key=_images_per_second, reverse=True) if several else []


def _images_per_second(candidate: Entry) -> float:
    return candidate.row()["images_per_second"]


def remarks(entries: Sequence[Entry]) -> list[str]:
    """Return what is said below the table: the best batch size of each engine, how long torch.compile took."""

    def name(candidate: Entry) -> str:
        return ", ".join(
            candidate.labels[label] for label in ("engine", "precision", "call") if candidate.labels.get(label)
        )

    lines = []
    for candidate in best_batches(entries):
        row = candidate.row()
        share = f", {100 * row['peak_share']:.2f} % of the peak" if "peak_share" in row else ""
        figure = f"{row['images_per_second']:,.0f} images/s at batch {row['batch']}{share}"
        lines.append(f"{'then' if lines else 'Most at its best batch size'}: {name(candidate)}, {figure}")
    for candidate in entries:
        seconds = candidate.details.get("ready_seconds")
        if candidate.labels["engine"] == COMPILED and candidate.labels.get("call") != RESIDENT and seconds:
            lines.append(f"Compiled in {seconds:.0f} s: {name(candidate)}, batch {candidate.labels['batch']}")
    return lines


def calibration_images(given: str | None, held_out: float) -> tuple[np.ndarray, str]:
    """Return uint8 [`CALIBRATION`, 32, 32, 3] for nncf, and what they are: held-out images, else drawn ones."""
    if given is None:
        return data.synthetic(CALIBRATION, 1).train_images, "drawn pictures"
    dataset = data.load(given, download=False)
    indices = dataset.hold_out(held_out)[1]
    chosen = np.random.default_rng(0).permutation(indices)[:CALIBRATION]
    return dataset.train_images[np.sort(chosen)], f"held-out {dataset.name} images"


def measure(peers: Engines, batches: list[int], seconds: float, rounds: int, only: list[str] | None) -> Iterator[Entry]:
    """Yield the entries of each batch size, measured."""
    reference = functools.cache(lambda count: peers.reference(random_images(count)))
    for precision in dict.fromkeys(peer.precision for peer in peers.all):
        peers.ceiling(precision)  # now, while no engine holds memory
    for batch in batches:
        entries = []
        for peer in peers.all:
            name = " ".join(filter(None, (peer.engine, peer.precision, peer.call)))
            if only and not any(wanted.lower() in name.lower() for wanted in only):
                continue
            harness.say(f"Preparing {name}, batch {batch} …")
            entries.append(entry(peer, batch, peers.threads, lambda images: reference(len(images))))
        for candidate in entries:
            candidate.ceiling = peers.ceiling(candidate.labels["precision"]) if candidate.call else None
        harness.say(f"Batch {batch}: {len(entries)} engines in {rounds} rounds …")
        harness.alternate(entries, seconds, rounds)
        set_bases(entries, peers.device)
        for candidate in entries:
            candidate.call = None  # what it holds is freed: a GPU's memory is wanted for the next batch size
        yield from entries


def main() -> None:
    """Parse, measure, report."""
    parser = argparse.ArgumentParser(description=str(__doc__).splitlines()[0])
    parser.add_argument("run", type=Path, metavar="RUN", help="the folder of a finished run")
    parser.add_argument("--bundle", type=Path, required=True, help="what was exported of it")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu", help="what the engines run on")
    parser.add_argument("--batch", type=int, action="append", help="may be repeated; by default 1 and 64")
    parser.add_argument("--threads", type=int, default=usable_cpus(), help="of every engine; by default all")
    parser.add_argument("--seconds", type=float, default=6.0, help="of each engine")
    parser.add_argument("--rounds", type=int, default=10, help="turns of each engine")
    parser.add_argument("--only", action="append", metavar="NAME", help="engines of this name; may be repeated")
    parser.add_argument("--data", help="where CIFAR-10 is, to calibrate int8 with; by default drawn pictures do")
    parser.add_argument("--mode", choices=MODES, default=MODES[0], help="of torch.compile on cuda")
    harness.add_picture(parser, __file__)
    given = parser.parse_args()
    if min(given.threads, given.rounds, *(given.batch or [1])) < 1:
        parser.error("--batch, --threads and --rounds must be at least 1")

    choose_device(given.device)
    run, bundle = Run(given.run), Bundle.open(given.bundle)
    batches = sorted(set(given.batch or (1, 64)))
    settings = {"run": given.run.name, "bundle": given.bundle.name, "seconds": given.seconds, "rounds": given.rounds}
    settings |= {"device": given.device}
    versions = {name: metadata.version(name) for name in ("openvino", "nncf", "ncnn", "pnnx") if _installed(name)}
    with tempfile.TemporaryDirectory() as folder:
        if given.device == "cpu":
            calibration, settings["int8_calibration"] = calibration_images(given.data, run.record["recipe"]["held_out"])
            peers: Engines = Peers(run, bundle, given.threads, calibration, Path(folder))
        else:
            peers = CudaPeers(run, bundle, given.threads, given.mode)
            versions = {"CUDA": str(torch.version.cuda), "cuDNN": str(torch.backends.cudnn.version())}
        entries = list(measure(peers, batches, given.seconds, given.rounds, given.only))
    harness.report("peers", entries, {**settings, **peers.settings()}, given.picture, remarks(entries), **versions)


if __name__ == "__main__":
    harness.main(main)
