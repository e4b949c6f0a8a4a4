"""A run of the reference stands beside what the experiment reported, epoch by epoch and class by class."""

from __future__ import annotations

import copy
import json
from dataclasses import replace
from types import SimpleNamespace

import draw
import drawing
import pytest
import reference
import torch

from edgecifar.runtime.contract import CIFAR10
from edgecifar.runtime.errors import DataError
from edgecifar.train.inference import classify_with
from edgecifar.train.recipes import RECIPES
from edgecifar.train.record import DatasetRecord, RunRecord
from edgecifar.train.run import Run


def line(epoch: int, windows: list[float], accuracy: float) -> dict:
    return {
        "epoch": epoch,
        "loss": 9.0,
        "loss_per_2000": windows,
        "test_accuracy": accuracy,
        "seconds": 100.0,
        "learning_rate": 0.001,
    }


METRICS = [line(1, [1.8, 1.5], 0.41), line(2, [1.4], 0.57), line(3, [1.2], 0.6), line(6, [0.9], 0.7)]


@pytest.fixture
def run(tmp_path, net, small):
    """Make a run that has done some epochs."""

    def make(test: dict | None, metrics=METRICS):
        record = SimpleNamespace(
            recipe=RECIPES["reference"],
            seed=0,
            conditions=SimpleNamespace(hardware="a processor", device="cpu", precision="float32", threads=2),
            dataset=DatasetRecord("CIFAR-10", small.digest, len(small.train_images)),
            contract=small.contract,
            differs=lambda *given: RunRecord.differs(record, *given),
            as_json=lambda: {"test": test},
        )
        run = SimpleNamespace(folder=tmp_path, record=record, metrics=metrics, net=lambda: copy.deepcopy(net))
        run.check_data = lambda dataset: Run.check_data(run, dataset)
        return run

    return make


@pytest.fixture
def test_figures() -> dict:
    return {"accuracy": 0.7812, "per_class": {label: 0.5 + index / 100 for index, label in enumerate(CIFAR10.labels)}}


def test_what_was_reported_is_there():
    """Of every class, and of the 41 epochs whose losses are known."""
    assert reference.EXPERIMENT["per_class"].keys() == set(CIFAR10.labels)
    assert reference.EXPERIMENT["epochs"] == RECIPES["reference"].epochs
    assert reference.EXPERIMENT["loss"]["41"] == 0.355
    mean = sum(reference.EXPERIMENT["per_class"].values()) / 10
    assert 77.5 < mean < 79  # classes are equally frequent: it is the accuracy


def test_the_curve(run, test_figures):
    found = reference.comparison(run(test_figures))
    rows = {row["epoch"]: row for row in found["curve"]}
    assert rows[1]["loss"] == 1.8  # of the first 2,000 mini-batches alone
    assert rows[1]["difference"] == pytest.approx(1.8 - 1.737)
    assert (rows[6]["reported"], rows[6]["difference"]) == (None, None)
    assert found["training_seconds"] == 400
    assert found["precision"] == "float32"
    text = reference.markdown(found)
    assert "in float32" in text
    assert "| 1 | 1.800 | 1.737 | +0.063 | 41.00 |" in text
    assert "| 2 | 1.400 | 1.378 | +0.022 | 57.00 |" in text
    assert "| 6 | 0.900 |  |  | 70.00 |" in text  # the last so far
    assert "| this run | 78.12 | 50.0 | 51.0 |" in text
    assert "| reported | 78 | 79.2 | 89.3 |" in text
    assert max(len(one) for one in text.splitlines() if not one.startswith("|")) <= 120


def test_one_in_its_middle(run):
    text = reference.markdown(reference.comparison(run(None)))
    assert "6 of 50 epochs" in text
    assert "this run" not in text


def test_one_in_its_middle_is_tested_on_the_data_that_is_given(run, small):
    found = reference.comparison(run(None), small)
    assert len(found["classes"]) == small.contract.classes
    mean = sum(row["accuracy"] for row in found["classes"]) / small.contract.classes
    assert found["accuracy"] == pytest.approx(mean, abs=5)  # its classes are nearly equally frequent
    assert found["accuracy"] > 15  # the net is better than chance
    text = reference.markdown(found)
    assert "| after epoch 6, % | all |" in text
    assert f"| this run, in training mode | {100 * found['in_training_mode']['accuracy']:.2f} |" in text


def test_other_data_than_it_was_trained_on_is_refused(run, small):
    """The classes of a run on six of them were held against ten, without a word."""
    with pytest.raises(DataError, match="was trained on other data"):
        reference.comparison(run(None), replace(small, digest="0" * 64))


def test_training_mode_is_another_test_and_changes_nothing(run, small, net):
    made, tested = run(None), copy.deepcopy(net)
    made.net = lambda: tested
    as_ever = reference.tested(classify_with(net), small)
    in_training = reference.tested(reference.in_training_mode(made), small)
    assert abs(as_ever["nll"] - in_training["nll"]) > 0.01
    assert in_training["accuracy"] > 0.15  # it is better than chance
    statistics = {name: value for name, value in tested.state_dict().items() if "running" in name}
    assert statistics
    assert all(torch.equal(value, net.state_dict()[name]) for name, value in statistics.items())


def test_one_without_an_epoch(run):
    with pytest.raises(DataError, match="no complete epoch"):
        reference.comparison(run(None, metrics=[]))


def test_the_readme(tmp_path):
    path = tmp_path / "README.md"
    first, last = reference.MARKS
    path.write_text(f"before\n{first}\nold\n{last}\nafter\n")
    reference.put_into(path, "new")
    reference.put_into(path, "newer")
    assert path.read_text() == f"before\n{first}\nnewer\n{last}\nafter\n"
    path.write_text("nothing\n")
    with pytest.raises(DataError, match="put them where"):
        reference.put_into(path, "new")
    assert all(mark in reference.README.read_text() for mark in reference.MARKS)


def test_the_script_and_its_picture(run, test_figures, tmp_path, monkeypatch, capsys, check_document):
    monkeypatch.setattr(reference, "Run", lambda folder: run(test_figures))
    reference.main(["RUN", "--save", str(tmp_path / "reference.json")])
    document = check_document(capsys.readouterr().out.splitlines()[-1], entries=False)
    assert document == json.loads((tmp_path / "reference.json").read_text())
    found = draw.read(tmp_path / "reference.json")
    assert draw.lacks(found) == ""
    drawing.save(draw.DRAWERS["reference"](found), tmp_path / "reference.png")
    assert (tmp_path / "reference.png").read_bytes().startswith(b"\x89PNG")
