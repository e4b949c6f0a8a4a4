"""One ONNX model on one onnxruntime execution provider, with no silent fall-back and no oversubscription."""

from __future__ import annotations

import json
import math
import os
import weakref
from typing import TYPE_CHECKING, Any, NoReturn

import numpy as np

from . import providers
from .contract import METADATA_PREFIX, Contract
from .errors import ModelError, ProviderError
from .machine import usable_cpus
from .providers import AUTO, PROVIDERS, RECORD_ASSIGNMENT, assignment, import_onnxruntime

if TYPE_CHECKING:
    from collections.abc import Mapping

    import onnxruntime

    from .bound import Graphs

__all__ = ["AUTO", "MAX_THREADS", "PROVIDERS", "RECORD_ASSIGNMENT", "Session", "assignment", "import_onnxruntime"]

MAX_THREADS = 256
"""Threads of one call; onnxruntime makes them all when the model is loaded, 100,000 of them for minutes."""

ROUNDED = 1.02
"""What stands for a sum of 1 where half precision has rounded."""


def check_threads(threads: int | None) -> None:
    """Refuse a number of threads that a call cannot have; None is as many as suit.

    Raises:
        ProviderError: it is below 1, or above `MAX_THREADS`.
    """
    if threads is not None and not 1 <= threads <= MAX_THREADS:
        raise ProviderError(f"A call cannot have {threads} threads: choose 1 to {MAX_THREADS}.")


class Session:
    """A loaded model: pictures in, probabilities out. Safe to use from several threads, of one process.

    Attributes:
        contract: the model's labels, input and outputs.
        provider: the name in `PROVIDERS` that every node runs on.
        threads: how many threads one call may use on the CPU.
    """

    def __init__(
        self,
        model: bytes,
        *,
        contract: Contract | None = None,
        provider: str = AUTO,
        threads: int | None = None,
        name: str = "the model",
        settings: Mapping[str, str] | None = None,
    ) -> None:
        """Load `model`, the bytes of an ONNX file.

        Args:
            model: self-contained; references to external data are refused.
            contract: what the model must be; by default what the file says of itself.
            provider: a name in `PROVIDERS`, or "auto": CUDA where it runs, else the CPU.
            threads: by default as many as the affinity mask and the control group's quota allow.
            name: what messages call the model.
            settings: of the provider, by onnxruntime's names, such as {"enable_cuda_graph": "0"}. Without this one CUDA
                records its work as a graph for each batch size that is called often; see `bound`.

        Raises:
            ProviderError: the provider is unknown, or cannot run every node here.
            ModelError: the model is damaged, or its graph or its metadata is not that of the contract; or the file has
                none and none is given.
        """
        check_threads(threads)
        self.threads = threads or usable_cpus()
        asked = providers.Request(model, self.threads, name, settings or {})
        self._session, self.provider = providers.first_that_runs(
            provider, lambda candidate: (providers.start(asked, candidate), candidate)
        )
        self._name = name
        self._abandoned = False
        _living.add(self)
        self.contract = self._agreed(contract)
        _check_graph(self._session, self.contract, name)
        self._shapes = self.contract.output_shapes
        self._graphs: Graphs | None = None
        if providers.has_graphs(self.provider, asked.settings):
            from .bound import Graphs  # processors need it not

            self._graphs = Graphs(self._session, self.contract, name)

    def __getstate__(self) -> NoReturn:
        """Refuse to be pickled, which is how a session would go to another process.

        Raises:
            ProviderError: always.
        """
        raise ProviderError(
            f"{self._name} is loaded in this process and cannot be sent to another, nor copied: make a Classifier in "
            "each process, of the same bundle."
        )

    def probabilities(self, images: np.ndarray) -> np.ndarray:
        """Classify `images`, uint8 [N, size, size, 3] RGB; return float32 [N, classes].

        Raises:
            InputError: another type, dtype or shape.
            ModelError: the model fails while it runs or gives nan, as only a damaged one does, or one whose numbers
                overflow, or memory runs out.
            ProviderError: the session was made before a fork, by the parent of this process.
        """
        return self._run(images, self.contract.probabilities_name)[0]

    def logits(self, images: np.ndarray) -> np.ndarray:
        """Return the logits of `images`, float32 [N, classes], before temperature and softmax.

        Raises:
            InputError, ModelError, ProviderError: as `probabilities` says.
        """
        return self._run(images, self.contract.logits_name)[0]

    def scores(self, images: np.ndarray) -> tuple[np.ndarray, np.ndarray | None]:
        """Return the probabilities of `images`, float32 [N, classes], and their familiarity, float32 [N].

        The familiarity says how much a picture is like those the net was trained on, higher is more alike; it is None
        where the model has none.

        Raises:
            InputError, ModelError, ProviderError: as `probabilities` says.
        """
        if self.contract.familiarity_name is None:
            return self.probabilities(images), None
        probabilities, familiarity = self._run(images, self.contract.probabilities_name, self.contract.familiarity_name)
        return probabilities, familiarity

    def outputs(self, images: np.ndarray) -> list[np.ndarray]:
        """Return all outputs of `images`, float32, in the order of `Contract.output_names`, of one run.

        Raises:
            InputError, ModelError, ProviderError: as `probabilities` says.
        """
        return self._run(images, *self.contract.output_names)

    def _run(self, images: np.ndarray, *outputs: str) -> list[np.ndarray]:
        self.contract.check_images(images)
        if self._abandoned:
            raise ProviderError(
                f"{self._name} was loaded before this process was forked, and onnxruntime's threads do not live on in "
                "the child: make a Classifier after the fork, or start the process with 'spawn'."
            )
        if not len(images):
            return [np.empty((0, *self._shapes[output]), np.float32) for output in outputs]
        try:
            if self._graphs:
                found = self._graphs.run(images, outputs)
            else:
                found = self._session.run(list(outputs), {self.contract.input_name: images})
        except Exception as error:  # as in providers.start
            raise ModelError(
                f"{self._name} cannot classify {len(images)} images ({providers.first_sentence(error)}): export it "
                "again, or give fewer at once."
            ) from None
        rows = [np.asarray(array) for array in found]
        for output, array in zip(outputs, rows, strict=True):
            self._check(output, array, len(images))
        return rows

    def _check(self, output: str, array: np.ndarray, images: int) -> None:
        """Raise a ModelError where the model gave another shape than its graph says, or numbers that mean nothing.

        Half precision that overflows gives nan, of which the first class would be the most probable.
        """
        if array.shape != (images, *self._shapes[output]):
            raise ModelError(
                f"{self._name} gives {output} of the shape {list(array.shape)} for {images} images, which is not what "
                "its graph says: export it again."
            )
        if output == self.contract.logits_name:
            return
        # A row of probabilities has 1 at most as the sum of its squares. It takes a tenth of the time of least and
        # greatest, and is nan where one is.
        most = images * ROUNDED if output == self.contract.probabilities_name else math.inf
        if not (squares := float(np.vdot(array, array))) <= most or squares == math.inf:
            raise ModelError(
                f"{self._name} gives {output} that mean nothing, {array.min():.3g} to {array.max():.3g}: its numbers "
                "overflow, or it is damaged; choose another variant, or export it again."
            )

    @property
    def inference_session(self) -> onnxruntime.InferenceSession:
        """The session of onnxruntime, for what measures or profiles it; calls to it are not checked.

        On CUDA with graphs a call must say which it uses, in its run's options (`bound.GRAPH_ID`), or it records one.
        """
        return self._session

    def abandon(self) -> None:
        """Refuse all calls from now on: a fork has left onnxruntime's threads behind."""
        self._abandoned = True

    def assignment(self) -> dict[str, int] | None:
        """Return how many of the model's nodes each provider runs, by onnxruntime's name of it.

        None before onnxruntime 1.24, which does not tell. They are counted before fusion.
        """
        return assignment(self._session)

    def metadata(self) -> dict[str, Any]:
        """Return what the file says of itself: its metadata, the JSON values read, keys without their prefix.

        Raises:
            ModelError: a text in it is not UTF-8, or a value of ours is not JSON.
        """
        entries = self._entries()
        found: dict[str, Any] = {}
        for key, value in sorted(entries.items()):
            own = key.startswith(METADATA_PREFIX)
            try:
                found[key.removeprefix(METADATA_PREFIX)] = json.loads(value) if own else value
            except (ValueError, RecursionError):
                raise ModelError(f"{self._name} is damaged (its {key} is not JSON): export it again.") from None
        return found

    def _entries(self) -> dict[str, str]:
        try:
            return self._session.get_modelmeta().custom_metadata_map
        except UnicodeDecodeError:
            raise ModelError(f"{self._name} is damaged (its metadata is not UTF-8): export it again.") from None

    def _agreed(self, given: Contract | None) -> Contract:
        """Return the contract that is given and that the file has, where one of them or both are there and agree."""
        own = self._own_contract()
        if given is None and own is None:
            raise ModelError(
                f"{self._name} does not say what its labels and its input are: name a model that 'edgecifar export' "
                "made, or its bundle."
            )
        if given and own and not given.same_tensors(own):
            raise ModelError(
                f"{self._name} has other labels, another input or other outputs than its bundle says: export the "
                "bundle again."
            )
        return given or own  # pyright: ignore[reportReturnType]: one of them is there

    def _own_contract(self) -> Contract | None:
        """Return the contract in the file's metadata, in today's form or that of bundles of schema 1."""
        entries = self._entries()
        if METADATA_PREFIX + "contract" not in entries:
            return None
        described = self.metadata()
        contract = described["contract"]
        try:
            if isinstance(contract, dict) and "labels" not in contract:
                return Contract.parse_first(described.get("labels"), contract)
            return Contract.parse(contract)
        except ValueError as error:
            raise ModelError(f"{self._name} is damaged ({error}): export it again.") from None


_living: weakref.WeakSet[Session] = weakref.WeakSet()


def _abandon() -> None:
    """In a forked child: no session of the parent's is run or freed; either could wait for threads that are gone.

    Freeing would do so in the child's last moment at the latest, and for ever. The memory is the parent's anyway.
    """
    import ctypes  # only where a process that has a session forks

    for session in _living:
        session.abandon()
        ctypes.pythonapi.Py_IncRef(ctypes.py_object(session.inference_session))


if hasattr(os, "register_at_fork"):  # not on Windows, which has no fork
    os.register_at_fork(after_in_child=lambda: _living and _abandon())


def _check_graph(session: onnxruntime.InferenceSession, contract: Contract, name: str) -> None:
    """Raise a ModelError unless the graph has the input and the outputs of `contract`, and any batch size."""
    inputs = [(given.name, given.type, tuple(given.shape[1:])) for given in session.get_inputs()]
    outputs = {given.name: (given.type, tuple(given.shape[1:])) for given in session.get_outputs()}
    wanted = [(contract.input_name, "tensor(uint8)", contract.picture_shape)]
    if inputs != wanted or any(
        outputs.get(output) != ("tensor(float)", shape) for output, shape in contract.output_shapes.items()
    ):
        raise ModelError(
            f"{name} is another kind of model (its input is {inputs}, its outputs are {outputs}): name one that "
            "'edgecifar export' made."
        )
    if isinstance(session.get_inputs()[0].shape[0], int):
        raise ModelError(f"{name} takes only batches of {session.get_inputs()[0].shape[0]}: export it again.")
