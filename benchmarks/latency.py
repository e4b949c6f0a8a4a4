"""Latency and throughput of a bundle: providers x variants x batch sizes x threads, and a picture's decoding apart.

    python benchmarks/latency.py --bundle RUN/bundle --seconds 4
    python benchmarks/latency.py --provider cuda --provider tensorrt --batch 1 --batch 64 --batch 1024 --threads 1

Needs the runtime alone, and matplotlib for --picture. A provider that is not in the onnxruntime installed here is a
line that says what brings it; `onnxruntime-gpu` and `onnxruntime-openvino` take the place of `onnxruntime`, so that
each needs an environment of its own:

    pip install -r requirements-gpu.txt matplotlib && pip install --no-deps .
    pip install numpy pillow typer matplotlib onnxruntime-openvino && pip install --no-deps .

Plug-in providers (packages called onnxruntime-ep-...) are registered where they are installed, and measured on each
device that they offer. All entries of a batch size take turns in rounds; the first calls of a turn are not counted.

    Classifier   Classifier.probabilities: numpy in, numpy out
    session.run  what it calls, bare, on the very same session; "of session.run" is the first over this one, and below
                 the table the same once more, the two called one after the other
    bound        buffers on the device: images copied there, probabilities back, within the time (GPUs)
    graph        likewise, the calls to the GPU recorded once and replayed (CUDA graph)
    resident     as graph, but nothing is copied: what the net alone takes
"""

from __future__ import annotations

import argparse
import importlib
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

import harness
import numpy as np
from harness import CHECKED, Entry, Function, random_images
from PIL import Image

from edgecifar.runtime import Bundle, Classifier, EdgecifarError, pictures
from edgecifar.runtime.benchmark import WARM_UP
from edgecifar.runtime.bundle import Variant
from edgecifar.runtime.contract import CIFAR10, INPUT_NAME, LABELS, PROBABILITIES, SIDE
from edgecifar.runtime.errors import VariantError
from edgecifar.runtime.machine import usable_cpus
from edgecifar.runtime.session import PROVIDERS, RECORD_ASSIGNMENT, Session, assignment, import_onnxruntime

BARE = "session.run"
GRAPH = {"cuda": {"enable_cuda_graph": "1"}, "tensorrt": {"trt_cuda_graph_enable": "1"}}
"""Of the providers whose buffers can be on the GPU: the settings that record and replay a CUDA graph."""
ALWAYS = ("cpu", "cuda", "tensorrt", "openvino")
"""Providers that are tried unless told otherwise, beside those that the onnxruntime here has."""
TF32 = 0.01
"""Largest difference of a probability that rounding the factors of products to 10 bits may make."""
PLUG_IN = "onnxruntime-ep-"
PHOTOS = {(32, 32): "png", (640, 480): "jpeg", (4000, 3000): "jpeg"}
"""Pictures that are drawn to be read: width and height, and the ending of the file's name."""


class Bound:
    """A session's input and output in buffers on a device; one call at a time.

    Args:
        session: of onnxruntime.
        images: uint8 [N, 32, 32, 3], what is classified.
        device: onnxruntime's name of the kind of device, such as "cuda".
    """

    def __init__(self, session: Any, images: np.ndarray, device: str) -> None:
        ort = import_onnxruntime()
        self._session, self._images = session, images
        self._given = ort.OrtValue.ortvalue_from_numpy(images, device, 0)
        self._result = ort.OrtValue.ortvalue_from_shape_and_type((len(images), len(LABELS)), np.float32, device, 0)
        self._binding = session.io_binding()
        self._binding.bind_ortvalue_input(INPUT_NAME, self._given)
        self._binding.bind_ortvalue_output(PROBABILITIES, self._result)

    def resident(self) -> None:
        """Classify what is on the device, and leave the answer there."""
        self._session.run_with_iobinding(self._binding)
        self._binding.synchronize_outputs()

    def probabilities(self, images: np.ndarray | None = None) -> np.ndarray:
        """Copy the images, or others of their shape, to the device; return their probabilities, float32 [N, 10]."""
        self._given.update_inplace(self._images if images is None else images)
        self._session.run_with_iobinding(self._binding)
        return self._result.numpy()


def price(
    ours: Callable[[], object],
    bare: Callable[[], object],
    seconds: float,
    clock: Callable[[], float] = time.perf_counter,
    blocks: int = 20,
) -> dict[str, float]:
    """Return how many times as long `ours` takes as `bare`, called one after the other, each first every other time.

    Turns of their own are too far apart for what takes microseconds; two calls that follow one another are not.

    Returns:
        The median of the ratios of `blocks` blocks, by the medians in a block, their quartiles, and the pairs of calls.
    """
    for _ in range(WARM_UP):
        ours(), bare()
    ratios, pairs = [], 0
    for _ in range(blocks):
        times: tuple[list[float], list[float]] = ([], [])
        end = clock() + seconds / blocks
        while clock() < end or not times[0]:
            for which in (0, 1) if pairs % 2 else (1, 0):
                begin = clock()
                (ours, bare)[which]()
                times[which].append(clock() - begin)
            pairs += 1
        ratios.append(np.median(times[0]) / np.median(times[1]))
    low, median, high = np.percentile(ratios, (25, 50, 75))
    return {"median": float(median), "low": float(low), "high": float(high), "pairs": pairs}


class Measurement:
    """Entries of one bundle, and what their answers must be."""

    def __init__(self, bundle: Bundle, batches: Sequence[int]) -> None:
        self.bundle = bundle
        self.images = {batch: random_images(batch) for batch in batches}
        self._expected: dict[tuple[str, int], np.ndarray] = {}

    def check(self, entry: Entry, variant: Variant, classify: Function) -> None:
        """Note how far the answers of `classify`, which `entry` times, are from the CPU's; not timed where too far."""
        batch = entry.labels["batch"]
        images = random_images(max(CHECKED // batch, 1) * batch)
        key = variant.name, batch
        if key not in self._expected:
            self._expected[key] = self.bundle.load(variant, "cpu", 1).probabilities(images)
        expected = self._expected[key]
        parts = (classify(images[at : at + batch]) for at in range(0, len(images), batch))
        answer = np.concatenate([part.copy() for part in parts])  # one in a bound buffer is overwritten by the next
        if not np.isfinite(answer).all():
            entry.call, entry.problem = None, "its answers are not finite."
            return
        difference = float(np.abs(answer - expected).max())
        agree = int((answer.argmax(1) == expected.argmax(1)).sum())
        entry.details |= {"largest_difference": difference, "agree": agree, "checked": len(images)}
        # TF32's products, which CUDA's providers take for fp32 as they come, keep 10 bits.
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
            ProviderError: it is not here, or does not run every node; and whatever onnxruntime does where it fails.
        """
        classifier = Classifier(self.bundle, variant.name, provider, threads)
        details = harness.ran_on(classifier._session)
        run = classifier._session._session.run
        for batch, images in self.images.items():
            labels = {"provider": provider, "variant": variant.name, "batch": batch, "threads": threads}
            bare = Entry({**labels, "call": BARE}, lambda i=images: run([PROBABILITIES], {INPUT_NAME: i})[0])
            ours = Entry({**labels, "call": "Classifier"}, lambda i=images: classifier.probabilities(i))
            ours.bases[BARE] = bare
            checked: list[tuple[Entry, Function]] = [
                (ours, classifier.probabilities),
                (bare, lambda given: run([PROBABILITIES], {INPUT_NAME: given})[0]),
            ]
            resident = None
            if provider in GRAPH:
                name = str(self.bundle.folder / variant.file)
                bound = Bound(classifier._session._session, images, "cuda")
                graph = Session(self.bundle.read(variant), provider, threads, name, GRAPH[provider])
                harness.ran_on(graph)
                replayed = Bound(graph._session, images, "cuda")
                for call, made in (("bound", bound), ("graph", replayed)):
                    entry = Entry({**labels, "call": call}, made.probabilities, bases={BARE: bare})
                    checked.append((entry, made.probabilities))
                resident = Entry({**labels, "call": "resident"}, replayed.resident, bases={BARE: bare})
            for entry, classify in checked:
                entry.images, entry.details = batch, dict(details)
                self.check(entry, variant, classify)
                yield entry
            if resident and entry.call:  # the last checked is its own graph, with the copies
                resident.images, resident.details = batch, dict(details)
                yield resident

    def of_device(self, name: str, device: Any, variant: Variant) -> Iterator[Entry]:
        """Yield the entries of one device of a plug-in provider, which decides on its threads itself.

        Raises:
            ProviderError: it does not run every node; and whatever onnxruntime does where it fails.
        """
        ort = import_onnxruntime()
        options = ort.SessionOptions()
        options.log_severity_level = 4
        options.add_session_config_entry(*RECORD_ASSIGNMENT)
        options.add_provider_for_devices([device], {})
        session = ort.InferenceSession(self.bundle.read(variant), options)
        details = harness.share(name, device.ep_name, assignment(session))
        for batch, images in self.images.items():
            labels = {"provider": name, "variant": variant.name, "batch": batch, "threads": "", "call": BARE}

            def classify(given: np.ndarray) -> np.ndarray:
                return session.run([PROBABILITIES], {INPUT_NAME: given})[0]

            entry = Entry(labels, lambda i=images: classify(i), batch, details=dict(details))
            self.check(entry, variant, classify)
            yield entry


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


def entries_of_photos(bundle: Bundle, threads: int, folder: Path) -> list[Entry]:
    """Draw `PHOTOS` into `folder`; return the entries of decoding, scaling, classifying, and of all in one."""
    classifier = Classifier(bundle, provider="cpu", threads=threads)
    details = harness.ran_on(classifier._session)
    labels = {"provider": "cpu", "variant": classifier.variant.name, "threads": threads}
    small = np.zeros((1, SIDE, SIDE, 3), np.uint8)
    entries = [Entry({**labels, "call": "infer"}, lambda: classifier.probabilities(small), details=dict(details))]
    for size, kind in PHOTOS.items():
        path = folder / f"{size[0]}x{size[1]}.{kind}"
        noise = np.random.default_rng(0).integers(0, 256, (24, 32, 3), np.uint8)
        Image.fromarray(noise).resize(size, Image.Resampling.BICUBIC).save(path, quality=90)
        decoded = decode(path)
        for call, function in {
            "decode": lambda p=path: decode(p),
            "resize": lambda image=decoded: pictures.make_square(image, CIFAR10),
            "predict": lambda p=path: classifier.predict(p),
        }.items():
            entries.append(Entry({**labels, "call": f"{call} {path.name}"}, function, details=dict(details)))
    return entries


def decode(path: Path) -> Image.Image:
    """Decode a picture as `load_picture` does, big JPEGs at a fraction of their size, and no more than that."""
    with Image.open(path) as image:
        image.draft(None, (4 * SIDE, 4 * SIDE))
        return image.convert("RGB")


def main() -> None:
    """Parse, measure, report."""
    parser = argparse.ArgumentParser(description=str(__doc__).splitlines()[0])
    parser.add_argument("--bundle", type=Path, help="by default the one installed with the package")
    parser.add_argument("--variant", action="append", help="may be repeated; by default all that are ONNX")
    parser.add_argument("--provider", action="append", help="may be repeated; by default all, plug-ins too")
    parser.add_argument(
        "--batch", type=harness.positive(int), action="append", help="may be repeated; by default 1 and 64"
    )
    parser.add_argument(
        "--threads", type=harness.positive(int), action="append", help="may be repeated; by default 1 and all"
    )
    parser.add_argument("--seconds", type=harness.positive(float), default=4.0, help="of each entry")
    parser.add_argument("--rounds", type=harness.positive(int), default=10, help="turns of each entry")
    parser.add_argument("--no-photos", action="store_true", help="leave out decoding and scaling")
    harness.add_picture(parser, __file__)
    given = parser.parse_args()

    bundle = Bundle.open(given.bundle)
    named = [bundle.variant(name) for name in given.variant] if given.variant else bundle.manifest.variants
    variants = [variant for variant in named if variant.format == "onnx"]
    if not variants:
        raise VariantError(f"{bundle.folder} has no ONNX variant to measure: export one with --format onnx.")
    batches, threads = sorted(set(given.batch or (1, 64))), sorted(set(given.threads or (1, usable_cpus())))
    here = import_onnxruntime().get_available_providers()
    usual = [name for name, (full_name, _) in PROVIDERS.items() if name in ALWAYS or full_name in here]

    measurement = Measurement(bundle, batches)
    harness.say("Loading …")
    entries = entries_of(measurement, variants, given.provider or usual, threads)
    if not given.provider:
        entries += entries_of_plug_ins(measurement, variants)
    for batch in batches:
        group = [entry for entry in entries if entry.labels.get("batch") == batch]
        harness.say(f"Batch {batch}: {len(group)} entries in {given.rounds} rounds …")
        harness.alternate(group, given.seconds, given.rounds)
    remarks = []
    for ours in entries:
        if ours.labels.get("call") == "Classifier" and ours.call and (bare := ours.bases[BARE].call):
            found = ours.details["price"] = price(ours.call, bare, given.seconds)
            labels = ", ".join(f"{name} {ours.labels[name]}" for name in ("provider", "variant", "batch", "threads"))
            remarks.append(
                f"Classifier over {BARE}, call by call, {labels}: {found['median']:.3f} ({found['low']:.3f} to "
                f"{found['high']:.3f}), {found['pairs']:,} pairs"
            )
    if not given.no_photos:
        with tempfile.TemporaryDirectory() as folder:
            photos = entries_of_photos(bundle, max(threads), Path(folder))
            harness.say(f"Pictures: {len(photos)} entries in {given.rounds} rounds …")
            harness.alternate(photos, given.seconds, given.rounds)
        entries += photos
    settings = {"bundle": bundle.folder.name, "seconds": given.seconds, "rounds": given.rounds}
    harness.report("latency", entries, settings, given.picture, remarks)


if __name__ == "__main__":
    harness.main(main)
