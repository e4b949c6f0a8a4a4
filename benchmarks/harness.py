"""What the benchmarks share: calls timed in turns, the figures of them, and plain onnxruntime as the base of ratios.

It knows nothing of a script: an `Entry` is a function without arguments and what to call it.
"""

from __future__ import annotations

import argparse
import logging
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from edgecifar.runtime import EdgecifarError
from edgecifar.runtime.benchmark import percentile, take_turns
from edgecifar.runtime.contract import Contract
from edgecifar.runtime.errors import ProviderError
from edgecifar.runtime.session import PROVIDERS, RECORD_ASSIGNMENT, Session, assignment, import_onnxruntime

PERCENTILES = (50, 90, 99, 99.9)

PLAIN = "onnxruntime"
"""The name of the base of most ratios: an `InferenceSession` on the fp32 file with its default options."""

CHECKED = 96
"""Images on which answers are compared; the batch size where that is more."""

Function = Callable[[np.ndarray], np.ndarray]
"""From uint8 [N, size, size, 3] to probabilities, float32 [N, classes]."""

log = logging.getLogger("edgecifar.benchmarks")


def random_images(count: int, contract: Contract, seed: int = 0) -> np.ndarray:
    """Return random images of coloured squares, uint8 [count, size, size, 3].

    The squares of an image are 1, 2, 4, … pixels wide, as a net takes noise of single pixels for one class only.
    """
    rng = np.random.default_rng(seed)
    size = contract.size
    images = np.empty((count, *contract.picture_shape), np.uint8)
    for index in range(count):
        width = 2 ** (index % size.bit_length())
        squares = rng.integers(0, 256, (-(-size // width), -(-size // width), contract.channels), np.uint8)
        images[index] = squares.repeat(width, 0).repeat(width, 1)[:size, :size]
    return images


@dataclass
class Entry:
    """Something that is measured, or the reason why it is not.

    Attributes:
        labels: what tells it from the others; each is a column of the table.
        call: what is timed; None where nothing is.
        images: how many images a call classifies.
        problem: why it cannot be measured and what to do, in a sentence.
        details: what else the JSON says of it, such as the nodes that each provider runs.
        bases: the entries that its times are divided by, by the name of the ratio.
        ceiling: images/s that the device would give if it always computed at its peak; None where this is unknown.
        rounds: the times of its calls in seconds, one array float64 [calls] a round.
    """

    labels: dict[str, Any]
    call: Callable[[], object] | None = None
    images: int = 1
    problem: str = ""
    details: dict[str, Any] = field(default_factory=dict)
    bases: dict[str, Entry] = field(default_factory=dict)
    ceiling: float | None = None
    rounds: list[np.ndarray] = field(default_factory=list)

    def row(self) -> dict[str, Any]:
        """Return its JSON values; the figures are there only if it was measured."""
        row = {**self.labels, **self.details, "problem": self.problem or None}
        if not self.rounds:
            return row
        ratios = {name: ratio(self.rounds, base.rounds) for name, base in self.bases.items() if base.rounds}
        row |= figures(np.concatenate(self.rounds), self.images)
        if self.ceiling:
            row["peak_share"] = row["images_per_second"] / self.ceiling
        return {**row, "ratios": ratios}


def alternate(
    entries: Sequence[Entry],
    seconds: float,
    rounds: int = 10,
    clock: Callable[[], float] = time.perf_counter,
    seed: int = 0,
) -> None:
    """Time the calls of `entries`, about `seconds` each, in turns as `take_turns` says; skip those without a call."""
    measured = [(entry, entry.call) for entry in entries if entry.call]
    turns = take_turns([call for _, call in measured], seconds, rounds, clock, seed)
    for (entry, _), times in zip(measured, turns, strict=True):
        entry.rounds += times


def figures(times: np.ndarray, images: int) -> dict[str, Any]:
    """Return n, mean and percentiles in ms, and images/s, of calls that took `times` seconds, float64 [calls].

    A percentile with too few samples is None, as `percentile` says: 99.9 % takes 1,000 calls.
    """
    milliseconds: dict[str, float | None] = {"mean": float(1000 * times.mean())}
    milliseconds |= {f"p{p}": percentile(1000 * times, p) for p in PERCENTILES}
    return {
        "n": len(times),
        "milliseconds": milliseconds,
        "images_per_second": float(images * len(times) / times.sum()),
    }


def ratio(rounds: Sequence[np.ndarray], base: Sequence[np.ndarray]) -> dict[str, float]:
    """Return the time relative to `base`: the median and the quartiles of the rounds' ratios of medians."""
    pairs = [np.median(mine) / np.median(other) for mine, other in zip(rounds, base, strict=True)]
    return quartiles(pairs)


def quartiles(values: Sequence[float]) -> dict[str, float]:
    """Return the median and the quartiles of `values`."""
    low, median, high = np.percentile(values, (25, 50, 75))
    return {"median": float(median), "low": float(low), "high": float(high)}


def ran_on(session: Session) -> dict[str, Any]:
    """Return the provider, how many nodes each provider of onnxruntime runs, and the share of the one asked for.

    Raises:
        ProviderError: not every node runs on the session's provider; such a session is not measured.
    """
    return share(session.provider, PROVIDERS[session.provider][0], session.assignment())


def share(provider: str, full_name: str, nodes: Mapping[str, int] | None) -> dict[str, Any]:
    """As `ran_on`, of any `provider`, whose name in `nodes` is `full_name`; the share is None if nodes are unknown."""
    if nodes is None:
        return {"ran_on": provider, "nodes": None, "share": None}
    total, own = sum(nodes.values()), nodes.get(full_name, 0)
    if not total or own < total:
        raise ProviderError(
            f"Only {own} of {total} nodes run on {provider}, so it is not measured: choose another variant or provider."
        )
    return {"ran_on": provider, "nodes": dict(nodes), "share": own / total}


class PlainSession:
    """onnxruntime with its default options but for the threads: what a user has who does nothing.

    Args:
        model: an ONNX file that has `contract`.
        contract: the names of its input and output.
        threads: of a call.
        provider: a name in `PROVIDERS`.
        optimised: whether the graph is optimised. If not, everything between quantizing and dequantizing is computed
            in float, as the file defines it.
    """

    def __init__(
        self, model: bytes, contract: Contract, threads: int, provider: str = "cpu", optimised: bool = True
    ) -> None:
        ort = import_onnxruntime()
        options = ort.SessionOptions()
        options.intra_op_num_threads = threads
        options.add_session_config_entry(*RECORD_ASSIGNMENT)
        if not optimised:
            options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
        self._provider, self._contract = provider, contract
        self._session = ort.InferenceSession(model, options, providers=[PROVIDERS[provider][0]])

    def probabilities(self, images: np.ndarray) -> np.ndarray:
        """Return the probabilities of `images`, uint8 [N, size, size, 3]; float32 [N, classes]."""
        contract = self._contract
        return self._session.run([contract.probabilities_name], {contract.input_name: images})[0]

    def ran_on(self) -> dict[str, Any]:
        """As the function `ran_on`."""
        return share(self._provider, PROVIDERS[self._provider][0], assignment(self._session))


def in_batches(classify: Function, images: np.ndarray, batch: int) -> np.ndarray:
    """Return what `classify` gives for `images` in batches of `batch`, copied, as a bound buffer is overwritten."""
    return np.concatenate([classify(images[at : at + batch]).copy() for at in range(0, len(images), batch)])


def images_to_check(batch: int, contract: Contract) -> np.ndarray:
    """Return at least `CHECKED` random images, a multiple of `batch` of them."""
    return random_images(max(CHECKED // batch, 1) * batch, contract)


def problem(error: Exception) -> str:
    """Say in a sentence why something could not be measured; each engine has failures of its own."""
    if isinstance(error, EdgecifarError):
        return str(error)
    reason = (str(error).strip() or type(error).__name__).splitlines()[0][:200].rstrip(".")
    return f"it does not run here ({reason})."


def positive(kind: type[int] | type[float]) -> Callable[[str], int | float]:
    """Return a reader of an option that must be finite and more than 0."""

    def read(text: str) -> int | float:
        value = kind(text)
        if not 0 < value < float("inf"):
            raise argparse.ArgumentTypeError(f"{text} is not more than 0")
        return value

    return read


def say(line: str) -> None:
    """Print a line of progress, on stderr."""
    log.info(line)


def main(function: Callable[[], int | None]) -> None:
    """Run a script; a failure that a person can understand is one sentence on stderr and exit code 1."""
    logger = logging.getLogger("edgecifar")
    logger.setLevel(logging.INFO)
    handler = logging.StreamHandler()
    handler.setFormatter(logging.Formatter("%(message)s"))
    if alone := not logger.handlers:
        logger.addHandler(handler)
    try:
        sys.exit(function())
    except EdgecifarError as error:
        sys.exit(f"{Path(sys.argv[0]).name}: {error}")
    finally:
        if alone:  # what runs in this process later has another stderr
            logger.removeHandler(handler)
