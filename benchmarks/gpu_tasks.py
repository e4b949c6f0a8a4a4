"""What gpu.py measures, a function a task; on a CPU they are the same, only device and sizes differ."""

from __future__ import annotations

import contextlib
import time
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
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
from edgecifar.train.devices import searched_algorithms
from edgecifar.train.distributed import Group
from edgecifar.train.epochs import Loss, Material, Steps
from edgecifar.train.graphs import GraphedSteps, make_steps
from edgecifar.train.inference import in_batches, logits_with
from edgecifar.train.listeners import Progress, Silent
from edgecifar.train.nets import make_net
from edgecifar.train.optimizer import make_optimizers
from edgecifar.train.recipes import Recipe
from edgecifar.train.run import RECORD, Run
from edgecifar.train.speed import speed_up
from edgecifar.train.step import TrainingStep, epoch_plan
from edgecifar.train.teacher import prepare

Row = dict[str, Any]

FIRST_STEPS, LOSS_TOLERANCE = 8, 0.02
"""Of so many steps the losses by a graph may differ by this share from eager torch's: sums in another order, in
bfloat16. Later two eager trainings differ from each other, too: both differences are told, and none is judged."""

EPOCHS = 3
"""Of the smoke test: one that loads what it needs, one that may not wait for the GPU, one that is timed."""

CHECKPOINT_SECONDS = 20.0
"""A training that is stopped loses at most so much, and so often what it has so far is kept apart."""


class OutOfTimeError(EdgecifarError):
    """The minutes are over in the middle of a training, which goes on when it is called again."""


class Watch(Silent):
    """Notes when the first epoch has been trained, has what is there kept, and stops a training whose time is over.

    Args:
        end: when to stop it.
        keep: is called after an epoch, `CHECKPOINT_SECONDS` after the last time.
    """

    def __init__(self, end: float, keep: Callable[[], None] = lambda: None) -> None:
        self.end, self.keep, self.began, self.first = end, keep, time.perf_counter(), None
        self.kept = self.began

    def epoch(self, metrics: dict[str, Any]) -> None:
        """Have kept what is there."""
        del metrics
        now = time.perf_counter()
        if now - self.kept >= CHECKPOINT_SECONDS:
            self.kept = now
            self.keep()

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
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Synchronization debug mode")  # that not all that waits is found
        torch.cuda.set_sync_debug_mode("error")
    try:
        yield
    finally:
        torch.cuda.set_sync_debug_mode("default")


def smoke(setup: Setup, name: str, end: float) -> Iterator[Row]:
    """Take steps of a recipe on drawn pictures, eagerly twice and by a graph: time, no waiting, equal losses.

    Raises:
        DataError: they cannot be recorded as a graph; the row before has eager torch's figures.
    """
    del end  # it takes seconds
    recipe, count = setup.recipe(name), setup.sizes.steps
    drawn = data.synthetic(min(2_000, recipe.batch_size * count), 10)
    every = np.resize(np.arange(len(drawn.train_images)), recipe.batch_size * count)
    images = torch.from_numpy(drawn.train_images[every]).to(setup.device)
    labels = torch.from_numpy(drawn.train_labels[every]).to(setup.device)
    row: Row = {"recipe": name, "batch": recipe.batch_size, "steps": EPOCHS * count, "graph": True}
    found: list[tuple[np.ndarray, float]] = []
    with searched_algorithms(setup.device):
        for graph in (False, False, True):
            steps = _steps(setup, recipe, drawn, images, labels, graph)
            row["graph"] = isinstance(steps, GraphedSteps)
            if row["graph"] == graph:
                found.append(_take(steps, images, labels))
    (losses, milliseconds), (again, _), *by_graph = found
    row |= {"eager_ms": milliseconds, "eager_difference": _apart(losses, again)}
    if not by_graph:
        setup.not_recorded.add(name)
        yield row
        raise DataError("The step cannot be recorded as a CUDA graph: see the warning above. It trains without.")
    graphed, milliseconds = by_graph[0]
    first = _apart(losses[:FIRST_STEPS], graphed[:FIRST_STEPS])
    too_far = f"The first losses differ by {100 * first:.1f} % from eager torch's."
    yield row | {
        "graph_ms": milliseconds,
        "images_per_second": 1000 * recipe.batch_size / milliseconds,
        "first_difference": first,
        "graph_difference": _apart(losses, graphed),
        "problem": None if first <= LOSS_TOLERANCE else too_far,
    }


def _take(steps: Steps, images: torch.Tensor, labels: torch.Tensor) -> tuple[np.ndarray, float]:
    """Take `EPOCHS` epochs; return the losses of all, float64 [steps], and a step's milliseconds in the last."""
    device, losses, seconds = steps.step.device, [], 0.0
    for epoch in range(EPOCHS):
        torch.manual_seed(epoch)
        plan = epoch_plan(0, epoch, len(labels), steps.step.recipe.batch_size, device)
        wait(device.type)
        started, taken = time.perf_counter(), steps.run(Material(epoch, plan, images, labels))
        if epoch == 1:
            next(taken)  # what is prepared for an epoch may wait
            with no_waiting(device):
                list(taken)
        else:
            list(taken)
        wait(device.type)
        seconds = time.perf_counter() - started
        losses += steps.losses.tolist()
    return np.array(losses), 1000 * seconds / len(steps.losses)


def _apart(losses: np.ndarray, others: np.ndarray) -> float:
    """Return the largest difference of two losses of a step, as a share."""
    return float((np.abs(losses - others) / np.maximum(np.abs(losses), 1e-3)).max())


def _steps(
    setup: Setup, recipe: Recipe, dataset: Dataset, images: torch.Tensor, labels: torch.Tensor, graph: bool
) -> Steps:
    """Return the steps of a fresh net, always the same one."""
    torch.manual_seed(0)
    module: Any = make_net(recipe.net, dataset.contract, recipe.dropout).to(setup.device)
    net = module.to(memory_format=torch.channels_last).train()
    prepare(net, dataset.train_images)
    speed_up(net, setup.device)
    step = TrainingStep(net, make_optimizers(net, recipe), recipe, setup.device, EPOCHS * setup.sizes.steps)
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
    run = setup.run(f"{name}{'-taught' * bool(teacher)}", seed)
    watch = Watch(end, lambda: setup.keep([*_beside(run)] if name == "reference" else []))
    began = time.perf_counter()
    options = loop.TrainingOptions(
        device=setup.device,
        seed=seed,
        listener=watch,
        checkpoint_seconds=CHECKPOINT_SECONDS,
        cuda_graph=name.partition(":")[0] not in setup.not_recorded,
        teachers=Teachers((setup.finished(teacher, 0),)) if teacher else None,
    )
    is_new = not (run.folder / RECORD).exists()
    training.finished_run(setup.recipe(name), setup.dataset, run.folder, options)
    wall, record, metrics = time.perf_counter() - began, run.record, run.metrics
    test = record.test or {}
    first_epoch = metrics[0]["seconds"] + metrics[0].get("view_seconds", 0.0)
    times = {f"s_to_{level:g}": training.time_to(level, metrics) for level in training.LEVELS}
    held_out = metrics[-1].get("held_out_accuracy")
    yield {
        "recipe": name + (f" taught by {teacher}" if teacher else ""),
        "seed": seed,
        "epochs": len(metrics),
        "precision": record.conditions.precision,
        "graph": all(line.get("cuda_graph", False) for line in metrics),
        "training_s": sum(line["seconds"] for line in metrics),
        "views_s": sum(line.get("view_seconds", 0.0) for line in metrics) if teacher else None,
        "first_use_s": max(0.0, watch.first - first_epoch) if is_new and watch.first else None,
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
    with _torch_as_before():
        engines = CudaEngines(setup.finished("best", 0), setup.bundle(), 1, "reduce-overhead", setup.kind)
        entries = list(peers.measure(engines, [batch], setup.sizes.seconds, setup.sizes.rounds, [*setup.sizes.engines]))
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
        yield from _beside(setup.run("reference", 0))


def _beside(run: Run) -> Iterator[Row]:
    """Yield what there is of a run of the reference beside the experiment's figures: losses, accuracy by class."""
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
