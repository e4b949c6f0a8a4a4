"""The training loop: from a data set and a recipe to a finished run folder."""

from __future__ import annotations

import contextlib
import copy
import math
import time
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..runtime import machine
from ..runtime.errors import RunError
from ..runtime.metrics import Evaluation, evaluate
from . import initial, keepsakes, plots
from .answers import Teachers, Views, describe_distillation
from .calibration import fit_temperature
from .data import Dataset
from .devices import describe_device, enough_memory, precision, searched_algorithms, synchronize
from .distributed import Group
from .epochs import Loss, Material, Steps
from .following import recipe_of
from .graphs import make_steps
from .inference import all_logits, classify_with, in_batches
from .listeners import Listener, Progress, Silent
from .nets import make_net
from .optimizer import make_optimizers
from .recipes import Recipe
from .record import FINISHED, Conditions, DatasetRecord, RunRecord, SelectionRun
from .run import RESUME, Run, load_state
from .speed import flushed_denormals, speed_up
from .step import DROPOUT, TrainingStep, class_weights, derive_seed, epoch_plan, load_optimizers, optimizer_states
from .teacher import Teacher, accuracy_flips_averaged, prepare

WINDOW = 2_000
"""The reference experiment prints the mean loss of so many mini-batches."""

PROGRESS_SECONDS = 0.2
"""Listeners are told the loss this often: reading it waits for the device."""


@dataclass(frozen=True)
class TrainingOptions:
    """Everything about a training that is no part of its recipe or data.

    Attributes:
        device: what to train on.
        seed: what all randomness derives from, 0 to 2**63 - 1; not used where a run is resumed.
        listener: what is told how training goes.
        group: the processes that train together, each of which makes the same call; by default this one alone.
        selection_run: of a full-data run, what `follow` returned beside the recipe; the seed is then its.
        checkpoint_seconds: an epoch that ends sooner after the last checkpoint makes none, as one is 250 MB of Net: a
            stop then loses it too.
        warm_up_steps: steps on a copy of the net before the clock runs, so that loading of CUDA's libraries does not
            count; None for three on CUDA and none elsewhere.
        cuda_graph: whether steps are recorded once and replayed; None for that on CUDA. Several processes never do, and
            on the CPU nothing can be recorded: the same is done without. Equal to steps that are not, to rounding.
        teachers: runs that the net learns from beside the labels; not used where a run is resumed.
        begin_with: a run whose weights the net begins with; likewise.
    """

    device: torch.device = field(default_factory=lambda: torch.device("cpu"))
    seed: int = 0
    listener: Listener = field(default_factory=Silent)
    group: Group = field(default_factory=Group)
    selection_run: SelectionRun | None = None
    checkpoint_seconds: float = 0.0
    warm_up_steps: int | None = None
    cuda_graph: bool | None = None
    teachers: Teachers | None = None
    begin_with: Run | None = None


def train(recipe: Recipe, dataset: Dataset, folder: Path, options: TrainingOptions | None = None) -> Evaluation:
    """Train a net into the new run folder `folder` and return its evaluation on the test images.

    Raises:
        RunError: the folder is taken, the net takes no such pictures, the selection run was trained on other data, a
            teacher cannot teach it, it cannot begin with that run's weights, the loss is not finite any more, or memory
            runs out.
        OutputError: the folder cannot be written; the last checkpoint stays.
        KeyboardInterrupt: the user stopped; the last checkpoint stays.
    """
    options = options or TrainingOptions()
    selection, seed = options.selection_run, options.seed
    if selection:
        if selection.data_sha256 != dataset.digest:
            changed = "was trained on other data, or these have changed since: name its own, or train it again"
            raise RunError(f"The run that is followed {changed}.", option="data")
        seed = selection.seed
    if recipe.translate >= dataset.contract.size:
        raise RunError(f"Pictures of {dataset.contract.size} pixels cannot be moved by {recipe.translate}.")
    with torch.device("meta"):  # no folder is made where there is no such net
        make_net(recipe.net, dataset.contract)
    if options.teachers:
        options.teachers.check(dataset, recipe.held_out)
    trained_on, _ = dataset.hold_out(recipe.held_out)
    record = RunRecord(
        recipe=recipe,
        contract=dataset.contract,
        seed=seed,
        conditions=_conditions(recipe, options),
        machine=machine.describe(),
        dataset=DatasetRecord(dataset.name, dataset.digest, len(trained_on), dataset.origin),
        started=_now(),
        selection_run=selection,
        distillation=describe_distillation(options.teachers) if options.teachers else None,
        begun_from=initial.describe(options.begin_with, recipe, dataset) if options.begin_with else None,
    )
    run = Run.create(folder, record) if options.group.is_main else Run(folder)
    with _alone(run, options), _enough_memory(recipe), flushed_denormals(options.device):
        if options.group.is_main:
            keepsakes.keep_data(dataset, folder, recipe.held_out)
        training = _Training(dataset, run, record, options)
        training.begin()
        return training.complete()


def resume(run: Run, dataset: Dataset, options: TrainingOptions | None = None) -> Evaluation:
    """Go on with an interrupted run from its last checkpoint, or its start, to the weights it would have reached.

    On another device, in another precision, or by another number of threads or processes they are not the same to the
    bit; run.json then says under "resumed" what went on after which epoch. On CUDA they are not either: its libraries
    add in an order that changes. Each process needs the run folder.

    Raises:
        RunError: there is nothing to resume, it is damaged, or another process trains it.
        DataError: `dataset` is another one.
    """
    options = options or TrainingOptions()
    recipe = recipe_of(run)
    with _alone(run, options), _enough_memory(recipe), flushed_denormals(options.device):
        state, record = run.resume_state(), run.record
        run.check_data(dataset)
        if options.group.is_main and not (run.folder / keepsakes.DATA).exists():  # it was stopped that early
            keepsakes.keep_data(dataset, run.folder, recipe.held_out)
        training = _Training(dataset, run, record, options)
        if state:
            training.restore(state)
        else:
            training.begin()
        training.note_conditions()
        return training.complete()


class _Training:
    """The state of one run between its steps."""

    def __init__(self, dataset: Dataset, run: Run, record: RunRecord, options: TrainingOptions) -> None:
        self.dataset, self.run, self.record, self.options = dataset, run, record, options
        self.recipe, self.seed = record.recipe, record.seed
        self.device, self.group, self.listener = options.device, options.group, options.listener
        self.trained_on, self.held_out = dataset.hold_out(self.recipe.held_out)
        torch.manual_seed(self.seed)
        net = make_net(self.recipe.net, dataset.contract, self.recipe.dropout).to(self.device)
        # Channels last is what oneDNN and cuDNN run fastest for these shapes.
        self.net = net.to(memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue]
        prepare(self.net, self._images())
        self.views = Views.recorded(record, run.folder, self._images(), self.device) if record.distillation else None
        speed_up(self.net, self.device)
        self.optimizers = make_optimizers(self.net, self.recipe)
        labels = dataset.train_labels[self.trained_on]
        weights = class_weights(labels, dataset.contract.classes) if self.recipe.balance else None
        self.class_weights = None if weights is None else weights.to(self.device)
        self.steps_per_epoch = math.ceil(len(self.trained_on) / self.recipe.batch_size)
        self.step = TrainingStep(
            net=self.group.wrap(self.net),
            optimizers=self.optimizers,
            recipe=self.recipe,
            device=self.device,
            steps=self.recipe.epochs * self.steps_per_epoch,
        )
        self.epoch, self.seconds, self.metrics = 0, 0.0, []
        self.kept_epoch, self.kept_at = 0, -math.inf

    def begin(self) -> None:
        """Take over the weights that the run begins with, where there are such."""
        if self.record.begun_from:
            earlier = initial.recorded(self.record.begun_from, self.run.folder)
            initial.load(self.net, earlier, self.dataset.contract)

    def _images(self) -> np.ndarray:
        """Return what is trained on, uint8 [N, size, size, 3]."""
        return self.dataset.train_images[self.trained_on]

    def restore(self, state: dict[str, Any]) -> None:
        """Take over what `_end_epoch` stored.

        Raises:
            RunError: it is the state of another net or another optimizer.
        """
        try:
            load_state(self.net, state["net"], self.run.folder)
            load_optimizers(self.optimizers, state["optimizers"])
            self.epoch, self.seconds, self.metrics = state["epoch"], state["seconds"], state["metrics"]
        except (KeyError, TypeError, ValueError):
            raise RunError(
                f"{self.run.folder / RESUME} was written by another version of edgecifar, or is damaged: train again "
                "into another folder."
            ) from None
        self.kept_epoch = self.epoch
        self._count()  # run.json was written later, and may be an epoch behind

    def note_conditions(self) -> None:
        """Note in the record where training goes on under other conditions than it was begun or last resumed."""
        now = _conditions(self.recipe, self.options)
        if now != self.record.latest_conditions:
            self.record = replace(self.record, resumed=(*self.record.resumed, (self.epoch, now)))

    def _count(self) -> None:
        self.record = replace(self.record, epochs_done=self.epoch, training_seconds=self.seconds)

    def complete(self) -> Evaluation:
        """Train the epochs that are left, evaluate, and store everything."""
        images = self.views.pictures if self.views else torch.from_numpy(self._images()).to(self.device)
        labels = torch.from_numpy(self.dataset.train_labels[self.trained_on]).to(self.device)
        loss = Loss(self.recipe.label_smoothing, self.class_weights, self.group)
        classes = self.dataset.contract.classes if self.views else None
        with searched_algorithms(self.device):
            self._warm_up(images, labels, loss)
            steps = make_steps(self.step, loss, images, labels, classes, self.options.cuda_graph)
            self.kept_at = time.perf_counter()
            while self.epoch < self.recipe.epochs:
                began = time.perf_counter()
                shown, logits = self._view(images)
                synchronize(self.device)  # all that was prepared is done before the clock runs
                started = time.perf_counter()
                self._train_epoch(steps, shown, labels, logits)
                seconds = time.perf_counter() - started
                self.seconds += seconds
                self.epoch += 1
                self._end_epoch(steps, seconds, started - began)
        return self._finish()

    def _view(self, images: Tensor) -> tuple[Tensor, Tensor | None]:
        """Return what the next epoch shows before its steps augment it, and the teachers' logits of it."""
        if not self.views:
            return images, None
        with self.group.main_process_first():
            return self.views.view(self.epoch)

    def _warm_up(self, images: Tensor, labels: Tensor, loss: Loss) -> None:
        """Augment a batch, and take a few steps of each size of batch on a copy of the net, which is then forgotten."""
        steps = self.options.warm_up_steps
        if steps is None:
            steps = 3 if self.device.type == "cuda" else 0
        if not steps or self.epoch == self.recipe.epochs:
            return
        net, size = copy.deepcopy(self.net).train(), self.recipe.batch_size
        step = replace(self.step, net=net, optimizers=make_optimizers(net, self.recipe))
        plan = epoch_plan(self.seed, 0, len(labels), size, self.device)
        shown = Material(0, plan, images, labels).shown(0, self.recipe)
        for count in {len(shown), len(labels) % size} - {0}:
            for number in range(steps):
                step(number, shown[:count], loss.of(labels[:count], count))

    def _train_epoch(self, steps: Steps, images: Tensor, labels: Tensor, logits: Tensor | None) -> None:
        """Run one epoch; `steps` then has the loss of each.

        All randomness is a function of the seed and the epoch, so a resumed run repeats what was lost.
        """
        torch.manual_seed(derive_seed(self.seed, self.epoch, DROPOUT) + self.group.rank)
        plan = epoch_plan(self.seed, self.epoch, len(labels), self.recipe.batch_size, self.device)
        material = Material(self.epoch, plan, images, labels, logits)
        self.net.train()
        losses, count = steps.losses, self.steps_per_epoch
        started = shown = time.perf_counter()
        for done in steps.run(material):
            now = time.perf_counter()
            if now - shown > PROGRESS_SECONDS or done == count:
                shown = now
                mean = losses[:done].mean().item()
                self._check_finite(mean, f"at step {done} of epoch {self.epoch + 1}")
                rate = min(done * self.recipe.batch_size, len(labels)) / (time.perf_counter() - started)
                self.listener.progress(Progress(self.epoch + 1, done, count, mean, rate))

    def _end_epoch(self, steps: Steps, seconds: float, view_seconds: float) -> None:
        """Validate, checkpoint where it is time, and tell the listener.

        Args:
            steps: the epoch's.
            seconds: that they took.
            view_seconds: that it took before to prepare what they show, where teachers answer.
        """
        losses = steps.losses
        validated_on, result = self._validate()
        self._check_finite(result.nll, f"after epoch {self.epoch}")  # the last step was one too many
        windows = losses[: len(losses) // WINDOW * WINDOW].view(-1, WINDOW).mean(1)
        line = {
            "epoch": self.epoch,
            "loss": losses.mean().item(),
            f"loss_per_{WINDOW}": windows.tolist(),
            **({f"{validated_on}_accuracy": result.accuracy} if validated_on else {}),
            "learning_rate": float(self.optimizers[0].param_groups[1]["lr"]),  # of `lr`: the first may be of `head_lr`
            "seconds": seconds,
            "images_per_second": len(self.trained_on) / seconds,
            **({"view_seconds": view_seconds} if self.views else {}),
            **({"cuda_graph": True} if steps.recorded else {}),
        }
        self.metrics.append(line)
        self._count()
        if time.perf_counter() - self.kept_at >= self.options.checkpoint_seconds:
            self._checkpoint()
        self.listener.epoch(line)

    def _checkpoint(self) -> None:
        state = {
            "net": self.net.state_dict(),
            "optimizers": optimizer_states(self.optimizers),
            "epoch": self.epoch,
            "seconds": self.seconds,
            "metrics": self.metrics,
        }
        if self.group.is_main:
            self.run.write(self.net, self.record, self.metrics, state)
        self.kept_epoch, self.kept_at = self.epoch, time.perf_counter()

    def _finish(self) -> Evaluation:
        """Fit the temperature where images are held out, test, draw, and mark the run finished."""
        selection = self.record.selection_run
        temperature = selection.temperature if selection else 1.0
        if len(self.held_out):
            logits = all_logits(self.net, self.dataset.train_images[self.held_out])
            temperature = fit_temperature(logits, self.dataset.train_labels[self.held_out])
        result = self._test(temperature)
        figures = result.as_json()
        if isinstance(self.net, Teacher):  # what its students learn from
            figures["accuracy_flips_averaged"] = accuracy_flips_averaged(
                self.net, self.dataset.test_images, self.dataset.test_labels
            )
        self.record = replace(self.record, status=FINISHED, finished=_now(), temperature=temperature, test=figures)
        if self.group.is_main:
            plots.confusion(result, self.run.folder / "confusion.png")
            plots.curves(self.metrics, self.run.folder / "curves.png")
            if self.dataset.is_own:
                classify = classify_with(self.net, temperature)
                keepsakes.keep_mistakes(self.dataset, in_batches(classify, self.dataset.test_images), self.run.folder)
            self.run.finish(self.net, self.record, self.metrics)
        return result

    def _validate(self) -> tuple[str, Evaluation]:
        """Return the name of the images that an epoch is validated on, and the evaluation on them.

        These are the held-out ones; the test images where the recipe holds none out, as the reference does; or, under
        no name, some that it was trained on: a full-data run sees the test images once, and these only tell whether the
        last step was one too many.
        """
        if len(self.held_out):
            return "held_out", self._evaluate(self.held_out)
        if self.record.selection_run:
            return "", self._evaluate(self.trained_on[:1_000])
        return "test", self._test()

    def _check_finite(self, loss: float, when: str) -> None:
        if not math.isfinite(loss):
            kept = f"; epoch {self.kept_epoch} is kept in {self.run.folder}" if self.kept_epoch else ""
            remedy = f"train again with a smaller learning rate than {self.recipe.lr:g}"
            raise RunError(f"The loss is not finite any more {when}{kept}: {remedy}.", option="lr")

    def _evaluate(self, indices: np.ndarray) -> Evaluation:
        images, labels = self.dataset.train_images[indices], self.dataset.train_labels[indices]
        return evaluate(classify_with(self.net), images, labels, self.dataset.contract.labels)

    def _test(self, temperature: float = 1.0) -> Evaluation:
        dataset, classify = self.dataset, classify_with(self.net, temperature)
        return evaluate(classify, dataset.test_images, dataset.test_labels, dataset.contract.labels)


def _conditions(recipe: Recipe, options: TrainingOptions) -> Conditions:
    return Conditions(
        device=str(options.device),
        hardware=describe_device(options.device),
        precision=precision(recipe, options.device),
        processes=options.group.size,
        threads=torch.get_num_threads(),
        torch=machine.versions().get("torch"),
    )


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")


def _alone(run: Run, options: TrainingOptions) -> contextlib.AbstractContextManager[None]:
    return run.in_training() if options.group.is_main else contextlib.nullcontext()


def _enough_memory(recipe: Recipe) -> contextlib.AbstractContextManager[None]:
    remedy = f"train again on another device, or with a batch size smaller than {recipe.batch_size}"
    return enough_memory(remedy, option="batch_size")
