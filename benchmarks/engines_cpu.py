"""Engines on the CPU: torch, onnxruntime, this project, OpenVINO and ncnn."""

from __future__ import annotations

import contextlib
import copy
import logging
import subprocess
import sys
import warnings
from collections.abc import Callable
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import harness
import numpy as np
import torch
from engines import COMPILED, OURS, Engines, OnDevice, Peer
from harness import PLAIN, Function, PlainSession, random_images

from edgecifar.export.formats import torchscript
from edgecifar.export.graph import Deployed
from edgecifar.runtime import Bundle, Classifier
from edgecifar.train.run import Run


class CpuEngines(Engines):
    """All engines on the CPU, for one run and its bundle.

    Args:
        run: a finished run.
        bundle: what was exported of it; it has an fp32 ONNX variant.
        threads: of every engine.
        calibration: uint8 [N, size, size, 3], what nncf calibrates with.
        folder: for the files of conversions.
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
        torchscript.write(self.deployed, path, self.contract)
        module: Any = torchscript.read(path)[0]
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # torch.jit is deprecated as a whole
            return self._torch(torch.jit.optimize_for_inference(module) if optimise else module)

    def _compiled(self, batch: int) -> Function:
        module = torch.compile(self._channels_last(), dynamic=False, fullgraph=True, options={"freezing": True})
        function = self._torch(module, torch.no_grad)  # freezing knows no inference mode
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of the compiler's own modules
            function(random_images(batch, self.contract))
        return function

    @staticmethod
    def _torch(module: Callable[[torch.Tensor], Any], mode: Any = torch.inference_mode) -> Function:
        @mode()
        def function(images: np.ndarray) -> np.ndarray:
            return module(torch.from_numpy(images))[0].numpy()

        return function

    def _plain(self, batch: int) -> Function:  # noqa: ARG002
        return PlainSession(self.model, self.contract, self.threads).probabilities

    def _ours(self, batch: int, variant: str) -> Function:  # noqa: ARG002
        classifier = Classifier(self.bundle, variant, "cpu", self.threads)
        return OnDevice(classifier.probabilities, None, harness.ran_on(classifier.session))

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
        import nncf  # pyright: ignore[reportMissingImports]: in an environment of its own

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
        fixed.reshape([batch, *self.contract.picture_shape])
        given, result = self.contract.input_name, self.contract.probabilities_name
        request = self._openvino[0].compile_model(fixed, "CPU", settings).create_infer_request()

        def function(images: np.ndarray) -> np.ndarray:
            request.infer({given: images}, share_inputs=True)
            return request.get_tensor(result).data.copy()

        return function

    @cached_property
    def _ncnn(self) -> Any:
        import ncnn  # pyright: ignore[reportMissingImports]: in an environment of its own
        import pnnx  # pyright: ignore[reportMissingImports]

        class Planes(torch.nn.Module):
            def __init__(self, deployed: Deployed) -> None:
                super().__init__()
                self.deployed = deployed

            def forward(self, x: torch.Tensor) -> torch.Tensor:
                return self.deployed(x.permute(0, 2, 3, 1))[0]

        path, size = self.folder / "net.pt", self.contract.size
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # torch.jit is deprecated as a whole
            traced: Any = torch.jit.trace(Planes(self.deployed).eval(), torch.zeros(1, 3, size, size))
            traced.save(path)
        command = [pnnx.EXEC_PATH, path.name, f"inputshape=[1,3,{size},{size}]", "fp16=0"]
        subprocess.run(command, cwd=self.folder, capture_output=True, check=True)
        net = ncnn.Net()
        net.opt.num_threads = self.threads
        for name in ("use_fp16_packed", "use_fp16_storage", "use_fp16_arithmetic", "use_bf16_storage"):
            setattr(net.opt, name, False)
        net.load_param(str(path.with_suffix(".ncnn.param")))
        net.load_model(str(path.with_suffix(".ncnn.bin")))
        return net

    def _run_ncnn(self, batch: int) -> Function:  # noqa: ARG002
        import ncnn  # pyright: ignore[reportMissingImports]

        net, kind, size = self._ncnn, ncnn.Mat.PixelType.PIXEL_RGB, self.contract.size

        def function(images: np.ndarray) -> np.ndarray:
            rows = []
            for image in images:
                extractor = net.create_extractor()
                extractor.input("in0", ncnn.Mat.from_pixels(image, kind, size, size))
                rows.append(np.array(extractor.extract("out0")[1]))
            return np.stack(rows)

        return function
