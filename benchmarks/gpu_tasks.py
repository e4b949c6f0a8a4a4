"""What gpu.py measures, a function a task; on a CPU they are the same, only device and sizes differ."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import engines_cuda
import harness
import numpy as np
import onnx_entries
import peers
import reference
import torch
import training
from engines_cuda import CudaEngines, wait
from gpu_setup import Setup
from onnx_entries import Measurement, entries_of

from edgecifar.export import build
from edgecifar.export.options import ExportOptions
from edgecifar.export.parity import Limits, Reference, ask, compare
from edgecifar.export.variants import FP16_ACCURACY_DROP, FP16_MAX_PROBABILITY_DIFFERENCE
from edgecifar.runtime.errors import DataError, EdgecifarError, ProviderError
from edgecifar.runtime.session import Session
from edgecifar.train import data, loop
from edgecifar.train.answers import Teachers
from edgecifar.train.data import Dataset
from edgecifar.train.distributed import Group
from edgecifar.train.epochs import Loss, Material, Steps
from edgecifar.train.graphs import GraphedSteps, make_steps
from edgecifar.train.inference import in_batches, logits_with
from edgecifar.train.listeners import Progress, Silent
from edgecifar.train.nets import make_net
from edgecifar.train.optimizer import make_optimizers
from edgecifar.train.recipes import Recipe
from edgecifar.train.run import RECORD
from edgecifar.train.speed import speed_up
from edgecifar.train.step import TrainingStep, epoch_plan
from edgecifar.train.teacher import prepare

Row = dict[str, Any]

LOSS_TOLERANCE = 0.05
"""A loss by a graph may differ by this share from eager torch's after 30 steps: sums in another order, in bfloat16."""

CHECKPOINT_SECONDS = 20.0
"""A training that is stopped loses at most so much."""


class OutOfTimeError(EdgecifarError):
    """The minutes are over in the middle of a training, which goes on when it is called again."""


class Watch(Silent):
    """Notes when the first epoch has been trained, and stops a training whose time is over."""

    def __init__(self, end: float) -> None:
        self.end, self.began, self.first = end, time.perf_counter(), None

    def progress(self, progress: Progress) -> None:
        """Note the end of the first epoch's steps."""
        now = time.perf_counter()
        if progress.step == progress.steps and self.first is None:
            self.first = now - self.began
        if now > self.end:
            raise OutOfTimeError(f"It was stopped in epoch {progress.epoch}: the same command goes on.")


@contextlib.contextmanager
def no_waiting(device: torch.device) -> Iterator[None]:
    """On CUDA make whatever waits for the GPU an error."""
    if device.type != "cuda":
        yield
        return
    torch.cuda.set_sync_debug_mode("error")
    try:
        yield
    finally:
        torch.cuda.set_sync_debug_mode("default")


def smoke(setup: Setup, name: str, end: float) -> Iterator[Row]:
    """Take steps of a recipe on drawn pictures, eagerly and by a graph: time, no waiting, equal losses."""
    del end  # it takes seconds
    recipe, count = setup.recipe(name), setup.sizes.steps
    drawn = data.synthetic(min(2_000, recipe.batch_size * count), 10)
    every = np.resize(np.arange(len(drawn.train_images)), recipe.batch_size * count)
    images = torch.from_numpy(drawn.train_images[every]).to(setup.device)
    labels = torch.from_numpy(drawn.train_labels[every]).to(setup.device)
    losses: dict[bool, list[float]] = {}
    milliseconds: dict[bool, float] = {}
    for graph in (False, True):
        steps = _steps(setup, recipe, drawn, images, labels, graph)
        if graph and not isinstance(steps, GraphedSteps):
            raise DataError("The step cannot be recorded as a CUDA graph: see the warning above.")
        losses[graph] = []
        for epoch in range(2):  # the first loads what it needs
            torch.manual_seed(epoch)
            plan = epoch_plan(0, epoch, len(labels), recipe.batch_size, setup.device)
            taken = steps.run(Material(epoch, plan, images, labels))
            next(taken)  # what is prepared for an epoch may wait
            wait(setup.kind)
            started = time.perf_counter()
            with no_waiting(setup.device):
                done = sum(1 for _ in taken)
            wait(setup.kind)
            milliseconds[graph] = 1000 * (time.perf_counter() - started) / done
            losses[graph] += steps.losses.tolist()
    difference = max(abs(a - b) / max(abs(a), 1e-3) for a, b in zip(losses[False], losses[True], strict=True))
    too_far = (
        f"Its losses differ by {100 * difference:.1f} % from eager torch's." if difference > LOSS_TOLERANCE else None
    )
    yield {
        "recipe": name,
        "batch": recipe.batch_size,
        "steps": len(losses[True]),
        "eager_ms": milliseconds[False],
        "graph_ms": milliseconds[True],
        "images_per_second": 1000 * recipe.batch_size / milliseconds[True],
        "loss_difference": difference,
        "problem": too_far,
    }


def _steps(
    setup: Setup, recipe: Recipe, dataset: Dataset, images: torch.Tensor, labels: torch.Tensor, graph: bool
) -> Steps:
    """Return the steps of a fresh net, always the same one."""
    torch.manual_seed(0)
    module: Any = make_net(recipe.net, dataset.contract, recipe.dropout).to(setup.device)
    net = module.to(memory_format=torch.channels_last).train()
    prepare(net, dataset.train_images)
    speed_up(net, setup.device)
    step = TrainingStep(net, make_optimizers(net, recipe), recipe, setup.device, 2 * setup.sizes.steps)
    return make_steps(step, Loss(recipe.label_smoothing, None, Group()), images, labels, None, graph)


def train(setup: Setup, name: str, seed: int, end: float, teacher: str = "") -> Iterator[Row]:
    """Train a recipe, or go on with it; the time of training is apart from that of its first use and evaluation.

    Args:
        setup: as for every task.
        name: NAME or NAME:EPOCHS.
        seed: of the run.
        end: when to stop it.
        teacher: the training whose run, seed 0, teaches this one; "" for none.
    """
    run, watch = setup.run(f"{name}{'-taught' * bool(teacher)}", seed), Watch(end)
    began = time.perf_counter()
    options = loop.TrainingOptions(
        device=setup.device,
        seed=seed,
        listener=watch,
        checkpoint_seconds=CHECKPOINT_SECONDS,
        cuda_graph=True,
        teachers=Teachers((setup.finished(teacher, 0),)) if teacher else None,
    )
    is_new = not (run.folder / RECORD).exists()
    training.finished_run(setup.recipe(name), setup.dataset, run.folder, options)
    wall, record, metrics = time.perf_counter() - began, run.record, run.metrics
    test = record.test or {}
    times = {f"s_to_{level:g}": training.time_to(level, metrics) for level in training.LEVELS}
    held_out = metrics[-1].get("held_out_accuracy")
    yield {
        "recipe": name + (f" taught by {teacher}" if teacher else ""),
        "seed": seed,
        "epochs": len(metrics),
        "precision": record.conditions.precision,
        "training_s": sum(line["seconds"] for line in metrics),
        "first_use_s": max(0.0, watch.first - metrics[0]["seconds"]) if is_new and watch.first else None,
        "wall_s": wall if is_new else None,
        **times,
        "images_per_second": float(np.median([line["images_per_second"] for line in metrics])),
        "held_out": None if held_out is None else 100 * held_out,
        "test": 100 * test["accuracy"],
        "test_flips": 100 * test["accuracy_flips_averaged"] if "accuracy_flips_averaged" in test else None,
    }


def export(setup: Setup, end: float) -> Iterator[Row]:
    """Export fp32 and fp16 of `best`; the gate is on the CPU."""
    del end
    run = setup.finished("best", 0)
    options = ExportOptions(formats=("onnx",), variants=("fp32", "fp16"), replace=True)
    began = time.perf_counter()
    bundle, results = build.export(run, setup.bundle_folder, setup.dataset, options)
    seconds = time.perf_counter() - began
    for variant in bundle.manifest.variants:
        result = results[variant.name]
        yield {"variant": variant.name, "provider": "cpu", "bytes": variant.bytes, **_figures(result), "all_s": seconds}


def parity(setup: Setup, variant: str, settings: Mapping[str, str], end: float) -> Iterator[Row]:
    """Hold a variant on the device against eager torch on the CPU; fp16 must pass its own gate there."""
    del end
    run, bundle = setup.finished("best", 0), setup.bundle()
    known = setup.known
    if not known:
        test = setup.dataset
        eager = in_batches(logits_with(run.net()), test.test_images)
        name, temperature = f"{test.name} test", run.record.temperature
        known["eager"] = Reference(test.test_images, name, eager, test.test_labels, temperature)
    limits = Limits(FP16_ACCURACY_DROP, FP16_MAX_PROBABILITY_DIFFERENCE) if variant == "fp16" else Limits()
    found = bundle.variant(variant)
    given = {name: value for name, value in settings.items() if setup.kind == "cuda"}
    session = Session(bundle.read(found), provider=setup.kind, name=found.file, settings=given)
    row = {"variant": variant, "provider": session.provider, "settings": _written(settings)}
    yield {**row, **_figures(compare(ask(session.outputs, known["eager"]), known["eager"], limits))}


def _figures(result: Any) -> Row:
    return {
        "agree": result.agree,
        "images": result.images,
        "test": None if result.accuracy is None else 100 * result.accuracy,
        "max_logit": result.max_abs_difference,
        "max_probability": result.max_probability_difference,
        "passes": result.passed,
        "why_not": result.failure or None,
    }


def _written(settings: Mapping[str, str]) -> str:
    return ", ".join(f"{name}={value}" for name, value in settings.items())


def latency(setup: Setup, batch: int, end: float) -> Iterator[Row]:
    """Time the provider: bare, bound, by a graph, resident, and `Classifier`; fp32 and fp16."""
    del end
    bundle = setup.bundle()
    variants = [variant for variant in bundle.manifest.variants if variant.is_onnx]
    entries = entries_of(Measurement(bundle, [batch]), variants, [setup.kind], [1])
    harness.alternate(entries, setup.sizes.seconds, setup.sizes.rounds)
    if not any(entry.rounds for entry in entries):
        raise ProviderError(entries[0].problem)  # not done: it is tried again once what it needs is there
    yield from _rows(entries)


def other_engines(setup: Setup, batch: int, end: float) -> Iterator[Row]:
    """Time the same net in torch, compiled and not, plain onnxruntime and ours, and the share of the card's peak."""
    del end
    engines_cuda.SIZE = setup.sizes.product
    only = list(setup.sizes.engines) if setup.sizes.engines else None
    with _torch_as_before():
        engines = CudaEngines(setup.finished("best", 0), setup.bundle(), 1, "reduce-overhead", setup.kind)
        entries = list(peers.measure(engines, [batch], setup.sizes.seconds, setup.sizes.rounds, only))
    peak = {name: value / 1e12 for name, value in engines.peaks.items()}
    yield from ({**row, "peak_tflops": peak.get(row["precision"])} for row in _rows(entries))


@contextlib.contextmanager
def _torch_as_before() -> Iterator[None]:
    """Put back at the end what `CudaEngines` sets for the whole process: trainings come after it."""
    precision, searched = torch.get_float32_matmul_precision(), torch.backends.cudnn.benchmark
    threads = torch.get_num_threads()
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(precision)
        torch.backends.cudnn.benchmark = searched
        torch.set_num_threads(threads)


def _rows(entries: Sequence[harness.Entry]) -> Iterator[Row]:
    """Yield the figures of each entry, flat; one that was not measured has its problem."""
    for entry in entries:
        row = entry.row()
        times = row.get("milliseconds", {})
        yield {
            **entry.labels,
            "p50_ms": times.get("p50"),
            "p99_ms": times.get("p99"),
            "images_per_second": row.get("images_per_second"),
            "calls": row.get("n"),
            "peak_share": row.get("peak_share"),
            "largest_difference": row.get("largest_difference"),
            "ratios": {name: value["median"] for name, value in row.get("ratios", {}).items()},
            "problem": row["problem"],
        }


def experiment(setup: Setup, end: float) -> Iterator[Row]:
    """Train the reference, or go on with it, and put it beside the experiment's own figures."""
    try:
        (row,) = train(setup, "reference", 0, end)
        yield row
    finally:
        run = setup.run("reference", 0)
        if (run.folder / RECORD).exists() and run.metrics:
            found = reference.comparison(run)
            for line in found["curve"]:
                if line["reported"] is not None or line["epoch"] == found["epochs_done"]:
                    yield {"recipe": "reference", **line}
            yield from ({"recipe": "reference", **line} for line in found["classes"])


def rehearse_on_a_cpu() -> None:
    """Let the CPU's provider have what CUDA's has, in its own memory and without graphs, which it has not."""
    onnx_entries.GRAPH["cpu"], onnx_entries.MEMORY["cpu"] = {}, "cpu"
    harness.CHECKED = 4
    engines_cuda.DTYPES |= {
        "fp16": torch.float32,
        "bf16": torch.float32,
    }  # processors may take minutes in half precision
