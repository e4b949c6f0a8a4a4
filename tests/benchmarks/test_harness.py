"""Figures against numpy's on known samples, turns by a clock that only calls move, and no figures of a fall-back."""

from __future__ import annotations

import argparse
import itertools
import json
import subprocess
import sys
import types
from pathlib import Path

import harness
import numpy as np
import pytest
from harness import Entry
from PIL import Image

from edgecifar.runtime import benchmark
from edgecifar.runtime.errors import EdgecifarError, ProviderError

CUDA, CPU = "CUDAExecutionProvider", "CPUExecutionProvider"


class TestFigures:
    def test_percentiles_of_known_samples(self):
        times = np.random.default_rng(0).gamma(2.0, 0.001, 1001)
        ordered = 1000 * np.sort(times)  # of 1001 samples, percentile p is number 10 p
        found = harness.figures(np.random.default_rng(1).permutation(times), images=8)
        wanted = {"p50": ordered[500], "p90": ordered[900], "p99": ordered[990], "p99.9": ordered[999]}
        assert found["milliseconds"] == pytest.approx({**wanted, "mean": 1000 * times.mean()})
        assert found["n"] == 1001
        assert found["images_per_second"] == pytest.approx(8 * 1001 / times.sum())

    @pytest.mark.parametrize("count", [1, 7, 100, 2_000])
    def test_as_numpy_has_them(self, count):
        times = np.random.default_rng(count).exponential(0.01, count)
        for name, value in harness.figures(times, 1)["milliseconds"].items():
            if name != "mean" and value is not None:
                assert value == pytest.approx(1000 * np.percentile(times, float(name[1:])))

    @pytest.mark.parametrize(
        ("count", "known"), [(1, 1), (2, 1), (9, 1), (10, 2), (99, 2), (100, 3), (999, 3), (1000, 4)]
    )
    def test_no_percentile_that_no_call_lies_beyond(self, count, known):
        milliseconds = harness.figures(np.ones(count), 1)["milliseconds"]
        values = [milliseconds[name] for name in ("p50", "p90", "p99", "p99.9")]
        assert values == [1000.0] * known + [None] * (4 - known)

    def test_ratio_round_by_round(self):
        """The machine slows down five times over, and the ratio stays what it is."""
        base = [np.full(3, slow) for slow in (1.0, 2.0, 3.0, 4.0, 5.0)]
        mine = [1.5 * times for times in base]
        assert harness.ratio(mine, base) == pytest.approx({"median": 1.5, "low": 1.5, "high": 1.5})
        mine[0], mine[4] = base[0] * 1.1, base[4] * 1.2
        assert harness.ratio(mine, base) == pytest.approx({"median": 1.5, "low": 1.2, "high": 1.5})

    def test_one_slow_call_is_no_ratio(self):
        assert harness.ratio([np.array([1, 1, 90.0])], [np.array([2, 2, 2.0])])["median"] == 0.5


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
        with pytest.raises(ProviderError) as caught:
            harness.ran_on(self.session(nodes))
        own, total = nodes.get(CUDA, 0), sum(nodes.values())
        assert str(caught.value) == (
            f"Only {own} of {total} nodes run on cuda, so it is not measured: choose another variant or provider."
        )

    def test_an_onnxruntime_that_does_not_tell(self):
        assert harness.ran_on(self.session(None)) == {"ran_on": "cuda", "nodes": None, "share": None}


@pytest.fixture
def measured(clock) -> list[Entry]:
    """A base, one that takes twice as long, and one that is not there."""
    base = Entry({"engine": "plain", "batch": 8}, clock.call("a", 0.5), images=8, details={"share": 1.0})
    twice = Entry({"engine": "other", "batch": 8}, clock.call("b", 1.0), images=8, bases={"plain": base})
    absent = Entry({"engine": "absent", "batch": 8}, problem="it is not installed: 'pip install absent'.")
    entries = [base, twice, absent]
    harness.alternate(entries, 50.0, 5, clock)
    return entries


class TestReport:
    def test_the_last_line_is_json(self, measured, check_document, capsys):
        harness.report("latency", measured, {"seconds": 0.1}, None, absent="1.0")
        document = check_document(capsys.readouterr().out.splitlines()[-1])
        assert document["benchmark"] == "latency"
        assert document["settings"] == {"seconds": 0.1}
        assert document["machine"]["versions"]["absent"] == "1.0"
        base, twice, absent = document["rows"]
        assert base["milliseconds"]["p50"] == pytest.approx(500)
        assert twice["images_per_second"] == pytest.approx(8)
        assert twice["ratios"]["plain"]["median"] == pytest.approx(2.0)
        assert base["share"] == 1.0
        assert absent == {"engine": "absent", "batch": 8, "problem": "it is not installed: 'pip install absent'."}

    def test_gpus_and_remarks_are_told(self, measured, check_document, monkeypatch, capsys):
        monkeypatch.setattr(harness, "gpus", lambda: ["A card, 1.2, 3 MiB"])
        measured[1].ceiling = 32.0
        harness.report("peers", measured, {}, None, ["One.", "Two."])
        lines = capsys.readouterr().out.splitlines()
        assert "; A card, 1.2, 3 MiB; load " in lines[0]
        assert lines[-4:-1] == ["One.", "Two.", ""]
        assert [row.get("peak_share") for row in check_document(lines[-1])["rows"]] == [None, 0.25, None]

    def test_the_schema_refuses_figures_that_are_not_all_there(self, measured, check_document):
        document = harness.document("latency", measured, {})
        check_document(json.dumps(document))
        del document["rows"][0]["milliseconds"]["p99"]
        with pytest.raises(ValueError, match="'p99' is a required property"):
            check_document(json.dumps(document))

    def test_table(self, measured):
        lines = harness.table(measured).splitlines()
        assert " ".join(lines[0].split()) == (
            "engine batch p50 ms p90 ms p99 ms p99.9 ms mean ms images/s calls of plain"
        )
        plain, other = lines[1].split(), lines[2].split()
        assert plain == ["plain", "8", "500.000", "500.000", "500.000", "500.000", "16", "100"]
        assert other == ["other", "8", "1000.000", "1000.000", "1000.000", "8", "50", "2.000", "(2.000", "to", "2.000)"]
        assert lines[3:] == ["", "absent 8: it is not installed: 'pip install absent'."]
        assert lines[1].index("500.000") == lines[2].index("1000.000") + 1  # flush right

    def test_picture(self, measured, tmp_path):
        measured.append(Entry({"engine": "one call"}, rounds=[np.array([0.5])]))
        harness.draw(measured, tmp_path / "all.png", "a title")
        with Image.open(tmp_path / "all.png") as image:
            image.load()
            assert (image.format, len(set(image.convert("RGB").get_flattened_data())) > 10) == ("PNG", True)
        assert [path.name for path in tmp_path.iterdir()] == ["all.png"]

    @pytest.mark.parametrize("reason", ["library", "path"])
    def test_figures_are_not_lost_with_the_picture(
        self, measured, check_document, tmp_path, capsys, monkeypatch, reason
    ):
        if reason == "library":
            monkeypatch.setitem(sys.modules, "matplotlib.backends.backend_agg", None)
            wanted = "--picture needs matplotlib, which is not installed: pip install matplotlib"
        else:
            wanted = "Could not write a.png"
        with pytest.raises(EdgecifarError, match=wanted):
            harness.report("latency", measured, {"seconds": 0.1}, tmp_path / "none" / "a.png")
        check_document(capsys.readouterr().out.splitlines()[-1])

    def test_no_picture_of_nothing(self, tmp_path):
        with pytest.raises(EdgecifarError, match="leave out --picture"):
            harness.draw([Entry({}, problem="not here.")], tmp_path / "all.png", "")
        assert not list(tmp_path.iterdir())

    def test_a_failure_is_one_sentence(self, monkeypatch):
        def fail():
            raise EdgecifarError("This is wrong: do that.")

        monkeypatch.setattr("sys.argv", ["benchmarks/latency.py"])
        with pytest.raises(SystemExit) as caught:
            harness.main(fail)
        assert caught.value.code == "latency.py: This is wrong: do that."


@pytest.mark.parametrize("script", sorted(path.name for path in Path(harness.__file__).parent.glob("*.py")))
def test_every_script_says_what_it_takes(script):
    """A "%" in a help text, say, ends argparse with a traceback."""
    if script == "harness.py":
        pytest.skip("imported by the others, not run")
    path = Path(harness.__file__).parent / script
    said = subprocess.run([sys.executable, path, "--help"], capture_output=True, text=True, check=False)
    assert said.returncode == 0, said.stderr
    assert said.stdout.startswith(f"usage: {script}")
