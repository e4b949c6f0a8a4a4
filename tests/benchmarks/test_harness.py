"""Figures against numpy's on known samples, turns by a clock that only calls move, and no figures of a fall-back."""

from __future__ import annotations

import argparse
import itertools
import types

import harness
import numpy as np
import pytest
from harness import Entry, random_images

from edgecifar.runtime import benchmark
from edgecifar.runtime.contract import CIFAR10
from edgecifar.runtime.errors import EdgecifarError, ProviderError

CUDA, CPU = "CUDAExecutionProvider", "CPUExecutionProvider"


class TestImages:
    def test_same_every_time(self, contract):
        images = random_images(13, contract)
        assert (images.dtype, images.shape) == (np.uint8, (13, 12, 12, 3))
        assert images.tolist() == random_images(20, contract)[:13].tolist()
        assert images.tolist() != random_images(13, contract, seed=1).tolist()

    def test_squares_of_every_size(self):
        for index, image in enumerate(random_images(12, CIFAR10)):
            side = 2 ** (index % 6)
            assert (image == image[::side, ::side].repeat(side, 0).repeat(side, 1)).all()
            assert len(np.unique(image.reshape(-1, 3), axis=0)) > 0.9 * (32 // side) ** 2


class TestFigures:
    @pytest.mark.parametrize(
        ("count", "known"), [(1, 1), (9, 1), (10, 2), (99, 2), (100, 3), (999, 3), (1000, 4), (1001, 4)]
    )
    def test_percentiles(self, count, known):
        """As numpy has them, and none that too few calls lie beyond."""
        times = np.random.default_rng(count).gamma(2.0, 0.001, count)
        found = harness.figures(times, images=8)
        names = ("p50", "p90", "p99", "p99.9")
        wanted = [pytest.approx(1000 * np.percentile(times, float(name[1:]))) for name in names[:known]]
        assert [found["milliseconds"][name] for name in names] == wanted + [None] * (4 - known)
        assert found["milliseconds"]["mean"] == pytest.approx(1000 * times.mean())
        assert found["n"] == count
        assert found["images_per_second"] == pytest.approx(8 * count / times.sum())

    def test_ratio_round_by_round(self):
        """The machine slows down five times over, and the ratio stays what it is."""
        base = [np.full(3, slow) for slow in (1.0, 2.0, 3.0, 4.0, 5.0)]
        mine = [1.5 * times for times in base]
        assert harness.ratio(mine, base) == pytest.approx({"median": 1.5, "low": 1.5, "high": 1.5})
        mine[0], mine[4] = base[0] * 1.1, base[4] * 1.2
        assert harness.ratio(mine, base) == pytest.approx({"median": 1.5, "low": 1.2, "high": 1.5})
        assert harness.ratio([np.array([1, 1, 90.0])], [np.array([2, 2, 2.0])])["median"] == 0.5  # one slow call


@pytest.mark.parametrize("text", ["0", "-1", "nan", "inf", "some"])
def test_options_that_must_be_positive(text):
    for kind in (int, float):
        with pytest.raises((argparse.ArgumentTypeError, ValueError)):
            harness.positive(kind)(text)
    assert (harness.positive(int)("3"), harness.positive(float)("0.5")) == (3, 0.5)


class TestAlternate:
    def test_each_round_gives_each_a_turn(self, clock):
        entries = [Entry({}, clock.call(name, seconds)) for name, seconds in {"a": 0.25, "b": 0.5, "c": 4.0}.items()]
        harness.alternate(entries, seconds=8.0, rounds=4, clock=clock)
        assert [[len(times) for times in entry.rounds] for entry in entries] == [[8] * 4, [4] * 4, [1] * 4]
        assert [set(np.concatenate(entry.rounds)) for entry in entries] == [{0.25}, {0.5}, {4.0}]
        turns = [name for name, _ in itertools.groupby(clock.calls)]
        while len(turns) < 12:  # whoever was last in one round and first in the next has one group there
            place = next(at for at in range(0, len(turns), 3) if len(set(turns[at : at + 3])) < 3)
            turns.insert(place, turns[place - 1])
        assert [sorted(turns[at : at + 3]) for at in range(0, 12, 3)] == [["a", "b", "c"]] * 4

    def test_the_order_changes_and_can_be_had_again(self, clock):
        def orders(seed: int) -> list[str]:
            clock.calls.clear()
            entries = [Entry({}, clock.call(name, 1.0)) for name in "abcd"]
            harness.alternate(entries, 6.0, 6, clock, seed)
            return list(clock.calls)

        first = orders(0)
        assert orders(0) == first
        assert orders(1) != first
        rounds = ["".join(dict.fromkeys(first[at : at + 12])) for at in range(24, len(first), 12)]
        assert len(rounds) == 5
        assert len(set(rounds)) > 2

    def test_the_first_calls_of_a_turn_are_not_counted(self, clock):
        entry = Entry({}, clock.call("a", 1.0))
        harness.alternate([entry], 3.0, 3, clock)
        assert sum(len(times) for times in entry.rounds) == 3
        assert len(clock.calls) == 3 + benchmark.WARM_UP + 2 * benchmark.SETTLE

    def test_a_machine_that_slows_down_hits_all_alike(self, clock):
        """One that measures in a row would find the second three times as slow."""

        def slower():
            clock.now += 0.01 * clock.now / 100

        entries = [Entry({}, slower), Entry({}, slower)]
        harness.alternate(entries, 100.0, 50, clock)
        assert harness.ratio(entries[0].rounds, entries[1].rounds)["median"] == pytest.approx(1.0, abs=0.02)
        assert entries[0].rounds[-1][-1] > 2 * entries[0].rounds[0][0]

    def test_what_is_not_there_has_no_turn(self, clock):
        entries = [Entry({}, problem="not installed."), Entry({}, clock.call("a", 1.0))]
        harness.alternate(entries, 1.0, 2, clock)
        assert entries[0].rounds == []
        assert len(entries[1].rounds) == 2


class TestRanOn:
    @staticmethod
    def session(nodes):
        """A session that says it runs on CUDA."""
        return types.SimpleNamespace(provider="cuda", assignment=lambda: nodes)

    def test_every_node(self):
        found = harness.ran_on(self.session({CUDA: 23}))
        assert found == {"ran_on": "cuda", "nodes": {CUDA: 23}, "share": 1.0}

    @pytest.mark.parametrize("nodes", [{CPU: 23}, {CUDA: 22, CPU: 1}, {}])
    def test_a_fall_back_is_not_measured(self, nodes):
        with pytest.raises(ProviderError, match=f"Only {nodes.get(CUDA, 0)} of {sum(nodes.values())} nodes"):
            harness.ran_on(self.session(nodes))

    def test_an_onnxruntime_that_does_not_tell(self):
        assert harness.ran_on(self.session(None)) == {"ran_on": "cuda", "nodes": None, "share": None}


def test_a_failure_is_one_sentence(monkeypatch):
    def fail():
        raise EdgecifarError("This is wrong: do that.")

    monkeypatch.setattr("sys.argv", ["benchmarks/latency.py"])
    with pytest.raises(SystemExit) as caught:
        harness.main(fail)
    assert caught.value.code == "latency.py: This is wrong: do that."
