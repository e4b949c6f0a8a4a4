"""One ONNX model on one onnxruntime execution provider, with no silent fall-back and no oversubscription."""

from __future__ import annotations

import contextlib
import json
import os
import weakref
from collections import Counter
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np

from .contract import INPUT_NAME, LABELS, LOGITS, METADATA_PREFIX, PROBABILITIES, SIDE
from .errors import InputError, ModelError, ProviderError
from .machine import usable_cpus

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    import onnxruntime

Loaded = TypeVar("Loaded")

PROVIDERS = {
    "cpu": ("CPUExecutionProvider", "onnxruntime"),
    "cuda": ("CUDAExecutionProvider", "onnxruntime-gpu"),
    "tensorrt": ("TensorrtExecutionProvider", "onnxruntime-gpu"),
    "openvino": ("OpenVINOExecutionProvider", "onnxruntime-openvino"),
    "directml": ("DmlExecutionProvider", "onnxruntime-directml"),
    "coreml": ("CoreMLExecutionProvider", "onnxruntime"),
    "xnnpack": ("XnnpackExecutionProvider", "an onnxruntime built with XNNPACK"),
}
"""Name on the command line: (onnxruntime's name, the package that brings it)."""

AUTO = "auto"

RECORD_ASSIGNMENT = ("session.record_ep_graph_assignment_info", "1")
"""Entry of a session's options with which it remembers what runs each node; unknown before onnxruntime 1.24."""

MOST_THREADS = 256
"""Threads of one call; onnxruntime makes them all when the model is loaded, 100,000 of them for minutes."""


class Session:
    """A loaded model: uint8 [N, 32, 32, 3] in, probabilities out. Safe to use from several threads, of one process.

    Attributes:
        provider: the name in `PROVIDERS` that every node runs on.
        threads: how many threads one call may use on the CPU.
    """

    def __init__(
        self,
        model: bytes,
        provider: str = AUTO,
        threads: int | None = None,
        name: str = "the model",
        settings: Mapping[str, str] | None = None,
    ) -> None:
        """Load `model`, the bytes of an ONNX file.

        Args:
            model: self-contained; references to external data are refused.
            provider: a name in `PROVIDERS`, or "auto": CUDA where it runs, else the CPU.
            threads: by default as many as the affinity mask and the control group's quota allow.
            name: what messages call the model.
            settings: of the provider, by onnxruntime's names, such as {"enable_cuda_graph": "1"}.

        Raises:
            ProviderError: the provider is unknown, or cannot run every node here.
            ModelError: the model is damaged, or is not one of this project's.
        """
        if threads is not None and not 1 <= threads <= MOST_THREADS:
            raise ProviderError(f"A call cannot have {threads} threads: choose 1 to {MOST_THREADS}.")
        self.threads = threads or usable_cpus()
        ort = import_onnxruntime()
        self._session, self.provider = first_that_runs(
            provider, lambda candidate: (_load(ort, model, candidate, self.threads, name, settings or {}), candidate)
        )
        self._name = name
        self._abandoned = False
        _living.add(self)
        _check_contract(self._session, name)

    def probabilities(self, images: np.ndarray) -> np.ndarray:
        """Classify `images`, uint8 [N, 32, 32, 3] RGB; return float32 [N, 10].

        Raises:
            InputError: another type, dtype or shape.
            ModelError: the model fails while it runs, as only a damaged one does, or where memory runs out.
            ProviderError: the session was made before a fork, by the parent of this process.
        """
        return self._run(PROBABILITIES, images)

    def logits(self, images: np.ndarray) -> np.ndarray:
        """Return the logits of `images`, float32 [N, 10], before temperature and softmax; raises as `probabilities`."""
        return self._run(LOGITS, images)

    def _run(self, output: str, images: np.ndarray) -> np.ndarray:
        check_images(images)
        if self._abandoned:
            raise ProviderError(
                f"{self._name} was loaded before this process was forked, and onnxruntime's threads do not live on in "
                "the child: make a Classifier after the fork, or start the process with 'spawn'."
            )
        if not len(images):
            return np.empty((0, len(LABELS)), np.float32)
        try:
            return np.asarray(self._session.run([output], {INPUT_NAME: images})[0])
        except Exception as error:  # as in _load
            raise ModelError(
                f"{self._name} cannot classify {len(images)} images ({_first_sentence(error)}): export it again, or "
                "give fewer at once."
            ) from None

    def assignment(self) -> dict[str, int] | None:
        """Return how many of the model's nodes each provider runs, by onnxruntime's name of it.

        None before onnxruntime 1.24, which does not tell. They are counted before fusion.
        """
        return assignment(self._session)

    def metadata(self) -> dict[str, Any]:
        """Return what the file says of itself: its metadata, the JSON values read, keys without their prefix.

        Raises:
            ModelError: a value of ours is not JSON.
        """
        entries = self._session.get_modelmeta().custom_metadata_map
        found: dict[str, Any] = {}
        for key, value in sorted(entries.items()):
            own = key.startswith(METADATA_PREFIX)
            try:
                found[key.removeprefix(METADATA_PREFIX)] = json.loads(value) if own else value
            except (ValueError, RecursionError):
                raise ModelError(f"{self._name} is damaged (its {key} is not JSON): export it again.") from None
        return found


_living: weakref.WeakSet[Session] = weakref.WeakSet()


def _abandon() -> None:
    """In a forked child: no session of the parent's is run or freed; either could wait for threads that are gone.

    Freeing would do so in the child's last moment at the latest, and for ever. The memory is the parent's anyway.
    """
    import ctypes  # only where a process that has a session forks

    for session in _living:
        session._abandoned = True
        ctypes.pythonapi.Py_IncRef(ctypes.py_object(session._session))


if hasattr(os, "register_at_fork"):  # not on Windows, which has no fork
    os.register_at_fork(after_in_child=lambda: _living and _abandon())


def first_that_runs(provider: str, load: Callable[[str], Loaded]) -> Loaded:
    """Return what `load` makes for `provider`; for "auto", for CUDA where that runs, else for the CPU.

    Raises:
        ProviderError: there is no onnxruntime; or as `load` does.
    """
    if provider != AUTO:
        return load(provider)
    if PROVIDERS["cuda"][0] in import_onnxruntime().get_available_providers():
        with contextlib.suppress(ProviderError):
            return load("cuda")
    return load("cpu")


def check_images(images: object) -> None:
    """Raise an `InputError` unless `images` is an array that a model takes, uint8 [N, 32, 32, 3]."""
    if not isinstance(images, np.ndarray) or images.dtype != np.uint8 or images.shape[1:] != (SIDE, SIDE, 3):
        got = f"{images.dtype} {list(images.shape)}" if isinstance(images, np.ndarray) else type(images).__name__
        raise InputError(
            f"Images must be a numpy array, uint8 [N, {SIDE}, {SIDE}, 3] in RGB order, not {got}: read pictures with "
            "load_picture, and convert floats in 0 to 1 with (x * 255).round().astype('uint8')."
        )


def assignment(session: onnxruntime.InferenceSession) -> dict[str, int] | None:
    """As `Session.assignment`, of a session whose options have `RECORD_ASSIGNMENT`."""
    if not hasattr(session, "get_provider_graph_assignment_info"):
        return None
    counts: Counter[str] = Counter()
    for part in session.get_provider_graph_assignment_info():
        counts[part.ep_name] += len(part.get_nodes())
    return dict(counts)


def import_onnxruntime() -> Any:
    """Import onnxruntime with its telemetry off.

    Raises:
        ProviderError: no onnxruntime is installed, or two of its packages overwrote one another.
    """
    os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")  # read once, when the library is loaded
    try:
        import onnxruntime
    except ImportError as error:
        if lacks_memory(error):
            raise ProviderError(f"onnxruntime cannot be loaded: {NO_MEMORY}.") from None
        raise ProviderError(
            f"onnxruntime cannot be imported ({error}): 'pip install onnxruntime', or onnxruntime-gpu for CUDA."
        ) from None
    if not hasattr(onnxruntime, "InferenceSession"):
        raise ProviderError(f"onnxruntime is broken here: {_reinstall()}.")
    return onnxruntime


NO_MEMORY = "there is too little memory, free some or raise the limit (ulimit -v)"


def lacks_memory(error: Exception) -> bool:
    """Whether an error of the loader or of onnxruntime comes from a limit on memory or on address space."""
    said = str(error).lower()
    signs = ("failed to map segment", "cannot allocate memory", "bad_alloc", "failed to allocate", "pthread_create")
    return isinstance(error, MemoryError) or any(sign in said for sign in signs)


def _installed() -> list[str]:
    from importlib import metadata  # only where something is wrong: it takes as long to import as a model to load

    packages = ("onnxruntime", "onnxruntime-gpu", "onnxruntime-openvino", "onnxruntime-directml")
    found = []
    for package in packages:
        try:
            metadata.version(package)
        except metadata.PackageNotFoundError:
            continue
        found.append(package)
    return found


def _reinstall(wanted: str = "onnxruntime") -> str:
    first = f"'pip uninstall -y {' '.join(_installed())}' and then " if _installed() else ""
    return f"{first}'pip install {wanted}'"


def _remedy(provider: str) -> str:
    """Say what to do where `provider` is not among those of the installed onnxruntime."""
    package = PROVIDERS[provider][1]
    installed = _installed()
    if package in installed and len(installed) > 1:
        return f"{' and '.join(installed)} are both installed and overwrite one another: {_reinstall(package)}"
    if package in installed:
        return "it is not built for this system, choose another provider"
    if package.startswith("onnxruntime"):
        replaced = ", which replaces " + " and ".join(installed) if installed else ""
        return f"it comes with {package}{replaced}: {_reinstall(package)}"
    return f"it needs {package}"


def _load(
    ort: Any, model: bytes, provider: str, threads: int, name: str, settings: Mapping[str, str]
) -> onnxruntime.InferenceSession:
    if provider not in PROVIDERS:
        raise ProviderError(f"There is no provider called {provider}: choose auto, {', '.join(PROVIDERS)}.")
    full_name, _ = PROVIDERS[provider]
    available = ort.get_available_providers()
    if full_name not in available:
        raise ProviderError(f"The provider {provider} is not in the onnxruntime installed here: {_remedy(provider)}.")
    options = ort.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.log_severity_level = 4  # what goes wrong is raised below, in our own words
    options.add_session_config_entry("session.force_spinning_stop", "1")  # no processor time between calls
    options.add_session_config_entry("session.load_model_format", "ONNX")  # nothing else, whatever the bytes look like
    # A model of bytes alone would take external data from the working directory. Nothing lies below this path.
    options.add_session_config_entry("session.model_external_initializers_file_folder_path", os.devnull)
    options.add_session_config_entry(*RECORD_ASSIGNMENT)  # costs nothing that could be measured
    if provider != "cpu":
        options.add_session_config_entry("session.disable_cpu_ep_fallback", "1")
    if provider == "openvino":  # which has threads of its own, by default as many as there are cores
        settings = {"num_of_threads": str(threads), **settings}
    try:
        wanted = (full_name, dict(settings)) if settings else full_name
        session = ort.InferenceSession(model, options, providers=[wanted], enable_fallback=0)
    except Exception as error:  # onnxruntime raises a dozen types that share no base of their own
        if isinstance(error, MemoryError):
            raise
        if lacks_memory(error):
            raise ProviderError(f"{name} cannot be loaded: {NO_MEMORY}.") from None
        reason = _first_sentence(error)
        if provider == "cpu":
            raise ModelError(f"{name} is not a model that onnxruntime can load ({reason}): export it again.") from None
        raise ProviderError(
            f"The provider {provider} cannot run {name} here ({reason}): install what it needs, choose another "
            "--variant, or use --provider cpu."
        ) from None
    if session.get_providers()[0] != full_name:
        raise ProviderError(
            f"The provider {provider} could not be started here, most often because a driver or one of its libraries "
            "is missing: install them (for CUDA 'pip install onnxruntime-gpu[cuda,cudnn]'), or use --provider cpu."
        )
    return session


def _first_sentence(error: Exception) -> str:
    text = str(error).strip() or type(error).__name__
    return text.splitlines()[0].split(" : ")[-1].rstrip(".")[:200]


def _check_contract(session: onnxruntime.InferenceSession, name: str) -> None:
    inputs = [(given.name, given.type, given.shape[1:]) for given in session.get_inputs()]
    outputs = {given.name: (given.type, given.shape[1:]) for given in session.get_outputs()}
    scores = ("tensor(float)", [len(LABELS)])
    if inputs != [(INPUT_NAME, "tensor(uint8)", [SIDE, SIDE, 3])] or not (
        outputs.get(PROBABILITIES) == outputs.get(LOGITS) == scores
    ):
        raise ModelError(
            f"{name} is another kind of model (its input is {inputs}, its outputs are {outputs}): name one that "
            "'edgecifar export' made."
        )
    if isinstance(session.get_inputs()[0].shape[0], int):
        raise ModelError(f"{name} takes only batches of {session.get_inputs()[0].shape[0]}: export it again.")
