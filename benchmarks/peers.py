"""The same net in other engines, on the same images with as many threads, in turns: ratios, not only times.

    python benchmarks/peers.py RUN --bundle RUN/bundle --threads 2 --seconds 6

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
"""

from __future__ import annotations

import argparse
import contextlib
import importlib.util
import logging
import subprocess
import sys
import tempfile
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cached_property, partial
from importlib import metadata
from pathlib import Path
from typing import Any

import harness
import numpy as np
import torch
from harness import Entry

from edgecifar.export import to_torchscript
from edgecifar.export.graph import Deployed
from edgecifar.runtime import Bundle, Classifier
from edgecifar.runtime.contract import INPUT_NAME, PROBABILITIES, SIDE
from edgecifar.runtime.errors import VariantError
from edgecifar.runtime.machine import usable_cpus
from edgecifar.runtime.session import import_onnxruntime
from edgecifar.train import data
from edgecifar.train.loop import classify_with
from edgecifar.train.run import Run

Function = Callable[[np.ndarray], np.ndarray]
"""From uint8 [N, 32, 32, 3] to probabilities, float32 [N, 10]."""

PLAIN, OURS = "onnxruntime", "edgecifar"
CHECKED = 96
"""Images on which the arg-maxes are compared, or a batch where that is more."""
CALIBRATION = 300
"""Images for nncf, as many as it takes by default."""


def random_images(count: int, seed: int = 0) -> np.ndarray:
    """Return uint8 [count, 32, 32, 3] of random squares, 1 to 32 pixels wide: noise alone is all one class to a net."""
    rng = np.random.default_rng(seed)
    images = np.empty((count, SIDE, SIDE, 3), np.uint8)
    for index in range(count):
        side = 2 ** (index % 6)  # of a square
        squares = rng.integers(0, 256, (SIDE // side, SIDE // side, 3), np.uint8)
        images[index] = squares.repeat(side, 0).repeat(side, 1)
    return images


@dataclass(frozen=True)
class Peer:
    """An engine at a precision.

    Attributes:
        engine: its name.
        precision: of its weights and arithmetic; only "fp32" must agree with the net on every arg-max.
        make: gives, for a batch size, the function that is timed. What it raises is told as why there is none.
        packages: what must be installed.
    """

    engine: str
    precision: str
    make: Callable[[int], Function]
    packages: tuple[str, ...] = ()


class Peers:
    """All engines for one run and its bundle.

    Args:
        run: a finished run.
        bundle: what was exported of it; it has an fp32 ONNX variant.
        threads: of every engine.
        calibration: uint8 [N, 32, 32, 3], what nncf observes.
        folder: where conversions may write.
    """

    def __init__(self, run: Run, bundle: Bundle, threads: int, calibration: np.ndarray, folder: Path) -> None:
        net, temperature = run.net(), run.record.get("temperature", 1.0)
        self.reference: Function = classify_with(net, temperature)
        self.bundle, self.threads, self.calibration, self.folder = bundle, threads, calibration, folder
        self.deployed = Deployed(net, temperature)
        onnx = [variant for variant in bundle.manifest.variants if variant.format == "onnx"]
        full = [variant for variant in onnx if variant.precision == "fp32"]
        if not full:
            raise VariantError(f"{bundle.folder} has no fp32 ONNX variant: export one with --format onnx.")
        self.model = bundle.read(full[0])
        torch.set_num_threads(threads)
        self.all = [
            Peer("torch eager", "fp32", self._eager),
            Peer("TorchScript", "fp32", self._torchscript),
            Peer("TorchScript optimised", "fp32", partial(self._torchscript, optimise=True)),
            Peer("torch.compile", "fp32", self._compiled),
            Peer(PLAIN, "fp32", self._plain),
            *(Peer(f"{OURS} {v.name}", v.precision, partial(self._ours, variant=v.name)) for v in onnx),
            Peer("OpenVINO", "fp32", partial(self._ov, precision="f32"), ("openvino",)),
            Peer("OpenVINO", "bf16", partial(self._ov, precision="bf16"), ("openvino",)),
            Peer("OpenVINO", "int8", self._ov_int8, ("openvino", "nncf")),
            Peer("ncnn", "fp32", self._run_ncnn, ("ncnn", "pnnx")),
        ]

    def _eager(self, batch: int) -> Function:  # noqa: ARG002
        return self._torch(self.deployed)

    def _torchscript(self, batch: int, optimise: bool = False) -> Function:  # noqa: ARG002
        path = self.folder / "model.pt"
        to_torchscript.write(self.deployed, path)
        module = to_torchscript.read(path)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # torch.jit is deprecated as a whole
            return self._torch(torch.jit.optimize_for_inference(module) if optimise else module)

    def _compiled(self, batch: int) -> Function:
        module = torch.compile(self.deployed, dynamic=False, options={"freezing": True})
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
        harness.ran_on(classifier._session)
        return classifier.probabilities

    @cached_property
    def _openvino(self) -> tuple[Any, Any]:
        import openvino

        core = openvino.Core()
        return core, core.read_model(self.model)

    def _ov(self, batch: int, precision: str) -> Function:
        core, model = self._openvino
        if precision == "bf16" and "BF16" not in core.get_property("CPU", "OPTIMIZATION_CAPABILITIES"):
            raise RuntimeError("this processor has no bf16")
        return self._compile_openvino(batch, model, precision)

    def _ov_int8(self, batch: int) -> Function:
        return self._compile_openvino(batch, self._quantized, "f32")

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


def entry(peer: Peer, batch: int, threads: int, reference: Function) -> Entry:
    """Return the entry of `peer` at a batch size; one whose answers are wrong, or that is not here, has no call."""
    labels = {"engine": peer.engine, "precision": peer.precision, "batch": batch, "threads": threads}
    missing = [package for package in peer.packages if not _installed(package)]
    if missing:
        return Entry(labels, problem=f"{' and '.join(missing)} must be installed: 'pip install {' '.join(missing)}'.")
    try:
        function = peer.make(batch)
        images = random_images(max(CHECKED // batch, 1) * batch)
        answers = np.concatenate([function(images[at : at + batch]) for at in range(0, len(images), batch)])
    except Exception as error:  # each engine has failures of its own, and none may cost the others' figures
        return Entry(labels, problem=harness.problem(error))
    expected = reference(images)
    agree = int((answers.argmax(1) == expected.argmax(1)).sum())
    difference = float(np.abs(answers - expected).max())
    labels["agree"] = f"{agree}/{len(images)}"
    details = {"agree": agree, "checked": len(images), "largest_difference": difference}
    if peer.precision == "fp32" and agree < len(images):
        problem = f"only {agree} of {len(images)} arg-maxes are those of eager torch: it is not the same net."
        return Entry(labels, problem=problem, details=details)
    shown = images[:batch].copy()
    return Entry(labels, lambda: function(shown), batch, details=details)


def _installed(package: str) -> bool:
    return importlib.util.find_spec(package) is not None


def set_bases(entries: list[Entry]) -> None:
    """Hold measured entries of one batch size against plain onnxruntime, and the fastest peers that are not ours."""

    def median(candidate: Entry) -> float:
        return float(np.median(np.concatenate(candidate.rounds)))

    measured = [candidate for candidate in entries if candidate.rounds]
    peers = [candidate for candidate in measured if not candidate.labels["engine"].startswith(OURS)]
    exact = [candidate for candidate in peers if candidate.labels["precision"] in ("fp32", "bf16")]
    plain = [candidate for candidate in peers if candidate.labels["engine"] == PLAIN]
    bases = {PLAIN: plain[:1], "fastest peer": sorted(peers, key=median)[:1]}
    bases["fastest fp32/bf16"] = sorted(exact, key=median)[:1]
    for candidate in measured:
        candidate.bases = {name: found[0] for name, found in bases.items() if found}


def calibration_images(given: str | None, held_out: float) -> tuple[np.ndarray, str]:
    """Return uint8 [`CALIBRATION`, 32, 32, 3] for nncf, and what they are: held-out images, else drawn ones."""
    if given is None:
        return data.synthetic(CALIBRATION, 1).train_images, "drawn pictures"
    dataset = data.load(given, download=False)
    indices = dataset.hold_out(held_out)[1]
    chosen = np.random.default_rng(0).permutation(indices)[:CALIBRATION]
    return dataset.train_images[np.sort(chosen)], f"held-out {dataset.name} images"


def measure(peers: Peers, batches: list[int], seconds: float, rounds: int, only: list[str] | None) -> Iterator[Entry]:
    """Yield the entries of each batch size, measured."""
    for batch in batches:
        entries = []
        for peer in peers.all:
            if only and not any(name.lower() in f"{peer.engine} {peer.precision}".lower() for name in only):
                continue
            harness.say(f"Preparing {peer.engine} {peer.precision}, batch {batch} …")
            entries.append(entry(peer, batch, peers.threads, peers.reference))
        harness.say(f"Batch {batch}: {len(entries)} engines in {rounds} rounds …")
        harness.alternate(entries, seconds, rounds)
        set_bases(entries)
        yield from entries


def main() -> None:
    """Parse, measure, report."""
    parser = argparse.ArgumentParser(description=str(__doc__).splitlines()[0])
    parser.add_argument("run", type=Path, metavar="RUN", help="the folder of a finished run")
    parser.add_argument("--bundle", type=Path, required=True, help="what was exported of it")
    parser.add_argument("--batch", type=int, action="append", help="may be repeated; by default 1 and 64")
    parser.add_argument("--threads", type=int, default=usable_cpus(), help="of every engine; by default all")
    parser.add_argument("--seconds", type=float, default=6.0, help="of each engine")
    parser.add_argument("--rounds", type=int, default=10, help="turns of each engine")
    parser.add_argument("--only", action="append", metavar="NAME", help="engines of this name; may be repeated")
    parser.add_argument("--data", help="where CIFAR-10 is, to calibrate int8 with; by default drawn pictures do")
    harness.add_picture(parser, __file__)
    given = parser.parse_args()

    run, bundle = Run(given.run), Bundle.open(given.bundle)
    calibration, kind = calibration_images(given.data, run.record["recipe"]["held_out"])
    batches = sorted(set(given.batch or (1, 64)))
    with tempfile.TemporaryDirectory() as folder:
        peers = Peers(run, bundle, given.threads, calibration, Path(folder))
        entries = list(measure(peers, batches, given.seconds, given.rounds, given.only))
    settings = {"run": given.run.name, "bundle": given.bundle.name, "seconds": given.seconds, "rounds": given.rounds}
    versions = {name: metadata.version(name) for name in ("openvino", "nncf", "ncnn", "pnnx") if _installed(name)}
    harness.report("peers", entries, {**settings, "int8_calibration": kind}, given.picture, **versions)


if __name__ == "__main__":
    harness.main(main)
