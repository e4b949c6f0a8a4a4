"""Any model of this project behind one face: a run folder, TorchScript, `.pt2`, ONNX or a bundle."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from ..runtime import choice
from ..runtime.bundle import MANIFEST, Bundle
from ..runtime.contract import LABELS, SIDE
from ..runtime.errors import ModelError, ProviderError, VariantError
from ..runtime.session import AUTO, Session
from ..train.loop import classify_with, logits_with
from ..train.run import RECORD, Run
from . import to_pt2, to_torchscript

Function = Callable[[np.ndarray], np.ndarray]


@dataclass(frozen=True)
class Model:
    """A loaded model.

    Attributes:
        kind: "run", "torchscript", "pt2", "onnx" or "bundle".
        probabilities: maps uint8 [N, 32, 32, 3] to float32 [N, 10].
        logits: maps the same to float32 [N, 10].
        provider: what it runs on.
        dataset: the name of what it was trained on; None where the file does not say.
        variant: of a bundle, the name of the one that is loaded; None of all else.
    """

    kind: str
    probabilities: Function
    logits: Function
    provider: str
    dataset: str | None = None
    variant: str | None = None


def load(path: Path, variant: str | None = None, provider: str = "auto") -> Model:
    """Load the model at `path`, told apart by what it is.

    Args:
        path: a run folder, a bundle, or a file ending in .pt, .pt2 or .onnx. Code in a .pt or .pt2 file may run:
            load only those from a trusted source.
        variant: of a bundle; by default the one that suits the provider and this processor.
        provider: of onnxruntime, for ONNX and bundles.

    Raises:
        ModelError: it is missing, damaged, or of another kind.
        VariantError: a variant is named, and it is no bundle; or the bundle has none of that name.
        ProviderError: a provider other than the CPU is named, and the model is torch's; or it cannot run here.
        RunError, BundleError: as their loaders say.
    """
    if not path.exists():
        raise ModelError(f"{path} is not there: check the path.")
    if (path / MANIFEST).exists():
        bundle = Bundle.open(path)
        chosen, _, session = choice.load(bundle, variant, provider)
        dataset = bundle.manifest.dataset
        return Model("bundle", session.probabilities, session.logits, session.provider, dataset, chosen.name)
    if variant:
        raise VariantError(f"{path} is not a bundle and has no variants: leave out --variant.")
    if path.suffix == ".onnx" and path.is_file():
        session = Session(path.read_bytes(), provider, name=str(path))
        return Model("onnx", session.probabilities, session.logits, session.provider, _trained_on(session))
    if provider not in (AUTO, "cpu"):
        raise ProviderError(
            f"{path} is run by torch on the CPU: leave out --provider, or name the .onnx file or the bundle."
        )
    if (path / RECORD).exists():
        run = Run(path)
        net, record = run.net(), run.record
        classify = classify_with(net, record.get("temperature", 1.0))
        return Model("run", classify, logits_with(net), "torch, cpu", record["dataset"]["name"])
    if not path.is_file():
        raise ModelError(
            f"{path} is neither a run folder nor a bundle: name one that 'edgecifar train' or 'edgecifar export' made."
        )
    readers: dict[str, Callable[[Path], torch.nn.Module]] = {".pt": to_torchscript.read, ".pt2": to_pt2.read}
    if path.suffix not in readers:
        raise ModelError(f"{path} has an unknown ending: name a run folder, a bundle, or a .pt, .pt2 or .onnx file.")
    try:
        module = readers[path.suffix](path)
        outputs = [tuple(output.shape) for output in module(torch.zeros(3, SIDE, SIDE, 3, dtype=torch.uint8))]
        if outputs != [(3, len(LABELS))] * 2:
            raise ValueError(f"its outputs have the shapes {outputs}")
    except Exception as error:  # torch's readers raise whatever its parsers and the file's own code raise
        if isinstance(error, MemoryError):
            raise
        reason = (str(error).strip() or type(error).__name__).splitlines()[0].rstrip(".")[:200]
        raise ModelError(
            f"{path} is not a model that 'edgecifar export' made, or it is damaged ({reason}): export it again."
        ) from None
    kind = "torchscript" if path.suffix == ".pt" else "pt2"
    return Model(kind, _numpy(module, 0), _numpy(module, 1), "torch, cpu")


def _trained_on(session: Session) -> str | None:
    """Return the name of the data set that an ONNX file says it was trained on."""
    try:
        return str(session.metadata()["provenance"]["dataset"]["name"])
    except (LookupError, TypeError):
        return None


def _numpy(module: torch.nn.Module, output: int) -> Function:
    @torch.inference_mode()
    def call(images: np.ndarray) -> np.ndarray:
        # Writable, as torch warns of arrays that are not, such as those of a memory map.
        return module(torch.from_numpy(np.require(images, requirements="W")))[output].numpy()

    return call
