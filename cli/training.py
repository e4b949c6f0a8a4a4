"""The subcommands train and evaluate."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

import typer

from .app import Data, Fit, Json, Provider, command, examples, say
from .evaluating import Split


class RecipeName(StrEnum):
    """Names on the command line of `train.recipes.RECIPES`; a test holds the two together."""

    reference = "reference"
    fast = "fast"
    best = "best"
    teacher = "teacher"


class Optimizer(StrEnum):
    """Optimizers that a recipe can name."""

    sgd = "sgd"
    adam = "adam"
    muon = "muon"


@examples(
    "edgecifar train",
    "edgecifar train --recipe reference --epochs 3 --out runs/reference",
    "edgecifar train --recipe teacher --out runs/teacher",
    "edgecifar train --recipe best --teacher runs/teacher",
    "edgecifar train --data my_pictures --from runs/NAME",
    "edgecifar train --data synthetic --epochs 1",
)
@command
def train(
    recipe: Annotated[RecipeName | None, typer.Option(help="How to train. Default: fast.")] = None,
    epochs: Annotated[int | None, typer.Option(min=1, help="Passes over the data. Default: the recipe's.")] = None,
    data: Data = None,
    out: Annotated[
        Path | None, typer.Option(help="Folder of the run. Default: runs/RECIPE-TIME.", show_default=False)
    ] = None,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda or mps.")] = "auto",
    seed: Annotated[int | None, typer.Option(min=0, max=2**63 - 1, help="Seed of all randomness. Default: 0.")] = None,
    resume: Annotated[
        bool, typer.Option("--resume", help="Continue the run in --out. Default: the newest unfinished run.")
    ] = False,
    final: Annotated[
        Path | None,
        typer.Option(
            help="Repeat this finished run, and train also on the images that it held out; test once, at the end."
        ),
    ] = None,
    begin_with: Annotated[
        Path | None,
        typer.Option(
            "--from",
            help="Begin with the weights of this finished run. Its last layer counts only if the classes are the same.",
        ),
    ] = None,
    teachers: Annotated[
        list[Path],
        typer.Option("--teacher", help="Learn also from the answers of this finished run. May be repeated."),
    ] = [],  # noqa: B006
    optimizer: Annotated[Optimizer | None, typer.Option(help="Default: the recipe's.")] = None,
    batch_size: Annotated[int | None, typer.Option(min=2, help="Images per step. Default: the recipe's.")] = None,
    lr: Annotated[
        float | None, typer.Option(min=0, help="Learning rate; Muon's changes in proportion. Default: the recipe's.")
    ] = None,
    momentum: Annotated[float | None, typer.Option(min=0, max=1, help="SGD's momentum. Default: the recipe's.")] = None,
    corrupted: Annotated[
        float | None,
        typer.Option(
            min=0,
            max=1,
            help="Share of the training images that get noise, blur, haze and the like. Default: the recipe's.",
        ),
    ] = None,
    held_out: Annotated[
        float | None,
        typer.Option(
            min=0,
            max=0.5,
            help="CIFAR-10: share of the training images used for validation. Default: the recipe's. Own pictures: 0 "
            "trains on the validation split, too.",
            show_default=False,
        ),
    ] = None,
    balance: Annotated[
        bool | None,
        typer.Option(
            "--balance/--no-balance",
            help="Whether small classes count as much as large ones. Default: for own pictures, if the largest class "
            "has over 3 times the pictures of the smallest.",
            show_default=False,
        ),
    ] = None,
    fit: Annotated[Fit | None, typer.Option(help="Own pictures: how each is made square. Default: crop.")] = None,
    val: Annotated[
        float | None, typer.Option(min=0, max=0.5, help="Own pictures: share used for validation. Default: 0.1.")
    ] = None,
    test: Annotated[
        float | None, typer.Option(min=0, max=0.5, help="Own pictures: share used for testing. Default: 0.1.")
    ] = None,
    strict: Annotated[bool, typer.Option("--strict", help="Own pictures: stop if one cannot be read.")] = False,
    tensorboard: Annotated[
        bool, typer.Option("--tensorboard", help="Also write event files for TensorBoard, into the run's folder.")
    ] = False,
    cuda_graph: Annotated[
        bool, typer.Option(help="On CUDA, replay each training step as a CUDA graph, which is faster.")
    ] = True,
) -> None:
    """Train a net and write a run folder: weights, settings, metrics, plots."""
    import matplotlib  # noqa: F401  # pyright: ignore[reportUnusedImport]: draws last: that it is missing must be known first

    from ..train.recipes import RecipeError
    from ..train.start import DEFAULT_RECIPE, TrainingPlan, TrainingRequest, start
    from .progress import Progress
    from .training_display import TrainingDisplay, evaluation_table

    settings = {
        "epochs": epochs,
        "optimizer": optimizer and optimizer.value,
        "batch_size": batch_size,
        "lr": lr,
        "momentum": momentum,
        "corrupted": corrupted,
        "held_out": held_out,
        "balance": balance,
    }
    settings = {name: value for name, value in settings.items() if value is not None}
    pictures: dict[str, Any] = {"fit": fit and fit.value, "val": val, "test": test, "strict": strict or None}
    pictures = {name: value for name, value in pictures.items() if value is not None}
    given = {"recipe": recipe, "seed": seed, "from": begin_with, "teacher": teachers or None}
    _check_usage({**given, **settings, **pictures}, resume, final)
    request = TrainingRequest(
        recipe=recipe.value if recipe else DEFAULT_RECIPE,
        settings=settings,
        seed=seed or 0,
        data=data,
        pictures=pictures,
        out=out,
        device=device,
        resume=resume,
        follow=final,
        begin_with=begin_with,
        teachers=tuple(teachers),
        tensorboard=tensorboard,
        cuda_graph=None if cuda_graph else False,
    )
    reading = Progress(None)

    def shown(plan: TrainingPlan) -> TrainingDisplay:
        reading.stop()
        return TrainingDisplay(plan)

    try:
        with reading:
            trained = start(request, shown, reading.update_of)
    except RecipeError as error:
        raise typer.BadParameter(f"{error}.") from None
    if trained:
        plan, result = trained
        print(evaluation_table(result, plan.dataset.name))
        say(f"\nThe run is in {plan.run.folder}. Next: {plan.next_command}")


def _check_usage(given: dict[str, Any], resume: bool, final: Path | None) -> None:
    """Refuse settings of a run that has its own: one that goes on, or follows another."""
    fixed = [f"--{name.replace('_', '-')}" for name, value in given.items() if value is not None]
    if resume and (fixed or final):
        fixed += ["--final"] if final else []
        raise typer.BadParameter(f"a run is resumed as it was begun: leave out {', '.join(fixed)}.")
    if final and fixed:
        raise typer.BadParameter(f"a final run is trained as {final} was: leave out {', '.join(fixed)}.")


@examples(
    "edgecifar evaluate runs/NAME",
    "edgecifar evaluate runs/NAME/bundle --variant edge --plot confusion.png",
    "edgecifar evaluate model.onnx --data DIR --json",
    "edgecifar evaluate bundle --data labelled.csv           # on the device, without torch",
)
@command
def evaluate(
    model: Annotated[Path, typer.Argument(help="A run folder, .pt (TorchScript), .pt2, .onnx or a bundle.")],
    data: Data = None,
    variant: Annotated[
        str | None, typer.Option(help="Variant of a bundle to measure. Default: the one that suits the provider.")
    ] = None,
    provider: Provider = "auto",
    split: Annotated[
        Split | None,
        typer.Option(help="Which split of your own pictures to measure. Default: test, or all if there is no split."),
    ] = None,
    plot: Annotated[Path | None, typer.Option(help="Draw the confusion matrix into this PNG.")] = None,
    as_json: Json = False,
) -> None:
    """Measure a model on labelled pictures: accuracy in all and per class, confusion, NLL, calibration, speed."""
    from .evaluating import evaluate_files, own_pictures

    if own := own_pictures(data, model):
        evaluate_files(model, own, variant=variant, provider=provider, split=split, plot=plot, as_json=as_json)
        return
    if split:
        raise typer.BadParameter("--split is for a folder or a CSV of labelled pictures.")
    from ..export import models
    from ..runtime.metrics import evaluate as measure
    from ..train import data as datasets
    from .display import counting, json_text
    from .progress import Progress
    from .training_display import evaluation_table

    loaded = models.load(model, variant, provider)
    trained_on_drawn = loaded.dataset == datasets.SYNTHETIC  # measured on its own kind unless told otherwise
    datasets.require_named(data, loaded.dataset or "the data set", loaded.origin)
    with Progress(None) as reading:
        named = data or (datasets.SYNTHETIC if trained_on_drawn else None)
        dataset = datasets.load(named, progress=reading.update_of)
    contract = loaded.contract or dataset.contract
    images, labels = dataset.test_images, dataset.test_labels_as(contract.labels)
    if loaded.variant:
        say(f"{model}: variant {loaded.variant} on {loaded.provider}")
    with counting("Evaluating", len(labels), "images") as progress:
        result = measure(loaded.probabilities, images, labels, contract.labels, progress=progress)
    if as_json:
        described = {
            "model": str(model),
            "kind": loaded.kind,
            "variant": loaded.variant,
            "provider": loaded.provider,
            "dataset": dataset.name,
        }
        print(json_text({**described, **result.as_json()}))
    else:
        print(evaluation_table(result, dataset.name))
    if plot:  # last: where the picture cannot be written, the figures are not lost
        from ..train.plots import confusion

        confusion(result, plot)
