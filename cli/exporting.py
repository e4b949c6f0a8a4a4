"""The subcommand export."""

from __future__ import annotations

import shlex
from collections.abc import Set
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

import typer

from .app import Data, command, examples, finite, say


class Format(StrEnum):
    """Formats that `export` writes."""

    onnx = "onnx"
    torchscript = "torchscript"
    pt2 = "pt2"
    all = "all"


class Students(StrEnum):
    """What `export` fine-tunes."""

    narrowed = "narrowed"
    residual = "residual"


class VariantName(StrEnum):
    """Variants of the ONNX format that `export` makes."""

    fp32 = "fp32"
    fp16 = "fp16"
    edge = "edge"
    tiny = "tiny"
    nano = "nano"
    all = "all"


SMALL = {VariantName.edge, VariantName.tiny, VariantName.nano}


class Layout(StrEnum):
    """Layouts that a bundle can be written in for other programs."""

    triton = "triton"


@examples(
    "edgecifar export                                  the newest finished run, exactly, into RUN/bundle",
    "edgecifar export runs/NAME --format all --variant all --fine-tune 20",
    "edgecifar export runs/NAME --variant edge --budget 0.3 --out bundle --sign my.key",
    "edgecifar export runs/TEACHER --variant tiny --fine-tune 20 --corrupted 0.5",
    "edgecifar export BUNDLE --layout triton --out models",
)
@command
def export(
    context: typer.Context,
    run: Annotated[
        Path | None,
        typer.Argument(
            help="A run folder. Default: the newest finished run of Net under runs/. With --layout: a bundle."
        ),
    ] = None,
    formats: Annotated[list[Format], typer.Option("--format", help="File format. May be repeated.")] = [Format.onnx],  # noqa: B006
    variants: Annotated[
        list[VariantName],
        typer.Option(
            "--variant",
            help="ONNX models to make. fp32: exact; fp16: for GPUs; edge, tiny, nano: int8, each smaller than the one "
            "before; all: all but nano. May be repeated.",
        ),
    ] = [VariantName.fp32],  # noqa: B006
    layout: Annotated[
        Layout | None,
        typer.Option(
            help="Write a bundle as another program wants it: triton, a model repository.", show_default=False
        ),
    ] = None,
    out: Annotated[
        Path | None, typer.Option(help="The bundle to write. Default: RUN/bundle. With --layout: the folder to write.")
    ] = None,
    data: Data = None,
    without_data: Annotated[
        bool,
        typer.Option(
            "--without-data",
            help="Export without the run's data set: parity is tested on drawn pictures, and accuracy is not measured.",
        ),
    ] = False,
    budget: Annotated[
        float,
        typer.Option(
            min=0,
            callback=finite,
            help="Percentage points of validation accuracy that edge may lose; tiny 5 times as many. Of residual nets: "
            "edge and tiny 15, nano 40 times as many.",
        ),
    ] = 0.2,
    max_bytes: Annotated[
        int | None,
        typer.Option(
            min=1,
            help="Largest file, in bytes, for an export of one of edge, tiny and nano. With --students residual, the "
            "widest net that fits is trained.",
            show_default=False,
        ),
    ] = None,
    fine_tune: Annotated[
        int,
        typer.Option(
            min=0,
            help="Epochs to train edge for; tiny 5 times as many. Of residual nets: edge 2, tiny 3, nano 5 times as "
            "many. Where the first edge, or tiny of fewer channels, loses too much, a wider one is trained, too. 0: "
            "nothing is trained, and large layers become low-rank factors.",
        ),
    ] = 0,
    students: Annotated[
        Students,
        typer.Option(
            help="What --fine-tune trains: narrowed, the run's net with fewer channels; residual, a small net from "
            "random weights. nano, and every student of a teacher, is residual."
        ),
    ] = Students.narrowed,
    teachers: Annotated[
        list[Path],
        typer.Option(
            "--teacher",
            help="Fine-tune on the answers of this finished run instead of RUN's; if RUN is a teacher, on both. May be "
            "repeated.",
        ),
    ] = [],  # noqa: B006
    corrupted: Annotated[
        float | None,
        typer.Option(
            min=0,
            max=1,
            callback=finite,
            help="Share of the small nets' training pictures that get noise, blur, haze and the like. Default: the "
            "run's.",
            show_default=False,
        ),
    ] = None,
    device: Annotated[str, typer.Option(help="Device for --fine-tune: auto, cpu, cuda or mps.")] = "auto",
    sign: Annotated[
        Path | None, typer.Option(help="Sign the bundle with this private key (PEM).", show_default=False)
    ] = None,
    force: Annotated[
        bool, typer.Option("--force", help="Replace an existing bundle; with --layout, the bundle's models.")
    ] = False,
) -> None:
    """Export a run into a bundle. The bundle is written only if each model in it agrees with the net."""
    from ..runtime.errors import ModelError
    from ..runtime.files import refuse_existing
    from ..runtime.paths import kind_of
    from ..runtime.signing import Signer

    if layout:
        if _given(context) - {"run", "layout", "out", "force"}:
            raise typer.BadParameter("--layout copies a bundle as it is: only --out and --force go with it.")
        _lay_out(run, out, force)
        return
    signer = Signer(sign) if sign else None  # first: a key that cannot sign is said before the long work
    if run and run.exists() and kind_of(run) != "run":
        hint = "; --layout copies a bundle" if kind_of(run) == "bundle" else ""
        raise ModelError(f"{run} is not a run folder: name one that 'edgecifar train' made{hint}.")
    _check_usage(formats, variants, fine_tune, data if without_data else None)
    if "budget" in _given(context) and not {*SMALL, VariantName.all} & {*variants}:
        raise typer.BadParameter("--budget is for the lossy variants: add --variant edge, tiny or nano.")
    if max_bytes is not None and (len(SMALL & {*variants}) != 1 or VariantName.all in variants):
        raise typer.BadParameter("--max-bytes is for one small variant: add --variant edge, tiny or nano.")
    if not fine_tune and {"teachers", "students", "corrupted", "device"} & _given(context):
        raise typer.BadParameter(
            "--teacher, --students, --corrupted and --device say how nets are fine-tuned: add --fine-tune EPOCHS."
        )

    from ..export.build import export as build
    from ..export.build import refuse_no_bundle
    from ..export.options import ExportOptions
    from ..train import data as datasets
    from ..train.run import Run
    from .progress import Progress

    source = Run(run) if run else Run.newest(without_teachers=True)
    place, record = out or source.folder / "bundle", source.record
    refuse_existing(place, force, refuse_no_bundle)  # before the data set is read
    if not record.is_finished:
        say(f"Note: {source.folder} is not finished: {record.epochs_done} of {record.recipe.epochs} epochs.")
    elif not run:
        say(f"The newest finished run: {source.folder}")
    dataset = None
    if not without_data:
        trained_on = record.dataset
        with Progress(None) as reading:
            dataset = datasets.load_for_export(trained_on.name, data, trained_on.origin, reading.update_of)
    options = ExportOptions(
        formats=_expand(formats, Format),
        variants=_expand(variants, VariantName, by_name={VariantName.nano}),  # it costs the most training
        budget=budget,
        fine_tune=fine_tune,
        students=students.value,
        max_bytes=max_bytes,
        teachers=tuple(teachers),
        corrupted=corrupted,
        device=device,
        without_data=without_data,
        replace=force,
        signer=signer,
    )
    bundle, _ = build(source, place, dataset, options)
    shown = place if place.name else bundle.folder  # "." is the folder that was replaced
    say(f"\nThe bundle is in {shown}. Next: edgecifar predict photo.jpg --bundle {shlex.quote(str(shown))}")


def _given(context: typer.Context) -> set[str]:
    """Return the names of the parameters that were named on the command line."""
    sources = {name: context.get_parameter_source(name) for name in context.params}
    return {name for name, source in sources.items() if source and source.name == "COMMANDLINE"}


def _lay_out(folder: Path | None, out: Path | None, force: bool) -> None:
    """Write the bundle in `folder`, by default the one installed, as a model repository of Triton."""
    from ..runtime.bundle import Bundle
    from ..runtime.triton import write_repository

    if out is None:
        raise typer.BadParameter("--layout needs the folder to write: add --out models.")
    bundle = Bundle.open(folder)
    name = folder.resolve().name if folder else "edgecifar"
    names, removed = write_repository(bundle, out, name=name, replace=force)
    if removed:
        say(f"Removed, as the bundle has no such variants any more: {', '.join(removed)}.")
    place = shlex.quote(str(out.resolve()))
    say(f"The model repository is in {out}: {', '.join(names)}. Next: tritonserver --model-repository {place}")


def _check_usage(formats: list[Format], variants: list[VariantName], fine_tune: int, data: str | None) -> None:
    """Refuse options that contradict one another; `data` is given only beside --without-data."""
    if set(variants) != {VariantName.fp32} and not {Format.onnx, Format.all} & set(formats):
        raise typer.BadParameter("--variant chooses among the ONNX models: add --format onnx.")
    if fine_tune and not {*SMALL, VariantName.all} & set(variants):
        raise typer.BadParameter("--fine-tune is for the lossy variants: add --variant edge, tiny or nano.")
    if data:
        raise typer.BadParameter("--data and --without-data exclude one another: give one of them.")


def _expand(chosen: list[Any], kind: type[StrEnum], by_name: Set[str] = frozenset()) -> tuple[str, ...]:
    """Return the values chosen, in the order they are declared, "all" spelt out: all but those `by_name` alone."""
    names = [member.value for member in kind if member.value != "all"]
    wanted = {member.value for member in chosen}
    return tuple(name for name in names if name in wanted or ("all" in wanted and name not in by_name))
