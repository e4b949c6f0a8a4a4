"""A model on labelled pictures: the figures are those of predict, over the right pictures, and what is odd is said."""

from __future__ import annotations

import os
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from edgecifar.runtime.errors import DataError, ModelError, VariantError
from edgecifar.runtime.evaluation import evaluate, load
from edgecifar.runtime.files import sha256
from edgecifar.runtime.splitting import assign_splits


@pytest.fixture
def model(tiny):
    return load(tiny)


@pytest.fixture
def data(colours, tmp_path) -> Path:
    """A folder with 30 pictures of each of three classes; in "car" lie 6 that the bundle takes for a frog."""
    root = tmp_path / "lab"
    random = np.random.default_rng(0)
    for label in ("car", "frog", "ship"):
        (root / label).mkdir(parents=True)
        for number in range(30):
            shown = "frog" if label == "car" and number < 6 else label
            near = np.clip(np.array(colours[shown]) + random.integers(-20, 20, 3), 0, 255)
            Image.new("RGB", (32, 32), tuple(map(int, near))).save(root / label / f"{number}.png")
    return root


def test_figures_of_a_folder(model, data):
    told: list[int] = []
    found = evaluate(model, data, progress=told.append)
    assert (found.name, found.pictures, found.unread) == ("lab", "all", {})
    assert (found.result.images, found.result.correct) == (90, 84)
    assert found.result.per_class["car"] == pytest.approx(24 / 30)
    assert np.isnan(found.result.per_class["plane"])
    car, frog = (model.contract.labels.index(label) for label in ("car", "frog"))
    assert found.result.confusion[car, frog] == 6
    assert told[-1] == 90


def test_an_onnx_file_says_the_same_as_its_bundle(tiny, data):
    found = evaluate(load(tiny / "model.onnx"), data)
    assert load(tiny / "model.onnx").kind == "onnx"
    assert found.result.correct == evaluate(load(tiny, "fp32"), data).result.correct


def test_an_onnx_file_has_no_variants(tiny):
    with pytest.raises(VariantError, match="no variants"):
        load(tiny / "model.onnx", "fp32")


def test_one_class_is_enough_and_a_picture_that_cannot_be_read_is_left_out(model, data):
    (data / "car" / "7.png").write_text("a text")
    found = evaluate(model, data, jobs=2)
    assert found.result.images == 89
    assert list(found.unread) == ["car/7.png"]
    for other in ("frog", "ship"):
        for path in (data / other).iterdir():
            path.unlink()
        (data / other).rmdir()
    assert evaluate(model, data).result.images == 29


def test_a_csv_with_splits(model, data):
    lines = ["path,label,split"]
    lines += [f"car/{number}.png,car,{'test' if number < 10 else 'train'}" for number in range(30)]
    lines += ["ship/0.png,ship,val", "ship/1.png,ship,train"]
    (data / "list.csv").write_text("\n".join(lines))
    by_default = evaluate(model, data / "list.csv")
    assert (by_default.pictures, by_default.result.images, by_default.result.correct) == ("test", 10, 4)
    assert evaluate(model, data / "list.csv", split="val").result.images == 1
    assert evaluate(model, data / "list.csv", split="all").result.images == 32


def test_what_the_model_was_trained_on_is_not_measured(model, data):
    """A folder that the training split itself is split again as it was."""
    origin = {"layout": "folders", "options": {"fit": "crop", "val": 0.2, "test": 0.3, "strict": False}}
    trained = replace(model, dataset={"name": "lab", "origin": origin})
    paths = sorted(path for path in data.rglob("*.png"))
    splits = assign_splits([sha256(path) for path in paths], val=0.2, test=0.3)
    found = evaluate(trained, data)
    assert found.pictures == "test"
    assert found.result.images == splits.count("test") < 90
    assert "trained on lab" in found.reason
    assert evaluate(trained, data, split="val").result.images == splits.count("val")
    assert evaluate(trained, data, split="all").result.images == 90
    elsewhere = replace(model, dataset={"name": "other", "origin": origin})
    assert evaluate(elsewhere, data).pictures == "all"


@pytest.mark.parametrize("name", ["CIFAR-10", "synthetic"])
def test_a_folder_that_is_called_as_a_known_data_set(model, data, name):
    pytest.importorskip("torch")
    from edgecifar.train.data import load_labelled
    from edgecifar.train.folders import FolderOptions

    own = data.rename(data.with_name(name))
    dataset = load_labelled(own, FolderOptions(val=0.2, test=0.3), cache=data.with_name("cache"))
    trained = replace(model, dataset={"name": dataset.name, "origin": dataset.origin})
    assert evaluate(trained, own).pictures == "test"


@pytest.mark.skipif(sys.platform != "linux", reason="names there are text")
def test_a_name_that_is_no_text(model, data):
    (data / "car" / os.fsdecode(b"\xff.png")).symlink_to("nowhere")
    origin = {"options": {"val": 0.2, "test": 0.3}}
    trained = replace(model, dataset={"name": "lab", "origin": origin})
    splits = ("train", "val", "test")
    assert sum(len(evaluate(trained, data, split=split).unread) for split in splits) == 1


@pytest.mark.parametrize("val", ["a tenth", None, -0.1, 0.9])
def test_shares_that_make_no_sense_are_none(model, data, val):
    origin = {"layout": "folders", "options": {"val": val, "test": 0.2}}
    trained = replace(model, dataset={"name": "lab", "origin": origin})
    assert evaluate(trained, data).pictures == "all"


def test_a_split_that_cannot_be_known(model, data):
    with pytest.raises(DataError, match="no split") as caught:
        evaluate(model, data, split="test")
    assert caught.value.option == "split"
    with pytest.raises(DataError, match="There is no split"):
        evaluate(model, data, split="later")


def test_a_class_that_the_model_does_not_know(model, data):
    (data / "ship").rename(data / "boat")
    with pytest.raises(DataError, match="does not know: boat"):
        evaluate(model, data)


def test_no_picture_that_can_be_read(model, data):
    for path in data.rglob("*.png"):
        path.write_bytes(b"")
    with pytest.raises(DataError, match="is empty"):
        evaluate(model, data)


def test_a_model_of_torch_is_refused(tmp_path):
    (tmp_path / "model.pt2").touch()
    with pytest.raises(ModelError, match="needs torch"):
        load(tmp_path / "model.pt2")
