"""`edgecifar train`: what it prints where, what it leaves, and how it stops."""

from __future__ import annotations

import json
import os
import shlex
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import ctrl_c
import narrow_net  # noqa: F401  the net "narrow"
import numpy as np
import pytest
import small_net  # noqa: F401  the net "small"
import torch
from PIL import Image
from typer.testing import CliRunner

from edgecifar.cli.app import app
from edgecifar.cli.training_display import TrainingDisplay
from edgecifar.runtime.files import write_file
from edgecifar.train import data, loop, plots, start
from edgecifar.train.recipes import FAST, RECIPES
from edgecifar.train.record import Conditions
from edgecifar.train.run import Run

LEFT = {"run.json", "weights.safetensors", "metrics.jsonl", "curves.png", "confusion.png"}


@pytest.fixture
def small(monkeypatch, tmp_path):
    """A small net, 40 images, files in the pictures' place, and a folder to run in."""
    torch.set_num_threads(1)
    for name, recipe in RECIPES.items():
        monkeypatch.setitem(RECIPES, name, replace(recipe, net="small"))
    for name in ("confusion", "curves"):
        monkeypatch.setattr(plots, name, lambda _, path: write_file(path, b"drawn"))
    drawn = data.synthetic(40, 20)
    monkeypatch.setattr(data, "synthetic", lambda: drawn)
    monkeypatch.chdir(tmp_path)


def edgecifar(*args: object):
    return CliRunner().invoke(app, [str(arg) for arg in args], catch_exceptions=False)


def train(*args: object):
    return edgecifar("train", "--data", "synthetic", "--device", "cpu", *args)


def interrupt(monkeypatch, epoch: int) -> None:
    """Press Ctrl-C in so many epochs from now on."""

    def progress(self, state):
        if state.epoch == epoch:
            raise KeyboardInterrupt

    monkeypatch.setattr(TrainingDisplay, "progress", progress)


def test_a_run_is_left_and_said(small):
    result = train("--recipe", "reference", "--epochs", 2, "--batch-size", 8, "--seed", 7, "--out", "here/run")
    assert result.exit_code == 0
    assert {path.name for path in Path("here/run").iterdir()} == LEFT
    record = json.loads(Path("here/run/run.json").read_text())
    assert (record["seed"], record["status"], record["dataset"]["name"]) == (7, "finished", "synthetic")
    assert {key: record["recipe"][key] for key in ("name", "epochs", "batch_size", "lr")} == {
        "name": "reference",
        "epochs": 2,
        "batch_size": 8,
        "lr": 1e-3,
    }
    correct = record["test"]["correct"]
    table = result.stdout.splitlines()
    low, high = (100 * limit for limit in record["test"]["accuracy_interval"])
    figures = f"{correct} correct; 95 % interval {low:.1f} to {high:.1f} %"
    assert table[0] == f"{100 * correct / 20:.2f} % of the 20 synthetic test images ({figures})"
    recalls = [line.split()[:2] for line in table[3:13]]
    assert recalls == [[label, f"{100 * value:.1f}"] for label, value in record["test"]["per_class"].items()]
    said = result.stderr
    assert "Conv2d" in said  # the summary, layer by layer
    assert "Recipe reference: 2 epochs of 40 images of synthetic, batch size 8, on " in said
    assert [line[:11] for line in said.splitlines() if line.startswith("epoch")] == ["epoch   1/2", "epoch   2/2"]
    assert "The run is in here/run. Next: edgecifar " in said
    assert said.endswith(" --data synthetic\n")
    assert "\x1b" not in result.output  # no terminal, no escape codes


def test_by_default_the_recipe_is_fast_under_runs(small):
    assert train("--epochs", 1, "--held-out", 0.25).exit_code == 0
    (folder,) = Path("runs").iterdir()
    assert folder.name.startswith("fast-")
    record = json.loads((folder / "run.json").read_text())
    assert (record["recipe"]["name"], record["recipe"]["held_out"], record["seed"]) == ("fast", 0.25, 0)


def test_settings_reach_the_recipe(small):
    options = {"optimizer": "adam", "batch-size": 10, "lr": 0.002, "momentum": 0.5, "held-out": 0.5, "epochs": 1}
    assert (
        train("--out", "run", *[part for name, value in options.items() for part in (f"--{name}", value)]).exit_code
        == 0
    )
    recipe = json.loads(Path("run/run.json").read_text())["recipe"]
    assert {name: recipe[name.replace("-", "_")] for name in options} == options
    assert recipe["muon_lr"] == pytest.approx(FAST.muon_lr * 0.002 / FAST.lr)  # a smaller rate is one for all


def test_a_final_run_follows_a_selection_run(small):
    assert train("--epochs", 2, "--batch-size", 8, "--held-out", 0.25, "--seed", 3, "--out", "selection").exit_code == 0
    result = train("--final", "selection", "--tensorboard")
    assert result.exit_code == 0
    (folder,) = Path("runs").iterdir()
    assert folder.name.startswith("fast-final-")
    selection, record = (json.loads((path / "run.json").read_text()) for path in (Path("selection"), folder))
    assert (record["seed"], record["dataset"]["trained_on"], record["status"]) == (3, 40, "finished")
    assert record["temperature"] == selection["temperature"]
    assert [line.count("%") for line in result.stderr.splitlines() if line.startswith("epoch")] == [0, 0]
    assert scalars(str(folder)).keys() >= {"loss", "test/accuracy"}
    assert not scalars(str(folder)).keys() & {"test_accuracy", "held_out_accuracy"}


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        (("--final", "nowhere"), "nowhere is not a run folder"),
        (("--final", "first", "--epochs", 3), "a final run is trained as first was: leave out --epochs"),
        (("--final", "first", "--resume"), "a run is resumed as it was begun: leave out --final"),
    ],
)
def test_a_final_run_takes_nothing_but_its_selection_run(small, options, sentence):
    result = train(*options)
    assert result.exit_code != 0
    assert sentence in " ".join(result.stderr.replace("│", " ").split())
    assert not Path("runs").exists()


def scalars(folder: str) -> dict[str, list[tuple[int, float]]]:
    """Return what TensorBoard shows of a run: (step, value) of each scalar."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    read = EventAccumulator(f"{folder}/tensorboard").Reload()
    return {tag: [(event.step, event.value) for event in read.Scalars(tag)] for tag in read.Tags()["scalars"]}


def written(folder: str) -> dict[str, list[tuple[int, float]]]:
    """Return what TensorBoard should show of a run, in single precision, as it stores it."""
    lines = [json.loads(line) for line in Path(folder, "metrics.jsonl").read_text().splitlines()]
    record = json.loads(Path(folder, "run.json").read_text())
    accuracy = "held_out_accuracy" if record["recipe"]["held_out"] >= 0.25 else "test_accuracy"  # of four a class
    shown = {
        name: [(line["epoch"], pytest.approx(line[name], rel=1e-6)) for line in lines]
        for name in ("loss", accuracy, "learning_rate", "images_per_second")
    }
    last = lines[-1]["epoch"]
    return shown | {
        f"test/{name}": [(last, pytest.approx(record["test"][name], rel=1e-6))] for name in ("accuracy", "nll", "ece")
    }


@pytest.mark.parametrize("held_out", [0, 0.25])
def test_tensorboard_shows_the_figures_of_the_run(small, held_out):
    options = ("--epochs", 2, "--batch-size", 8, "--held-out", held_out)
    assert train(*options, "--out", "run", "--tensorboard").exit_code == 0
    assert {path.name for path in Path("run").iterdir()} == LEFT | {"tensorboard"}
    assert len(list(Path("run/tensorboard").iterdir())) == 1
    assert scalars("run") == written("run")


@pytest.mark.parametrize("before", [True, False])
def test_tensorboard_shows_the_epochs_of_a_resumed_run_once(small, monkeypatch, before):
    """Whether or not it was asked for before the run was stopped in its third epoch."""
    with monkeypatch.context() as context:
        interrupt(context, 3)
        result = train("--epochs", 3, "--out", "run", *["--tensorboard"] * before)
    assert ("--tensorboard" in result.stderr) == before
    assert Path("run/tensorboard").exists() == before
    assert train("--resume", "--tensorboard").exit_code == 1  # another folder than the default
    assert train("--resume", "--out", "run", "--tensorboard").exit_code == 0
    assert scalars("run") == written("run")
    assert [step for step, _ in scalars("run")["loss"]] == [1, 2, 3]


def test_without_tensorboard_its_extra_is_named(small, monkeypatch):
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)
    monkeypatch.delitem(sys.modules, "torch.utils.tensorboard")
    monkeypatch.setitem(sys.modules, "tensorboard", None)  # as if it were not installed
    result = train("--epochs", 1, "--out", "run", "--tensorboard")
    assert (result.exit_code, result.stdout) == (1, "")
    assert "tensorboard, which is not installed: pip install '.[tensorboard]'" in result.stderr
    assert "(--tensorboard)" in result.stderr
    assert not Path("run").exists()


def test_a_taken_folder_is_refused(small):
    Path("run").mkdir()
    Path("run/notes.txt").write_text("mine")
    result = train("--epochs", 1, "--out", "run")
    assert (result.exit_code, result.stdout) == (1, "")
    assert "run exists already and is not empty" in result.stderr
    assert "(--resume)" in result.stderr
    assert [path.name for path in Path("run").iterdir()] == ["notes.txt"]


@pytest.mark.parametrize("epoch", [1, 2])
def test_ctrl_c_says_how_to_go_on_and_that_works(small, monkeypatch, epoch):
    options = ("--recipe", "fast", "--epochs", 2, "--batch-size", 8)
    assert train(*options, "--out", "whole").exit_code == 0
    with monkeypatch.context() as context:
        interrupt(context, epoch)
        result = train(*options, "--out", "a folder/run")
    assert (result.exit_code, result.stdout) == (130, "")
    advice, last = result.stderr.splitlines()[-2:]
    assert last == "Stopped."
    again = "edgecifar train --resume --out 'a folder/run' --data synthetic --device cpu"
    assert advice == f"To go on from the last checkpoint: {again}"
    resumed = edgecifar(*shlex.split(again)[1:])
    assert resumed.exit_code == 0
    weights = [Path(folder, "weights.safetensors").read_bytes() for folder in ("whole", "a folder/run")]
    assert weights[0] == weights[1]


def test_ctrl_c_before_there_is_a_run_promises_nothing(small, monkeypatch):
    def stop(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(loop, "train", stop)
    result = train("--epochs", 1, "--out", "run")
    assert (result.exit_code, result.stderr.splitlines()[-1]) == (130, "Stopped.")
    assert "To go on" not in result.stderr
    assert not Path("run").exists()


def test_info_says_where_a_run_went_on(small):
    assert train("--epochs", 1, "--batch-size", 8, "--out", "run").exit_code == 0
    record = Run(Path("run")).record
    elsewhere = Conditions("cuda:0", "another machine", "tf32", processes=2, torch="3.1")
    changed = replace(record, resumed=((1, elsewhere), (2, Conditions("cpu", "an old one"))))
    Path("run/run.json").write_text(json.dumps(changed.as_json()))
    lines = edgecifar("info", "run").stdout.splitlines()
    assert "went on after epoch 1 on another machine (cuda:0), tf32, torch 3.1, processes 2" in lines
    assert "went on after epoch 2 on an old one (cpu)" in lines


def test_resume_takes_the_newest_unfinished_run(small, monkeypatch):
    with monkeypatch.context() as context:
        interrupt(context, 2)
        assert train("--epochs", 2, "--out", "runs/b").exit_code == 130
    assert train("--epochs", 1, "--out", "runs/c").exit_code == 0
    assert train("--resume").exit_code == 0
    assert json.loads(Path("runs/b/run.json").read_text())["status"] == "finished"
    result = train("--resume")
    assert (result.exit_code, result.stdout) == (1, "")
    assert "no unfinished run under runs/" in result.stderr


@pytest.mark.parametrize("go_on", [("--resume", "--out", "run"), ("--final", "run", "--out", "all")])
def test_other_data_are_refused_before_anything_is_announced(small, monkeypatch, go_on):
    with monkeypatch.context() as context:
        if "--resume" in go_on:
            interrupt(context, 1)
        train("--epochs", 1, "--held-out", 0.2, "--out", "run")
    other = replace(data.synthetic(), digest="0" * 64)
    monkeypatch.setattr(data, "synthetic", lambda: other)
    result = train(*go_on)
    assert (result.exit_code, result.stdout) == (1, "")
    assert len(result.stderr.splitlines()) == 1
    assert "run was trained on synthetic as it was then" in result.stderr
    assert not Path("all").exists()


def test_resume_of_what_cannot_be_resumed(small):
    result = train("--resume", "--out", "absent")
    assert (result.exit_code, result.stdout) == (1, "")
    assert "absent is not a run folder" in result.stderr
    assert train("--epochs", 1, "--out", "run").exit_code == 0
    result = train("--resume", "--out", "run")
    assert (result.exit_code, result.stdout) == (1, "")
    assert "nothing to resume" in result.stderr


@pytest.mark.parametrize(("option", "value"), [("--recipe", "fast"), ("--seed", 0), ("--batch-size", 8), ("--lr", 0.0)])
def test_resume_changes_no_setting(small, option, value):
    result = train("--resume", option, value)
    assert (result.exit_code, result.stdout) == (2, "")
    words = " ".join(result.stderr.replace("│", " ").split())
    assert f"a run is resumed as it was begun: leave out {option}." in words


@pytest.mark.parametrize(
    "options",
    [
        ("--recipe", "slow"),
        ("--optimizer", "lion"),
        ("--epochs", 0),
        ("--batch-size", 1),
        ("--seed", -1),
        ("--seed", 2**63),
        ("--momentum", 1.5),
        ("--held-out", 0.6),
        ("--lr", "fast"),
        ("--nonsense",),
    ],
)
def test_wrong_usage(small, tmp_path, options):
    result = train("--out", "run", *options)
    assert (result.exit_code, result.stdout) == (2, "")
    assert options[0] in result.stderr
    assert list(tmp_path.iterdir()) == []


def test_unknown_device(small, tmp_path):
    result = edgecifar("train", "--data", "synthetic", "--device", "tpu")
    assert (result.exit_code, result.stdout) == (1, "")
    assert "no device called tpu" in result.stderr
    assert "(--device)" in result.stderr
    assert list(tmp_path.iterdir()) == []


def test_folder_that_cannot_be_written(small):
    Path("file").write_text("")
    result = train("--epochs", 1, "--out", "file/run")
    assert (result.exit_code, result.stdout) == (1, "")
    assert "file is not a folder" in result.stderr


BLOCKED = """
import sys
class Blocker:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] == {name!r}:
            raise ModuleNotFoundError(f"No module named {{name!r}}", name=name)
sys.meta_path.insert(0, Blocker())
sys.argv = ["edgecifar", "train", "--data", "synthetic", "--out", "run"]
from edgecifar.cli.main import main
main()
"""


@pytest.mark.parametrize("name", ["torch", "matplotlib"])
def test_without_a_package_the_extra_is_named(tmp_path, name):
    result = subprocess.run(
        [sys.executable, "-c", BLOCKED.format(name=name)], cwd=tmp_path, capture_output=True, text=True
    )
    assert (result.returncode, result.stdout) == (1, "")
    assert result.stderr.startswith("edgecifar: edgecifar train needs the extra train")
    assert name in result.stderr
    assert "pip install '.[train]'" in result.stderr
    assert list(tmp_path.iterdir()) == []


@pytest.mark.slow
def test_a_real_ctrl_c(tmp_path):
    """The whole program, as a shell starts it."""
    process = subprocess.Popen(
        [sys.executable, "-m", "edgecifar.cli", "train", "--data", "synthetic", "--device", "cpu", "--out", "run"],
        cwd=tmp_path,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        preexec_fn=ctrl_c.heed,
    )
    while not (line := process.stderr.readline()).startswith(
        f"Recipe fast: {FAST.epochs} epochs of 2,000 images of synthetic"
    ):
        assert line, "it ended before it began"
    while not (tmp_path / "run" / "run.json").exists():
        assert process.poll() is None
    process.send_signal(signal.SIGINT)
    out, err = process.communicate()
    assert (process.returncode, out) == (130, "")
    assert err.splitlines() == [
        "To go on from the last checkpoint: edgecifar train --resume --out run --data synthetic --device cpu",
        "Stopped.",
    ]
    assert [path.name for path in (tmp_path / "run").iterdir()] == ["run.json"]


def test_a_folder_of_other_things_is_left_alone_and_named(small, tmp_path):
    (tmp_path / "my notes").mkdir()
    (tmp_path / "my notes" / "today.txt").write_text("")
    result = edgecifar("train", "--data", "my notes", "--device", "cpu")
    assert (result.exit_code, result.stdout) == (1, "")
    assert "today.txt" in result.stderr
    assert "nothing is downloaded" in result.stderr
    assert sorted(path.name for path in tmp_path.rglob("*")) == ["my notes", "today.txt"]


@pytest.fixture
def own(small, monkeypatch, tmp_path) -> Path:
    """A folder of 60 pictures of two classes, and a cache of the test's own."""
    monkeypatch.setattr(data, "CACHE", tmp_path / "cache")
    monkeypatch.setattr(plots, "sheet", lambda _, path, *args, **more: write_file(path, b"drawn"))
    for number, image in enumerate(np.random.default_rng(0).integers(0, 256, (60, 32, 40, 3), np.uint8)):
        path = tmp_path / "own" / ("cat", "dog")[number % 2] / f"{number}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(image).save(path)
    return tmp_path / "own"


@pytest.mark.parametrize("options", [(), ("--out", "cat/run")])
def test_a_run_is_not_left_among_the_pictures(own, monkeypatch, options):
    monkeypatch.chdir(own)
    result = edgecifar("train", "--data", ".", "--device", "cpu", "--epochs", 1, *options)
    assert (result.exit_code, result.stdout) == (1, "")
    assert "(--out)" in result.stderr
    assert sorted(os.listdir(own)) == ["cat", "dog"]
    assert not Path("cat/run").exists()


def test_a_csv_may_have_runs_beside_it(own, monkeypatch):
    monkeypatch.chdir(own)
    rows = [f"{path.relative_to(own)},{path.parent.name}" for path in own.rglob("*.png")]
    Path("list.csv").write_text("\n".join(["path,label", *rows]) + "\n")
    assert edgecifar("train", "--data", "list.csv", "--device", "cpu", "--epochs", 1).exit_code == 0
    assert Path("runs").exists()


def test_a_teachers_next_command_learns_from_the_same_split(own, monkeypatch):
    monkeypatch.setattr(start, "is_teacher", lambda net: True)
    options = ("--recipe", "teacher", "--epochs", 1, "--fit", "pad", "--val", 0.2, "--out", "taught")
    result = edgecifar("train", "--data", own, "--device", "cpu", *options)
    again = result.stderr.partition("Next: ")[2]
    assert "--fit pad" in again
    result = edgecifar(*shlex.split(again)[1:], "--device", "cpu", "--epochs", 1, "--out", "student")
    assert result.exit_code == 0
    taught, student = (json.loads(Path(name, "run.json").read_text()) for name in ("taught", "student"))
    assert student["dataset"] == taught["dataset"]
    assert student["distillation"]["teachers"][0]["weights_sha256"] == taught["weights_sha256"]


@pytest.mark.parametrize(("option", "value"), [("fit", "pad"), ("val", 0.2), ("test", 0.2), ("strict", None)])
def test_options_of_own_pictures_are_refused_for_others(small, option, value):
    result = train("--epochs", 1, f"--{option}", *([value] if value else []))
    assert (result.exit_code, result.stdout) == (2, "")
    assert f"{option} can only be given for pictures of your own" in " ".join(result.stderr.replace("│", " ").split())
    assert not Path("runs").exists()


@pytest.mark.parametrize(("given", "named"), [("a folder", "--data 'a folder'"), (None, "")])
def test_the_next_command_names_the_data_that_were_named(small, monkeypatch, given, named):
    drawn = data.synthetic()
    monkeypatch.setattr(data, "load", lambda *_, **__: drawn)
    monkeypatch.setitem(RECIPES, "fast", replace(FAST, net="narrow"))  # one that can be exported
    monkeypatch.setattr(start, "MIN_CALIBRATION_IMAGES", len(drawn.train_images))
    options = ("--epochs", 1, "--held-out", 0.25, "--out", "run", *(["--data", given] if given else []))
    result = edgecifar("train", "--device", "cpu", *options)
    assert result.exit_code == 0
    assert result.stderr.endswith(f"Next: edgecifar export run --variant fp32 --variant edge {named}".rstrip() + "\n")


def test_the_next_command_leaves_out_what_needs_held_out_images(small):
    result = train("--epochs", 1, "--batch-size", 8, "--held-out", 0, "--out", "run")
    assert "export run --variant fp32" in result.stderr
    assert "--variant edge" not in result.stderr


def test_the_next_command_leaves_out_what_needs_more_pictures(own):
    result = edgecifar("train", "--data", own, "--device", "cpu", "--epochs", 1, "--out", "run")
    assert json.loads(Path("run/data.json").read_text())["counts"]["val"]  # it is not for want of these
    assert result.stderr.endswith(f"Next: edgecifar export run --variant fp32 --data {own}\n")


def test_a_run_begins_with_another(small):
    assert train("--epochs", 1, "--batch-size", 8, "--held-out", 0.25, "--out", "first").exit_code == 0
    options = ("--epochs", 1, "--batch-size", 8, "--held-out", 0.25, "--out", "second")
    assert train("--from", "first", *options).exit_code == 0
    first, second = (json.loads((Path(name) / "run.json").read_text()) for name in ("first", "second"))
    assert second["begun_from"]["weights_sha256"] == first["weights_sha256"]
    assert train("--final", "second", "--out", "final").exit_code == 0
    final = json.loads(Path("final/run.json").read_text())
    assert final["begun_from"] == second["begun_from"]
    assert "begun with the weights of" in edgecifar("info", "final").stdout


@pytest.mark.parametrize(
    ("options", "code", "word"),
    [
        (("--from", "nowhere"), 1, "nowhere is not a run folder"),
        (("--from", "a", "--resume"), 2, "--from"),
        (("--from", "a", "--final", "b"), 2, "--from"),
    ],
)
def test_what_cannot_be_begun_with(small, options, code, word):
    result = edgecifar("train", "--data", "synthetic", *options)
    assert result.exit_code == code
    assert word in result.stderr
