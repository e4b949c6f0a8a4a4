"""Latency and throughput of a bundle's variants on the machine this runs on; no torch, no data set."""

from __future__ import annotations

import functools
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from . import machine
from .bundle import Bundle
from .choice import GPU_PRECISIONS, GPUS
from .errors import VariantError
from .session import Session

PERCENTILES = (50, 90, 99)
WARM_UP = 5
"""Calls before the first that counts: they allocate."""

SETTLE, SETTLE_SECONDS = 2, 0.05
"""Calls, and seconds of them at least, at the start of each turn that are not counted: they fetch what the others'
turns drove out of the caches, and threads of the one before may still spin for some milliseconds."""

MAX_SECONDS = 45.0
"""Seconds that all rows together are measured for, unless told how long one is: a person waits for it."""


@dataclass(frozen=True)
class Row:
    """One combination that was measured.

    Attributes:
        variant: the bundle's variant.
        provider: what every node of it ran on.
        batch: images a call.
        threads: threads a call.
        calls: how many calls were timed.
        milliseconds: percentile of a call's time by its number, such as {"p50": 1.2}, None as `percentile` has it.
        images_per_second: over all timed calls.
    """

    variant: str
    provider: str
    batch: int
    threads: int
    calls: int
    milliseconds: dict[str, float | None]
    images_per_second: float


@dataclass(frozen=True)
class Report:
    """All rows, the machine, and the rows of the lowest latency and of the highest throughput."""

    machine: dict[str, Any]
    rows: tuple[Row, ...]

    @property
    def best(self) -> Row:
        """The row of the smallest batch with the smallest product of p50 and p99.

        A call that is usual and one that is rare and slow count alike: a row whose p99 is twice another's must have
        half its p50. Where too few calls were made to tell every p99, p50 decides alone.
        """
        smallest = min(row.batch for row in self.rows)
        rows = [row for row in self.rows if row.batch == smallest]
        tails = all(row.milliseconds["p99"] is not None for row in rows)
        return min(
            rows, key=lambda row: (row.milliseconds["p50"] or 0) * ((row.milliseconds["p99"] or 0) if tails else 1)
        )

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
    times: list[float] = []
    end = clock() + seconds
    while len(times) < least or clock() < end:
        begin = clock()
        call()
        times.append(clock() - begin)
    return np.array(times)


def take_turns(
    calls: Sequence[Callable[[], object]],
    seconds: float,
    rounds: int = 5,
    clock: Callable[[], float] = time.perf_counter,
    seed: int = 0,
) -> list[list[np.ndarray]]:
    """Time `calls`, about `seconds` each, in turns: what disturbs the machine disturbs all alike.

    Every round gives each one turn, in an order drawn for the round by `seed`, so that nobody always follows the same
    one. The first calls of a turn are not counted.

    Returns:
        Of each call the times in seconds, float64 [calls] a round.
    """
    rng = np.random.default_rng(seed)
    times: list[list[np.ndarray]] = [[] for _ in calls]
    for turn in range(rounds):
        for index in map(int, rng.permutation(len(calls))):
            call, settled = calls[index], clock() + SETTLE_SECONDS
            for _ in range(SETTLE if turn else WARM_UP):
                call()
            while clock() < settled:
                call()
            times[index].append(time_calls(call, seconds / rounds, clock, warm_up=0, least=1))
    return times


def percentile(times: np.ndarray, p: float) -> float | None:
    """Return percentile `p` of `times`, float64 [calls].

    But for the median, one beyond which there is not even one call is None: 99 % takes 100 calls.
    """
    known = p == 50 or len(times) * (100 - p) >= 100 - 1e-9
    return float(np.percentile(times, p)) if known else None


def measure(
    bundle: Bundle,
    provider: str,
    batches: Sequence[int],
    threads: Sequence[int] | None = None,
    seconds: float | None = None,
    names: Sequence[str] | None = None,
) -> Report:
    """Measure variants of `bundle` at every batch size and thread count, in turns.

    Args:
        bundle: what to measure.
        provider: as `Session` takes it; one that cannot run every node is an error, never a row.
        batches: images a call.
        threads: by default 1 and all that this process may use.
        seconds: how long each combination is measured; by default 2, and less where all would take over `MAX_SECONDS`.
        names: of the variants, in the order of the rows; by default all that are ONNX, and on GPUs those in floating
            point.

    Raises:
        VariantError: none of the variants is ONNX, or one that is named is not, or not there.
        ProviderError, BundleError, ModelError: as `Bundle.load` says.
    """
    variants = [variant for variant in bundle.manifest.variants if variant.is_onnx]
    if provider in GPUS:  # int8 variants are for processors
        variants = [variant for variant in variants if variant.precision in GPU_PRECISIONS] or variants
    if names:
        variants = [bundle.variant(name) for name in dict.fromkeys(names)]
    if not variants:
        raise VariantError(f"{bundle.folder} has no ONNX variant to measure: export one with --format onnx.")
    import logging

    log = logging.getLogger("edgecifar")
    counts = sorted(set(threads or (1, machine.usable_cpus())))
    rng = np.random.default_rng(0)
    combinations: list[tuple[str, str, int, int]] = []
    calls: list[Callable[[], np.ndarray]] = []
    for variant in variants:
        for count in counts:
            log.info("Loading %s, %d thread%s …", variant.name, count, "s" * (count > 1))
            session: Session = bundle.load(variant, provider, count)
            for batch in batches:
                images = rng.integers(0, 256, (batch, *bundle.contract.picture_shape), np.uint8)
                combinations.append((variant.name, session.provider, batch, count))
                calls.append(functools.partial(session.probabilities, images))
    seconds = seconds or min(2.0, MAX_SECONDS / len(calls))
    log.info("Measuring each for %.2g s, in turns …", seconds)
    rows: list[Row] = []
    for (name, ran_on, batch, count), turns in zip(combinations, take_turns(calls, seconds), strict=True):
        times = np.concatenate(turns)
        milliseconds = {f"p{p}": percentile(1000 * times, p) for p in PERCENTILES}
        rows.append(Row(name, ran_on, batch, count, len(times), milliseconds, float(batch * len(times) / times.sum())))
    return Report(machine.describe(), tuple(rows))
