"""Timing by a clock that the test winds, and figures against numpy's on known samples."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest

from edgecifar.runtime import Bundle, benchmark, machine
from edgecifar.runtime.benchmark import Report, Row, measure, take_turns, time_calls
from edgecifar.runtime.errors import ProviderError, VariantError


class Clock:
    """Stands still but for calls, each of which takes the next of the given times, the last one for ever."""

    def __init__(self, *takes: float) -> None:
        self.now, self.calls, self.takes = 100.0, 0, takes

    def __call__(self) -> float:
        return self.now

    def call(self) -> None:
        self.now += self.takes[min(self.calls, len(self.takes) - 1)]
        self.calls += 1


class TestTimeCalls:
    def test_the_first_calls_are_not_counted(self):
        clock = Clock(64, 64, 64, 64, 64, *range(1, 11), 0.5)
        assert time_calls(clock.call, 1.0, clock).tolist() == list(range(1, 11))
        assert clock.calls == 15

    def test_as_long_as_told(self):
        clock = Clock(0.25)
        times = time_calls(clock.call, 5.0, clock)
        assert times.tolist() == [0.25] * 20
        assert times.dtype == np.float64
        assert clock.calls == 25

    def test_at_least_ten(self):
        clock = Clock(8.0)
        assert time_calls(clock.call, 0.0, clock).tolist() == [8.0] * 10


def test_turns_in_rounds():
    """What the harness's tests show of `alternate` holds for this; here, that every call has its turn each round."""
    clocks = [Clock(0.5), Clock(2.0)]
    turns = take_turns([clock.call for clock in clocks], 4.0, 2, clock=lambda: sum(clock.now for clock in clocks))
    assert [[times.tolist() for times in rounds] for rounds in turns] == [[[0.5] * 4] * 2, [[2.0]] * 2]
    assert [clock.calls for clock in clocks] == [benchmark.WARM_UP + benchmark.SETTLE + n for n in (8, 2)]


def row(variant: str = "fp32", batch: int = 1, threads: int = 1, median: float = 1.0, tail: float | None = 3.0) -> Row:
    return Row(variant, "cpu", batch, threads, 10, {"p50": median, "p90": 2.0, "p99": tail}, 5.0)


class TestReport:
    def test_best_is_the_lowest_median_of_the_smallest_batch(self):
        rows = (row(median=3), row("edge", median=2), row("edge", threads=2, median=2.5), row(batch=64, median=0.1))
        assert Report({}, rows).best is rows[1]
        assert Report({}, rows[::-1]).best is rows[1]

    def test_a_row_that_is_at_times_slow_loses_to_one_that_is_always_nearly_as_quick(self):
        steady, erratic = row(threads=1, median=0.202, tail=0.35), row(threads=2, median=0.169, tail=4.3)
        assert Report({}, (erratic, steady)).best is steady
        assert Report({}, (row(threads=2, median=0.1, tail=0.4), steady)).best.threads == 2

    def test_where_a_tail_is_not_known_the_median_decides(self):
        slow, quick = row(threads=1, median=2, tail=2.5), row(threads=2, median=1, tail=None)
        assert Report({}, (slow, quick)).best is quick

    def test_best_throughput_is_that_of_the_largest_batch(self):
        rows = tuple(
            replace(row("edge", batch, threads), images_per_second=speed)
            for batch, threads, speed in ((1, 1, 900.0), (64, 1, 300.0), (64, 2, 500.0))
        )
        assert Report({}, rows).best_throughput is rows[2]
        assert Report({}, rows[::-1]).best_throughput is rows[2]

    def test_json(self):
        report = Report({"cpu": "Some CPU"}, (row(median=3), row("edge")))
        document = json.loads(json.dumps(report.as_json()))
        edge = {
            "variant": "edge",
            "provider": "cpu",
            "batch": 1,
            "threads": 1,
            "calls": 10,
            "milliseconds": {"p50": 1.0, "p90": 2.0, "p99": 3.0},
            "images_per_second": 5.0,
        }
        first = {**edge, "variant": "fp32", "milliseconds": {"p50": 3, "p90": 2.0, "p99": 3.0}}
        rows = {"rows": [first, edge], "best": edge, "best_throughput": first}
        assert document == {"machine": {"cpu": "Some CPU"}, **rows}


class TestMeasure:
    @pytest.fixture
    def bundle(self, tiny) -> Bundle:
        return Bundle.open(tiny)

    @pytest.fixture
    def second_a_call(self, monkeypatch):
        """No call is timed; each takes a second, ten calls a row. Returns what was asked for."""
        asked = []

        def turns(calls, seconds):
            asked.extend((call().shape, seconds) for call in calls)
            return [[np.ones(6), np.ones(4)] for _ in calls]

        monkeypatch.setattr(benchmark, "take_turns", turns)
        return asked

    def test_figures_of_known_times(self, bundle, monkeypatch):
        times = np.random.default_rng(0).gamma(2.0, 0.001, 101)
        monkeypatch.setattr(benchmark, "take_turns", lambda calls, seconds: [[times[:40], times[40:]]] * len(calls))
        (first, _) = measure(bundle, "cpu", [8], [1]).rows
        ordered = np.sort(times) * 1000  # of 101 samples, percentile k is the k-th
        assert first.milliseconds == pytest.approx({"p50": ordered[50], "p90": ordered[90], "p99": ordered[99]})
        assert first.images_per_second == pytest.approx(8 * 101 / times.sum())
        assert first.calls == 101

    def test_every_combination(self, bundle, second_a_call, caplog):
        caplog.set_level("INFO", "edgecifar")
        report = measure(bundle, "cpu", [1, 3], [2, 1, 2], 0.25)
        combinations = [(v, t, b) for v in ("fp32", "edge") for t in (1, 2) for b in (1, 3)]
        assert [(row.variant, row.threads, row.batch) for row in report.rows] == combinations
        assert second_a_call == [((b, 10), 0.25) for _, _, b in combinations]
        loading = [f"Loading {v}, {t} …" for v in ("fp32", "edge") for t in ("1 thread", "2 threads")]
        assert caplog.messages == [*loading, "Measuring each for 0.25 s, in turns …"]
        assert {row.provider for row in report.rows} == {"cpu"}
        assert [(row.calls, row.images_per_second) for row in report.rows] == [(10, b) for _, _, b in combinations]
        assert report.rows[0].milliseconds == {"p50": 1000, "p90": 1000, "p99": None}  # none of ten lies beyond it

    @pytest.mark.parametrize(("batches", "each"), [(1, 2.0), (20, 45 / 80)])
    def test_a_minute_at_most_unless_told(self, bundle, second_a_call, batches, each):
        measure(bundle, "cpu", range(1, batches + 1), [1, 2])
        assert {seconds for _, seconds in second_a_call} == {each}

    def test_threads_by_default(self, bundle, monkeypatch, second_a_call):
        monkeypatch.setattr(machine, "usable_cpus", lambda: 3)
        assert [row.threads for row in measure(bundle, "cpu", [1]).rows] == [1, 3, 1, 3]
        monkeypatch.setattr(machine, "usable_cpus", lambda: 1)
        assert [row.threads for row in measure(bundle, "cpu", [1]).rows] == [1, 1]

    def test_for_real(self, bundle):
        report = measure(bundle, "cpu", [2], [1], 0.01)
        assert [row.variant for row in report.rows] == ["fp32", "edge"]
        for measured in report.rows:
            known = [value for value in measured.milliseconds.values() if value is not None]
            assert known[0] > 0
            assert known == sorted(known)
            assert measured.calls >= 5
            assert measured.images_per_second > 0
        assert report.machine["usable_cpus"] == machine.usable_cpus()
        json.dumps(report.as_json(), allow_nan=False)

    def test_variants_by_name(self, bundle, second_a_call):
        for names in (["edge"], ["edge", "fp32"], ["edge", "fp32", "edge"]):
            report = measure(bundle, "cpu", [1], [1], names=names)
            assert [row.variant for row in report.rows] == list(dict.fromkeys(names))
        with pytest.raises(VariantError, match=r"has no variant called int4: choose one of fp32, edge\.$"):
            measure(bundle, "cpu", [1], names=["edge", "int4"])

    def test_one_by_name_that_needs_torch(self, resealed):
        others = {"format": "pt2", "file": "model.pt2"}
        folder = resealed(manifest=lambda values: values["variants"][1].update(others))
        with pytest.raises(VariantError, match="The variant edge is pt2, which needs torch"):
            measure(Bundle.open(folder), "cpu", [1], [1], names=["edge"])

    def test_an_unknown_provider(self, bundle):
        with pytest.raises(ProviderError, match="There is no provider called gpu"):
            measure(bundle, "gpu", [1])

    def test_models_that_need_torch_are_left_out(self, resealed, second_a_call):
        others = {"format": "pt2", "file": "model.pt2"}
        folder = resealed(manifest=lambda values: values["variants"][1].update(others))
        assert [row.variant for row in measure(Bundle.open(folder), "cpu", [1], [1]).rows] == ["fp32"]

    def test_nothing_to_measure(self, resealed):
        def change(values: dict) -> None:
            for variant, ending in zip(values["variants"], ("a.pt2", "b.pt2"), strict=True):
                variant.update(format="pt2", file=ending)

        folder = resealed(manifest=change)
        with pytest.raises(VariantError) as caught:
            measure(Bundle.open(folder), "cpu", [1])
        assert str(caught.value) == f"{folder} has no ONNX variant to measure: export one with --format onnx."
