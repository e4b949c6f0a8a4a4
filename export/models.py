"""Any model of this project behind one face: a run folder, TorchScript, `.pt2`, ONNX or a bundle."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from ..runtime import choice
from ..runtime.bundle import Bundle
from ..runtime.contract import Contract
from ..runtime.errors import ModelError, ProviderError, VariantError
from ..runtime.paths import kind_of
from ..runtime.session import AUTO, Session
from ..train.inference import Function, logits_with
from ..train.net import INPUT_SIZE
from ..train.run import Run
from .formats import pt2, torchscript

Outputs = Callable[[np.ndarray], Sequence[np.ndarray]]
"""Maps uint8 [N, size, size, 3] to probabilities and logits, float32 [N, classes] each, and, where the model has it, to
the familiarity, float32 [N], of one run."""


@dataclass(frozen=True)
class Model:
    """A loaded model.

    Attributes:
        kind: "run", "torchscript", "pt2", "onnx" or "bundle".
        probabilities: maps uint8 [N, size, size, 3] to float32 [N, classes].
        logits: maps the same to float32 [N, classes].
        outputs: maps the same to both, and to the familiarity where there is one, of one run.
        provider: what it runs on.
        contract: what it takes and gives; None of a .pt or .pt2 file of an earlier version, which does not say.
        dataset: the name of what it was trained on; None where the file does not say.
        variant: of a bundle, the name of the one that is loaded; None of all else.
        origin: how the folder or CSV was read that it was trained on, as `folders.describe` says; empty where it was
            none, or the file does not say.
        trained_on_val: of a run, whether it was trained on its validation split, too.
        familiarity: maps images to the familiarity, float32 [N]; None where the model has none.
    """

    kind: str
    probabilities: Function
    logits: Function
    outputs: Outputs
    provider: str
    contract: Contract | None = None
    dataset: str | None = None
    variant: str | None = None
    origin: Mapping[str, Any] = field(default_factory=dict)
    trained_on_val: bool = False
    familiarity: Function | None = None


def load(path: Path, variant: str | None = None, provider: str = AUTO) -> Model:
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
    kind = kind_of(path)
    if kind == "bundle":
        return _bundle(path, variant, provider)
    if variant:
        raise VariantError(f"{path} is not a bundle and has no variants: leave the variant out.", option="variant")
    if kind == "onnx":
        session = Session(path.read_bytes(), provider=provider, name=str(path))
        functions = session.probabilities, session.logits, session.outputs
        name, origin = _trained_on(session.metadata())
        familiarity = _familiarity(session)
        return Model(kind, *functions, session.provider, session.contract, name, origin=origin, familiarity=familiarity)
    if provider not in (AUTO, "cpu"):
        raise ProviderError(
            f"{path} is run by torch on the CPU: name the .onnx file or the bundle, or choose no provider.",
            option="provider",
        )
    if kind == "run":
        return _run(path)
    return _torch_file(path, kind)


def _bundle(path: Path, variant: str | None, provider: str) -> Model:
    bundle = Bundle.open(path)
    chosen, _, session = choice.load(bundle, variant, provider)
    return Model(
        kind="bundle",
        probabilities=session.probabilities,
        logits=session.logits,
        outputs=session.outputs,
        provider=session.provider,
        contract=bundle.contract,
        dataset=bundle.manifest.dataset,
        variant=chosen.name,
        origin=_trained_on({"provenance": bundle.manifest.provenance})[1],
        familiarity=_familiarity(session),
    )


def _familiarity(session: Session) -> Function | None:
    return None if session.contract.familiarity_name is None else lambda images: session.outputs(images)[2]


def _run(path: Path) -> Model:
    run = Run(path)
    net, record = run.net(), run.record
    logits = logits_with(net)

    def outputs(images: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        found = logits(images)
        return torch.softmax(torch.from_numpy(found) / record.temperature, 1).numpy(), found

    return Model(
        kind="run",
        probabilities=lambda images: outputs(images)[0],
        logits=logits,
        outputs=outputs,
        provider="torch, cpu",
        contract=record.contract,
        dataset=record.dataset.name,
        origin=record.dataset.origin,
        trained_on_val=not record.recipe.held_out,
    )


def _torch_file(path: Path, kind: str) -> Model:
    readers = {"torchscript": torchscript.read, "pt2": pt2.read}
    try:
        module, contract = readers[kind](path)
        size = contract.size if contract else INPUT_SIZE
        outputs = module(torch.zeros(3, size, size, 3, dtype=torch.uint8))
        shapes = [tuple(output.shape) for output in outputs]
        classes = contract.classes if contract else shapes[0][-1]
        if len(shapes) < 2 or shapes[:2] != [(3, classes)] * 2:
            raise ValueError(f"its outputs have the shapes {shapes}")
    except Exception as error:  # torch's readers raise whatever its parsers and the file's own code raise
        if isinstance(error, MemoryError):
            raise
        reason = (str(error).strip() or type(error).__name__).splitlines()[0].rstrip(".")[:200]
        raise ModelError(
            f"{path} is not a model that 'edgecifar export' made, or it is damaged ({reason}): export it again."
        ) from None
    call = _numpy(module)
    return Model(kind, lambda images: call(images)[0], lambda images: call(images)[1], call, "torch, cpu", contract)


def _trained_on(metadata: Mapping[str, Any]) -> tuple[str | None, Mapping[str, Any]]:
    """Return the name of the data set that a model says it was trained on, and how its folder or CSV was read."""
    try:
        dataset = metadata["provenance"]["dataset"]
        origin = dataset.get("origin")
        return str(dataset["name"]), origin if isinstance(origin, dict) else {}
    except (LookupError, TypeError, AttributeError):
        return None, {}


def _numpy(module: nn.Module) -> Outputs:
    @torch.inference_mode()
    def call(images: np.ndarray) -> list[np.ndarray]:
        # Writable, as torch warns of arrays that are not, such as those of a memory map.
        return [output.numpy() for output in module(torch.from_numpy(np.require(images, requirements="W")))]

    return call
