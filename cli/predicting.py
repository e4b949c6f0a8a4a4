"""The subcommand predict."""

from __future__ import annotations

import itertools
import sys
from collections.abc import Iterable, Iterator
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from . import streams
from .app import BundleFolder, Fit, Json, Provider, Threads, command, examples, say

if TYPE_CHECKING:
    from ..runtime.bulk import Options
    from ..runtime.classifier import Classifier
    from ..runtime.rows import Result
    from ..runtime.sources import LeftOut

TOP_K = 3
"""How many classes are listed where nothing else is said; fewer where the bundle has fewer."""


class Unknown(StrEnum):
    """What becomes of pictures that are unlike the training pictures; a test holds it to `bulk.UNKNOWN`."""

    keep = "keep"
    skip = "skip"
    error = "error"


@examples(
    "edgecifar predict photo.jpg",
    "edgecifar predict holiday/ 'more/*.png' --json --top-k 1",
    "edgecifar predict archive/ --out results.jsonl          # go on with --resume",
    "cat photo.jpg | edgecifar predict - --bundle runs/NAME/bundle --variant fp32",
)
@command
def predict(
    images: Annotated[
        list[str] | None,
        typer.Argument(metavar="IMAGE...", help="Pictures, folders, globs; '-' is standard input.", show_default=False),
    ] = None,
    bundle: BundleFolder = None,
    variant: Annotated[
        str | None,
        typer.Option(
            help="Variant of the bundle to run. Default: the one that suits the provider.", show_default=False
        ),
    ] = None,
    provider: Provider = "auto",
    threads: Threads = None,
    top_k: Annotated[
        int | None,
        typer.Option(
            min=1,
            help=f"How many classes to list. Default: {TOP_K}, or all if there are fewer.",
            show_default=False,
        ),
    ] = None,
    fit: Annotated[
        Fit | None,
        typer.Option(
            help="How a picture is made square. crop: cut out the centre; squash: scale the sides unequally; pad: keep "
            "all of it and add grey bars. Default: as in training.",
            show_default=False,
        ),
    ] = None,
    unknown: Annotated[
        Unknown,
        typer.Option(help="Pictures unlike the training pictures: keep and mark them, skip them, or make them errors."),
    ] = Unknown.keep,
    as_json: Json = False,
    as_jsonl: Annotated[
        bool, typer.Option("--jsonl", help="Print one JSON line per picture, as it is classified.")
    ] = False,
    as_csv: Annotated[bool, typer.Option("--csv", help="Print one CSV row per picture instead.")] = False,
    names: Annotated[
        str | None,
        typer.Option(
            "--list",
            help="A file with the names of more pictures, one a line, or NUL-separated as by 'find -print0'; '-' is "
            "standard input.",
            show_default=False,
        ),
    ] = None,
    jobs: Annotated[
        int | None,
        typer.Option(
            min=1,
            help="Processes that decode pictures, if there are many. Default: one per usable core.",
            show_default=False,
        ),
    ] = None,
    out: Annotated[
        Path | None,
        typer.Option(
            help="Write the results to FILE.jsonl, FILE.csv or a folder of Parquet files instead.", show_default=False
        ),
    ] = None,
    resume: Annotated[
        bool,
        typer.Option(
            "--resume", help="Continue the results in --out; pictures that have a row are not classified again."
        ),
    ] = False,
    retry_errors: Annotated[
        bool, typer.Option("--retry-errors", help="With --resume: try pictures again that could not be read.")
    ] = False,
    verbose: Annotated[
        bool, typer.Option("--verbose", "-v", help="Print which variant runs on which provider, and why.")
    ] = False,
) -> None:
    """Classify pictures of any size. One that cannot be read is reported, and the rest are classified."""
    from ..runtime import parallel
    from ..runtime.bulk import Options
    from ..runtime.classifier import Classifier
    from ..runtime.machine import usable_cpus
    from ..runtime.manifest import SYNTHETIC
    from ..runtime.sources import LeftOut

    form = _form({"json": as_json, "jsonl": as_jsonl, "csv": as_csv}, out, unknown)
    if (resume or retry_errors) and not out:
        raise typer.BadParameter("--resume needs --out: name the output to continue.")
    if retry_errors and not resume:
        raise typer.BadParameter("--retry-errors needs --resume: add it.")
    left_out = LeftOut()
    sources, total = _sources(images or [], names, left_out)
    if (total is None or total > parallel.FEW) and (jobs or usable_cpus()) > 1:
        parallel.prepare()  # goes on while the model loads
        threads = threads or 1  # and several calls at a time
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
    options = Options(min(top_k or TOP_K, classes), fit.value if fit else None, jobs, unknown.value)
    if out:
        bad = _write(out, classifier, sources, options, total, resume=resume, retry_errors=retry_errors)
    else:
        bad = _print(form, classifier, sources, options, total)
    if left_out.reasons:
        say(f"{left_out}.")
    if bad or left_out.unread:
        raise typer.Exit(1)


def _form(given: dict[str, bool], out: Path | None, unknown: Unknown) -> str:
    """Return which form of output was chosen, and refuse what does not go together."""
    forms = [form for form, chosen in given.items() if chosen]
    if len(forms) > 1:
        raise typer.BadParameter(f"choose one of {' and '.join(f'--{form}' for form in forms)}.")
    if out and forms:
        raise typer.BadParameter(f"the name of --out decides its format: leave out --{forms[0]}.")
    if out and unknown is Unknown.skip:
        raise typer.BadParameter("every picture has a row in --out: choose --unknown keep or error.")
    return forms[0] if forms else "text"


def _sources(images: list[str], names: str | None, left_out: LeftOut) -> tuple[Iterable[str], int | None]:
    """Return the pictures that the arguments and the list name, and how many they are where that is known."""
    from ..runtime.errors import PictureError
    from ..runtime.sources import find_pictures, read_list

    if not images and names is None:
        raise typer.BadParameter("name pictures, or a file that lists them with --list.")
    sources = find_pictures(images, left_out)
    if names is None:
        return sources, len(sources)
    if names == "-":
        if "-" in images:
            raise typer.BadParameter("standard input is either a picture or a list.")
        if sys.stdin is None:  # pyright: ignore[reportUnnecessaryComparison]: a shell may close it
            raise PictureError("Standard input is closed: name a file with the list, or pipe one in.")
        listed = read_list(sys.stdin.buffer)  # pyright: ignore[reportArgumentType]: it is buffered
        first = list(itertools.islice(listed, 1))
        if not first and not sources:
            raise PictureError("The list on standard input names no pictures: check what writes it.")
        return itertools.chain(sources, first, listed), None if first else len(sources)
    if not Path(names).exists():
        raise PictureError(f"There is no list {names}: check the path.")
    with Path(names).open("rb") as file:
        sources += read_list(file)
    if not sources:
        raise PictureError(f"{names} names no pictures: check the list.")
    return sources, len(sources)


def _print(form: str, classifier: Classifier, sources: Iterable[str], options: Options, total: int | None) -> int:
    """Print a result a picture, and return how many could not be read."""
    from ..runtime.bulk import results
    from ..runtime.errors import PictureError
    from .display import PREDICTION_PRINTERS
    from .progress import Progress

    bad = 0
    with Progress(total) as progress:

        def followed() -> Iterator[Result]:
            nonlocal bad
            for done, (source, result) in enumerate(results(classifier, sources, options), 1):
                if isinstance(result, PictureError):
                    bad += 1
                    say(f"edgecifar: {result}")
                yield source, result
                if not on_terminal:  # there, the results themselves show how far it is
                    progress.update(done, errors=bad)

        on_terminal = sys.stdout.isatty()
        with streams.results():
            PREDICTION_PRINTERS[form](classifier, options.top_k, followed())
    return bad


def _write(
    out: Path,
    classifier: Classifier,
    sources: Iterable[str],
    options: Options,
    total: int | None,
    *,
    resume: bool,
    retry_errors: bool,
) -> int:
    """Write a row a picture into `out`, and return how many could not be read."""
    from ..runtime.bulk import Count, classify_into
    from .progress import Progress, duration

    def show(count: Count) -> None:
        progress.update(count.done, count.earlier, count.errors)

    try:
        with Progress(total) as progress:
            count = classify_into(
                out, classifier, sources, options, resume=resume, retry_errors=retry_errors, progress=show
            )
    except KeyboardInterrupt:
        say(f"What is done is in {out}; --resume goes on with it.")
        raise
    rate = f" in {duration(progress.seconds)}, {count.done / progress.seconds:,.0f}/s" if count.done else ""
    earlier = f", {count.earlier:,} were there already" if count.earlier else ""
    say(f"{out}: {count.done:,} picture{'s' * (count.done != 1)}{rate}{earlier}.")
    if count.errors:
        strange = " or are unlike the training pictures" if options.unknown == Unknown.error else ""
        say(f"{count.errors:,} of them could not be read{strange}: their rows say why.")
    return count.errors
