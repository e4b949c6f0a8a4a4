"""The same net in other engines, on the same images with as many threads, in turns: ratios, not only times.

    python benchmarks/peers.py RUN --bundle RUN/bundle --threads 2 --seconds 6
    python benchmarks/peers.py RUN --bundle RUN/bundle --device cuda --batch 1 --batch 64 --batch 1024

RUN is the folder of a finished training run, the bundle what was exported of it. Measured where they are installed,
else a line that says what to install; the last three are not among the project's own dependencies:

    torch          eager, TorchScript (frozen; and optimised for inference), torch.compile (frozen weights; needs a C++
                   compiler): the deployed graph, batch norm and normalisation folded in as in the exports
    onnxruntime    InferenceSession on model.onnx with its default options, but for the thread count
    edgecifar      Classifier.probabilities on each ONNX variant of the bundle
    OpenVINO       model.onnx, its batch size fixed: fp32; bf16 where the processor has it; int8 by nncf's
                   post-training quantization of the full net: 'pip install openvino nncf'
    ncnn           converted by pnnx, one image after another, as it knows no batches: 'pip install ncnn pnnx'

nncf and pnnx may need other versions than the project does: then install them into an environment of their own.

First the answers: every engine classifies random images. An fp32 engine must give the arg-max that the run's net gives
in eager torch on all of them, or it is not timed; for a lossy one the table shows the agreement. Every engine takes
uint8 images in numpy and gives probabilities in numpy, so that none is spared a conversion.

With --device cuda the engines are those that run on a GPU, each told the batch size beforehand:

    torch          eager, TorchScript (frozen), torch.compile (with CUDA graphs; --mode says how): channels last,
                   cuDNN's algorithms searched; in fp32, and in half precision up to the last layer
    onnxruntime    InferenceSession on model.onnx with CUDAExecutionProvider's default options
    edgecifar      the bundle's fp32 and fp16 variants

and "call" says what is timed, to the end of the work on the GPU:

    numpy, session.run, Classifier   pictures copied to the GPU, probabilities copied back
    bound, graph, resident           as in latency.py; of torch.compile, "resident" is its graph without the copies

fp32 is called tf32 there: its products are TF32's where the GPU has them, which is what onnxruntime does as it comes
and what torch is told to do. It is lossy, so the agreement is told. "of peak" is the share of the GPU's peak: images/s
times the operations of an image in the deployed net (two a multiply-add; convolutions and linear layers), over those
that a product of two matrices of 8,192 x 8,192 does in a second, in the same run and precision. Compiling, searching
and recording are done before, and how long that took is said below the table.
"""

from __future__ import annotations

import argparse
import importlib.util
import tempfile
from collections.abc import Iterator, Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

import harness
import numpy as np
import report
import torch
from engines import COMPILED, OURS, RESIDENT, Engines, Peer
from engines_cpu import CpuEngines
from engines_cuda import MODES, CudaEngines
from harness import PLAIN, Entry

from edgecifar.runtime import Bundle, EdgecifarError
from edgecifar.runtime.machine import usable_cpus
from edgecifar.train import data
from edgecifar.train.devices import choose_device
from edgecifar.train.run import Run

LEAST_AGREEMENT = 0.5
"""Share of the arg-maxes that a lossy engine of the same net must have in common with it, or it is not timed. It is
low because the images are random and a net is sure of few of them: a good int8 form agrees on about 80 %."""

CALIBRATION = 300
"""Images that nncf calibrates with; its own default."""


def entry(peer: Peer, batch: int, engines: Engines) -> Entry:
    """Return the entry of `peer` at a batch size; if its answers are wrong, or it is not here, it has no call."""
    labels: dict[str, Any] = {"engine": peer.engine, "precision": peer.precision}
    labels |= {"call": peer.call} if peer.call else {}
    labels |= {"batch": batch, "threads": engines.threads}
    missing = [package for package in peer.packages if not _installed(package)]
    if missing:
        return Entry(labels, problem=f"{' and '.join(missing)} must be installed: 'pip install {' '.join(missing)}'.")
    try:
        function = peer.make(batch)
        images, expected = engines.checked(batch)
        answers = harness.in_batches(function, images, batch)
    except Exception as error:  # each engine has failures of its own, and none may cost the others' figures
        return Entry(labels, problem=harness.problem(error))
    if not np.isfinite(answers).all():
        return Entry(labels, problem="its answers are not finite.")
    agree = int((answers.argmax(1) == expected.argmax(1)).sum())
    difference = float(np.abs(answers - expected).max())
    labels["agree"] = f"{agree}/{len(images)}"
    details = {"agree": agree, "checked": len(images), "largest_difference": difference}
    details |= getattr(function, "details", {})
    same_net = not (peer.engine.startswith(OURS) and peer.precision == "int8")  # ours in int8 are narrower nets
    least = len(images) if peer.precision == "fp32" else LEAST_AGREEMENT * len(images) * same_net
    if agree < least:
        problem = f"only {agree} of {len(images)} arg-maxes are those of eager torch: it is not the same net."
        return Entry(labels, problem=problem, details=details)
    shown = images[:batch].copy()
    call = function.resident if peer.call == RESIDENT else lambda: function(shown)
    return Entry(labels, call, batch, details=details)


def _installed(package: str) -> bool:
    return importlib.util.find_spec(package) is not None


def set_bases(entries: Sequence[Entry], device: str = "cpu") -> None:
    """Hold measured entries of one batch size against plain onnxruntime, and the fastest peers that are not ours.

    On a GPU torch.compile is one of these, and what copies nothing is held only against its like.
    """

    def median(candidate: Entry) -> float:
        return float(np.median(np.concatenate(candidate.rounds)))

    for resident in (False, True):
        measured = [entry for entry in entries if entry.rounds and resident == (entry.labels.get("call") == RESIDENT)]
        peers = [candidate for candidate in measured if not candidate.labels["engine"].startswith(OURS)]
        exact = [candidate for candidate in peers if candidate.labels["precision"] in ("fp32", "bf16")]
        plain = [candidate for candidate in peers if candidate.labels["engine"] == PLAIN]
        compiled = [candidate for candidate in peers if candidate.labels["engine"] == COMPILED]
        bases = {PLAIN: plain[:1], "fastest peer": sorted(peers, key=median)[:1]}
        if device == "cpu":
            bases["fastest fp32/bf16"] = sorted(exact, key=median)[:1]
        else:
            bases[f"fastest {COMPILED}"] = sorted(compiled, key=median)[:1]
        for candidate in measured:
            candidate.bases = {name: found[0] for name, found in bases.items() if found}


def best_batches(entries: Sequence[Entry]) -> list[Entry]:
    """Return of each engine the measured entry with the most images/s, the highest first.

    Empty where no more than one batch size was measured, as there was no choice.
    """
    best: dict[tuple[str, ...], Entry] = {}
    measured = [entry for entry in entries if entry.rounds]
    for candidate in measured:
        key = tuple(str(candidate.labels.get(name, "")) for name in ("engine", "precision", "call"))
        if key not in best or _images_per_second(candidate) > _images_per_second(best[key]):
            best[key] = candidate
    several = len({candidate.labels["batch"] for candidate in measured}) > 1
    return sorted(best.values(), key=_images_per_second, reverse=True) if several else []


def _images_per_second(candidate: Entry) -> float:
    return candidate.row()["images_per_second"]


def remarks(entries: Sequence[Entry]) -> list[str]:
    """Return what is said below the table: the best batch size of each engine, how long torch.compile took."""

    def name(candidate: Entry) -> str:
        return ", ".join(
            candidate.labels[label] for label in ("engine", "precision", "call") if candidate.labels.get(label)
        )

    lines = []
    for candidate in best_batches(entries):
        row = candidate.row()
        share = f", {100 * row['peak_share']:.2f} % of the peak" if "peak_share" in row else ""
        figure = f"{row['images_per_second']:,.0f} images/s at batch {row['batch']}{share}"
        lines.append(f"{'then' if lines else 'Most at its best batch size'}: {name(candidate)}, {figure}")
    for candidate in entries:
        seconds = candidate.details.get("ready_seconds")
        if candidate.labels["engine"] == COMPILED and candidate.labels.get("call") != RESIDENT and seconds:
            lines.append(f"Compiled in {seconds:.0f} s: {name(candidate)}, batch {candidate.labels['batch']}")
    return lines


def calibration_images(given: str | None, held_out: float) -> tuple[np.ndarray, str]:
    """Return uint8 [`CALIBRATION`, size, size, 3] for nncf, and what they are: held-out images, else drawn ones."""
    if given is None:
        return data.synthetic(CALIBRATION, 1).train_images, "drawn pictures"
    dataset = data.load(given, download=False)
    indices = dataset.hold_out(held_out)[1]
    chosen = np.random.default_rng(0).permutation(indices)[:CALIBRATION]
    return dataset.train_images[np.sort(chosen)], f"held-out {dataset.name} images"


def choose(peers: Sequence[Peer], wanted: Sequence[str]) -> dict[str, Peer]:
    """Return the engines whose name has one of the `wanted` words in it, by their names.

    Raises:
        EdgecifarError: no engine's has one of them.
    """
    named = {" ".join(filter(None, (peer.engine, peer.precision, peer.call))): peer for peer in peers}
    for word in wanted:
        if not any(word.lower() in name.lower() for name in named):
            raise EdgecifarError(f"No engine is called {word}: there are {', '.join(named)}.")
    return {name: peer for name, peer in named.items() if any(word.lower() in name.lower() for word in wanted)}


def measure(
    peers: Engines, batches: Sequence[int], seconds: float, rounds: int, only: list[str] | None
) -> Iterator[Entry]:
    """Yield the entries of each batch size, measured; `only` names a part of the engines.

    Raises:
        EdgecifarError: no engine has one of these names.
    """
    chosen = choose(peers.all, only or [""])
    for precision in dict.fromkeys(peer.precision for peer in chosen.values()):
        peers.ceiling(precision)  # now, while no engine holds memory
    for batch in batches:
        entries = []
        for name, peer in chosen.items():
            harness.say(f"Preparing {name}, batch {batch} …")
            entries.append(entry(peer, batch, peers))
        for candidate in entries:
            candidate.ceiling = peers.ceiling(candidate.labels["precision"]) if candidate.call else None
        harness.say(f"Batch {batch}: {len(entries)} engines in {rounds} rounds …")
        harness.alternate(entries, seconds, rounds)
        set_bases(entries, peers.device)
        for candidate in entries:
            candidate.call = None  # what it holds is freed: a GPU's memory is wanted for the next batch size
        yield from entries


def main() -> None:
    """Parse, measure, report."""
    parser = argparse.ArgumentParser(description=str(__doc__).splitlines()[0])
    parser.add_argument("run", type=Path, metavar="RUN", help="the folder of a finished run")
    parser.add_argument("--bundle", type=Path, required=True, help="what was exported of it")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu", help="what the engines run on")
    parser.add_argument("--batch", type=int, action="append", help="may be repeated; by default 1 and 64")
    parser.add_argument("--threads", type=int, default=usable_cpus(), help="of every engine; by default all")
    parser.add_argument("--seconds", type=float, default=6.0, help="of each engine")
    parser.add_argument("--rounds", type=int, default=10, help="turns of each engine")
    parser.add_argument("--only", action="append", metavar="NAME", help="engines of this name; may be repeated")
    parser.add_argument("--data", help="where CIFAR-10 is, to calibrate int8 with; by default drawn pictures do")
    parser.add_argument("--mode", choices=MODES, default=MODES[0], help="of torch.compile on cuda")
    report.add_save(parser, "peers")
    given = parser.parse_args()
    if min(given.threads, given.rounds, *(given.batch or [1])) < 1:
        parser.error("--batch, --threads and --rounds must be at least 1")

    choose_device(given.device)
    run, bundle = Run(given.run), Bundle.open(given.bundle)
    batches = sorted(set(given.batch or (1, 64)))
    settings = {"run": given.run.name, "bundle": given.bundle.name, "seconds": given.seconds, "rounds": given.rounds}
    settings |= {"device": given.device, "models": report.digests(bundle.manifest.variants)}
    versions = {name: metadata.version(name) for name in ("openvino", "nncf", "ncnn", "pnnx") if _installed(name)}
    with tempfile.TemporaryDirectory() as folder:
        if given.device == "cpu":
            calibration, settings["int8_calibration"] = calibration_images(given.data, run.record.recipe.held_out)
            peers: Engines = CpuEngines(run, bundle, given.threads, calibration, Path(folder))
        else:
            peers = CudaEngines(run, bundle, given.threads, given.mode)
            versions = {"CUDA": str(torch.version.cuda), "cuDNN": str(torch.backends.cudnn.version())}
        entries = list(measure(peers, batches, given.seconds, given.rounds, given.only))
    rows = [candidate.row() for candidate in entries]
    found = report.document("peers", {**settings, **peers.settings()}, rows, versions=versions)
    lines = remarks(entries)
    report.finish(found, "\n".join([report.entry_table(entries), *([""] if lines else []), *lines]), given.save)


if __name__ == "__main__":
    harness.main(main)
