"""The `edgecifar` command: what each subcommand takes; what it does is in the library, what it prints in `display`."""

from __future__ import annotations

import functools
import json
import math
import re
import shlex
import sys
from collections.abc import Callable
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

import typer

from . import streams

app = typer.Typer(
    help="Train a CIFAR-10 classifier, prove its exports equal, and serve it without torch.",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode=None,  # help without boxes: importing rich takes longer than all else that help does
    pretty_exceptions_show_locals=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)

EXTRAS = {"train": "train", "evaluate": "train", "export": "export", "info": "train"}
"""Which extra of the package a command needs beyond the base install; `info` for a run folder only."""


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


class Format(StrEnum):
    """Formats that `export` writes."""

    onnx = "onnx"
    torchscript = "torchscript"
    pt2 = "pt2"
    all = "all"


class VariantName(StrEnum):
    """Variants of the ONNX format that `export` makes."""

    fp32 = "fp32"
    fp16 = "fp16"
    edge = "edge"
    tiny = "tiny"
    all = "all"


class Fit(StrEnum):
    """How a picture is made square."""

    crop = "crop"
    squash = "squash"
    pad = "pad"


def command(function: Callable[..., None]) -> Callable[..., None]:
    """Register a subcommand; known failures become one sentence and exit code 1, never a traceback."""

    @functools.wraps(function)
    def reported(*args: Any, **kwargs: Any) -> None:
        from ..runtime.errors import EdgecifarError

        name = function.__name__
        try:
            with streams.results():
                function(*args, **kwargs)
        except EdgecifarError as error:
            _fail(str(error))
        except ModuleNotFoundError as error:
            if error.name is None or error.name.startswith("edgecifar"):
                raise
            extra = f".[{EXTRAS[name]}]" if name in EXTRAS else "."
            _fail(
                f"edgecifar {name} needs {error.name}, which is not installed: pip install '{extra}' in the folder of "
                "its source."
            )
        except OSError as error:  # what no library function foresaw: a path that may not be read, or is too long
            if error.filename is None:
                raise
            _fail(f"{error.filename} cannot be used ({error.strerror}): check the path and its permissions.")
        except KeyboardInterrupt:
            print("Stopped.", file=sys.stderr)
            raise typer.Exit(130) from None

    # In the list of commands a line is cut to fit; up to its first comma, colon or semicolon it does.
    return app.command(short_help=re.split("[,:;.]", function.__doc__ or "")[0])(reported)


def _fail(sentence: str) -> None:
    print(f"edgecifar: {sentence}", file=sys.stderr)
    raise typer.Exit(1)


def _say(line: str) -> None:
    print(line, file=sys.stderr)


def _version(wanted: bool) -> None:
    if wanted:
        from importlib.metadata import version

        print(f"edgecifar {version('edgecifar')}")
        raise typer.Exit


def _finite(value: float | None) -> float | None:
    if value is not None and not math.isfinite(value):
        raise typer.BadParameter(f"{value} is not a number to go by.")
    return value


@app.callback()
def _root(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version and exit.")
    ] = False,
) -> None:
    pass


Data = Annotated[
    str | None,
    typer.Option(
        help="Folder with the CIFAR-10 files, or 'synthetic' to try the pipeline without them. "
        "Default: $EDGECIFAR_DATA, else ~/.cache/edgecifar, where they are downloaded to.",
        show_default=False,
    ),
]
BundleFolder = Annotated[
    Path | None, typer.Option("--bundle", help="A bundle made by 'edgecifar export'. Default: the one installed.")
]
Provider = Annotated[
    str,
    typer.Option(help="cpu, cuda, tensorrt, openvino, directml, coreml, xnnpack; auto: cuda if it runs, else cpu."),
]
Threads = Annotated[
    int | None, typer.Option(min=1, help="Threads of one call. Default: what affinity and cgroup quota allow.")
]
Json = Annotated[bool, typer.Option("--json", help="Print one JSON document instead.")]


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
            run = begun = Run(out) if out else Run.newest(unfinished=True, say=_say)
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
            dataset = datasets.load(data, say=_say)
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
        _say(f"\nThe run is in {run.folder}. Next: edgecifar export {run.folder} --format onnx")


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
    dataset = datasets.load(data or (datasets.SYNTHETIC if trained_on_drawn else None), say=_say)
    if loaded.variant:
        _say(f"{model}: variant {loaded.variant} on {loaded.provider}")
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


@command
def export(
    run: Annotated[Path | None, typer.Argument(help="A run folder. Default: the newest finished under runs/.")] = None,
    formats: Annotated[list[Format], typer.Option("--format", help="May be repeated.")] = [Format.onnx],  # noqa: B006
    variants: Annotated[
        list[VariantName],
        typer.Option("--variant", help="Of ONNX: fp32 exact, fp16 for GPUs, edge small and fast, tiny more so."),
    ] = [VariantName.fp32],  # noqa: B006
    out: Annotated[Path | None, typer.Option(help="The bundle to make. Default: RUN/bundle.")] = None,
    data: Data = None,
    budget: Annotated[
        float,
        typer.Option(
            min=0, callback=_finite, help="Points of held-out accuracy that edge may lose; tiny five times as many."
        ),
    ] = 0.2,
    fine_tune: Annotated[
        int,
        typer.Option(
            min=0, help="Epochs in which a narrower net learns to be edge; tiny five times as many; 0: low rank."
        ),
    ] = 0,
    device: Annotated[str, typer.Option(help="What fine-tunes: auto, cpu, cuda or mps.")] = "auto",
    sign: Annotated[
        Path | None, typer.Option(help="Sign the bundle with this private key, PEM.", show_default=False)
    ] = None,
    force: Annotated[bool, typer.Option("--force", help="Replace a bundle that is there already.")] = False,
) -> None:
    """Export a run into a bundle, after proving that each model in it agrees with the net."""
    from ..runtime.signing import Signer

    signer = Signer(sign) if sign else None  # first: a key that cannot sign is said before the long work
    from ..export.build import export as build
    from ..train import data as datasets
    from ..train.run import FINISHED, Run

    if set(variants) != {VariantName.fp32} and not {Format.onnx, Format.all} & set(formats):
        raise typer.BadParameter("--variant chooses among the ONNX models: add --format onnx.")
    if fine_tune and not {VariantName.edge, VariantName.tiny, VariantName.all} & set(variants):
        raise typer.BadParameter("--fine-tune is for the lossy variants: add --variant edge or --variant tiny.")
    source = Run(run) if run else Run.newest(say=_say)
    record, name = source.record, source.record["dataset"]["name"]
    if record["status"] != FINISHED:
        done, all_ = record.get("epochs_done", 0), record["recipe"]["epochs"]
        _say(f"Note: {source.folder} is not finished: {done} of {all_} epochs.")
    elif not run:
        _say(f"The newest finished run: {source.folder}")
    dataset = datasets.load_for_export(name, data, _say)
    target = out or source.folder / "bundle"
    bundle, _ = build(
        source,
        target,
        _expand(formats, Format),
        _expand(variants, VariantName),
        dataset,
        budget,
        force,
        signer,
        _say,
        fine_tune,
        device,
    )
    _say(f"\nThe bundle is in {bundle.folder}. Next: edgecifar predict photo.jpg --bundle {bundle.folder}")


def _expand(chosen: list[Any], kind: type[StrEnum]) -> list[str]:
    """Return the values chosen, in the order they are declared, "all" spelt out."""
    names = [member.value for member in kind if member.value != "all"]
    wanted = {member.value for member in chosen}
    return [name for name in names if "all" in wanted or name in wanted]


@command
def predict(
    images: Annotated[
        list[str], typer.Argument(metavar="IMAGE...", help="Pictures, folders, globs; '-' is standard input.")
    ],
    bundle: BundleFolder = None,
    variant: Annotated[
        str | None, typer.Option(help="Of the bundle. Default: what suits provider and processor.", show_default=False)
    ] = None,
    provider: Provider = "auto",
    threads: Threads = None,
    top_k: Annotated[int, typer.Option(min=1, max=10, help="How many classes to list.")] = 3,
    fit: Annotated[Fit, typer.Option(help="How a picture is made square.")] = Fit.crop,
    as_json: Json = False,
    as_csv: Annotated[bool, typer.Option("--csv", help="Print a CSV row a picture instead.")] = False,
    verbose: Annotated[bool, typer.Option("--verbose", "-v", help="Say what runs, and where.")] = False,
) -> None:
    """Classify pictures of any format and size; a bad one is reported and the rest are classified."""
    from ..runtime import Classifier
    from ..runtime.errors import PictureError
    from ..runtime.pictures import find_pictures
    from .display import PREDICTION_PRINTERS

    if as_json and as_csv:
        raise typer.BadParameter("choose one of --json and --csv.")
    sources = find_pictures(images)
    classifier = Classifier(bundle, variant, provider, threads)
    if verbose:
        _say(
            f"{classifier.bundle.folder}: variant {classifier.variant.name} ({classifier.variant.precision}) on "
            f"{classifier.provider}, {classifier.threads} thread{'s' * (classifier.threads > 1)}"
        )
        _say(classifier.reason)
    dataset = classifier.bundle.manifest.dataset
    if dataset != "CIFAR-10":
        _say(f"Note: this model was trained on {dataset} data, not on CIFAR-10.")
    bad = 0

    def results() -> Any:
        nonlocal bad
        for source, result in zip(sources, classifier.stream(sources, top_k, fit.value), strict=True):
            if isinstance(result, PictureError):
                bad += 1
                _say(f"edgecifar: {result}")
            yield source, result

    with streams.results():
        PREDICTION_PRINTERS["json" if as_json else "csv" if as_csv else "text"](classifier, top_k, results())
    if bad:
        raise typer.Exit(1)


@command
def verify(
    bundle: Annotated[Path | None, typer.Argument(help="A bundle. Default: the one installed.")] = None,
    key: Annotated[
        Path | None, typer.Option(help="It must be signed: with the private key of this public key, PEM.")
    ] = None,
    as_json: Json = False,
) -> None:
    """Check a bundle: every digest, no unknown file, and the golden vectors of each variant on this machine."""
    from dataclasses import asdict

    from ..runtime import Bundle
    from .display import check_table

    opened = Bundle.open(bundle, key)
    checks = opened.verify(key)
    failed = [check.name for check in checks if not check.passed]
    verdict = {"bundle": str(opened.folder), "passed": not failed, "checks": [asdict(check) for check in checks]}
    with streams.results():  # whoever reads them, the exit code is that of the checks
        print(json.dumps(verdict, indent=2) if as_json else check_table(checks))
    if failed:
        _fail(f"{opened.folder} failed {len(failed)} of {len(checks)} checks: {', '.join(failed)}.")


@command
def benchmark(
    bundle: BundleFolder = None,
    provider: Provider = "cpu",
    batch: Annotated[
        list[int] | None, typer.Option(min=1, max=16384, help="May be repeated. Default: 1 and 64.")
    ] = None,
    threads: Annotated[list[int] | None, typer.Option(min=1, help="May be repeated. Default: 1 and all.")] = None,
    variant: Annotated[list[str] | None, typer.Option(help="May be repeated. Default: all ONNX ones.")] = None,
    seconds: Annotated[
        float | None,
        typer.Option(
            min=0.1,
            max=3600,
            callback=_finite,
            help="How long each row is measured. Default: 2, or what fits into a minute.",
        ),
    ] = None,
    as_json: Json = False,
) -> None:
    """Measure this machine: latency and throughput of each variant, batch size and thread count."""
    from ..runtime import Bundle
    from ..runtime.benchmark import measure
    from .display import benchmark_table

    opened = Bundle.open(bundle)
    report = measure(opened, provider, batch or (1, 64), threads, seconds, _say, variant)
    print(json.dumps(report.as_json(), indent=2) if as_json else benchmark_table(report))


@command
def info(
    model: Annotated[
        Path | None, typer.Argument(help="A run folder, .onnx or a bundle. Default: the bundle installed.")
    ] = None,
    as_json: Json = False,
) -> None:
    """Say what a model is: layers, sizes, variants, labels, provenance, accuracy."""
    from .display import describe_model

    print(describe_model(model, as_json))


def main() -> None:
    """Run the command line."""
    streams.prepare()
    try:
        app(prog_name="edgecifar")
    finally:
        streams.close()
