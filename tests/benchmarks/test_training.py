"""Time to an accuracy, the rows and the table are what the runs' metrics say; the script trains, and goes on."""

from __future__ import annotations

import json
import statistics
from dataclasses import asdict, replace

import draw
import narrow_net  # noqa: F401  the net "narrow"
import pytest
import training

from edgecifar.runtime.errors import EdgecifarError
from edgecifar.train import data, loop, plots, run
from edgecifar.train.recipes import RECIPES


def made(name: str, epochs: list[tuple[float, float]], test: float | None = None):
    """A run's record and metrics, from the seconds and the accuracy (0 to 1) of each epoch."""
    held_out = RECIPES[name].held_out
    key = "held_out_accuracy" if held_out else "test_accuracy"
    record = {
        "recipe": {"name": name, "epochs": len(epochs), "batch_size": RECIPES[name].batch_size, "held_out": held_out},
        "seed": 0,
        "hardware": "a processor",
        "device": "cpu",
        "precision": "float32",
        "processes": 1,
        "threads": 2,
        "dataset": {"name": "CIFAR-10", "sha256": "abc"},
        "machine": {"versions": {"torch": "2"}, "cpu_features": ["avx2"]},
    }
    if test is not None:
        record["test"] = {"accuracy": test, "nll": 0.5, "ece": 0.01}
    metrics = [{"seconds": s, key: a, "images_per_second": 10 / s, "loss": 1.0} for s, a in epochs]
    return record, metrics


def test_time_to_an_accuracy_is_that_of_the_first_epoch_to_reach_it():
    _, metrics = made("fast", [(10, 0.5), (20, 0.8), (40, 0.7), (80, 0.9)])
    assert training.course(metrics) == [(10, 50), (30, 80), (70, 70), (150, 90)]
    assert [training.time_to(level, metrics) for level in (50, 60, 80, 81, 90, 91)] == [10, 30, 30, 150, 150, None]


def test_the_reference_is_measured_on_the_test_images():
    _, metrics = made("reference", [(10, 0.5)])
    assert training.course(metrics) == [(10, 50)]


def test_a_run_in_its_middle_says_how_far_it_is():
    """Its seconds in all stood beside the epochs of the whole."""
    record, metrics = made("fast", [(10, 0.5), (20, 0.6)])
    record["recipe"]["epochs"] = 50
    (row,) = training.summarise([(record, metrics)], [60])
    assert (row["epochs"], row["epochs_done"], row["finished"]) == (50, 2, 0)
    assert training.table([row]).splitlines()[1].split()[:5] == ["fast", "2", "of", "50", "1"]


def test_a_full_data_run_has_its_tests_accuracy_and_reaches_nothing_before():
    record, metrics = made("best", [(10, 0.5), (10, 0.9)], 0.92)
    metrics = [{key: value for key, value in line.items() if "accuracy" not in key} for line in metrics]
    (row,) = training.summarise([(record, metrics)], [78])
    assert row["seconds_to"] == {"78 %": None}
    assert (row["held_out_accuracy"], row["test_accuracy"]["mean"]) == (None, pytest.approx(92))
    (curve,) = training.curves([(record, metrics)])
    assert curve["points"] == [[10, None], [20, None]]
    assert "92.00" in training.table([row])


def test_rows_hold_mean_and_deviation_over_the_seeds():
    runs = [made("fast", [(10, 0.8)], 0.81), made("fast", [(14, 0.9)], 0.83), made("best", [(5, 0.1), (5, 0.2)])]
    fast, best = training.summarise(runs, [80.0, 85.0])
    assert fast["runs"] == fast["finished"] == 2
    assert fast["seconds_to"]["80 %"] == {"n": 2, "mean": 12, "std": pytest.approx(statistics.stdev([10, 14]))}
    assert fast["seconds_to"]["85 %"] is None  # one of the two did not get there
    assert fast["test_accuracy"] == {"n": 2, "mean": pytest.approx(82), "std": pytest.approx(2**0.5)}
    assert fast["held_out_accuracy"] == {"n": 2, "mean": pytest.approx(85), "std": pytest.approx(50**0.5)}
    assert (best["runs"], best["finished"], best["test_accuracy"]) == (1, 0, None)
    assert best["held_out_accuracy"] == {"n": 1, "mean": 20}
    assert best["training_seconds"] == {"n": 1, "mean": 10}


def test_runs_on_other_hardware_are_rows_of_their_own():
    here, there = made("fast", [(10, 0.8)]), made("fast", [(1, 0.8)])
    there[0]["hardware"] = "another"
    assert [row["hardware"] for row in training.summarise([here, there], [80.0])] == ["a processor", "another"]


@pytest.mark.parametrize(
    "other",
    [
        {"device": "cuda"},
        {"precision": "bfloat16"},
        {"threads": 1},
        {"dataset": {"name": "synthetic", "sha256": "def"}},
        {"machine": {"versions": {"torch": "2"}, "cpu_features": ["avx2", "avx512_bf16"]}},
    ],
)
def test_runs_under_other_conditions_are_rows_of_their_own(other):
    here, there = made("fast", [(10, 0.8)]), made("fast", [(1, 0.8)])
    there[0].update(other)
    assert len(training.summarise([here, there, here], [80.0])) == 2


def test_the_reference_that_others_are_held_against_has_its_own_settings_and_conditions():
    changed = made("reference", [(500, 0.8)])
    changed[0]["recipe"] |= {"dropout": 0.1}
    elsewhere = made("reference", [(700, 0.8)])
    elsewhere[0]["threads"] = 1
    short = made("reference", [(300, 0.5)])
    runs = [made("reference", [(100, 0.5), (100, 0.8)]), short, changed, elsewhere, made("fast", [(8, 0.79)])]
    assert training.table(training.summarise(runs, [78.0])).splitlines()[-1].split()[4:6] == ["8", "(25.0x)"]


def test_runs_with_other_settings_are_rows_of_their_own():
    runs = [made("fast", [(10, 0.8)]) for _ in range(3)]
    runs[1][0]["recipe"] |= {"batch_size": 64, "dropout": 0.25}
    rows = training.summarise(runs, [80.0])
    assert [(row["runs"], row["batch_size"], row["changed"]) for row in rows] == [
        (2, RECIPES["fast"].batch_size, {}),
        (1, 64, {"batch_size": 64, "dropout": 0.25}),
    ]
    assert training.table(rows).splitlines()[2].split()[0] == "fast,batch_size=64,dropout=0.25"


def test_the_table_says_how_much_sooner_than_the_reference():
    runs = [made("reference", [(100, 0.5), (100, 0.78)], 0.78), made("fast", [(8, 0.79)], 0.8)]
    header, reference, fast = training.table(training.summarise(runs, [78.0, 90.0])).splitlines()
    assert header.replace("s to", "s-to").split()[:6] == ["recipe", "epochs", "n", "images/s", "s-to", "78"]
    assert reference.split() == ["reference", "2", "1", "0", "200", "—", "200", "—", "78.00", "1.00"]
    assert fast.split() == ["fast", "1", "1", "1", "8", "(25.0x)", "—", "8", "79.00", "80.00", "1.00"]


def test_curves_can_be_drawn():
    runs = [made("reference", [(9, 0.5)]), made("fast", [(1, 0.6), (2, 0.7)])]
    curves = training.curves(runs)
    assert [(curve["recipe"], curve["points"]) for curve in curves] == [
        ("reference", [[9, 50]]),
        ("fast", [[1, 60], [3, 70]]),
    ]
    figure = draw.training({"machine": {"cpu": "a processor", "usable_cpus": 2}, "curves": curves})
    assert [len(line.get_xdata()) for line in figure.axes[0].lines] == [1, 2]


class TestCommand:
    @pytest.fixture
    def quick(self, monkeypatch):
        from edgecifar.runtime.files import write_file

        for name in ("confusion", "curves"):
            monkeypatch.setattr(plots, name, lambda _, path: write_file(path, b"drawn"))
        for name, recipe in RECIPES.items():
            monkeypatch.setitem(RECIPES, name, replace(recipe, net="narrow"))
        monkeypatch.setattr(data, "load", lambda *_, **__: data.synthetic(40, 20))
        return training

    def test_trains_reports_and_trains_nothing_twice(self, quick, tmp_path, check_document, capsys, monkeypatch):
        command = ["--recipe", "fast:1", "--recipe", "reference:1", "--level", "1", "--out", str(tmp_path)]
        quick.main([*command, "--device", "cpu"])
        first = check_document(capsys.readouterr().out.splitlines()[-1], entries=False)
        assert [(row["recipe"], row["epochs"], row["finished"]) for row in first["rows"]] == [
            ("fast", 1, 1),
            ("reference", 1, 1),
        ]
        assert [curve["recipe"] for curve in first["curves"]] == ["fast", "reference"]
        assert run.Run(tmp_path / "fast-1-seed0").record.recipe.batch_size == RECIPES["fast"].batch_size

        monkeypatch.setattr(loop, "train", None)  # calling it would fail
        quick.main([*command, "--device", "cpu"])
        assert json.loads(capsys.readouterr().out.splitlines()[-1])["rows"] == first["rows"]

    def test_no_epochs(self, quick, capsys):
        with pytest.raises(SystemExit):
            quick.main(["--recipe", "fast:0"])
        assert "epochs cannot be 0" in capsys.readouterr().err

    def test_a_run_on_other_data_is_not_taken(self, quick, tmp_path, monkeypatch):
        command = ["--recipe", "fast:1", "--device", "cpu", "--out", str(tmp_path)]
        quick.main(command)
        monkeypatch.setattr(data, "load", lambda *_, **__: data.synthetic(40, 20, seed=1))
        with pytest.raises(EdgecifarError, match="other data"):
            quick.main(command)

    @pytest.mark.parametrize("recipe", ["quick", "fast:x", "fast:-1"])
    def test_a_recipe_that_is_not_one(self, quick, recipe, capsys):
        with pytest.raises(SystemExit) as stopped:
            quick.main(["--recipe", recipe])
        assert stopped.value.code == 2
        assert "is not NAME or NAME:EPOCHS" in capsys.readouterr().err

    def test_other_settings(self, quick, tmp_path, capsys):
        quick.main(
            ["--recipe", "fast:1,batch_size=8,optimizer=sgd,flip=False", "--device", "cpu", "--out", str(tmp_path)]
        )
        (row,) = json.loads(capsys.readouterr().out.splitlines()[-1])["rows"]
        assert row["changed"] == {"batch_size": 8, "optimizer": "sgd", "flip": False}
        record = run.Run(tmp_path / "fast-1,batch_size=8,optimizer=sgd,flip=False-seed0").record
        assert asdict(record.recipe) == asdict(
            replace(RECIPES["fast"], epochs=1, cuda_epochs=0, batch_size=8, optimizer="sgd", flip=False)
        )

    @pytest.mark.parametrize(
        ("setting", "wanted"),
        [
            ("depth=3", "depth is no setting of a recipe"),
            ("epochs=3", "epochs is no setting of a recipe"),
            ("", " is no setting of a recipe"),
            ("dropout", " is no value for dropout, such as 0.0"),
            ("dropout=some", "some is no value for dropout, such as 0.0"),
            ("batch_size=1.5", "1.5 is no value for batch_size, such as"),
            ("flip=1", "1 is no value for flip, such as True"),
            ("schedule=cosine", "schedule cannot be cosine"),
            ("batch_size=0", "batch_size cannot be 0"),
            ("held_out=2", "held_out cannot be 2.0"),
        ],
    )
    def test_a_setting_that_is_not_one(self, quick, setting, wanted, capsys):
        with pytest.raises(SystemExit) as stopped:
            quick.main(["--recipe", f"fast,{setting}"])
        assert stopped.value.code == 2
        assert f"argument --recipe: {wanted}" in capsys.readouterr().err

    def test_nothing_to_report(self, quick, capsys):
        with pytest.raises(SystemExit) as stopped:
            quick.main([])
        assert stopped.value.code == 2
        assert "nothing to report" in capsys.readouterr().err

    def test_no_seed_at_all(self, quick, capsys):
        with pytest.raises(SystemExit) as stopped:
            quick.main(["--recipe", "fast", "--seeds", "0"])
        assert stopped.value.code == 2
        assert "argument --seeds: 0 is not more than 0" in capsys.readouterr().err

    def test_a_folder_that_is_no_run(self, quick, tmp_path):
        with pytest.raises(EdgecifarError, match="not a run folder"):
            quick.main(["--run", str(tmp_path)])
