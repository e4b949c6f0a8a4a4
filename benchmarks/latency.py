"""Latency and throughput of a bundle: providers x variants x batch sizes x threads, and a picture's decoding apart.

    python benchmarks/latency.py --bundle RUN/bundle --seconds 4
    python benchmarks/latency.py --provider cuda --provider tensorrt --batch 1 --batch 64 --batch 1024 --threads 1

Needs the runtime alone. A provider that is not in the onnxruntime installed here is a
line that says what brings it; `onnxruntime-gpu` and `onnxruntime-openvino` take the place of `onnxruntime`, so that
each needs an environment of its own:

    pip install -r requirements-gpu.txt && pip install --no-deps .
    pip install numpy pillow typer onnxruntime-openvino && pip install --no-deps .

Plug-in providers (packages called onnxruntime-ep-...) are registered where they are installed, and measured on each
device that they offer. All entries of a batch size take turns in rounds; the first calls of a turn are not counted.

    Classifier   Classifier.probabilities: numpy in, numpy out
    session.run  what it calls, bare, on the very same session (on CUDA on one without graphs); "of session.run" is the
                 first over this one, and below the table the same once more, the two called one after the other
    bound        buffers on the device: images copied there, probabilities back, within the time (GPUs)
    graph        likewise, the calls to the GPU recorded once and replayed (CUDA graph)
    resident     as graph, but nothing is copied: what the net alone takes
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import harness
import numpy as np
import report
from harness import Entry
from onnx_entries import BARE, Measurement, entries_of, entries_of_plug_ins
from PIL import Image

from edgecifar.runtime import Bundle, Classifier
from edgecifar.runtime.benchmark import WARM_UP
from edgecifar.runtime.errors import VariantError
from edgecifar.runtime.machine import usable_cpus
from edgecifar.runtime.pictures import make_square
from edgecifar.runtime.session import PROVIDERS, import_onnxruntime

ALWAYS = ("cpu", "cuda", "tensorrt", "openvino")
"""Providers that are tried unless told otherwise, beside those that the onnxruntime here has."""

PHOTOS = {"thumbnail": "png", (640, 480): "jpeg", (4000, 3000): "jpeg"}
"""Pictures that are drawn to be read: width and height, or the size of the model's input; and the file's ending."""


def overhead(
    ours: Callable[[], object],
    bare: Callable[[], object],
    seconds: float,
    clock: Callable[[], float] = time.perf_counter,
    blocks: int = 20,
) -> dict[str, float]:
    """Return the time of `ours` relative to `bare`, called one after the other; who begins changes every time.

    Differences of microseconds drown in what happens between two turns, but not between two calls.

    Returns:
        Median and quartiles of the ratios of `blocks` blocks, each by the block's medians; the number of pairs.
    """
    for _ in range(WARM_UP):
        ours()
        bare()
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
    return {**harness.quartiles(ratios), "pairs": pairs}


def entries_of_photos(bundle: Bundle, threads: int, folder: Path) -> list[Entry]:
    """Draw `PHOTOS` into `folder`; return the entries of decoding, scaling, classifying, and of all in one."""
    classifier, contract = Classifier(bundle, provider="cpu", threads=threads), bundle.contract
    details = harness.ran_on(classifier.session)
    labels = {"provider": "cpu", "variant": classifier.variant.name, "threads": threads}
    small = np.zeros((1, *contract.picture_shape), np.uint8)
    entries = [Entry({**labels, "call": "infer"}, lambda: classifier.probabilities(small), details=dict(details))]
    for size, kind in PHOTOS.items():
        size = (contract.size, contract.size) if isinstance(size, str) else size
        path = folder / f"{size[0]}x{size[1]}.{kind}"
        noise = np.random.default_rng(0).integers(0, 256, (24, 32, 3), np.uint8)
        Image.fromarray(noise).resize(size, Image.Resampling.BICUBIC).save(path, quality=90)
        decoded = decode(path, contract.size)
        for call, function in {
            "decode": lambda p=path: decode(p, contract.size),
            "resize": lambda image=decoded: make_square(image, contract),
            "predict": lambda p=path: classifier.predict([p]),
        }.items():
            entries.append(Entry({**labels, "call": f"{call} {path.name}"}, function, details=dict(details)))
    return entries


def decode(path: Path, size: int) -> Image.Image:
    """Decode a picture as `load_picture` does, big JPEGs at a fraction of their size, and no more than that."""
    with Image.open(path) as image:
        image.draft(None, (4 * size, 4 * size))
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
    report.add_save(parser, "latency")
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
            found = ours.details["overhead"] = overhead(ours.call, bare, given.seconds)
            labels = ", ".join(f"{name} {ours.labels[name]}" for name in ("provider", "variant", "batch", "threads"))
            remarks.append(
                f"Classifier over {BARE}, call by call, {labels}: {report.shown(found)}, {found['pairs']:,} pairs"
            )
    if not given.no_photos:
        with tempfile.TemporaryDirectory() as folder:
            photos = entries_of_photos(bundle, max(threads), Path(folder))
            harness.say(f"Pictures: {len(photos)} entries in {given.rounds} rounds …")
            harness.alternate(photos, given.seconds, given.rounds)
        entries += photos
    settings = {"bundle": bundle.folder.name, "seconds": given.seconds, "rounds": given.rounds}
    settings |= {"models": report.digests(variants)}
    found = report.document("latency", settings, [entry.row() for entry in entries])
    report.finish(found, "\n".join([report.entry_table(entries), *([""] if remarks else []), *remarks]), given.save)


if __name__ == "__main__":
    harness.main(main)
