"""The calls of a bundle on every provider that latency.py times: bare, by `Classifier`, and in a device's memory.

Plug-in providers (packages called onnxruntime-ep-…) are registered where they are installed.
"""

from __future__ import annotations

import importlib
from collections.abc import Iterator, Sequence
from importlib import metadata
from typing import Any

import harness
import numpy as np
from harness import Entry, Function, random_images

from edgecifar.runtime import Bundle, Classifier, EdgecifarError, bound
from edgecifar.runtime.contract import Contract
from edgecifar.runtime.manifest import Variant
from edgecifar.runtime.session import PROVIDERS, RECORD_ASSIGNMENT, Session, assignment, import_onnxruntime

BARE = "session.run"
"""The call that `Classifier` is held against, on the very same session."""

GRAPH = {"cuda": {"enable_cuda_graph": "1"}, "tensorrt": {"trt_cuda_graph_enable": "1"}}
"""Settings that record and replay a CUDA graph, of the providers whose buffers can be on the GPU."""

TF32 = 0.01
"""Largest difference of a probability that TF32 may make, which rounds the factors of products to 10 bits."""

MEMORY: dict[str, str] = {}
"""onnxruntime's name of the memory of a provider in `GRAPH`, where that is not "cuda"."""

NO_GRAPH: dict[str, dict[str, str]] = {"cuda": {"enable_cuda_graph": "0"}}
"""Settings of sessions that are called bare: the CUDA provider's would record whatever they are given."""

PLUG_IN = "onnxruntime-ep-"
"""How the names of packages begin that bring plug-in providers."""


class Bound(bound.Bound):
    """A session's input and outputs in buffers on a device; one call at a time.

    Args:
        session: whose model is called.
        images: uint8 [N, size, size, 3], what is classified.
        device: onnxruntime's name of the kind of device, such as "cuda".
    """

    def __init__(self, session: Session, images: np.ndarray, device: str) -> None:
        self._images, self._wanted = images, [session.contract.probabilities_name]
        # The number counts where the session has graphs enabled: apart from those that the session records itself.
        super().__init__(session.inference_session, session.contract, len(images), device, 1_000_000 + len(images))

    def probabilities(self, images: np.ndarray | None = None) -> np.ndarray:
        """Copy the images, or others of their shape, to the device; return their probabilities, float32 [N, C]."""
        return self.outputs(self._images if images is None else images, self._wanted)[0]


class Measurement:
    """Makes the entries of one bundle, and holds their answers against the CPU's.

    Args:
        bundle: whose variants are measured.
        batches: the batch sizes.
    """

    def __init__(self, bundle: Bundle, batches: Sequence[int]) -> None:
        self.bundle, self.contract = bundle, bundle.contract
        self.images = {batch: random_images(batch, self.contract) for batch in batches}
        self._expected: dict[tuple[str, int], np.ndarray] = {}

    def check(self, entry: Entry, variant: Variant, classify: Function) -> None:
        """Note how far the answers of `classify`, which `entry` times, are from the CPU's; drop its call if too far."""
        batch = entry.labels["batch"]
        images = harness.images_to_check(batch, self.contract)
        key = variant.name, batch
        if key not in self._expected:
            self._expected[key] = self.bundle.load(variant, "cpu").probabilities(images)
        expected, answer = self._expected[key], harness.in_batches(classify, images, batch)
        if not np.isfinite(answer).all():
            entry.call, entry.problem = None, "its answers are not finite."
            return
        difference = float(np.abs(answer - expected).max())
        agree = int((answer.argmax(1) == expected.argmax(1)).sum())
        entry.details |= {"largest_difference": difference, "agree": agree, "checked": len(images)}
        # CUDA's providers use TF32 for fp32 by default, whose products keep 10 bits.
        allowed = max(variant.golden_tolerance, TF32 if entry.labels["provider"] in GRAPH else 0.0)
        if not difference <= allowed:
            entry.call = None
            entry.problem = (
                f"its probabilities differ from the CPU's by {difference:.1e}, and {agree} of {len(images)} arg-maxes "
                "agree: it is not timed."
            )

    def of_provider(self, provider: str, variant: Variant, threads: int) -> Iterator[Entry]:
        """Yield the entries of one provider.

        Raises:
            ProviderError: it is not here, or does not run every node; and whatever onnxruntime raises if it fails.
        """
        classifier = Classifier(self.bundle, variant.name, provider, threads)
        details = harness.ran_on(classifier.session)
        plain = classifier.session
        if provider in NO_GRAPH:
            plain = self._session(variant, provider, threads, NO_GRAPH[provider])
        bare = _bare(plain.inference_session, self.contract)
        for batch, images in self.images.items():
            labels = {"provider": provider, "variant": variant.name, "batch": batch, "threads": threads}
            base = Entry({**labels, "call": BARE}, lambda i=images: bare(i))
            ours = Entry({**labels, "call": "Classifier"}, lambda i=images: classifier.probabilities(i))
            ours.bases[BARE] = base
            checked: list[tuple[Entry, Function]] = [(ours, classifier.probabilities), (base, bare)]
            resident = None
            if provider in GRAPH:
                graph = self._session(variant, provider, threads, GRAPH[provider])
                memory = MEMORY.get(provider, "cuda")
                buffers, replayed = Bound(plain, images, memory), Bound(graph, images, memory)
                for call, made in (("bound", buffers), ("graph", replayed)):
                    entry = Entry({**labels, "call": call}, made.probabilities, bases={BARE: base})
                    checked.append((entry, made.probabilities))
                resident = Entry({**labels, "call": "resident"}, replayed.resident, bases={BARE: base})
            for entry, classify in checked:
                entry.images, entry.details = batch, dict(details)
                self.check(entry, variant, classify)
                yield entry
            if resident and entry.call:  # the last checked is its own graph, with the copies
                resident.images, resident.details = batch, dict(details)
                yield resident

    def _session(self, variant: Variant, provider: str, threads: int, settings: dict[str, str]) -> Session:
        """Return a session that runs every node of a variant on the provider, with these settings."""
        name, model = str(self.bundle.folder / variant.file), self.bundle.read(variant)
        session = Session(model, provider=provider, threads=threads, name=name, settings=settings)
        harness.ran_on(session)
        return session

    def of_device(self, name: str, device: Any, variant: Variant) -> Iterator[Entry]:
        """Yield the entries of one device of a plug-in provider, which decides on its threads itself.

        Raises:
            ProviderError: it does not run every node; and whatever onnxruntime raises if it fails.
        """
        ort = import_onnxruntime()
        options = ort.SessionOptions()
        options.log_severity_level = 4
        options.add_session_config_entry(*RECORD_ASSIGNMENT)
        options.add_provider_for_devices([device], {})
        session = ort.InferenceSession(self.bundle.read(variant), options)
        details = harness.share(name, device.ep_name, assignment(session))
        bare = _bare(session, self.contract)
        for batch, images in self.images.items():
            labels = {"provider": name, "variant": variant.name, "batch": batch, "threads": "", "call": BARE}
            entry = Entry(labels, lambda i=images: bare(i), batch, details=dict(details))
            self.check(entry, variant, bare)
            yield entry


def _bare(session: Any, contract: Contract) -> Function:
    """Return the call of an onnxruntime session, with nothing around it."""
    outputs, name = [contract.probabilities_name], contract.input_name
    return lambda images: session.run(outputs, {name: images})[0]


def plug_ins() -> Iterator[tuple[str, Any, str]]:
    """Register every plug-in provider that is installed; yield (name, device or None, the problem or "")."""
    ort = import_onnxruntime()
    packages = sorted(
        {name for found in metadata.distributions() if (name := str(found.metadata["Name"])).startswith(PLUG_IN)}
    )
    if not packages:
        yield "plug-in", None, f"none is installed: 'pip install {PLUG_IN}openvino', {PLUG_IN}webgpu or another."
    for package in packages:
        try:
            module = importlib.import_module(package.replace("-", "_"))
            ort.register_execution_provider_library(package, module.get_library_path())
            names = module.get_ep_names()
        except Exception as error:  # of the package, or of the library that it brings
            reason = (str(error) or type(error).__name__).splitlines()[0][:200]
            yield package, None, f"it cannot be registered ({reason}): install it again."
            continue
        devices = [device for device in ort.get_ep_devices() if device.ep_name in names]
        if not devices:
            yield package, None, "it is registered and offers no device here: it needs hardware that it supports."
        for device in devices:
            yield f"{package} {device.device.type.name}", device, ""


def entries_of(
    measurement: Measurement, variants: Sequence[Variant], providers: Sequence[str], threads: Sequence[int]
) -> list[Entry]:
    """Return the entries of all combinations; what is not there is an entry with its problem."""
    entries: list[Entry] = []
    ort = import_onnxruntime()
    for provider in providers:
        if provider in PROVIDERS and PROVIDERS[provider][0] not in ort.get_available_providers():
            try:
                measurement.bundle.load(variants[0], provider)
            except EdgecifarError as error:
                entries.append(Entry({"provider": provider}, problem=str(error)))
            continue
        for variant in variants:
            for count in threads:
                try:
                    for entry in measurement.of_provider(provider, variant, count):
                        entries.append(entry)  # one by one: those before a failure are kept
                except Exception as error:  # onnxruntime raises a dozen types that share no base of their own
                    labels = {"provider": provider, "variant": variant.name, "threads": count}
                    entries.append(Entry(labels, problem=harness.problem(error)))
    return entries


def entries_of_plug_ins(measurement: Measurement, variants: Sequence[Variant]) -> list[Entry]:
    """Return the entries of the plug-in providers."""
    entries: list[Entry] = []
    for name, device, problem in plug_ins():
        if device is None:
            entries.append(Entry({"provider": name}, problem=problem))
            continue
        for variant in variants:
            try:
                for entry in measurement.of_device(name, device, variant):
                    entries.append(entry)
            except Exception as error:  # as above
                entries.append(Entry({"provider": name, "variant": variant.name}, problem=harness.problem(error)))
    return entries
