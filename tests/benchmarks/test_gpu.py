"""The minutes of a GPU are spent on what is worth most, nothing is lost, and what is missing is named."""

from __future__ import annotations

import json
import math
from functools import partial

import engines_cuda
import gpu
import gpu_tasks
import harness
import onnx_entries
import pytest
import torch
from gpu import DONE, FAILED, LEFT_OUT, STOPPED, Results, Task, measure
from gpu_setup import Setup, Sizes
from gpu_tasks import OutOfTimeError, Watch

from edgecifar.runtime.errors import DataError, EdgecifarError, ProviderError
from edgecifar.runtime.files import write_file
from edgecifar.train import data, plots
from edgecifar.train.listeners import Progress
from edgecifar.train.recipes import RECIPES

SETTINGS = {"minutes": 1.0, "rehearsal": True, "dataset": "synthetic"}


@pytest.fixture
def results(tmp_path):
    return lambda: Results(tmp_path, SETTINGS, "a card")


def task(clock, name: str, expected: float, takes: float | None = None, fails: Exception | None = None) -> Task:
    """A task that yields a row, takes so many seconds, and may then fail."""

    def run(end: float):
        clock.calls.append(name)
        yield {"figure": 1.5}
        clock.now += expected if takes is None else takes
        if fails:
            raise fails

    return Task(2, name, expected, run)


def statuses(found: Results) -> dict[str, str]:
    return {entry["task"].split(" ", 1)[1]: entry["status"] for entry in found.tasks.values()}


class TestSchedule:
    def test_what_does_not_fit_is_named_and_what_is_shorter_still_runs(self, clock, results):
        wanted = [task(clock, "first", 30), task(clock, "long", 40), task(clock, "short", 10)]
        found = results()
        measure(wanted, found, 1.0, clock)
        assert statuses(found) == {"first": DONE, "long": LEFT_OUT, "short": DONE}
        assert clock.calls == ["first", "short"]
        assert "2 long: left out. It takes about 40 s, and 25 s were left." in found.text()

    def test_the_same_command_goes_on(self, clock, results):
        wanted = [task(clock, "first", 30), task(clock, "long", 40)]
        measure(wanted, results(), 1.0, clock)
        again = results()
        measure(wanted, again, 1.0, clock)
        assert clock.calls == ["first", "long"]
        assert statuses(again) == {"first": DONE, "long": DONE}
        assert [(row["task"], row["figure"], row["card"]) for row in again.rows] == [
            ("first", 1.5, "a card"),
            ("long", 1.5, "a card"),
        ]

    @pytest.mark.parametrize(
        ("error", "status", "why"),
        [
            (OutOfTimeError("It was stopped in epoch 3: the same command goes on."), STOPPED, "epoch 3"),
            (ProviderError("The provider cuda is not here."), FAILED, "not here"),
            (RuntimeError("CUDA error: out of memory\nmore"), FAILED, "(CUDA error: out of memory)"),
        ],
    )
    def test_a_failure_costs_nobody_elses_figures(self, clock, results, error, status, why):
        found = results()
        measure([task(clock, "bad", 5, fails=error), task(clock, "good", 5)], found, 1.0, clock)
        assert statuses(found) == {"bad": status, "good": DONE}
        assert why in found.text()
        assert [row["task"] for row in found.rows] == ["bad", "good"]  # what it had measured is kept
        again = results()
        measure([task(clock, "bad", 5)], again, 1.0, clock)
        assert statuses(again)["bad"] == DONE
        assert [row["task"] for row in again.rows] == ["good", "bad"]

    def test_it_is_on_the_disk_after_every_task(self, clock, results, tmp_path):
        seen = []

        def look(end: float):
            seen.append([row["task"] for row in json.loads((tmp_path / "gpu.json").read_text())["rows"]])
            yield {"figure": 2}

        measure([task(clock, "first", 5), Task(2, "second", 5, look)], results(), 1.0, clock)
        assert seen == [["first"]]
        text = (tmp_path / "gpu.txt").read_text()
        assert "2 training" in text
        assert "second" in text

    def test_results_of_another_kind_are_left_alone(self, clock, results, tmp_path):
        measure([task(clock, "first", 5)], results(), 1.0, clock)
        with pytest.raises(DataError, match="another --out"):
            Results(tmp_path, {**SETTINGS, "rehearsal": False}, "a card")
        (tmp_path / "gpu.json").write_text("[")
        with pytest.raises(DataError, match="damaged"):
            results()


def test_the_order_of_worth(tmp_path):
    """Every step comes after what it needs; a whole run fits into eight minutes as far as is known."""
    found = gpu.tasks(Setup(torch.device("cuda"), tmp_path, data.synthetic(10, 10)))
    assert [one.step for one in found] == sorted(one.step for one in found)
    assert {one.step for one in found} == gpu.STEPS.keys()
    assert len({one.key for one in found}) == len(found)
    names = [one.name for one in found]
    assert names.index("best, seed 0") < names.index("export of best, seed 0") < names.index("fp16 on cuda")
    assert sum(name.startswith("fast, seed") for name in names) == 3
    assert sum(one.seconds for one in found if one.step < 5) < 8 * 60


class TestSetup:
    def test_recipes_are_those_of_cuda(self, tmp_path):
        setup = Setup(torch.device("cuda"), tmp_path, data.synthetic(10, 10))
        assert setup.recipe("best").epochs == RECIPES["best"].cuda_epochs
        assert setup.recipe("fast:3").epochs == 3
        assert setup.recipe("reference").batch_size == 16

    def test_smaller_ones_have_smaller_rates(self, tmp_path):
        setup = Setup(torch.device("cpu"), tmp_path, data.synthetic(10, 10), Sizes(batch_size=8, epochs=1))
        found = setup.recipe("fast")
        assert (found.epochs, found.batch_size) == (1, 8)
        assert found.muon_lr / RECIPES["fast"].muon_lr == pytest.approx(math.sqrt(8 / 512))

    def test_what_is_needed_is_named(self, tmp_path):
        setup = Setup(torch.device("cpu"), tmp_path, data.synthetic(10, 10))
        with pytest.raises(DataError, match="training best, seed 0"):
            next(gpu_tasks.export(setup, 0.0))


def test_a_training_is_stopped_where_the_time_is_over(monkeypatch):
    now = 5.0
    monkeypatch.setattr(gpu_tasks.time, "perf_counter", lambda: now)
    watch = Watch(end=10.0)
    watch.progress(Progress(1, 2, 4, 1.0, 1.0))
    assert watch.first is None
    now = 8.0
    watch.progress(Progress(1, 4, 4, 1.0, 1.0))
    assert watch.first == 3.0
    now = 11.0
    with pytest.raises(OutOfTimeError, match="epoch 2"):
        watch.progress(Progress(2, 4, 4, 1.0, 1.0))
    assert watch.first == 3.0


def test_no_gpu_is_one_sentence(tmp_path, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(EdgecifarError, match="no cuda device"):
        gpu.main(["--out", str(tmp_path / "out")])
    assert not (tmp_path / "out").exists()


@pytest.fixture
def restored(monkeypatch):
    """What a rehearsal changes in the other modules is as before afterwards."""
    for module, name in ((engines_cuda, "DTYPES"), (onnx_entries, "GRAPH"), (onnx_entries, "MEMORY")):
        monkeypatch.setattr(module, name, dict(getattr(module, name)))
    monkeypatch.setattr(engines_cuda, "GRAPH", onnx_entries.GRAPH)
    monkeypatch.setattr(engines_cuda, "SIZE", engines_cuda.SIZE)
    monkeypatch.setattr(harness, "CHECKED", harness.CHECKED)


@pytest.mark.slow
def test_the_rehearsal(tmp_path, restored, check_document, capsys, monkeypatch):
    """Every task is done, every row holds a number that was measured, and nothing is done twice."""
    for name in ("confusion", "curves"):  # drawing takes longer than training
        monkeypatch.setattr(plots, name, lambda _, path: write_file(path, b"drawn"))
    command = ["--rehearse", "--minutes", "20", "--out", str(tmp_path)]
    assert gpu.main(command) == 0
    found = check_document(capsys.readouterr().out.splitlines()[-1], entries=False)
    assert {entry["status"] for entry in found["tasks"]} == {DONE}
    assert {row["step"] for row in found["rows"]} == gpu.STEPS.keys()
    for row in found["rows"]:
        assert not row.get("problem"), row
        assert row["card"]
        figures = {name: value for name, value in row.items() if name != "step" and isinstance(value, float)}
        assert figures, row
        assert all(math.isfinite(value) for value in figures.values()), row
    smoke = [row for row in found["rows"] if row["step"] == 1]
    assert {row["recipe"] for row in smoke} == RECIPES.keys()
    assert all(row["loss_difference"] < 1e-3 for row in smoke)
    parity = [row for row in found["rows"] if row["step"] == 3]
    assert all(row["passes"] for row in parity)
    calls = {(row.get("engine") or row["provider"], row["call"]) for row in found["rows"] if row["step"] == 4}
    assert {("cpu", call) for call in ("session.run", "bound", "graph", "resident", "Classifier")} <= calls
    (curve,) = (row for row in found["rows"] if row["step"] == 5 and row.get("epoch") == 1)
    assert curve["difference"] == pytest.approx(curve["loss"] - 1.737)

    monkeypatch.setattr(gpu_tasks, "smoke", None)  # calling it would fail
    assert gpu.main(command) == 0
    assert json.loads(capsys.readouterr().out.splitlines()[-1])["rows"] == found["rows"]


@pytest.mark.gpu
@pytest.mark.slow
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_the_smoke_on_a_gpu(tmp_path):
    """Nothing waits for the GPU in 60 steps, and the graph's losses are eager torch's."""
    setup = Setup(torch.device("cuda"), tmp_path, data.synthetic(10, 10))
    for row in map(next, [partial(gpu_tasks.smoke, setup, name, 0.0)() for name in RECIPES]):
        assert row["problem"] is None
        assert 0 < row["graph_ms"] < row["eager_ms"]
