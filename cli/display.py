"""What people and programs see: tables, progress bars, predictions; results on stdout, prose on stderr."""

from __future__ import annotations

import contextlib
import json
import math
import sys
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..runtime.errors import EdgecifarError, PictureError

if TYPE_CHECKING:
    import torch
    from rich.console import Console

    from ..runtime.benchmark import Report
    from ..runtime.bundle import Check
    from ..runtime.classifier import Classifier, Prediction
    from ..runtime.metrics import Evaluation
    from ..train.data import Dataset
    from ..train.loop import Progress
    from ..train.recipes import Recipe

BAR_WIDTH = 24
EIGHTHS = " ▏▎▍▌▋▊▉"


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
    for label, accuracy in result.per_class.items():
        shown = "    —" if math.isnan(accuracy) else f"{100 * accuracy:5.1f} %  {bar(accuracy)}"
        lines.append(f"  {label:<6} {shown}")
    width = max(6, len(str(result.confusion.max())) + 1)
    lines += ["", "true (rows) against predicted (columns), images:"]
    lines.append(" " * 8 + "".join(f"{label:>{width}}" for label in result.per_class))
    for label, row in zip(result.per_class, result.confusion, strict=True):
        lines.append(f"  {label:<6}" + "".join(f"{count or '·':>{width}}" for count in row.tolist()))
    return "\n".join(lines)


def check_table(checks: list[Check]) -> str:
    """Return the checks of a bundle as lines of text."""
    width = max(len(check.name) for check in checks)
    return "\n".join(f"{'ok  ' if check.passed else 'FAIL'}  {check.name:<{width}}  {check.detail}" for check in checks)


def benchmark_table(report: Report) -> str:
    """Return a benchmark as lines of text, the machine first and the advice last."""
    machine = report.machine
    lines = [
        f"{machine['cpu']}, {machine['usable_cpus']} usable cores, {' '.join(machine['cpu_features'])}; "
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
        f"({soon.milliseconds['p50']:.3f} ms at batch {soon.batch}), for throughput --variant {much.variant} "
        f"--threads {much.threads} ({much.images_per_second:,.0f} images/s at batch {much.batch}).",
    ]
    return "\n".join(lines)


def _shown(source: str) -> str:
    """Return a picture's name so that it cannot steer a terminal."""
    return source if source.isprintable() else ascii(source)


def _print_text(_classifier: Classifier, _top_k: int, results: Iterable[tuple[str, Prediction | PictureError]]) -> None:
    for source, result in results:
        if isinstance(result, PictureError):
            continue
        print(_shown(source))
        for label, probability in result.top:
            print(f"  {label:<6} {100 * probability:5.1f} %  {bar(probability)}")


def _print_json(classifier: Classifier, _top_k: int, results: Iterable[tuple[str, Prediction | PictureError]]) -> None:
    entries: list[dict[str, Any]] = []
    for source, result in results:
        if isinstance(result, PictureError):
            entries.append({"source": source, "error": str(result)})
            continue
        top = [{"label": label, "probability": probability} for label, probability in result.top]
        entries.append({"source": source, "label": result.label, "probability": result.probability, "top": top})
    document = {
        "bundle": str(classifier.bundle.folder),
        "dataset": classifier.bundle.manifest.dataset,
        "variant": classifier.variant.name,
        "provider": classifier.provider,
        "threads": classifier.threads,
        "predictions": entries,
    }
    text = json.dumps(document, indent=2, ensure_ascii=False)
    try:
        text.encode(sys.stdout.encoding or "ascii")
    except UnicodeEncodeError:  # the stream's own escapes are not JSON's
        text = json.dumps(document, indent=2)
    print(text)


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
        self.console.print(_summary(), markup=False)
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


def _summary() -> str:
    """Return the per-layer summary of Net: each layer's output shape, parameters and multiply-accumulates."""
    from torchinfo import summary

    from ..train.net import INPUT_SHAPE, Net

    columns = ("output_size", "num_params", "mult_adds")
    return str(
        summary(Net(), (1, *INPUT_SHAPE), col_names=columns, row_settings=("var_names",), verbose=0, device="cpu")
    )


def describe_model(model: Path | None, as_json: bool) -> str:
    """Return what `edgecifar info` prints of a run folder, an ONNX file or a bundle.

    Raises:
        EdgecifarError: it is none of them, or damaged.
    """
    if model is not None and (model / "run.json").exists():
        from ..train.run import Run

        record = Run(model).record
        return json.dumps(record, indent=2) if as_json else f"{_summary()}\n\n{_run_text(record)}"
    if model is not None and model.suffix == ".onnx":
        return _onnx_text(model, as_json)
    from ..runtime.bundle import Bundle
    from ..runtime.choice import choose

    if model is not None and not model.is_dir():
        raise EdgecifarError(
            f"{model} does not describe itself: name the bundle that it is in."
            if model.exists()
            else f"{model} is not there: check the path."
        )
    bundle = Bundle.open(model)
    chosen = {provider: choose(bundle, provider) for provider in ("cpu", "cuda")}
    if as_json:
        choices = {where: {"variant": variant.name, "reason": reason} for where, (variant, reason) in chosen.items()}
        manifest = json.loads(bundle.manifest.as_json())
        return json.dumps({"bundle": str(bundle.folder), "chosen_here": choices, **manifest}, indent=2)
    manifest = bundle.manifest
    lines = [
        f"{bundle.folder}: a classifier trained on {manifest.dataset}",
        f"labels: {', '.join(manifest.labels)}",
        "input:  uint8 [batch, 32, 32, 3] RGB; output: probabilities float32 [batch, 10]",
        "",
        f"{'variant':<12} {'file':<22} {'precision':<9} {'bytes':>11} {'accuracy':>9}  arg-max as the net",
    ]
    for v in manifest.variants:
        accuracy = "—" if v.accuracy is None else f"{100 * v.accuracy:.2f} %"
        agree = f"{v.parity.get('agree', 0):,} of {v.parity.get('images', 0):,}"
        notes = ["default"] * (v.name == manifest.default_variant) + [f"needs {v.needs}"] * (v.needs != "any")
        note = f"  ({', '.join(notes)})" if notes else ""
        lines.append(f"{v.name:<12} {v.file:<22} {v.precision:<9} {v.bytes:>11,} {accuracy:>9}  {agree}{note}")
    lines += ["", *(f"on {provider}: {reason}" for provider, (_, reason) in chosen.items())]
    origin = manifest.provenance
    recipe = origin.get("recipe", {})
    lines += [
        "",
        f"trained: recipe {recipe.get('name')}, {origin.get('epochs_done')} of {recipe.get('epochs')} epochs, "
        f"seed {origin.get('seed')}, finished {origin.get('finished') or 'not yet'}",
        f"checkpoint: sha256 {origin.get('checkpoint_sha256')}",
    ]
    return "\n".join(lines)


def _run_text(record: dict[str, Any]) -> str:
    recipe, test = record["recipe"], record.get("test")
    lines = [
        f"recipe {recipe['name']}: {record.get('epochs_done', 0)} of {recipe['epochs']} epochs, batch size "
        f"{recipe['batch_size']}, {recipe['optimizer']} at {recipe['lr']:g}, dropout {recipe['dropout']:g}, "
        f"seed {record['seed']}",
        f"data: {record['dataset']['name']}; on {record['hardware']} ({record['device']}); {record['status']}",
    ]
    if test:
        lines.append(f"test accuracy: {100 * test['accuracy']:.2f} % of {test['images']:,} images")
    return "\n".join(lines)


def _onnx_text(path: Path, as_json: bool) -> str:
    from ..runtime.session import Session

    if not path.is_file():
        raise EdgecifarError(f"{path} is not there: check the path.")
    described = Session(path.read_bytes(), "cpu", name=str(path)).metadata()
    document = {"model": str(path), "bytes": path.stat().st_size, **described}
    if as_json:
        return json.dumps(document, indent=2)
    return "\n".join(
        f"{key}: {value if isinstance(value, str) else json.dumps(value)}" for key, value in document.items()
    )
