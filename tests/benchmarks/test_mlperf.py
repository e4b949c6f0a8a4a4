"""Queries are answered once each, in batches; logs are read as LoadGen writes them; LoadGen itself, where it is."""

from __future__ import annotations

import ctypes
import importlib.util
import json
import sys
import threading
import types

import mlperf
import numpy as np
import pytest
from mlperf import System

from edgecifar.runtime.errors import EdgecifarError, InputError

SUMMARY = """\
================================================
MLPerf Results Summary
================================================
SUT name : PySUT
Scenario : Server
Completed samples per second    : 200.53
Result is : INVALID
  Early stopping satisfied: NO
Recommendations:
 * Reduce target QPS to improve latency.
Mean latency (ns)               : 101492013
"""


class FakeLoadGen:
    """Holds what was answered: the class of each query's id."""

    def __init__(self) -> None:
        self.answered: dict[int, int] = {}
        self.sizes: list[int] = []

    def QuerySampleResponse(self, identity, address, length):  # noqa: N802
        return identity, address, length

    def QuerySamplesComplete(self, answers):  # noqa: N802
        self.sizes.append(len(answers))
        for identity, address, length in answers:
            assert identity not in self.answered
            self.answered[identity] = int.from_bytes(ctypes.string_at(address, length), "little")


class Brightest:
    """A classifier that takes an image's first value for its class; it waits where it is told to."""

    def __init__(self) -> None:
        self.go = threading.Event()
        self.go.set()
        self.began = threading.Event()

    def probabilities(self, images):
        self.began.set()
        assert self.go.wait(30)
        if (images[:, 0, 0, 0] > 9).any():
            raise InputError("No.")
        return np.eye(10, dtype=np.float32)[images[:, 0, 0, 0]]


@pytest.fixture
def images() -> np.ndarray:
    """uint8 [10, 32, 32, 3], of the classes 0 to 9."""
    return np.broadcast_to(np.arange(10, dtype=np.uint8)[:, None, None, None], (10, 32, 32, 3))


def samples(*indices: int):
    return [types.SimpleNamespace(id=100 + place, index=index) for place, index in enumerate(indices)]


class TestSystem:
    @pytest.mark.parametrize("queued", [False, True])
    def test_each_query_is_answered(self, images, queued):
        lg = FakeLoadGen()
        with System(lg, Brightest(), images, 4, queued) as system:
            system.issue(samples(3, 1, 4, 1, 5, 9, 2, 6, 5))
        assert [*lg.answered.values()] == [3, 1, 4, 1, 5, 9, 2, 6, 5]
        assert [*lg.answered] == [*range(100, 109)]
        assert max(lg.sizes) <= 4
        assert system.error is None

    def test_offline_in_batches(self, images):
        lg = FakeLoadGen()
        with System(lg, Brightest(), images, 4, queued=False) as system:
            system.issue(samples(*range(10)))
        assert lg.sizes == [4, 4, 2]

    def test_what_waits_is_taken_together(self, images):
        lg, classifier = FakeLoadGen(), Brightest()
        classifier.go.clear()
        with System(lg, classifier, images, 4, queued=True) as system:
            one, *others = samples(*range(7))
            system.issue([one])
            assert classifier.began.wait(30)
            for sample in others:
                system.issue([sample])  # does not wait for the first
            assert lg.sizes == []
            classifier.go.set()
        assert lg.sizes == [1, 4, 2]

    @pytest.mark.parametrize("queued", [False, True])
    def test_a_failure_is_kept_and_nobody_waits(self, images, queued):
        lg = FakeLoadGen()
        images = images.copy()
        images[5] = 77
        with System(lg, Brightest(), images, 1, queued) as system:
            system.issue(samples(4, 5, 6))
        assert lg.answered == {100: 4, 101: mlperf.NO_CLASS, 102: mlperf.NO_CLASS}
        assert str(system.error) == "No."


def test_one_call_runs_server_at_several_rates():
    runs = [("SingleStream", None), ("Offline", None), ("Server", 1500), ("Server", 3000)]
    assert mlperf.plan(mlperf.SCENARIOS, [1500, 3000, 1500]) == runs
    text = mlperf.table([measured(0.9, server_qps=qps) for qps in (1500.0, 3000.0)], None)
    assert "--qps 1500 " in text
    assert "--qps 3000 " in text


def measured(accuracy: float, **more):
    known = {"scenario": "Server", "figure": "per second", "problem": None, "verdict": "VALID", "value": 1}
    return {**known, "accuracy": accuracy, **more}


class TestOneScenarioFails:
    GIVEN = types.SimpleNamespace(server_qps=None)

    def test_its_row_says_why(self, monkeypatch, tmp_path):
        def fails(*_):
            raise EdgecifarError("Offline could not be run: No.")

        monkeypatch.setattr(mlperf, "run", fails)
        self.GIVEN.logs = tmp_path
        row = mlperf.measure(None, None, None, None, "Offline", self.GIVEN)
        assert row == {
            "scenario": "Offline",
            "figure": mlperf.SCENARIOS["Offline"],
            "problem": "Offline could not be run: No.",
        }

    def test_the_others_are_told(self):
        failed = {"scenario": "Offline", "figure": "f", "problem": "No."}
        text = mlperf.table([measured(0.9), failed], 0.8)
        assert "Server" in text
        assert "Offline: No." in text
        assert "holds" in text
        assert "Accuracy" not in mlperf.table([failed], 0.8)


def test_read_summary(tmp_path):
    (tmp_path / "mlperf_log_summary.txt").write_text(SUMMARY)
    found = mlperf.read_summary(tmp_path)
    assert found["Result is"] == "INVALID"
    assert found[mlperf.SCENARIOS["Server"]] == "200.53"
    assert found["Mean latency (ns)"] == "101492013"
    with pytest.raises(EdgecifarError, match="no summary"):
        mlperf.read_summary(tmp_path / "none")


class TestShareCorrect:
    def write(self, folder, *answers: tuple[int, str]):
        entries = [{"seq_id": n, "qsl_idx": index, "data": data} for n, (index, data) in enumerate(answers)]
        (folder / "mlperf_log_accuracy.json").write_text(json.dumps(entries))

    def test_known(self, tmp_path):
        self.write(tmp_path, (2, "2C01"), (0, "0300"), (1, "0000"), (3, "FFFF"))  # 300, 3, 0 and none
        assert mlperf.share_correct(tmp_path, np.array([3, 1, 300, 9])) == 0.5

    @pytest.mark.parametrize("answers", [[(0, "01")], [(0, "01"), (0, "01")], [(0, "01"), (1, "01"), (2, "01")]])
    def test_not_one_each(self, tmp_path, answers):
        self.write(tmp_path, *answers)
        with pytest.raises(EdgecifarError, match="not one answer an image"):
            mlperf.share_correct(tmp_path, np.array([1, 1]))


@pytest.mark.parametrize("value", ["0", "nan"])
@pytest.mark.parametrize("option", ["--qps", "--seconds"])
def test_nothing_a_second_is_wrong_usage(monkeypatch, capsys, option, value):
    monkeypatch.setattr(sys, "argv", ["mlperf.py", option, value])
    with pytest.raises(SystemExit) as ended:
        mlperf.main()
    assert ended.value.code == 2
    assert option in capsys.readouterr().err


def test_without_loadgen(monkeypatch):
    monkeypatch.setitem(sys.modules, "mlperf_loadgen", None)
    with pytest.raises(EdgecifarError, match=r"pip install mlcommons-loadgen==[0-9.]+\.$"):
        mlperf.loadgen()


@pytest.mark.skipif(not importlib.util.find_spec("mlperf_loadgen"), reason="mlcommons-loadgen is not installed")
def test_it_runs(tiny, synthetic_is_small, small, monkeypatch, capsys, tmp_path):
    from edgecifar.runtime import Classifier

    arguments = ["--bundle", str(tiny), "--variant", "fp32", "--provider", "cpu", "--threads", "1", "--images", "20"]
    arguments += ["--data", "synthetic", "--seconds", "0.1", "--queries", "5", "--logs", str(tmp_path)]
    arguments += ["--qps", "200", "--qps", "100"]
    monkeypatch.setattr(sys, "argv", ["mlperf.py", *arguments])
    mlperf.main()
    *lines, last = capsys.readouterr().out.splitlines()
    document = json.loads(last)
    assert sorted(document) == ["benchmark", "machine", "rows", "settings"]
    assert [row["scenario"] for row in document["rows"]] == [*mlperf.SCENARIOS, "Server"]
    assert [row.get("server_qps") for row in document["rows"]] == [None, None, 200, 100]
    answers = Classifier(tiny, "fp32", "cpu", 1).probabilities(small.test_images[:20]).argmax(axis=1)
    for row in document["rows"]:
        assert row["verdict"] in ("VALID", "INVALID")
        assert row["value"] > 0
        assert row["accuracy"] == (answers == small.test_labels[:20]).mean()
        assert row["summary"]["Scenario"] == row["scenario"]
        assert any(line.startswith(row["scenario"]) and row["verdict"] in line for line in lines)
    assert any("not an MLPerf result" in line for line in lines)
    assert len([*tmp_path.glob("*/mlperf_log_detail.txt")]) == 8
