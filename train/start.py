"""From what somebody asks for to a run: a new one, one that goes on, or one on all images that follows another."""

from __future__ import annotations

import shlex
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, ExitStack
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Any, Protocol

import torch

from ..runtime.errors import RunError
from ..runtime.metrics import Evaluation
from . import data as datasets
from . import distributed, initial, loop
from .adapting import MIN_CALIBRATION_IMAGES, adapt, refuse_own_options
from .answers import Teachers
from .data import Dataset
from .devices import choose_device, describe_device
from .distributed import Group
from .events import EventFiles
from .folders import FolderOptions
from .following import follow, recipe_of
from .listeners import Listener, Listeners
from .nets import is_teacher
from .recipes import RECIPES, Recipe
from .record import SelectionRun
from .run import RUNS, Run

DEFAULT_RECIPE = "fast"

STUDENTS = "best"
"""The recipe by which a teacher's students learn."""

CHECKPOINT_SECONDS = 30.0
"""Where an epoch is short, as on CUDA and of few own pictures, a checkpoint of Net takes about as long: not every epoch
makes one, but the first that ends so long after the last."""


@dataclass(frozen=True)
class TrainingRequest:
    """What is asked for; everything has a default.

    Attributes:
        recipe: a name in `RECIPES`.
        settings: other settings than the recipe's, by the names of `Recipe`'s fields. Of own pictures, `adapt` chooses
            some of those that are not here.
        seed: what all randomness derives from; 0 by default.
        data: as `data.load` takes it. A run that goes on or is followed, and was trained on synthetic data, has those
            by default.
        pictures: how a folder or a CSV is split and made square, if otherwise than by default, by the names of
            `FolderOptions`' fields. A run that goes on or is followed has its own.
        out: the run folder; by default a new one under `RUNS`, or, with `resume`, the newest unfinished run there.
        device: as `choose_device` takes it.
        resume: whether to go on with the run in `out`. `recipe`, `settings` and `seed` are then the run's.
        follow: a finished run, to train as it was on all images; likewise.
        begin_with: a finished run whose weights the net begins with; likewise.
        teachers: finished runs whose answers the net learns from, too; a run that goes on or follows has its own.
        tensorboard: whether to write event files for TensorBoard.
        cuda_graph: as `loop.TrainingOptions` has it.
    """

    recipe: str = DEFAULT_RECIPE
    settings: Mapping[str, Any] = field(default_factory=dict)
    seed: int = 0
    data: str | None = None
    pictures: Mapping[str, Any] = field(default_factory=dict)
    out: Path | None = None
    device: str = "auto"
    resume: bool = False
    follow: Path | None = None
    begin_with: Path | None = None
    teachers: tuple[Path, ...] = ()
    tensorboard: bool = False
    cuda_graph: bool | None = None


@dataclass(frozen=True)
class TrainingPlan:
    """What a request comes to, before the first step.

    Attributes:
        run: the run's folder; it need not be there yet.
        recipe: how the net is trained.
        dataset: what it is trained and tested on.
        device: what trains.
        processes: how many train together.
        resume_command: what to type to go on after a stop.
        next_command: what to type to use the run: to export it, or to learn from it.
    """

    run: Run
    recipe: Recipe
    dataset: Dataset
    device: torch.device
    processes: int
    resume_command: str
    next_command: str

    @property
    def hardware(self) -> str:
        """The name of the processor or the GPU."""
        return describe_device(self.device)


class Display(Listener, AbstractContextManager["Display"], Protocol):
    """A listener that is shown from before the first step until training has ended or failed."""


def start(
    request: TrainingRequest,
    display: Callable[[TrainingPlan], Display],
    reading: Callable[[int, int], object] = lambda done, total: None,
) -> tuple[TrainingPlan, Evaluation] | None:
    """Train, and return the plan and the evaluation on the test images; None in all processes but the main one.

    Args:
        request: what to train.
        display: makes what shows the training, in the main process only.
        reading: called with the number of labelled pictures that are decoded, and how many there are.

    Raises:
        RecipeError: a setting of the request is none that can be trained with, or cannot apply to its data.
        DataError, RunError, OutputError: as `data.load`, `loop.train` and `loop.resume` say; or a new run would lie
            among the pictures that it is trained on.
        KeyboardInterrupt: the user stopped; the last checkpoint stays.
    """
    with distributed.joined() as group, ExitStack() as stack:
        device = group.connect(choose_device(request.device))
        run, recipe, selection = _run_of(request, device, group)
        teachers, begin_with = _teachers(request), _begin_with(request, recipe)
        # Early: what is wrong with the run is said before the data is read.
        past = (run.resume_state() or {}).get("metrics", []) if request.resume else []
        writes_events = request.tensorboard and group.is_main
        events = stack.enter_context(EventFiles(run.folder, past)) if writes_events else None
        earlier = run if request.resume else Run(request.follow) if request.follow else None
        data, pictures = request.data, FolderOptions(**request.pictures)
        if earlier:
            trained_on = earlier.record.dataset
            data = _trained_on_drawn(earlier) if data is None else data
            pictures = FolderOptions.recorded(trained_on.origin) or pictures
            datasets.require_named(data, trained_on.name, trained_on.origin)
        elif request.pictures and (kind := datasets.place_of(data).kind) != datasets.OWN:  # before those are downloaded
            refuse_own_options(request.pictures, kind)
        with group.main_process_first():
            dataset = datasets.load(data, options=pictures, progress=reading)
        if earlier:  # before the display says what will be trained
            earlier.check_data(dataset)
        if not request.resume:
            _check_place(run, dataset)
        if not earlier:
            recipe = adapt(recipe, dataset, {*request.settings, *request.pictures})
        plan = TrainingPlan(
            run=run,
            recipe=recipe,
            dataset=dataset,
            device=device,
            processes=group.size,
            resume_command=_resume_command(request, run, data, group.size),
            next_command=_next_command(recipe, run, dataset, data),
        )
        listeners: list[Listener] = [events] if events else []
        if group.is_main:
            listeners.append(stack.enter_context(display(plan)))
        options = loop.TrainingOptions(
            device=device,
            seed=request.seed,
            listener=Listeners(*listeners),
            group=group,
            selection_run=selection,
            teachers=teachers,
            begin_with=begin_with,
            cuda_graph=request.cuda_graph,
            checkpoint_seconds=CHECKPOINT_SECONDS if device.type == "cuda" or dataset.is_own else 0.0,
        )
        if request.resume:
            result = loop.resume(run, dataset, options)
        else:
            result = loop.train(recipe, dataset, run.folder, options)
        if events:
            events.test(result, recipe.epochs)
        return (plan, result) if group.is_main else None


def _run_of(request: TrainingRequest, device: torch.device, group: Group) -> tuple[Run, Recipe, SelectionRun | None]:
    """Return the run that a request begins or goes on with, its recipe, and the run that it follows."""
    if request.resume:
        run = Run(request.out) if request.out else Run.newest(unfinished=True)
        return run, recipe_of(run), None
    selection = None
    if request.follow:
        recipe, selection = follow(Run(request.follow))
    else:
        recipe = RECIPES[request.recipe].on(device.type).with_settings(request.settings)
    name = f"{recipe.name}{'-final' if selection else ''}-{datetime.now():%Y%m%d-%H%M%S}"
    run = Run(request.out or RUNS / group.broadcast(name))
    run.check_free()
    return run, recipe, selection


def _check_place(run: Run, dataset: Dataset) -> None:
    """Make sure that a new run does not lie among the classes of its pictures, as one of them."""
    if dataset.pictures is not None and dataset.pictures.would_hold(run.folder):
        raise RunError(
            f"The run {run.folder} would lie in {dataset.pictures.pictures.listing.root}, among the pictures: choose a "
            "folder elsewhere.",
            option="out",
        )


def _teachers(request: TrainingRequest) -> Teachers | None:
    """Return the runs that a new run learns from: those asked for, or those of the run that it follows."""
    if request.follow:
        distillation = Run(request.follow).record.distillation
        return Teachers.recorded(distillation, request.follow) if distillation else None
    for folder in request.teachers:
        _ = Run(folder).record  # what is no run is said before the data is read
    return Teachers(tuple(map(Run, request.teachers))) if request.teachers else None


def _begin_with(request: TrainingRequest, recipe: Recipe) -> Run | None:
    """Return the run whose weights a new run begins with: what is asked for, or that of the run that it follows."""
    if request.follow:
        begun_from = Run(request.follow).record.begun_from
        return initial.recorded(begun_from, request.follow) if begun_from else None
    if request.begin_with is None:
        return None
    earlier = Run(request.begin_with)
    initial.check(earlier, recipe)  # before the data is read
    return earlier


def _trained_on_drawn(earlier: Run) -> str | None:
    """Return "synthetic" where the run that goes on, or is followed, was trained on that."""
    return datasets.SYNTHETIC if earlier.record.dataset.name == datasets.SYNTHETIC else None


def _resume_command(request: TrainingRequest, run: Run, data: str | None, processes: int) -> str:
    program = ["edgecifar"] if processes == 1 else [*distributed.LAUNCH, str(processes), "-m", "edgecifar.cli"]
    options = ["--device", request.device] if request.device != "auto" else []
    options += ["--tensorboard"] if request.tensorboard else []
    options += ["--no-cuda-graph"] if request.cuda_graph is False else []
    return _command(*program, "train", "--resume", "--out", run.folder, data=data, options=options)


def _next_command(recipe: Recipe, run: Run, dataset: Dataset, data: str | None) -> str:
    if is_teacher(recipe.net):  # its students must be trained on the same split
        split = {name: value for name, value in dataset.origin.get("options", {}).items() if name != "strict"}
        given = {name: value for name, value in split.items() if value != getattr(FolderOptions(), name)}
        given |= {"held-out": recipe.held_out} if recipe.held_out != RECIPES[STUDENTS].held_out else {}
        options = [part for name, value in given.items() for part in (f"--{name}", value)]
        return _command("edgecifar", "train", "--recipe", STUDENTS, "--teacher", run.folder, *options, data=data)
    variants = ["--variant", "fp32"]
    enough = len(dataset.train_labels) >= MIN_CALIBRATION_IMAGES
    if enough and len(dataset.hold_out(recipe.held_out)[1]):  # edge is calibrated, and decided on held-out images
        variants += ["--variant", "edge"]
    return _command("edgecifar", "export", run.folder, *variants, data=data)


def _command(*words: object, data: str | None, options: list[str] | None = None) -> str:
    """Return a command as a shell takes it; the data set is named where it is not the default."""
    return shlex.join([*map(str, words), *(["--data", data] if data else []), *(options or [])])
