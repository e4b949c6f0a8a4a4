"""The subcommands train and evaluate."""

from __future__ import annotations

import json
import shlex
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from .app import Data, Json, Provider, command, say


class RecipeName(StrEnum):
    """Names on the command line of `train.recipes.RECIPES`; a test holds the two together."""

    reference = "reference"
    fast = "fast"
    best = "best"


class Optimizer(StrEnum):
    """Optimizers that a recipe can name."""

    sgd = "sgd"
    adam = "adam"
    muon = "muon"


@command
def train(
    recipe: Annotated[RecipeName | None, typer.Option(help="How to train. Default: fast.")] = None,
    epochs: Annotated[int | None, typer.Option(min=1, help="Passes over the data. Default: the recipe's.")] = None,
    data: Data = None,
    out: Annotated[
        Path | None, typer.Option(help="Folder of the run. Default: runs/RECIPE-TIME.", show_default=False)
    ] = None,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda or mps.")] = "auto",
    seed: Annotated[
        int | None, typer.Option(min=0, max=2**63 - 1, help="What all randomness derives from. Default: 0.")
    ] = None,
    resume: Annotated[
        bool, typer.Option("--resume", help="Go on with the run in --out, by default the newest unfinished one.")
    ] = False,
    final: Annotated[
        Path | None,
        typer.Option(help="Train as this finished run was, on the images too that it held out; test once."),
    ] = None,
    optimizer: Annotated[Optimizer | None, typer.Option(help="Default: the recipe's.")] = None,
    batch_size: Annotated[int | None, typer.Option(min=2, help="Images a step. Default: the recipe's.")] = None,
    lr: Annotated[
        float | None, typer.Option(min=0, help="Learning rate; Muon's changes in proportion. Default: the recipe's.")
    ] = None,
    momentum: Annotated[float | None, typer.Option(min=0, max=1, help="Of SGD. Default: the recipe's.")] = None,
    held_out: Annotated[
        float | None, typer.Option(min=0, max=0.5, help="Share of the training images kept for decisions.")
    ] = None,
    tensorboard: Annotated[
        bool, typer.Option("--tensorboard", help="Write event files for TensorBoard into the run's folder, too.")
    ] = False,
) -> None:
    """Train Net and leave a run folder: weights, settings, metrics, pictures."""
    from contextlib import ExitStack
    from dataclasses import replace
    from datetime import datetime

    import matplotlib  # noqa: F401  draws last: that it is missing must be known first

    from ..train import data as datasets
    from ..train import distributed, loop
    from ..train.events import EventFiles
    from ..train.recipes import RECIPES
    from ..train.run import RUNS, Run
    from .display import TrainingDisplay, evaluation_table

    chosen = {
        "epochs": epochs,
        "optimizer": optimizer and optimizer.value,
        "batch_size": batch_size,
        "lr": lr,
        "momentum": momentum,
        "held_out": held_out,
    }
    chosen = {name: value for name, value in chosen.items() if value is not None}
    given = {"recipe": recipe, "seed": seed, **chosen}
    fixed = [f"--{name.replace('_', '-')}" for name, value in given.items() if value is not None]
    with distributed.joined() as group, ExitStack() as stack:
        if resume and (fixed or final):
            fixed += ["--final"] if final else []
            raise typer.BadParameter(f"a run is resumed as it was begun: leave out {', '.join(fixed)}.")
        if final and fixed:
            raise typer.BadParameter(f"a final run is trained as {final} was: leave out {', '.join(fixed)}.")
        where = group.connect(loop.choose_device(device))
        past, trial = [], None
        if resume:
            run = begun = Run(out) if out else Run.newest(unfinished=True, say=say)
            past = (run.resume_state() or {}).get("metrics", [])  # first: what is wrong is said before the data is read
            settings = loop.recipe_of(run)
        else:
            begun = Run(final) if final else None
            if begun:
                settings, trial = loop.final_of(begun)
            else:
                settings = RECIPES[recipe.value if recipe else "fast"].on(where.type)
                if lr is not None:
                    chosen["filter_lr"] = settings.filter_lr * lr / settings.lr
                try:
                    settings = replace(settings, **chosen)
                except ValueError as error:
                    raise typer.BadParameter(f"{error}.") from None
            name = f"{settings.name}{'-final' if final else ''}-{datetime.now():%Y%m%d-%H%M%S}"
            run = Run(out or RUNS / group.agree(name))
            run.check_free()
        if begun and begun.record["dataset"]["name"] == datasets.SYNTHETIC:
            data = data or datasets.SYNTHETIC
        events = stack.enter_context(EventFiles(run.folder, past)) if tensorboard and group.leads else None
        with group.one_first():
            dataset = datasets.load(data, say=say)
        listeners: list[loop.Listener] = [events] if events else []
        if group.leads:
            again = ["edgecifar"] if group.size == 1 else [*distributed.LAUNCH, str(group.size), "-m", "edgecifar.cli"]
            again += ["train", "--resume", "--out", str(run.folder)]
            again += ["--data", data] if data else []
            again += ["--device", device] if device != "auto" else []
            again += ["--tensorboard"] if tensorboard else []
            display = TrainingDisplay(settings, dataset, where, group.size, shlex.join(again))
            listeners.append(stack.enter_context(display))
        listener = loop.Listeners(*listeners)
        if resume:
            result = loop.resume(run, dataset, where, listener, group)
        else:
            result = loop.train(settings, dataset, run.folder, where, seed or 0, listener, group, trial)
        if events:
            events.test(result, settings.epochs)
    if group.leads:
        print(evaluation_table(result, dataset.name))
        say(f"\nThe run is in {run.folder}. Next: edgecifar export {run.folder} --format onnx")


@command
def evaluate(
    model: Annotated[Path, typer.Argument(help="A run folder, .pt (TorchScript), .pt2, .onnx or a bundle.")],
    data: Data = None,
    variant: Annotated[
        str | None, typer.Option(help="Of a bundle. Default: what suits provider and processor.")
    ] = None,
    provider: Provider = "auto",
    plot: Annotated[Path | None, typer.Option(help="Draw the confusion matrix into this PNG.")] = None,
    as_json: Json = False,
) -> None:
    """Measure a model on the test images: accuracy, per class, confusion, NLL, calibration, speed."""
    from ..export import models
    from ..runtime.metrics import evaluate as measure
    from ..train import data as datasets
    from .display import counting, evaluation_table

    loaded = models.load(model, variant, provider)
    trained_on_drawn = loaded.dataset == datasets.SYNTHETIC  # measured on its own kind unless told otherwise
    dataset = datasets.load(data or (datasets.SYNTHETIC if trained_on_drawn else None), say=say)
    if loaded.variant:
        say(f"{model}: variant {loaded.variant} on {loaded.provider}")
    with counting("Evaluating", len(dataset.test_labels), "images") as progress:
        result = measure(loaded.probabilities, dataset.test_images, dataset.test_labels, progress=progress)
    if as_json:
        described = {
            "model": str(model),
            "kind": loaded.kind,
            "variant": loaded.variant,
            "provider": loaded.provider,
            "dataset": dataset.name,
        }
        print(json.dumps({**described, **result.as_json()}, indent=2))
    else:
        print(evaluation_table(result, dataset.name))
    if plot:  # last: where the picture cannot be written, the figures are not lost
        from ..train.plots import confusion

        confusion(result, plot)
