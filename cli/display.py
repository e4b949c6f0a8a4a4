"""What people and programs see: tables, progress bars, predictions; results on stdout, prose on stderr."""

from __future__ import annotations

import contextlib
import json
import sys
from collections.abc import Callable, Generator, Iterable
from typing import TYPE_CHECKING, Any

from ..runtime.errors import PictureError, shown
from .streams import visible

if TYPE_CHECKING:
    from rich.console import Console

    from ..runtime.benchmark import Report, Row
    from ..runtime.bundle import Check
    from ..runtime.classifier import Classifier
    from ..runtime.rows import Result

BAR_WIDTH = 24
EIGHTHS = " ▏▎▍▌▋▊▉"


def json_text(document: Any, indent: int | None = 2) -> str:
    """Return one JSON document, its letters plain where stdout can show them all, else as escapes."""
    text = json.dumps(document, indent=indent, ensure_ascii=False)
    try:
        text.encode(sys.stdout.encoding or "ascii")
    except UnicodeEncodeError:  # the stream's own escapes are not JSON's
        text = json.dumps(document, indent=indent)
    return text


def bar(share: float, width: int = BAR_WIDTH) -> str:
    """Return a bar of `share`, 0 to 1, of `width` characters, in eighths where the terminal can show them."""
    if "utf" not in (sys.stdout.encoding or "").lower():
        return "#" * round(share * width)
    whole, part = divmod(round(share * width * 8), 8)
    return ("█" * whole + EIGHTHS[part]).rstrip()


def check_table(checks: list[Check]) -> str:
    """Return the checks of a bundle as lines of text."""
    width = max(len(check.name) for check in checks)
    verdicts = ["skip" if check.skipped else "ok  " if check.passed else "FAIL" for check in checks]
    return "\n".join(
        f"{verdict}  {check.name:<{width}}  {visible(check.detail)}"
        for verdict, check in zip(verdicts, checks, strict=True)
    )


def benchmark_table(report: Report) -> str:
    """Return a benchmark as lines of text, the machine first and the advice last."""
    from ..runtime.machine import ONNXRUNTIMES

    machine, versions = report.machine, report.machine["versions"]
    runtimes = [f"{package} {versions[package]}" for package in ONNXRUNTIMES if package in versions]
    features = " ".join(machine["cpu_features"])  # none on many Arm boards, nor where Linux is not
    lines = [
        f"{machine['cpu']}, {machine['usable_cpus']} usable cores{features and ', ' + features}; "
        f"{', '.join(runtimes) or 'onnxruntime ?'}, Python {machine['python']}",
        "",
        f"{'variant':<10} {'provider':<9} {'batch':>5} {'threads':>7} {'p50 ms':>9} {'p90 ms':>9} {'p99 ms':>9} "
        f"{'images/s':>9} {'calls':>7}",
    ]
    for row in report.rows:
        times = " ".join(f"{'—' if value is None else f'{value:.3f}':>9}" for value in row.milliseconds.values())
        lines.append(
            f"{row.variant:<10} {row.provider:<9} {row.batch:>5} {row.threads:>7} {times} "
            f"{row.images_per_second:>9,.0f} {row.calls:>7,}"
        )
    soon, much = report.best, report.best_throughput
    lines += [
        "",
        f"Best on this machine: for latency --variant {soon.variant} --threads {soon.threads} "
        f"({_latency(soon)} at batch {soon.batch}), for throughput --variant {much.variant} "
        f"--threads {much.threads} ({much.images_per_second:,.0f} images/s at batch {much.batch}).",
    ]
    return "\n".join(lines)


def _latency(row: Row) -> str:
    """Return the figures that a row was chosen by."""
    usual, rare = row.milliseconds["p50"], row.milliseconds["p99"]
    return f"{usual:.3f} ms" if rare is None else f"p50 {usual:.3f} ms, p99 {rare:.3f}"


def width_of(text: str) -> int:
    """Return how many columns of a terminal a text takes; some characters take two or none."""
    import unicodedata  # seldom needed

    if text.isascii():
        return len(text)
    wide = sum(unicodedata.east_asian_width(character) in "WF" for character in text)
    return len(text) + wide - sum(unicodedata.combining(character) > 0 for character in text)


def padded(text: str, width: int, align: str = "<") -> str:
    """Return `text` with spaces up to `width` columns of a terminal, after it or, where `align` is ">", before it."""
    space = " " * (width - width_of(text))
    return space + text if align == ">" else text + space


def _print_text(classifier: Classifier, _top_k: int, results: Iterable[Result]) -> None:
    width = min(30, max(map(width_of, classifier.contract.labels)))
    for source, result in results:
        if isinstance(result, PictureError):
            continue
        stranger = result.known is False
        print(f"{shown(source)}{': unlike the training pictures' if stranger else ''}")
        for label, probability in result.top:
            named = padded(f"[{label}]", width + 2) if stranger else padded(label, width)
            print(f"  {named} {100 * probability:5.1f} %  {bar(probability)}")


def _print_json(classifier: Classifier, _top_k: int, results: Iterable[Result]) -> None:
    from ..runtime.rows import row_of

    document = {
        "bundle": str(classifier.bundle.folder),
        "dataset": classifier.bundle.manifest.dataset,
        "variant": classifier.variant.name,
        "provider": classifier.provider,
        "threads": classifier.threads,
        "predictions": [row_of(source, result) for source, result in results],
    }
    print(json_text(document))


def _print_jsonl(_classifier: Classifier, _top_k: int, results: Iterable[Result]) -> None:
    from ..runtime.rows import row_of

    for source, result in results:
        print(json_text(row_of(source, result), indent=None), flush=True)


def _print_csv(_classifier: Classifier, top_k: int, results: Iterable[Result]) -> None:
    from ..runtime.rows import csv_cells, csv_columns, csv_text

    sys.stdout.write(csv_text([csv_columns(top_k)]))
    on_terminal = sys.stdout.isatty()  # elsewhere the name is data
    for source, result in results:
        sys.stdout.write(csv_text([csv_cells(shown(source) if on_terminal else source, result, top_k)]))


PREDICTION_PRINTERS: dict[str, Callable[..., None]] = {
    "text": _print_text,
    "json": _print_json,
    "jsonl": _print_jsonl,
    "csv": _print_csv,
}
"""Each takes the classifier, how many classes are listed, and pairs of a source and its result, in order."""


def draws(console: Console) -> bool:
    """Whether bars may be drawn; rich takes a file for a terminal where FORCE_COLOR is set, which is about colours."""
    return console.is_terminal and sys.stderr.isatty()


@contextlib.contextmanager
def counting(what: str, total: int, unit: str) -> Generator[Callable[[int], None]]:
    """Show a progress bar on stderr and yield the function that is told how many are done."""
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeRemainingColumn
    from rich.progress import Progress as Bar

    console = Console(stderr=True)
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn(unit),
        TimeRemainingColumn(),
    )
    with Bar(*columns, console=console, transient=True, disable=not draws(console)) as progress:
        task = progress.add_task(what, total=total)
        yield lambda done: progress.update(task, completed=done)
