"""The subcommand export."""

from __future__ import annotations

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


@examples(
    "edgecifar export                                  the newest finished run, exactly, into RUN/bundle",
    "edgecifar export runs/NAME --format all --variant all --fine-tune 20",
    "edgecifar export runs/NAME --variant edge --budget 0.3 --out bundle --sign my.key",
)
@command
def export(
    run: Annotated[Path | None, typer.Argument(help="A run folder. Default: the newest finished under runs/.")] = None,
    formats: Annotated[list[Format], typer.Option("--format", help="May be repeated.")] = [Format.onnx],  # noqa: B006
    variants: Annotated[
        list[VariantName],
        typer.Option(
            "--variant", help="Of ONNX: fp32 exact, fp16 for GPUs; edge, tiny, nano: ever smaller and faster."
        ),
    ] = [VariantName.fp32],  # noqa: B006
    out: Annotated[Path | None, typer.Option(help="The bundle to make. Default: RUN/bundle.")] = None,
    data: Data = None,
    without_data: Annotated[
        bool,
        typer.Option(
            "--without-data",
            help="Export though the run's data set is not at hand: parity on drawn pictures, no accuracy.",
        ),
    ] = False,
    budget: Annotated[
        float,
        typer.Option(
            min=0, callback=finite, help="Points of held-out accuracy that edge may lose; tiny five times as many."
        ),
    ] = 0.2,
    fine_tune: Annotated[
        int,
        typer.Option(
            min=0, help="Epochs in which a narrower net learns to be edge; tiny five times as many; 0: low rank."
        ),
    ] = 0,
    students: Annotated[
        Students,
        typer.Option(help="What is fine-tuned: the net narrowed, or a small residual net that begins untrained."),
    ] = Students.narrowed,
    teachers: Annotated[
        list[Path],
        typer.Option("--teacher", help="Fine-tune on the answers of this finished run instead. May be repeated."),
    ] = [],  # noqa: B006
    device: Annotated[str, typer.Option(help="What fine-tunes: auto, cpu, cuda or mps.")] = "auto",
    sign: Annotated[
        Path | None, typer.Option(help="Sign the bundle with this private key, PEM.", show_default=False)
    ] = None,
    force: Annotated[bool, typer.Option("--force", help="Replace a bundle that is there already.")] = False,
) -> None:
    """Export a run into a bundle, after proving that each model in it agrees with the net."""
    from ..runtime.errors import ModelError
    from ..runtime.paths import kind_of
    from ..runtime.signing import Signer

    signer = Signer(sign) if sign else None  # first: a key that cannot sign is said before the long work
    if run and run.exists() and kind_of(run) != "run":
        raise ModelError(f"{run} is not a run folder: name one that 'edgecifar train' made.")
    _check_usage(formats, variants, fine_tune, data if without_data else None)
    if not fine_tune and (teachers or students != Students.narrowed):
        raise typer.BadParameter("--teacher and --students say how nets are fine-tuned: add --fine-tune EPOCHS.")
    if not fine_tune and VariantName.all in variants:  # all that can be made without training
        variants = [name for name in VariantName if name not in (VariantName.all, VariantName.nano)]

    from ..export.build import export as build
    from ..export.options import ExportOptions
    from ..train import data as datasets
    from ..train.run import Run

    source = Run(run) if run else Run.newest(exported=True)
    record = source.record
    if not record.is_finished:
        say(f"Note: {source.folder} is not finished: {record.epochs_done} of {record.recipe.epochs} epochs.")
    elif not run:
        say(f"The newest finished run: {source.folder}")
    dataset = None if without_data else datasets.load_for_export(record.dataset.name, data)
    options = ExportOptions(
        formats=_expand(formats, Format),
        variants=_expand(variants, VariantName),
        budget=budget,
        fine_tune=fine_tune,
        students=students.value,
        teachers=tuple(teachers),
        device=device,
        without_data=without_data,
        replace=force,
        signer=signer,
    )
    bundle, _ = build(source, out or source.folder / "bundle", dataset, options)
    say(f"\nThe bundle is in {bundle.folder}. Next: edgecifar predict photo.jpg --bundle {bundle.folder}")


def _check_usage(formats: list[Format], variants: list[VariantName], fine_tune: int, data: str | None) -> None:
    """Refuse options that contradict one another; `data` is given only beside --without-data."""
    if set(variants) != {VariantName.fp32} and not {Format.onnx, Format.all} & set(formats):
        raise typer.BadParameter("--variant chooses among the ONNX models: add --format onnx.")
    if fine_tune and not {VariantName.edge, VariantName.tiny, VariantName.nano, VariantName.all} & set(variants):
        raise typer.BadParameter("--fine-tune is for the lossy variants: add --variant edge or --variant tiny.")
    if data:
        raise typer.BadParameter("--data and --without-data exclude one another: give one of them.")


def _expand(chosen: list[Any], kind: type[StrEnum]) -> tuple[str, ...]:
    """Return the values chosen, in the order they are declared, "all" spelt out."""
    names = [member.value for member in kind if member.value != "all"]
    wanted = {member.value for member in chosen}
    return tuple(name for name in names if "all" in wanted or name in wanted)
