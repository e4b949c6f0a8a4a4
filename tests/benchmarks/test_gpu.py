"""The minutes of a GPU are spent on what is worth most, nothing is lost, and what is missing is named."""

from __future__ import annotations

import json
import math
import warnings
import zipfile
from dataclasses import replace
from functools import partial

import engines_cuda
import gpu
import gpu_tasks
import harness
import narrow_net  # noqa: F401  the net "narrow"
import onnx_entries
import pytest
import torch
from gpu import DONE, FAILED, LEFT_OUT, STOPPED, UNDER_WAY, Results, Task, measure
from gpu_setup import Setup, Sizes
from gpu_tasks import OutOfTimeError, Watch

from edgecifar.export import familiarity
from edgecifar.runtime.errors import DataError, EdgecifarError, ProviderError
from edgecifar.runtime.files import write_file
from edgecifar.train import data, plots
from edgecifar.train.graphs import GraphedSteps, make_steps
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

    def test_what_a_long_task_has_so_far_is_on_the_disk(self, clock, results, tmp_path):
        found, seen = results(), []

        def read() -> dict:
            return json.loads((tmp_path / "gpu.json").read_text())

        def train(end: float):
            seen.append(read())
            found.keep([{"epoch": 1}])
            seen.append(read())
            yield {"epoch": 2}

        measure([Task(2, "long", 5, train)], found, 1.0, clock)
        began, kept, done = *seen, read()
        assert [document["tasks"][0]["status"] for document in (began, kept, done)] == [UNDER_WAY, UNDER_WAY, DONE]
        assert [[row["epoch"] for row in document["rows"]] for document in (began, kept, done)] == [[], [1], [2]]

    def test_small_files_are_copied_whenever_rows_are_written(self, clock, tmp_path):
        out, copies = tmp_path / "out", tmp_path / "copies"
        copies.mkdir()
        for name in ("fast-seed0", "best-seed0"):
            (out / name).mkdir(parents=True)
            for file in ("run.json", "metrics.jsonl", "weights.safetensors"):
                (out / name / file).write_text(name)
        found = Results(out, SETTINGS, "a card", copies)
        measure([task(clock, "first", 5)], found, 1.0, clock)
        assert {path.name for path in copies.iterdir()} == {"gpu.json", "gpu.txt", "runs.zip"}
        assert (copies / "gpu.json").read_text() == (out / "gpu.json").read_text()
        with zipfile.ZipFile(copies / "runs.zip") as archive:
            assert sorted(archive.namelist()) == [
                f"{name}/{file}" for name in ("best-seed0", "fast-seed0") for file in ("metrics.jsonl", "run.json")
            ]
            assert archive.read("best-seed0/run.json") == b"best-seed0"

    def test_what_is_no_number_is_empty(self, clock, results):
        def diverge(end: float):
            yield {"loss": math.nan, "ratios": {"plain": math.inf, "other": [-math.inf, 1.5]}}

        found = results()
        measure([Task(2, "bad", 5, diverge)], found, 1.0, clock)
        (row,) = json.loads(json.dumps(found.document(), allow_nan=False))["rows"]
        assert row["loss"] is None
        assert row["ratios"] == {"plain": None, "other": [None, 1.5]}

    def test_memory_that_cannot_be_given_back_costs_nothing(self, clock, results, monkeypatch):
        def fail():
            raise RuntimeError("CUDA error: operation not permitted when stream is capturing")

        monkeypatch.setattr(torch.cuda, "empty_cache", fail)
        found = results()
        measure([task(clock, "first", 5), task(clock, "second", 5)], found, 1.0, clock)
        assert statuses(found) == {"first": DONE, "second": DONE}

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
    assert sum(one.seconds for one in found if one.step < 6) < 8 * 60


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


def test_what_a_training_has_is_kept_every_now_and_then(clock, monkeypatch):
    kept = []
    monkeypatch.setattr(gpu_tasks.time, "perf_counter", clock)
    watch = Watch(math.inf, lambda: kept.append(clock.now))
    for _ in range(4):
        clock.now += 15.0
        watch.epoch({})
    assert kept == [130.0, 160.0]


def test_the_mode_that_finds_waiting_says_nothing_of_itself(monkeypatch):
    """It warns that it is a prototype, and is set back whatever happens."""
    modes = []

    def set_mode(mode: str) -> None:
        modes.append(mode)
        if mode == "error":
            warnings.warn("Synchronization debug mode is a prototype feature and does not yet detect all", stacklevel=2)

    monkeypatch.setattr(torch.cuda, "set_sync_debug_mode", set_mode)
    with pytest.raises(ValueError, match="inside"), gpu_tasks.no_waiting(torch.device("cuda")):
        raise ValueError("inside")
    assert modes == ["error", "default"]


class TestSmoke:
    @pytest.fixture
    def setup(self, tmp_path, monkeypatch) -> Setup:
        """A net that takes no time."""
        monkeypatch.setattr(
            gpu_tasks, "make_net", lambda *_: torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(3072, 10))
        )
        return Setup(torch.device("cpu"), tmp_path, data.synthetic(10, 10), Sizes(steps=10, batch_size=4))

    def test_its_row(self, setup):
        (row,) = gpu_tasks.smoke(setup, "reference", 0.0)
        assert (row["steps"], row["graph"], row["problem"]) == (30, True, None)
        assert row["eager_difference"] == 0.0
        assert max(row["first_difference"], row["graph_difference"]) < 1e-4
        assert not setup.not_recorded

    @pytest.mark.parametrize(("at", "judged"), [(7, True), (8, False)])
    def test_only_the_first_losses_are_judged(self, setup, monkeypatch, at, judged):
        def take(steps, *given, whole=gpu_tasks._take):
            losses, milliseconds = whole(steps, *given)
            losses[at] *= 1.1 if isinstance(steps, GraphedSteps) else 1.0
            return losses, milliseconds

        monkeypatch.setattr(gpu_tasks, "_take", take)
        (row,) = gpu_tasks.smoke(setup, "reference", 0.0)
        assert row["graph_difference"] == pytest.approx(0.1, rel=1e-3)
        assert bool(row["problem"]) == judged

    def test_one_that_cannot_be_recorded_trains_without(self, setup, monkeypatch):
        monkeypatch.setattr(gpu_tasks, "make_steps", lambda *given: make_steps(*given[:-1], False))
        rows = gpu_tasks.smoke(setup, "reference", 0.0)
        row = next(rows)
        assert row["graph"] is False
        assert row["eager_ms"] > 0
        with pytest.raises(DataError, match="cannot be recorded"):
            next(rows)
        wanted = []
        monkeypatch.setattr(gpu_tasks.training, "finished_run", lambda *given: wanted.append(given[-1].cuda_graph))
        for name in ("reference", "reference:2", "fast"):
            with pytest.raises(EdgecifarError):  # there is no run
                next(gpu_tasks.train(setup, name, 0, math.inf))
        assert wanted == [False, False, True]


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
    for name, recipe in [*RECIPES.items()]:  # Net takes its time on a CPU, and 250 MB a checkpoint
        monkeypatch.setitem(RECIPES, name, replace(recipe, net="narrow" if recipe.net == "net" else recipe.net))
    monkeypatch.setattr(familiarity, "STEPS", 60)
    monkeypatch.setattr(familiarity, "OUTLIERS", 100)
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
    assert all(row["first_difference"] < 1e-3 and row["graph"] for row in smoke)
    assert all(row["graph"] is False for row in found["rows"] if "training_s" in row)  # nothing is recorded here
    parity = [row for row in found["rows"] if row["step"] == 3]
    assert all(row["passes"] for row in parity)
    calls = {(row.get("engine") or row["provider"], row["call"]) for row in found["rows"] if row["step"] in (4, 6)}
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
    """Nothing waits for the GPU, and the graph's first losses are eager torch's."""
    setup = Setup(torch.device("cuda"), tmp_path, data.synthetic(10, 10))
    for row in map(next, [partial(gpu_tasks.smoke, setup, name, 0.0)() for name in RECIPES]):
        assert row["problem"] is None
        assert 0 < row["graph_ms"] < row["eager_ms"]
