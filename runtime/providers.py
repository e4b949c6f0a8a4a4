"""onnxruntime's execution providers: which there are, which are installed, and a model started on one of them."""

from __future__ import annotations

import contextlib
import io
import os
import threading
import warnings
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeVar

from .errors import ModelError, ProviderError
from .machine import ONNXRUNTIMES

if TYPE_CHECKING:
    from collections.abc import Callable

    import onnxruntime

_Loaded = TypeVar("_Loaded")

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


ON_CUDA = ("cuda", "tensorrt")
"""Providers that need CUDA's libraries."""

GRAPH_SETTING = "enable_cuda_graph"
"""The setting of the CUDA provider by which a session may record its work on the GPU and replay it."""

gpu_lock = threading.RLock()
"""Held by whatever onnxruntime does on CUDA for this process: one thing at a time, or a recording is disturbed."""

PROBE = (
    b'\x08\x08:3\n\x0c\n\x01x\x12\x01y"\x04Relu\x12\x01gZ\x0f\n\x01x\x12\n\n\x08\x08\x01\x12\x04\n\x02\x08\x01'
    b"b\x0f\n\x01y\x12\n\n\x08\x08\x01\x12\x04\n\x02\x08\x01B\x04\n\x00\x10\x0e"
)
"""An ONNX model of a single Relu, which every provider runs where it starts at all."""


def first_that_runs(provider: str, load: Callable[[str], _Loaded]) -> _Loaded:
    """Return what `load` makes for `provider`; for "auto", for CUDA where that runs, else for the CPU.

    Raises:
        ProviderError: there is no onnxruntime; or as `load` does.
    """
    if provider != AUTO:
        return load(provider)
    ort = import_onnxruntime()
    preload(ort)
    if PROVIDERS["cuda"][0] in ort.get_available_providers():
        with contextlib.suppress(ProviderError):
            return load("cuda")
    return load("cpu")


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
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of CUDA's libraries, which `preload` looks for
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
"""The part of a sentence that names the reason and the remedy."""


def lacks_memory(error: Exception) -> bool:
    """Whether an error of the loader or of onnxruntime comes from a limit on memory or on address space."""
    said = str(error).lower()
    signs = ("failed to map segment", "cannot allocate memory", "bad_alloc", "failed to allocate", "pthread_create")
    return isinstance(error, MemoryError) or any(sign in said for sign in signs)


def _installed() -> list[str]:
    from importlib import metadata  # only where something is wrong: it takes as long to import as a model to load

    found: list[str] = []
    for package in ONNXRUNTIMES:
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
        wanted = f'"{package}[cuda,cudnn]"' if package == "onnxruntime-gpu" else package  # with CUDA's own libraries
        return f"it comes with {package}{replaced}: {_reinstall(wanted)}"
    return f"it needs {package}"


@dataclass(frozen=True)
class Request:
    """What is to be loaded, whatever provider runs it.

    Attributes:
        model: the bytes of an ONNX file.
        threads: of one call.
        name: what messages call the model.
        settings: of the provider, by onnxruntime's names.
    """

    model: bytes
    threads: int
    name: str
    settings: Mapping[str, str]


def preload(ort: Any) -> str:
    """Load CUDA's libraries from the packages called nvidia-…, and return what is missing, "" if nothing is.

    onnxruntime-gpu has no path to them: without this its provider starts only where torch was imported before it. A
    build for processors returns at once.
    """
    if not hasattr(ort, "preload_dlls"):  # before onnxruntime 1.21
        return ""
    said = io.StringIO()
    try:
        with contextlib.redirect_stdout(said), warnings.catch_warnings():  # it prints what it does not find
            warnings.simplefilter("ignore")
            ort.preload_dlls()
    except Exception as error:  # what it cannot load may still be found by the loader
        return first_sentence(error)
    missing = [line.split(": ")[0].split()[-1] for line in said.getvalue().splitlines() if "Failed to load" in line]
    return ", ".join(dict.fromkeys(map(os.path.basename, missing)))


def has_graphs(provider: str, settings: Mapping[str, str]) -> bool:
    """Return whether a session of this provider records its work on the GPU, as CUDA's does unless told otherwise."""
    return provider == "cuda" and settings.get(GRAPH_SETTING, "1") == "1"


def start(asked: Request, provider: str) -> onnxruntime.InferenceSession:
    """Load a model on `provider`, every node of it.

    Raises:
        ProviderError: the provider is unknown, not installed, or cannot run every node.
        ModelError: the CPU's provider cannot load the model.
    """
    if provider not in PROVIDERS:
        raise ProviderError(f"There is no provider called {provider}: choose auto, {', '.join(PROVIDERS)}.")
    ort, name, settings = import_onnxruntime(), asked.name, dict(asked.settings)
    full_name, _ = PROVIDERS[provider]
    missing = preload(ort) if provider in ON_CUDA else ""
    if full_name not in ort.get_available_providers():
        raise ProviderError(f"The provider {provider} is not in the onnxruntime installed here: {_remedy(provider)}.")
    options = ort.SessionOptions()
    options.intra_op_num_threads = asked.threads
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
        settings = {"num_of_threads": str(asked.threads), **settings}
    if has_graphs(provider, settings):
        settings = {GRAPH_SETTING: "1", **settings}
    try:
        wanted = (full_name, settings) if settings else full_name
        with gpu_lock if provider in ON_CUDA else contextlib.nullcontext():
            session = ort.InferenceSession(asked.model, options, providers=[wanted], enable_fallback=0)
    except Exception as error:  # onnxruntime raises a dozen types that share no base of their own
        if lacks_memory(error):
            raise ModelError(f"{name} cannot be loaded: {NO_MEMORY}.") from None
        reason = first_sentence(error)
        if provider == "cpu":
            raise ModelError(f"{name} is not a model that onnxruntime can load ({reason}): export it again.") from None
        why = _why_not(ort, full_name) if provider in ON_CUDA else None
        if why is not None:
            raise _not_started(provider, why, missing) from None
        needs = "install what it needs, "
        if provider == "cuda":
            needs = "it runs fp32 and fp16 variants, which 'edgecifar export --variant fp16' makes: "
        raise ProviderError(
            f"The provider {provider} cannot run {name} here ({reason}): {needs}choose another --variant, or use "
            "--provider cpu."
        ) from None
    if session.get_providers()[0] != full_name:
        raise _not_started(provider, "", missing)
    return session


def _why_not(ort: Any, full_name: str) -> str | None:
    """Return why a provider does not start with any model, "" where it does not say, None where it does start."""
    options = ort.SessionOptions()
    options.log_severity_level = 4
    try:
        with gpu_lock:
            session = ort.InferenceSession(PROBE, options, providers=[full_name], enable_fallback=0)
    except Exception as error:  # as in `start`
        return first_sentence(error)
    return None if session.get_providers()[0] == full_name else ""


def _not_started(provider: str, why: str, missing: str) -> ProviderError:
    found = f"its libraries {missing} are not found" if missing else why
    return ProviderError(
        f"The provider {provider} could not be started here{f' ({found})' if found else ''}, most often because a "
        "driver or one of its libraries is missing: install them (for CUDA 'pip install onnxruntime-gpu[cuda,cudnn]'), "
        "or use --provider cpu."
    )


def first_sentence(error: Exception) -> str:
    """Return the first line of what a library says of a failure, without onnxruntime's codes."""
    text = str(error).strip() or type(error).__name__
    return text.splitlines()[0].split(" : ")[-1].rstrip(".")[:200]
