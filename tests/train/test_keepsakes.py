"""What a run on own pictures keeps: data.json, data.png, mistakes.json, mistakes.png."""

from __future__ import annotations

import json
import logging
import os
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from edgecifar.train import data, keepsakes, loop
from edgecifar.train.folders import FolderOptions


@pytest.fixture
def load(tmp_path):
    """Load a folder with a cache of the test's own."""
    return lambda path: data.load_labelled(path, FolderOptions(), cache=tmp_path / "cache")


@pytest.fixture
def own(tmp_path) -> Path:
    """120 noisy pictures of two classes, split by hand."""
    rng = np.random.default_rng(0)
    for number, picture in enumerate(rng.integers(0, 256, (120, 32, 32, 3), np.uint8)):
        split, label = "test" if number % 3 == 0 else "train", ("Katze", "Vögel")[number % 2]
        (tmp_path / "own" / split / label).mkdir(parents=True, exist_ok=True)
        Image.fromarray(picture).save(tmp_path / "own" / split / label / f"{number:03}.png")
    return tmp_path / "own"


def test_what_is_wrong_is_kept_and_said(own, load, tmp_path, caplog):
    (own / "train" / "Katze" / "bad.png").write_bytes(b"no picture")
    leaked = (own / "train" / "Katze" / "002.png").read_bytes()
    (own / "test" / "Katze" / "leak.png").write_bytes(leaked)
    (own / "train" / "Vögel" / "twice.png").write_bytes((own / "train" / "Katze" / "004.png").read_bytes())
    (own / "train" / "Katze" / "harmless.png").write_bytes((own / "train" / "Katze" / "008.png").read_bytes())
    dataset = load(own)
    with caplog.at_level(logging.WARNING, "edgecifar"):
        caplog.clear()
        keepsakes.keep_data(dataset, tmp_path, 0.1)
    report = json.loads((tmp_path / "data.json").read_text(encoding="utf-8"))
    assert list(report["unreadable"]) == ["train/Katze/bad.png"]
    assert report["counts"]["test"] == {"Katze": 21, "Vögel": 20}
    found = {(pair["first"], pair["second"]) for pair in report["duplicates"]}
    assert {frozenset(pair) for pair in found} == {
        frozenset({"train/Katze/002.png", "test/Katze/leak.png"}),
        frozenset({"train/Katze/004.png", "train/Vögel/twice.png"}),
    }
    assert "1 pair of duplicates in two splits" in caplog.text
    assert "under two labels" in caplog.text
    with Image.open(tmp_path / "data.png") as sheet:
        assert min(sheet.size) > 100


def test_pictures_in_order_are_passed_in_silence(own, load, tmp_path, caplog):
    dataset = load(own)
    with caplog.at_level(logging.WARNING, "edgecifar"):
        caplog.clear()
        keepsakes.keep_data(dataset, tmp_path, 0.1)
    assert caplog.text == ""
    assert json.loads((tmp_path / "data.json").read_text())["duplicates"] == []


@pytest.mark.parametrize(
    ("held_out", "said"), [(0.1, "{train} pictures to train on, {val} held out"), (0, "{both} pic")]
)
def test_what_is_trained_on_is_said(own, load, tmp_path, caplog, held_out, said):
    dataset = load(own)
    with caplog.at_level(logging.INFO, "edgecifar"):
        keepsakes.keep_data(dataset, tmp_path, held_out)
    train, val = (sum(dataset.origin["pictures"][split].values()) for split in ("train", "val"))
    assert said.format(train=train, val=val, both=train + val) in caplog.text


def test_mistakes_are_named_the_worst_first(own, load, tmp_path):
    dataset = load(own)
    right = np.eye(2)[dataset.test_labels]
    probabilities = 0.9 * right + 0.05
    probabilities[3] = (0.4, 0.6) if dataset.test_labels[3] == 0 else (0.6, 0.4)
    probabilities[7] = (0.1, 0.9) if dataset.test_labels[7] == 0 else (0.9, 0.1)
    mistakes = keepsakes.keep_mistakes(dataset, probabilities, tmp_path)
    assert [round(mistake.margin, 3) for mistake in mistakes] == [0.8, 0.2]
    for mistake, row in zip(mistakes, (7, 3), strict=True):
        with Image.open(own / mistake.path) as image:
            np.testing.assert_array_equal(np.asarray(image), dataset.test_images[row])
        assert mistake.path.split("/")[1] == mistake.true == dataset.contract.labels[dataset.test_labels[row]]
        assert mistake.predicted != mistake.true
    assert [line["path"] for line in json.loads((tmp_path / "mistakes.json").read_text())] == [m.path for m in mistakes]
    assert (tmp_path / "mistakes.png").exists()


def test_at_most_36_mistakes(own, load, tmp_path):
    dataset = load(own)
    mistakes = keepsakes.keep_mistakes(dataset, 1.0 - np.eye(2)[dataset.test_labels], tmp_path)
    assert len(mistakes) == min(36, len(dataset.test_labels))


def test_a_net_without_mistakes_has_no_sheet(own, load, tmp_path):
    dataset = load(own)
    assert keepsakes.keep_mistakes(dataset, np.eye(2)[dataset.test_labels], tmp_path) == []
    assert not (tmp_path / "mistakes.png").exists()


def test_a_run_keeps_them(own, load, recipe, tmp_path, no_plots):
    loop.train(recipe, load(own), tmp_path / "run")
    names = {path.name for path in (tmp_path / "run").iterdir()}
    assert {"data.json", "data.png", "mistakes.json", "mistakes.png"} <= names


def test_runs_on_other_data_keep_none(whole):
    assert not {path.name for path in whole.iterdir()} & {"data.json", "data.png", "mistakes.json", "mistakes.png"}


@pytest.mark.skipif(sys.platform != "linux", reason="only there may a file's name be no text")
def test_names_that_are_no_text_are_kept(own, load, tmp_path):
    for number, path in enumerate(sorted(own.rglob("*.png"))):
        path.rename(path.with_name(os.fsdecode(b"\xff%d.png" % number)))
    (own / "train" / "Katze" / os.fsdecode(b"\xfe.png")).write_bytes(b"no picture")
    dataset = load(own)
    keepsakes.keep_data(dataset, tmp_path, 0.1)
    assert [*json.loads((tmp_path / "data.json").read_bytes())["unreadable"]] == [os.fsdecode(b"train/Katze/\xfe.png")]
    mistakes = keepsakes.keep_mistakes(dataset, np.tile(np.float32([0.9, 0.1]), (40, 1)), tmp_path)
    kept = json.loads((tmp_path / "mistakes.json").read_bytes())
    assert [entry["path"] for entry in kept] == [mistake.path for mistake in mistakes]
    assert all((own / entry["path"]).exists() for entry in kept)
