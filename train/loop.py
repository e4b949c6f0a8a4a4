"""The training loop: from a data set and a recipe to a finished run folder."""

from __future__ import annotations

import contextlib
import math
import re
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.optim import Optimizer

from ..runtime import machine
from ..runtime.errors import RunError
from ..runtime.metrics import Evaluation, evaluate
from . import plots
from .augment import augment, normalise
from .calibration import fit_temperature
from .data import Dataset
from .distributed import Group
from .lean import lean
from .net import Net
from .optimizer import in_bfloat16, make_optimizers
from .recipes import Recipe
from .teacher import WHITENING_IMAGES, WIDTH, Teacher
from .run import FINISHED, RUNNING, Run, load_state

WINDOW = 2_000
"""Mini-batches over which the reference experiment averages the loss it prints."""


@dataclass(frozen=True)
class Progress:
    """Where training is, for a display; made about five times a second, as reading the loss waits for the device.

    Attributes:
        epoch: counted from 1.
        step: steps done in this epoch.
        steps: steps in an epoch.
        loss: mean of the epoch so far.
        images_per_second: of the epoch so far.
    """

    epoch: int
    step: int
    steps: int
    loss: float
    images_per_second: float


class Listener(Protocol):
    """Who is told how training goes on, such as a display."""

    def progress(self, progress: Progress) -> None:
        """Take the state of the running epoch."""

    def epoch(self, metrics: dict[str, Any]) -> None:
        """Take the finished epoch's line of metrics.jsonl."""


class Silent:
    """A listener that does nothing."""

    def progress(self, progress: Progress) -> None:
        """Do nothing."""

    def epoch(self, metrics: dict[str, Any]) -> None:
        """Do nothing."""


class Listeners:
    """Several listeners in one place; each is told everything, in order."""

    def __init__(self, *listeners: Listener) -> None:
        self.listeners = listeners

    def progress(self, progress: Progress) -> None:
        """Tell each."""
        for listener in self.listeners:
            listener.progress(progress)

    def epoch(self, metrics: dict[str, Any]) -> None:
        """Tell each."""
        for listener in self.listeners:
            listener.epoch(metrics)


def choose_device(name: str = "auto") -> torch.device:
    """Return the device that `name` means: CUDA, else MPS, else the CPU for "auto".

    Raises:
        RunError: the device is not known or not there.
    """
    there = {"cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available(), "cpu": True}
    if name == "auto":
        return torch.device(next(kind for kind, is_there in there.items() if is_there))
    if name not in there:
        raise RunError(f"There is no device called {name}: choose auto, {', '.join(there)}.")
    if not there[name]:
        remedy = "install a driver and a CUDA build of torch" if name == "cuda" else "it needs an Apple GPU"
        raise RunError(f"torch finds no {name} device here: {remedy}, or use --device cpu.")
    return torch.device(name)


def describe_device(device: torch.device) -> str:
    """Return the name of the hardware behind `device`."""
    return torch.cuda.get_device_name(device) if device.type == "cuda" else machine.cpu_info()[0]


def classify_with(net: nn.Module, temperature: float = 1.0) -> Callable[[np.ndarray], np.ndarray]:
    """Return a function from uint8 [N, 32, 32, 3] to probabilities, float32 [N, 10], by `net` in eval mode."""
    logits = logits_with(net)
    return lambda images: torch.softmax(torch.from_numpy(logits(images)) / temperature, 1).numpy()


def logits_with(net: nn.Module) -> Callable[[np.ndarray], np.ndarray]:
    """Return a function from uint8 [N, 32, 32, 3] to logits, float32 [N, 10], by `net` in eval mode."""
    device = next(net.parameters()).device

    @torch.inference_mode()
    def logits(images: np.ndarray) -> np.ndarray:
        net.eval()
        return net(normalise(torch.from_numpy(images).to(device))).float().cpu().numpy()

    return logits


def train(
    recipe: Recipe,
    dataset: Dataset,
    folder: Path,
    device: torch.device,
    seed: int = 0,
    listener: Listener | None = None,
    group: Group | None = None,
    trial: dict[str, Any] | None = None,
) -> Evaluation:
    """Train Net into the new run folder `folder` and return its evaluation on the test images.

    Args:
        recipe: how to train.
        dataset: what to train and test on.
        folder: the run folder to make.
        device: what to train on.
        seed: what all randomness derives from, 0 to 2**63 - 1.
        listener: what is told how training goes.
        group: the processes that train together, each of which makes the same call; by default this one alone.
        trial: where this is a final run, what `final_of` returned beside the recipe; the seed is then its.

    Raises:
        RunError: the folder is taken, the trial was trained on other data, the loss is not finite any more, or memory
            runs out.
        OutputError: the folder cannot be written; the last complete epoch stays.
        KeyboardInterrupt: the user stopped; the last complete epoch stays.
    """
    group = group or Group()
    if trial:
        if trial["data_sha256"] != dataset.digest:
            raise RunError("The run that --final names was trained on other data: name those with --data.")
        seed = trial["seed"]
    record = {
        "recipe": asdict(recipe),
        "seed": seed,
        **_conditions(recipe, device, group),
        "machine": machine.describe(),
        "dataset": {
            "name": dataset.name,
            "sha256": dataset.digest,
            "trained_on": len(dataset.hold_out(recipe.held_out)[0]),
        },
        "started": datetime.now(UTC).isoformat(timespec="seconds"),
        "status": RUNNING,
        **({"trial": trial} if trial else {}),
    }
    run = Run.create(folder, record) if group.leads else Run(folder)
    with _enough_memory(recipe):
        return _Training(recipe, dataset, run, device, seed, record, listener or Silent(), group).complete()


def final_of(trial: Run) -> tuple[Recipe, dict[str, Any]]:
    """Return the recipe of the final run that follows `trial`, and what else `train` takes from it.

    A final run is trained as its trial was, but on the images too that this one held out. Nothing is left to decide:
    epochs, seed and temperature are the trial's, and the test images are seen once, at the end.

    Raises:
        RunError: `trial` is not finished, held no images out, or its record is damaged.
    """
    record, recipe = trial.record, recipe_of(trial)
    if record["status"] != FINISHED:
        raise RunError(f"{trial.folder} is not finished: go on with it by 'edgecifar train --resume' first.")
    if not recipe.held_out:
        raise RunError(f"{trial.folder} held no images out, so that there are none to add: name a run that did.")
    taken = {
        "weights_sha256": record["weights_sha256"],
        "data_sha256": record["dataset"]["sha256"],
        "held_out": recipe.held_out,
        "seed": record["seed"],
        "temperature": record["temperature"],
    }
    return replace(recipe, held_out=0.0), taken


def resume(
    run: Run,
    dataset: Dataset,
    device: torch.device,
    listener: Listener | None = None,
    group: Group | None = None,
) -> Evaluation:
    """Go on with an interrupted run from its last complete epoch, or its start, to the weights it would have reached.

    On another device, in another precision, or by another number of threads or processes they are not the same to the
    bit; run.json then says under "resumed" what went on after which epoch. Each process needs the run folder.

    Raises:
        RunError: there is nothing to resume, it is damaged, or `dataset` is another one.
    """
    state, record = run.resume_state(), run.record
    if record["dataset"]["sha256"] != dataset.digest:
        raise RunError(f"{run.folder} was trained on other data ({record['dataset']['name']}): name those with --data.")
    recipe, listener, group = recipe_of(run), listener or Silent(), group or Group()
    with _enough_memory(recipe):
        training = _Training(recipe, dataset, run, device, record["seed"], record, listener, group)
        if state:
            training.restore(state)
        training.note_conditions()
        return training.complete()


def _conditions(recipe: Recipe, device: torch.device, group: Group) -> dict[str, Any]:
    """Return what, beside the recipe, the seed and the versions, decides the weights to the last bit."""
    return {
        "device": str(device),
        "hardware": describe_device(device),
        "precision": "bfloat16" if in_bfloat16(recipe, device) else "float32",
        "processes": group.size,
        "threads": torch.get_num_threads(),
    }


def recipe_of(run: Run) -> Recipe:
    """Return the recipe that `run` was begun with.

    Raises:
        RunError: run.json is missing or damaged.
    """
    try:
        return Recipe(**run.record["recipe"])
    except (TypeError, ValueError) as error:
        raise RunError(f"{run.folder} was made by another version of edgecifar ({error}): train again.") from None


def make_net(recipe: Recipe, images: np.ndarray) -> nn.Module:
    """Return the net that `recipe` trains, as it is before the first step."""
    if recipe.architecture == "net":
        return Net(recipe.dropout)
    net = Teacher(10, recipe.width or WIDTH)
    net.whiten_with(normalise(torch.from_numpy(images[:: max(1, len(images) // WHITENING_IMAGES)])))
    return net


class _Training:
    """The state of one run between its steps."""

    def __init__(
        self,
        recipe: Recipe,
        dataset: Dataset,
        run: Run,
        device: torch.device,
        seed: int,
        record: dict,
        listener: Listener,
        group: Group,
    ) -> None:
        self.recipe, self.dataset, self.run, self.device, self.seed = recipe, dataset, run, device, seed
        self.record, self.listener, self.group = record, listener, group
        self.trained_on, self.held_out = dataset.hold_out(recipe.held_out)
        # Channels last is what oneDNN and cuDNN run fastest for these shapes.
        torch.manual_seed(seed)
        self.net = make_net(recipe, dataset.train_images[self.trained_on]).to(device).to(memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue]
        lean(self.net, device)
        self.trained = group.wrap(self.net)
        self.optimizers = make_optimizers(self.net, recipe)
        self.epoch, self.seconds, self.metrics = 0, 0.0, []

    def restore(self, state: dict[str, Any]) -> None:
        """Take over what `_end_epoch` stored."""
        load_state(self.net, state["net"], self.run.folder)
        for optimizer, stored in zip(self.optimizers, state["optimizers"], strict=True):
            optimizer.load_state_dict(stored)
        self.epoch, self.seconds, self.metrics = state["epoch"], state["seconds"], state["metrics"]
        self._count()  # run.json was written later, and may be an epoch behind

    def note_conditions(self) -> None:
        """Note in the record where training goes on under other conditions than it was begun or last resumed."""
        now, resumed = _conditions(self.recipe, self.device, self.group), self.record.get("resumed", [])
        before = {**self.record, **(resumed[-1] if resumed else {})}
        if any(before.get(name) != value for name, value in now.items()):
            self.record["resumed"] = [*resumed, {"after_epochs": self.epoch, **now}]

    def _count(self) -> None:
        self.record |= {"epochs_done": self.epoch, "training_seconds": self.seconds}

    def complete(self) -> Evaluation:
        """Train the epochs that are left, evaluate, and store everything."""
        images = torch.from_numpy(self.dataset.train_images[self.trained_on]).to(self.device)
        labels = torch.from_numpy(self.dataset.train_labels[self.trained_on]).to(self.device)
        while self.epoch < self.recipe.epochs:
            started = time.perf_counter()
            losses = self._train_epoch(images, labels)
            self.seconds += time.perf_counter() - started
            self.epoch += 1
            self._end_epoch(losses, time.perf_counter() - started)
        return self._finish()

    def _train_epoch(self, images: Tensor, labels: Tensor) -> Tensor:
        """Run one epoch and return the loss of every step, float32 [steps].

        All randomness is a function of the seed and the epoch, so a resumed run repeats what was lost.
        """
        recipe, epoch, count, processes = self.recipe, self.epoch, len(labels), self.group
        torch.manual_seed(derive(self.seed, epoch, 0) + processes.rank)  # dropout
        generator, mirrored_first, batches = drawn(self.seed, epoch, count, recipe.batch_size, self.device)
        losses = torch.empty(len(batches), device=self.device)
        autocast = computing(recipe, self.device)
        self.net.train()
        started = shown = time.perf_counter()
        for step, batch in enumerate(batches):
            share = recipe.share_of_lr(epoch * len(batches) + step, recipe.epochs * len(batches))
            set_rates(self.optimizers, share)
            shown_images = augment(images[batch], epoch, mirrored_first[batch], recipe, generator)
            mine = processes.part(len(batch))
            wanted = labels[batch[mine]]
            with autocast:
                logits = self.trained(normalise(shown_images[mine]))
            loss = functional.cross_entropy(logits.float(), wanted, label_smoothing=recipe.label_smoothing)
            loss = processes.weigh(loss, len(wanted), len(batch))
            self.net.zero_grad(set_to_none=True)
            loss.backward()
            for optimizer in self.optimizers:
                optimizer.step()
            losses[step] = processes.mean(loss)
            now = time.perf_counter()
            if now - shown > 0.2 or step + 1 == len(batches):
                shown = now
                mean = losses[: step + 1].mean().item()
                self._check_finite(mean, epoch, f"at step {step + 1} of epoch {epoch + 1}")
                rate = min((step + 1) * recipe.batch_size, count) / (time.perf_counter() - started)
                self.listener.progress(Progress(epoch + 1, step + 1, len(batches), mean, rate))
        return losses

    def _end_epoch(self, losses: Tensor, seconds: float) -> None:
        """Evaluate as `_judge` says, and checkpoint."""
        judged_on, result = self._judge()
        self._check_finite(result.nll, self.epoch - 1, f"after epoch {self.epoch}")  # the last step was one too many
        windows = losses[: len(losses) // WINDOW * WINDOW].view(-1, WINDOW).mean(1)
        line = {
            "epoch": self.epoch,
            "loss": losses.mean().item(),
            f"loss_per_{WINDOW}": windows.tolist(),
            **({f"{judged_on}_accuracy": result.accuracy} if judged_on else {}),
            "learning_rate": self.optimizers[0].param_groups[0]["lr"],
            "seconds": seconds,
            "images_per_second": len(self.trained_on) / seconds,
        }
        self.metrics.append(line)
        state = {
            "net": self.net.state_dict(),
            "optimizers": [optimizer.state_dict() for optimizer in self.optimizers],
            "epoch": self.epoch,
            "seconds": self.seconds,
            "metrics": self.metrics,
        }
        self._count()
        if self.group.leads:
            self.run.write(self.net, self.record, self.metrics, state)
        self.listener.epoch(line)

    def _finish(self) -> Evaluation:
        """Fit the temperature where images are held out, test, draw, and mark the run finished."""
        temperature = self.record.get("trial", {}).get("temperature", 1.0)
        if len(self.held_out):
            images, labels = self._training_images(self.held_out)
            logits = logits_with(self.net)
            batches = np.array_split(images, math.ceil(len(images) / 250))
            temperature = fit_temperature(np.concatenate([logits(batch) for batch in batches]), labels)
        result = self._test(temperature)
        self.record |= {
            "status": FINISHED,
            "finished": datetime.now(UTC).isoformat(timespec="seconds"),
            "temperature": temperature,
            "test": result.as_json(),
        }
        if self.group.leads:
            plots.confusion(result, self.run.folder / "confusion.png")
            plots.curves(self.metrics, self.run.folder / "curves.png")
            self.run.finish(self.net, self.record, self.metrics)
        return result

    def _judge(self) -> tuple[str, Evaluation]:
        """Return what images the epoch is judged on, and the evaluation on them.

        These are the held-out ones; the test images where the recipe holds none out, as the reference does; or, under
        no name, some that it was trained on: a final run sees the test images once, and these only tell whether the
        last step was one too many.
        """
        if len(self.held_out):
            return "held_out", self._evaluate(self.held_out)
        if "trial" in self.record:
            return "", self._evaluate(self.trained_on[:1_000])
        return "test", self._test()

    def _check_finite(self, loss: float, complete: int, when: str) -> None:
        if not math.isfinite(loss):
            kept = f" The last complete epoch is kept in {self.run.folder}." if complete else ""
            remedy = f"train again with a smaller --lr than {self.recipe.lr:g}"
            raise RunError(f"The loss is not finite any more {when}: {remedy}.{kept}")

    def _training_images(self, indices: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        return self.dataset.train_images[indices], self.dataset.train_labels[indices]

    def _evaluate(self, indices: np.ndarray) -> Evaluation:
        return evaluate(classify_with(self.net), *self._training_images(indices))

    def _test(self, temperature: float = 1.0) -> Evaluation:
        classify = classify_with(self.net, temperature)
        return evaluate(classify, self.dataset.test_images, self.dataset.test_labels)


def drawn(
    seed: int, epoch: int, count: int, batch_size: int, device: torch.device
) -> tuple[torch.Generator, Tensor, tuple[Tensor, ...]]:
    """Return what chance decides of an epoch: the source of shifts and cuts, who is mirrored first, and the batches.

    All of it is a function of the seed and the epoch, so that a resumed run repeats what was lost.

    Args:
        seed: of the run.
        epoch: counted from 0.
        count: images.
        batch_size: images a step.
        device: of the images.

    Returns:
        A generator and bool [count], for `augment`, and the indices of each batch, int64 [at most batch_size].
    """
    generator = torch.Generator(device).manual_seed(derive(seed, epoch, 1))
    mirrored_first = torch.randint(2, (count,), generator=torch.Generator().manual_seed(seed)).bool().to(device)
    order = torch.randperm(count, generator=torch.Generator().manual_seed(derive(seed, epoch, 2)))
    return generator, mirrored_first, order.to(device).split(batch_size)


def set_rates(optimizers: Iterable[Optimizer], share: float) -> None:
    """Set every learning rate to `share` of its peak."""
    for optimizer in optimizers:
        for group in optimizer.param_groups:
            group["lr"] = group["peak_lr"] * share


def computing(recipe: Recipe, device: torch.device) -> torch.autocast:
    """Return the context in which nets compute: bfloat16 where `in_bfloat16` says so, else float32."""
    return torch.autocast(device.type, torch.bfloat16, enabled=in_bfloat16(recipe, device))


def derive(seed: int, epoch: int, purpose: int) -> int:
    """Return the seed of one stream of random numbers; numpy promises the same on every machine and version."""
    return int(np.random.SeedSequence(seed, spawn_key=(epoch, purpose)).generate_state(1, np.uint64)[0] >> 1)


@contextlib.contextmanager
def enough_memory(remedy: str) -> Iterator[None]:
    """Turn running out of memory into a sentence that ends with what to do."""
    try:
        yield
    except (RuntimeError, MemoryError) as error:
        # CUDA has an exception of its own; the allocators of the CPU and of MPS only have their words.
        by_words = re.search("can't allocate memory|not enough memory|out of memory", str(error))
        if not by_words and not isinstance(error, (torch.OutOfMemoryError, MemoryError)):
            raise
        raise RunError(f"Memory ran out: {remedy}.") from error


def _enough_memory(recipe: Recipe) -> contextlib.AbstractContextManager[None]:
    return enough_memory(f"train again with a --batch-size smaller than {recipe.batch_size}, or on another device")
