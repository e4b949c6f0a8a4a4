"""The subcommand predict."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Annotated

import typer

from . import streams
from .app import BundleFolder, Fit, Json, Provider, Threads, command, examples, say

if TYPE_CHECKING:
    from ..runtime.classifier import Prediction
    from ..runtime.errors import PictureError

TOP_K = 3
"""How many classes are listed where nothing else is said; fewer where the bundle has fewer."""


@examples(
    "edgecifar predict photo.jpg",
    "edgecifar predict holiday/ 'more/*.png' --json --top-k 1",
    "cat photo.jpg | edgecifar predict - --bundle runs/NAME/bundle --variant fp32",
)
@command
def predict(
    images: Annotated[
        list[str], typer.Argument(metavar="IMAGE...", help="Pictures, folders, globs; '-' is standard input.")
    ],
    bundle: BundleFolder = None,
    variant: Annotated[
        str | None, typer.Option(help="Of the bundle. Default: what suits the provider.", show_default=False)
    ] = None,
    provider: Provider = "auto",
    threads: Threads = None,
    top_k: Annotated[
        int | None,
        typer.Option(min=1, help=f"How many classes to list. Default: {TOP_K}, or all of fewer.", show_default=False),
    ] = None,
    fit: Annotated[
        Fit | None,
        typer.Option(
            help="How a picture is made square. crop: the subject is in the middle; squash: the whole picture counts, "
            "its shape does not; pad: whole picture and shape count. Default: as in training.",
            show_default=False,
        ),
    ] = None,
    as_json: Json = False,
    as_csv: Annotated[bool, typer.Option("--csv", help="Print a CSV row a picture instead.")] = False,
    verbose: Annotated[bool, typer.Option("--verbose", "-v", help="Say what runs, and where.")] = False,
) -> None:
    """Classify pictures of any format and size; a bad one is reported and the rest are classified."""
    from ..runtime.classifier import Classifier
    from ..runtime.errors import PictureError
    from ..runtime.manifest import SYNTHETIC
    from ..runtime.sources import LeftOut, find_pictures
    from .display import PREDICTION_PRINTERS

    if as_json and as_csv:
        raise typer.BadParameter("choose one of --json and --csv.")
    left_out = LeftOut()
    sources = find_pictures(images, left_out)
    classifier = Classifier(bundle, variant, provider, threads)
    classes = classifier.contract.classes
    if top_k and top_k > classes:
        raise typer.BadParameter(f"--top-k {top_k}: the bundle has {classes} classes, choose 1 to {classes}.")
    if verbose:
        say(
            f"{classifier.bundle.folder}: variant {classifier.variant.name} ({classifier.variant.precision}) on "
            f"{classifier.provider}, {classifier.threads} thread{'s' * (classifier.threads > 1)}"
        )
        say(classifier.reason)
    if classifier.bundle.manifest.dataset == SYNTHETIC:
        say("Note: this model was trained on drawn shapes, to try the pipeline; it knows no photographs.")
    listed, bad = min(top_k or TOP_K, classes), 0

    def results() -> Iterator[tuple[str, Prediction | PictureError]]:
        nonlocal bad
        found = classifier.stream(sources, listed, fit.value if fit else None)
        for source, result in zip(sources, found, strict=True):
            if isinstance(result, PictureError):
                bad += 1
                say(f"edgecifar: {result}")
            yield source, result

    with streams.results():
        PREDICTION_PRINTERS["json" if as_json else "csv" if as_csv else "text"](classifier, listed, results())
    if left_out.reasons:
        say(f"{left_out}.")
    if bad or left_out.unread:
        raise typer.Exit(1)
