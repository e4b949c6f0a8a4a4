"""Latency and throughput of a bundle's variants on the machine this runs on; no torch, no data set."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from . import machine
from .bundle import Bundle
from .contract import SIDE
from .errors import VariantError
from .session import Session

PERCENTILES = (50, 90, 99)
WARM_UP = 5


@dataclass(frozen=True)
class Row:
    """One combination that was measured.

    Attributes:
        variant: the bundle's variant.
        provider: what every node of it ran on.
        batch: images a call.
        threads: threads a call.
        calls: how many calls were timed.
        milliseconds: percentile of a call's time by its number, such as {"p50": 1.2}.
        images_per_second: over all timed calls.
    """

    variant: str
    provider: str
    batch: int
    threads: int
    calls: int
    milliseconds: dict[str, float]
    images_per_second: float


@dataclass(frozen=True)
class Report:
    """All rows, the machine, and the rows of the lowest latency and of the highest throughput."""

    machine: dict[str, Any]
    rows: tuple[Row, ...]

    @property
    def best(self) -> Row:
        """The row with the smallest median time of the smallest batch."""
        smallest = min(row.batch for row in self.rows)
        return min((row for row in self.rows if row.batch == smallest), key=lambda row: row.milliseconds["p50"])

    @property
    def best_throughput(self) -> Row:
        """The row with the most images per second of the largest batch."""
        largest = max(row.batch for row in self.rows)
        return max((row for row in self.rows if row.batch == largest), key=lambda row: row.images_per_second)

    def as_json(self) -> dict[str, Any]:
        """Return everything as JSON values."""
        best = {"best": asdict(self.best), "best_throughput": asdict(self.best_throughput)}
        return {"machine": self.machine, "rows": [asdict(row) for row in self.rows], **best}


def time_calls(
    call: Callable[[], object],
    seconds: float,
    clock: Callable[[], float] = time.perf_counter,
    warm_up: int = WARM_UP,
    least: int = 10,
) -> np.ndarray:
    """Return the time of each call in seconds, float64 [calls], of at least `least` calls over about `seconds`.

    The first `warm_up` calls, which allocate, are not counted.
    """
    for _ in range(warm_up):
        call()
    times = []
    end = clock() + seconds
    while len(times) < least or clock() < end:
        begin = clock()
        call()
        times.append(clock() - begin)
    return np.array(times)


def measure(
    bundle: Bundle,
    provider: str,
    batches: Sequence[int],
    threads: Sequence[int] | None = None,
    seconds: float = 2.0,
    say: Callable[[str], object] = lambda line: None,
    names: Sequence[str] | None = None,
) -> Report:
    """Measure variants of `bundle` at every batch size and thread count.

    Args:
        bundle: what to measure.
        provider: as `Session` takes it; one that cannot run every node is an error, never a row.
        batches: images a call.
        threads: by default 1 and all that this process may use.
        seconds: how long each combination is measured.
        say: called with a line about each.
        names: of the variants, in the order of the rows; by default all that are ONNX.

    Raises:
        VariantError: none of the variants is ONNX, or one that is named is not, or not there.
        ProviderError, BundleError, ModelError: as `Bundle.load` says.
    """
    variants = [variant for variant in bundle.manifest.variants if variant.format == "onnx"]
    if names:
        variants = [bundle.variant(name) for name in dict.fromkeys(names)]
    if not variants:
        raise VariantError(f"{bundle.folder} has no ONNX variant to measure: export one with --format onnx.")
    counts = sorted(set(threads or (1, machine.usable_cpus())))
    rng = np.random.default_rng(0)
    rows = []
    for variant in variants:
        for count in counts:
            session: Session = bundle.load(variant, provider, count)
            for batch in batches:
                say(f"Measuring {variant.name}, batch {batch}, {count} thread{'s' * (count > 1)} …")
                images = rng.integers(0, 256, (batch, SIDE, SIDE, 3), np.uint8)
                times = time_calls(lambda: session.probabilities(images), seconds)  # noqa: B023
                rows.append(
                    Row(
                        variant=variant.name,
                        provider=session.provider,
                        batch=batch,
                        threads=count,
                        calls=len(times),
                        milliseconds={f"p{p}": float(1000 * np.percentile(times, p)) for p in PERCENTILES},
                        images_per_second=float(batch * len(times) / times.sum()),
                    )
                )
    return Report(machine.describe(), tuple(rows))
