"""The subcommands verify, benchmark and info: what a bundle is, and how fast it is here."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from . import streams
from .app import BundleFolder, Json, Provider, command, examples, fail, finite


@examples("edgecifar verify", "edgecifar verify runs/NAME/bundle --key my.pub", "edgecifar verify BUNDLE --json")
@command
def verify(
    bundle: Annotated[
        Path | None, typer.Argument(help="A bundle. Default: the one that ships with the package.")
    ] = None,
    key: Annotated[
        Path | None, typer.Option(help="Public key (PEM). Require a signature made with its private key.")
    ] = None,
    as_json: Json = False,
) -> None:
    """Check a bundle: every file's digest, no unknown file, and that each variant gives its golden vectors here."""
    from dataclasses import asdict

    from ..runtime.bundle import Bundle
    from .display import check_table, json_text

    opened = Bundle.open(bundle, key)
    checks = opened.verify(key)
    failed = [check.name for check in checks if not check.passed]
    verdict = {"bundle": str(opened.folder), "passed": not failed, "checks": [asdict(check) for check in checks]}
    with streams.results():  # whoever reads them, the exit code is that of the checks
        print(json_text(verdict) if as_json else check_table(checks))
    if failed:
        fail(f"{opened.folder} failed {len(failed)} of {len(checks)} checks: {', '.join(failed)}.")


@examples(
    "edgecifar benchmark",
    "edgecifar benchmark --bundle runs/NAME/bundle --variant edge --batch 1 --threads 1 --threads 2",
    "edgecifar benchmark --provider cuda --json",
)
@command
def benchmark(
    bundle: BundleFolder = None,
    provider: Provider = "cpu",
    batch: Annotated[
        list[int] | None, typer.Option(min=1, max=16384, help="Batch size. May be repeated. Default: 1 and 64.")
    ] = None,
    threads: Annotated[
        list[int] | None, typer.Option(min=1, help="Threads of one call. May be repeated. Default: 1 and all cores.")
    ] = None,
    variant: Annotated[
        list[str] | None, typer.Option(help="Variant to measure. May be repeated. Default: every ONNX variant.")
    ] = None,
    seconds: Annotated[
        float | None,
        typer.Option(
            min=0.1,
            max=3600,
            callback=finite,
            help="Seconds per row of the table. Default: 2, or less so that all fit into a minute.",
        ),
    ] = None,
    as_json: Json = False,
) -> None:
    """Measure latency and throughput of each variant, batch size and thread count on this machine.

    For latency it recommends the row with the smallest product of p50 and p99, so that slow outliers count, too.
    """
    from ..runtime.benchmark import measure
    from ..runtime.bundle import Bundle
    from .display import benchmark_table, json_text

    opened = Bundle.open(bundle)
    report = measure(opened, provider, batch or (1, 64), threads, seconds, variant)
    print(json_text(report.as_json()) if as_json else benchmark_table(report))


@examples("edgecifar info", "edgecifar info runs/NAME", "edgecifar info model.onnx --json")
@command
def info(
    model: Annotated[
        Path | None,
        typer.Argument(
            help="A run folder, an .onnx file or a bundle. Default: the bundle that ships with the package."
        ),
    ] = None,
    as_json: Json = False,
) -> None:
    """Describe a run, a bundle or an ONNX file: layers, sizes, variants, labels, provenance, accuracy."""
    from .description import describe_model

    print(describe_model(model, as_json))
