"""What people and programs see: tables, progress bars, predictions; results on stdout, prose on stderr."""

from __future__ import annotations

import contextlib
import json
import math
import sys
from collections.abc import Callable, Iterable, Iterator
from typing import TYPE_CHECKING, Any

from ..runtime.errors import PictureError

if TYPE_CHECKING:
    import torch
    from rich.console import Console

    from ..runtime.benchmark import Report, Row
    from ..runtime.bundle import Check
    from ..runtime.classifier import Classifier, Prediction
    from ..runtime.metrics import Evaluation
    from ..train.data import Dataset
    from ..train.loop import Progress
    from ..train.recipes import Recipe

BAR_WIDTH = 24
EIGHTHS = " ▏▎▍▌▋▊▉"


def json_text(document: Any) -> str:
    """Return one JSON document, its letters plain where stdout can show them all, else as escapes."""
    text = json.dumps(document, indent=2, ensure_ascii=False)
    try:
        text.encode(sys.stdout.encoding or "ascii")
    except UnicodeEncodeError:  # the stream's own escapes are not JSON's
        text = json.dumps(document, indent=2)
    return text


def bar(share: float, width: int = BAR_WIDTH) -> str:
    """Return a bar of `share`, 0 to 1, of `width` characters, in eighths where the terminal can show them."""
    if "utf" not in (sys.stdout.encoding or "").lower():
        return "#" * round(share * width)
    whole, part = divmod(round(share * width * 8), 8)
    return ("█" * whole + EIGHTHS[part]).rstrip()


def evaluation_table(result: Evaluation, dataset: str) -> str:
    """Return an evaluation as lines of text: the figures, a line a class, and the confusion matrix."""
    lines = [
        f"{100 * result.accuracy:.2f} % of the {result.images:,} {dataset} test images ({result.correct:,} correct)",
        f"NLL {result.nll:.4f}   ECE {100 * result.ece:.2f} %   {result.images_per_second:,.0f} images/s",
        "",
    ]
    longest = min(30, max(map(len, result.per_class)))
    for label, accuracy in result.per_class.items():
        shown = "    —" if math.isnan(accuracy) else f"{100 * accuracy:5.1f} %  {bar(accuracy)}"
        lines.append(f"  {padded(label, longest)} {shown}")
    width = max(longest + 1, len(str(result.confusion.max())) + 1)
    lines += ["", "true (rows) against predicted (columns), images:"]
    lines.append(" " * (longest + 2) + "".join(f"{label:>{width}}" for label in result.per_class))
    for label, row in zip(result.per_class, result.confusion, strict=True):
        lines.append(f"  {padded(label, longest)}" + "".join(f"{count or '·':>{width}}" for count in row.tolist()))
    return "\n".join(lines)


def check_table(checks: list[Check]) -> str:
    """Return the checks of a bundle as lines of text."""
    width = max(len(check.name) for check in checks)
    verdicts = ["skip" if check.skipped else "ok  " if check.passed else "FAIL" for check in checks]
    return "\n".join(
        f"{verdict}  {check.name:<{width}}  {check.detail}" for verdict, check in zip(verdicts, checks, strict=True)
    )


def benchmark_table(report: Report) -> str:
    """Return a benchmark as lines of text, the machine first and the advice last."""
    machine = report.machine
    features = " ".join(machine["cpu_features"])  # none on many Arm boards, nor where Linux is not
    lines = [
        f"{machine['cpu']}, {machine['usable_cpus']} usable cores{features and ', ' + features}; "
        f"onnxruntime {machine['versions'].get('onnxruntime', '?')}, Python {machine['python']}",
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


def padded(text: str, width: int) -> str:
    """Return `text` with spaces up to `width` columns of a terminal, in which some characters take two or none."""
    import unicodedata  # seldom needed

    if not text.isascii():
        wide = sum(unicodedata.east_asian_width(character) in "WF" for character in text)
        width -= wide - sum(unicodedata.combining(character) > 0 for character in text)
    return f"{text:<{width}}"


def _shown(source: str) -> str:
    """Return a picture's name so that it cannot steer a terminal."""
    return source if source.isprintable() else ascii(source)


def _print_text(classifier: Classifier, _top_k: int, results: Iterable[tuple[str, Prediction | PictureError]]) -> None:
    width = min(30, max(map(len, classifier.contract.labels)))
    for source, result in results:
        if isinstance(result, PictureError):
            continue
        print(_shown(source))
        for label, probability in result.top:
            print(f"  {padded(label, width)} {100 * probability:5.1f} %  {bar(probability)}")


def _print_json(classifier: Classifier, _top_k: int, results: Iterable[tuple[str, Prediction | PictureError]]) -> None:
    entries = [
        {"source": source, "error": str(result)} if isinstance(result, PictureError) else result.as_json()
        for source, result in results
    ]
    document = {
        "bundle": str(classifier.bundle.folder),
        "dataset": classifier.bundle.manifest.dataset,
        "variant": classifier.variant.name,
        "provider": classifier.provider,
        "threads": classifier.threads,
        "predictions": entries,
    }
    print(json_text(document))


def _print_csv(_classifier: Classifier, top_k: int, results: Iterable[tuple[str, Prediction | PictureError]]) -> None:
    import csv

    writer = csv.writer(sys.stdout, lineterminator="\n")
    numbered = [f"{name}_{rank}" for rank in range(1, top_k + 1) for name in ("label", "probability")]
    writer.writerow(["source", "error", *numbered])
    on_terminal = sys.stdout.isatty()  # elsewhere the name is data
    for name, result in results:
        source = _shown(name) if on_terminal else name
        if isinstance(result, PictureError):
            writer.writerow([source, str(result)] + [""] * len(numbered))
        else:
            writer.writerow([source, ""] + [cell for label, p in result.top for cell in (label, f"{p:.6f}")])


PREDICTION_PRINTERS: dict[str, Callable[..., None]] = {"text": _print_text, "json": _print_json, "csv": _print_csv}
"""Each takes the classifier, how many classes are listed, and pairs of a source and its result, in order."""


def _draws(console: Console) -> bool:
    """Whether bars may be drawn; rich takes a file for a terminal where FORCE_COLOR is set, which is about colours."""
    return console.is_terminal and sys.stderr.isatty()


@contextlib.contextmanager
def counting(what: str, total: int, unit: str) -> Iterator[Callable[[int], None]]:
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
    with Bar(*columns, console=console, transient=True, disable=not _draws(console)) as progress:
        task = progress.add_task(what, total=total)
        yield lambda done: progress.update(task, completed=done)


class TrainingDisplay:
    """A `train.loop.Listener` that shows a bar an epoch on stderr, then a line; only lines where it is no terminal."""

    def __init__(self, recipe: Recipe, dataset: Dataset, device: torch.device, processes: int, again: str) -> None:
        from rich.console import Console
        from rich.progress import BarColumn, TextColumn, TimeRemainingColumn
        from rich.progress import Progress as Bar

        from ..train.loop import describe_device

        self.recipe, self.again = recipe, again
        self.console = Console(stderr=True, highlight=False, soft_wrap=True)
        columns = (
            TextColumn("{task.description}"),
            BarColumn(),
            TextColumn("{task.fields[note]}"),
            TimeRemainingColumn(),
        )
        self.bar = Bar(*columns, console=self.console, transient=True, disable=not _draws(self.console))
        self.console.print(net_summary(), markup=False)
        self.console.print(
            f"Recipe {recipe.name}: {recipe.epochs} epochs of {len(dataset.train_labels):,} {dataset.name} images"
            f"{f', {100 * recipe.held_out:g} % of them held out' if recipe.held_out else ''}, batch size "
            f"{recipe.batch_size}, on {describe_device(device)} ({device})"
            f"{f', {processes} processes' if processes > 1 else ''}. Ctrl-C stops; --resume goes on.",
            markup=False,
        )

    def __enter__(self) -> TrainingDisplay:
        self.bar.start()
        self.task = self.bar.add_task("", total=None, note="")
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: object) -> None:
        self.bar.stop()
        if isinstance(error, KeyboardInterrupt):
            self.console.print(f"To go on from the last complete epoch: {self.again}", markup=False)

    def progress(self, progress: Progress) -> None:
        """Move the bar."""
        note = f"loss {progress.loss:.3f}  {progress.images_per_second:,.0f} images/s"
        name = f"epoch {progress.epoch}/{self.recipe.epochs}"
        self.bar.update(self.task, description=name, total=progress.steps, completed=progress.step, note=note)

    def epoch(self, metrics: dict[str, Any]) -> None:
        """Print the line of a finished epoch."""
        from ..train.run import judged

        found = judged(metrics)
        accuracy = f"{found[0]} {100 * found[1]:.2f} %  " if found else ""
        windows = "".join(f", first 2,000 batches {loss:.3f}" for loss in metrics["loss_per_2000"][:1])
        self.console.print(
            f"epoch {metrics['epoch']:>3}/{self.recipe.epochs}  loss {metrics['loss']:.3f}{windows}  "
            f"{accuracy}{metrics['seconds']:.0f} s  {metrics['images_per_second']:,.0f} images/s",
            markup=False,
        )
        self.bar.reset(self.task)  # a bar that was full once shows no time left ever after


def net_summary() -> str:
    """Return the per-layer summary of Net: each layer's output shape, parameters and multiply-accumulates."""
    from torchinfo import summary

    from ..train.net import INPUT_SHAPE, Net

    columns = ("output_size", "num_params", "mult_adds")
    return str(
        summary(Net(), (1, *INPUT_SHAPE), col_names=columns, row_settings=("var_names",), verbose=0, device="cpu")
    )
