"""The subcommand predict."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from . import streams
from .app import BundleFolder, Fit, Json, Provider, Threads, command, say


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
    from ..runtime.sources import LeftOut, find_pictures
    from .display import PREDICTION_PRINTERS

    if as_json and as_csv:
        raise typer.BadParameter("choose one of --json and --csv.")
    left_out = LeftOut()
    sources = find_pictures(images, left_out)
    classifier = Classifier(bundle, variant, provider, threads)
    if verbose:
        say(
            f"{classifier.bundle.folder}: variant {classifier.variant.name} ({classifier.variant.precision}) on "
            f"{classifier.provider}, {classifier.threads} thread{'s' * (classifier.threads > 1)}"
        )
        say(classifier.reason)
    dataset = classifier.bundle.manifest.dataset
    if dataset != "CIFAR-10":
        say(f"Note: this model was trained on {dataset} data, not on CIFAR-10.")
    bad = 0

    def results() -> Any:
        nonlocal bad
        for source, result in zip(sources, classifier.stream(sources, top_k, fit.value), strict=True):
            if isinstance(result, PictureError):
                bad += 1
                say(f"edgecifar: {result}")
            yield source, result

    with streams.results():
        PREDICTION_PRINTERS["json" if as_json else "csv" if as_csv else "text"](classifier, top_k, results())
    if left_out.reasons:
        say(f"{left_out}.")
    if bad or left_out.unread:
        raise typer.Exit(1)
