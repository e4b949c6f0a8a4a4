"""MLPerf-style: MLCommons' own LoadGen asks, `Classifier` answers, and LoadGen says whether it held.

    pip install mlcommons-loadgen==6.0.17
    python benchmarks/mlperf.py --bundle RUN/bundle --seconds 10

LoadGen is what MLPerf Inference is run with: it draws the samples, sets the pace, takes the times and judges them. What
comes out here is no MLPerf result: CIFAR-10 is none of its tasks, a run is seconds long instead of ten minutes, and
nobody has reviewed it. It is a second, independent clock beside `latency.py`, with loads that are closer to a device's.

    SingleStream   one image, the next when it is answered: 90th percentile of the latency
    Offline        all images at once, in batches of `--batch`: images/s
    Server         images come at random (Poisson) at a rate; of 99 % the answer is there within `--latency` ms

Each scenario is run for its speed (performance mode) and for its answers to all `--images` (accuracy mode). LoadGen's
logs are kept in `--logs`. It has no wheel for every system, so that it is in no extra of the package.
"""

from __future__ import annotations

import argparse
import importlib
import json
import os
import queue
import re
import threading
import time
from collections.abc import Iterable, Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

import harness
import numpy as np
import report

from edgecifar.runtime import Classifier, EdgecifarError
from edgecifar.runtime.benchmark import time_calls
from edgecifar.runtime.files import make_folder
from edgecifar.train import data as datasets

PACKAGE = "mlcommons-loadgen==6.0.17"
SCENARIOS = {
    "SingleStream": "90.0th percentile latency (ns)",
    "Offline": "Samples per second",
    "Server": "Completed samples per second",
}
"""Scenario: what LoadGen's summary calls the figure that it is about."""
MODES = {"performance": "PerformanceOnly", "accuracy": "AccuracyOnly"}
BUSY = 0.5
"""Share of the throughput in batches that Server asks for, unless --qps says otherwise."""

MARGIN = 2.0
"""LoadGen is told this multiple of the speed in a short trial: it prepares its queries before the run, and a run that
has answered them all before its time is over is not valid."""

QUALITY = 0.99
"""Share of the exact model's accuracy that MLPerf's image classification must keep."""

NO_CLASS = 0xFFFF
"""The answer to an image that could not be classified; LoadGen waits for ever for what is not answered."""


def loadgen() -> Any:
    """Import LoadGen.

    Raises:
        EdgecifarError: it is not installed.
    """
    try:
        return importlib.import_module("mlperf_loadgen")
    except ModuleNotFoundError:
        raise EdgecifarError(f"mlperf.py needs MLCommons' LoadGen: pip install {PACKAGE}.") from None


class System:
    """The system under test: classifies the images that LoadGen names and answers with their classes, 16 bits each."""

    def __init__(self, lg: Any, classifier: Classifier, images: np.ndarray, batch: int, queued: bool) -> None:
        """Make it ready; to be used as a context, which ends its thread.

        Args:
            lg: LoadGen's module.
            classifier: what answers.
            images: uint8 [N, size, size, 3]; LoadGen names them by their index.
            batch: the most images a call.
            queued: whether queries go into a queue for a thread, which answers together what waits. Otherwise each is
                answered before the next can come.
        """
        self._lg, self._classifier, self._images, self._batch = lg, classifier, images, batch
        self._line: queue.SimpleQueue[Any] = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._serve) if queued else None
        self.error: Exception | None = None

    def __enter__(self) -> System:
        if self._thread:
            self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self._thread:
            self._line.put(None)
            self._thread.join()

    def issue(self, samples: Sequence[Any]) -> None:
        """Take a query of LoadGen's."""
        if self._thread:
            for sample in samples:
                self._line.put(sample)
        else:
            for start in range(0, len(samples), self._batch):
                self._answer(samples[start : start + self._batch])

    def _serve(self) -> None:
        while (sample := self._line.get()) is not None:
            together = [sample]
            while len(together) < self._batch and not self._line.empty():
                if (sample := self._line.get()) is None:
                    self._answer(together)
                    return
                together.append(sample)
            self._answer(together)

    def _answer(self, samples: Sequence[Any]) -> None:
        classes = np.full(len(samples), NO_CLASS, "<u2")
        try:
            if not self.error:
                images = self._images[[sample.index for sample in samples]]
                classes = self._classifier.probabilities(images).argmax(axis=1).astype("<u2")
        except Exception as error:  # LoadGen's own threads call this, where nobody would catch it
            self.error = error
        answers = [
            self._lg.QuerySampleResponse(sample.id, classes[place:].ctypes.data, classes.itemsize)
            for place, sample in enumerate(samples)
        ]
        self._lg.QuerySamplesComplete(answers)  # copies what it keeps


def run(
    lg: Any,
    classifier: Classifier,
    images: np.ndarray,
    scenario: str,
    mode: str,
    folder: Path,
    given: argparse.Namespace,
) -> None:
    """Let LoadGen run a scenario and write its logs into `folder`.

    Raises:
        EdgecifarError: an image could not be classified, or LoadGen left no summary.
    """
    settings = lg.TestSettings()
    settings.scenario = getattr(lg.TestScenario, scenario)
    settings.mode = getattr(lg.TestMode, MODES[mode])
    settings.min_duration_ms = round(1000 * given.seconds)
    settings.min_query_count = 1 if scenario == "Offline" else given.queries
    settings.offline_expected_qps = MARGIN * given.rate
    settings.single_stream_expected_latency_ns = max(1, round(1e9 * given.soon / MARGIN))
    settings.server_target_qps = given.server_qps or 1.0
    settings.server_target_latency_ns = round(1e6 * given.latency)
    settings.server_target_latency_percentile = 0.99
    settings.single_stream_target_latency_percentile = 0.9
    logs = lg.LogSettings()
    logs.log_output.outdir = str(folder)
    logs.log_output.copy_summary_to_stdout = False
    logs.enable_trace = False
    make_folder(folder)
    with System(lg, classifier, images, given.batch, queued=scenario == "Server") as system:
        handle = lg.ConstructSUT(system.issue, lambda: None)
        library = lg.ConstructQSL(len(images), len(images), lambda _: None, lambda _: None)  # they are in memory
        try:
            lg.StartTestWithLogSettings(handle, library, settings, logs, os.devnull)
        finally:
            lg.DestroyQSL(library)
            lg.DestroySUT(handle)
    if system.error:
        raise EdgecifarError(f"{scenario} could not be run: {system.error}") from system.error


def plan(scenarios: Iterable[str], rates: Iterable[float]) -> list[tuple[str, float | None]]:
    """Return what is run: each scenario once, and Server at each of `rates`, images/s; None at the others."""
    return [
        (scenario, qps)
        for scenario in dict.fromkeys(scenarios)
        for qps in (dict.fromkeys(rates) if scenario == "Server" else (None,))
    ]


def read_summary(folder: Path) -> dict[str, str]:
    """Return what LoadGen's summary in `folder` says, by its own names.

    Raises:
        EdgecifarError: there is none.
    """
    path = folder / "mlperf_log_summary.txt"
    if not path.is_file():
        raise EdgecifarError(f"LoadGen left no summary in {folder}: look at mlperf_log_detail.txt there.")
    return dict(re.findall(r"^ *(\S[^:\n]*?) *: *(\S.*?) *$", path.read_text(), re.MULTILINE))


def share_correct(folder: Path, labels: np.ndarray) -> float:
    """Return the share of `labels`, integer [N], that the answers in LoadGen's accuracy log name.

    Raises:
        EdgecifarError: not every image was answered, and once.
    """
    entries = json.loads((folder / "mlperf_log_accuracy.json").read_text())
    if sorted(entry["qsl_idx"] for entry in entries) != list(range(len(labels))):
        raise EdgecifarError(f"{folder} has not one answer an image: look at mlperf_log_detail.txt there.")
    answers = [int.from_bytes(bytes.fromhex(entry["data"]), "little") for entry in entries]
    return sum(answer == labels[entry["qsl_idx"]] for answer, entry in zip(answers, entries, strict=True)) / len(labels)


def measure(
    lg: Any, classifier: Classifier, images: np.ndarray, labels: np.ndarray, scenario: str, given: argparse.Namespace
) -> dict[str, Any]:
    """Run a scenario for its speed and its answers, and return its row; if it fails, its `problem` says why."""
    qps = given.server_qps
    named = scenario if qps is None else f"{scenario}-{qps:g}"
    row = {"scenario": scenario, "figure": SCENARIOS[scenario], **({} if qps is None else {"server_qps": qps})}
    try:
        for mode in MODES:
            harness.say(f"{named}, {mode} …")
            run(lg, classifier, images, scenario, mode, given.logs / f"{named}-{mode}", given)
        summary = read_summary(given.logs / f"{named}-performance")
        accuracy = share_correct(given.logs / f"{named}-accuracy", labels)
    except EdgecifarError as error:  # the other scenarios' rows are not lost
        return {**row, "problem": str(error)}
    return {
        **row,
        "problem": None,
        "verdict": summary["Result is"],
        "value": float(summary[SCENARIOS[scenario]]),
        "accuracy": accuracy,
        "images": len(labels),
        "summary": summary,
    }


def table(rows: Sequence[dict[str, Any]], quality: float | None) -> str:
    """Return the rows as lines of text; below, why some could not be measured."""
    lines, notes = [["scenario", "LoadGen says", "accuracy, %", "figure"]], []
    for row in rows:
        name = f"{row['scenario']}, --qps {row['server_qps']:g}" if "server_qps" in row else row["scenario"]
        if row["problem"]:
            notes.append(f"{name}: {row['problem']}")
        else:
            figure = f"{row['figure']}: {row['value']:,.0f}"
            lines.append([name, row["verdict"], f"{100 * row['accuracy']:.2f}", figure])
    text = "\n".join([report.table(lines, 2), *([""] if notes else []), *notes])
    measured = [row["accuracy"] for row in rows if not row["problem"]]
    if quality is not None and measured:
        kept = min(measured) >= quality
        verb = "holds" if kept else "misses"
        text += f"\n\nAccuracy {verb} {100 * quality:.2f} %, {QUALITY:.0%} of the exact model's."
    return f"{text}\n\nMLPerf-style, not an MLPerf result: nothing here was submitted or reviewed."


def main() -> None:
    """Measure and report."""
    count, many = harness.positive(int), harness.positive(float)
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--bundle", type=Path, help="by default the one that is installed")
    parser.add_argument("--variant", help="by default the bundle's own choice")
    parser.add_argument("--provider", default="auto", help="as 'edgecifar predict' takes it")
    parser.add_argument("--threads", type=int, help="of one call; by default as many as may be used")
    parser.add_argument("--scenario", choices=SCENARIOS, action="append", help="may be repeated; default: all")
    parser.add_argument("--seconds", type=many, default=10.0, help="of each performance run; MLPerf has 600")
    parser.add_argument("--queries", type=count, default=100, help="at least, of a performance run")
    parser.add_argument("--batch", type=count, default=64, help="the most images a call, of Offline and Server")
    parser.add_argument("--latency", type=many, default=15.0, help="ms, of Server (default: 15, as of ResNet-50)")
    parser.add_argument(
        "--qps",
        type=many,
        action="append",
        help=f"images/s, of Server; may be repeated; default: {BUSY:.0%}% of a short trial's in batches",
    )
    parser.add_argument("--data", help="folder with the CIFAR-10 files; by default $EDGECIFAR_DATA")
    parser.add_argument("--images", type=count, default=10_000, help="the first N test images (default: all 10,000)")
    parser.add_argument("--logs", type=Path, help="folder for LoadGen's logs (default: runs/mlperf-TIME)")
    report.add_save(parser, "mlperf")
    given = parser.parse_args()
    lg = loadgen()
    dataset = datasets.load(given.data)
    images, labels = dataset.test_images[: given.images], dataset.test_labels[: given.images]
    classifier = Classifier(given.bundle, given.variant, given.provider, given.threads)
    trial = np.resize(images, (given.batch, *images.shape[1:]))
    times = time_calls(lambda: classifier.probabilities(trial), min(0.5, given.seconds))
    given.rate = given.batch / float(times.min())  # a slow moment must not make LoadGen prepare too few queries
    given.soon = float(time_calls(lambda: classifier.probabilities(trial[:1]), min(0.5, given.seconds)).min())
    given.logs = given.logs or Path("runs") / f"mlperf-{time.strftime('%Y%m%d-%H%M%S')}"
    rows = []
    for scenario, qps in plan(given.scenario or SCENARIOS, given.qps or [BUSY * given.rate]):
        given.server_qps = qps
        rows.append(measure(lg, classifier, images, labels, scenario, given))
    exact = next((v.accuracy for v in classifier.bundle.manifest.variants if v.precision == "fp32"), None)
    quality = None if exact is None or classifier.bundle.manifest.dataset != dataset.name else QUALITY * exact
    settings = {
        "bundle": classifier.bundle.folder.name,
        "variant": classifier.variant.name,
        "models": report.digests([classifier.variant]),
        "provider": classifier.provider,
        "threads": classifier.threads,
        "dataset": dataset.name,
        "seconds": given.seconds,
        "batch": given.batch,
        "server_latency_ms": given.latency,
        "quality": quality,
        "logs": given.logs.name,
    }
    versions = {"mlcommons-loadgen": metadata.version("mlcommons-loadgen")}
    found = report.document("mlperf", settings, rows, versions=versions)
    report.finish(found, f"{table(rows, quality)}\nLoadGen's logs are in {given.logs}.", given.save)


if __name__ == "__main__":
    harness.main(main)
