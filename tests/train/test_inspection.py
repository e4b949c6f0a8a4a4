"""The report on labelled pictures: it finds what is planted, and little else."""

from __future__ import annotations

import io
import json
import os
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from edgecifar.train import data
from edgecifar.train.duplicates import near_duplicates
from edgecifar.train.folders import FolderOptions
from edgecifar.train.inspection import Report, draw_sheet, inspect


def smooth(count: int, seed: int = 0) -> np.ndarray:
    """Draw pictures with large and small detail, as photographs have: uint8 [count, 32, 32, 3]."""
    rng = np.random.default_rng(seed)
    found = []
    for _ in range(count):
        layers = [rng.normal(128, 70, (side, side, 3)).clip(0, 255).astype(np.uint8) for side in (3, 6, 12)]
        scaled = [
            np.asarray(Image.fromarray(layer).resize((32, 32), Image.Resampling.BICUBIC), float) for layer in layers
        ]
        found.append((0.5 * scaled[0] + 0.3 * scaled[1] + 0.2 * scaled[2]).clip(0, 255).astype(np.uint8))
    return np.stack(found)


def as_jpeg(image: np.ndarray) -> np.ndarray:
    content = io.BytesIO()
    Image.fromarray(image).save(content, "jpeg", quality=50)
    return np.array(Image.open(content))


def cropped(image: np.ndarray) -> np.ndarray:
    part = Image.fromarray(image[1:30, 3:32])
    return np.array(part.resize((32, 32), Image.Resampling.BICUBIC))


def lighter(image: np.ndarray) -> np.ndarray:
    return np.clip(image * 1.1, 0, 255).astype(np.uint8)


def save(image: np.ndarray, path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(image).save(path)


class TestNearDuplicates:
    @pytest.mark.parametrize("alter", [as_jpeg, cropped, lighter])
    def test_each_alteration_is_found(self, alter):
        images = smooth(60)
        altered = np.stack([alter(image) for image in images[:20]])
        found = near_duplicates(np.concatenate([images, altered]))
        assert len({(index, 60 + index) for index in range(20)} & set(found)) >= 19
        assert len(found) <= 21

    def test_different_pictures_are_none(self):
        assert near_duplicates(smooth(100, seed=1)) == []

    def test_equal_pictures_of_one_colour(self):
        images = np.stack([np.full((32, 32, 3), value, np.uint8) for value in (0, 0, 90)])
        assert (0, 1) in near_duplicates(images)

    @pytest.mark.parametrize("count", [0, 1])
    def test_too_few(self, count):
        assert near_duplicates(smooth(2)[:count].reshape(count, 32, 32, 3)) == []

    def test_another_size(self):
        images = np.stack([np.kron(image, np.ones((2, 2, 1), np.uint8)) for image in smooth(10)])
        assert near_duplicates(np.concatenate([images, images[:1]])) == [(0, 10)]


@pytest.fixture
def look(tmp_path):
    return lambda path, **options: inspect(path, FolderOptions(**options), tmp_path / "cache")


@pytest.fixture
def planted(tmp_path) -> Path:
    """Two classes in given splits, with one fault of each kind."""
    images = smooth(90)
    for index, image in enumerate(images):
        split = "train" if index < 80 else "test"
        save(image, tmp_path / "set" / split / ("cat" if index % 2 else "dog") / f"{index:02}.png")
    root = tmp_path / "set"
    (root / "train" / "cat" / "bad.png").write_bytes(b"no picture")
    os.link(root / "train" / "dog" / "00.png", root / "test" / "dog" / "copy.png")
    os.link(root / "train" / "cat" / "01.png", root / "train" / "dog" / "mislabelled.png")
    save(as_jpeg(images[2]), root / "test" / "dog" / "jpeg.png")
    save(smooth(1, seed=5)[0][:20, :20], root / "train" / "dog" / "small.png")
    save(np.concatenate([smooth(4, seed=6)[index] for index in range(4)]), root / "train" / "cat" / "tall.png")
    return root


def test_what_is_planted_is_found(look, planted):
    report, _ = look(planted)
    assert list(report.unreadable) == ["train/cat/bad.png"]
    pairs = {frozenset((pair.first, pair.second)): pair for pair in report.pairs}
    copy = pairs[frozenset(("train/dog/00.png", "test/dog/copy.png"))]
    assert copy.exact
    assert copy.is_leak
    assert not copy.is_contradiction
    mislabelled = pairs[frozenset(("train/cat/01.png", "train/dog/mislabelled.png"))]
    assert mislabelled.exact
    assert mislabelled.is_contradiction
    assert not mislabelled.is_leak
    near = pairs[frozenset(("train/dog/02.png", "test/dog/jpeg.png"))]
    assert not near.exact
    assert near.is_leak
    assert len(pairs) == 3
    assert report.small == ("train/dog/small.png",)
    assert report.long == ("train/cat/tall.png",)
    text = " ".join(report.problems())
    for name in ("bad.png", "copy.png", "mislabelled.png", "small.png", "tall.png"):
        assert name in text
    json.dumps(report.as_json())


def test_nothing_is_wrong(look, tmp_path):
    for index, image in enumerate(smooth(60)):
        split = "train" if index < 50 else "test"
        save(image, tmp_path / "good" / split / ("cat" if index % 2 else "dog") / f"{index}.png")
    report, _ = look(tmp_path / "good")
    assert report.problems() == []


def report_of(**counts: dict[str, int]) -> Report:
    return Report("x", "splits", ("a", "b"), counts, {}, (), (), (), ())


def test_classes_of_unequal_size_and_small_ones():
    assert report_of(train={"a": 100, "b": 40}, test={"a": 1, "b": 1}).problems() == []
    assert "unequal" in " ".join(report_of(train={"a": 100, "b": 30}, test={"a": 1, "b": 1}).problems())
    assert "Fewer than" in " ".join(report_of(train={"a": 19, "b": 20}, test={"a": 1, "b": 1}).problems())
    assert "No test pictures of b" in " ".join(report_of(train={"a": 30, "b": 30}, test={"a": 1}).problems())


def test_the_sheet(look, planted, tmp_path):
    _, pictures = look(planted)
    draw_sheet(pictures, tmp_path / "sheet.png")
    with Image.open(tmp_path / "sheet.png") as drawn:
        assert drawn.width > 300
        assert len(set(drawn.convert("L").tobytes())) > 50  # pictures, not blank


def test_nothing_that_can_be_read(edgecifar, tmp_path, monkeypatch):
    monkeypatch.setattr(data, "CACHE", tmp_path / "cache")
    for label in ("cat", "dog"):
        (tmp_path / "set" / label).mkdir(parents=True)
        (tmp_path / "set" / label / "1.png").write_bytes(b"no picture")
    result = edgecifar("inspect", tmp_path / "set")
    assert result.exit_code == 0
    assert "2 cannot be read" in result.stdout
    assert "No training pictures of cat, dog" in result.stdout


def test_a_class_without_training_pictures_is_named(edgecifar, planted, tmp_path, monkeypatch):
    monkeypatch.setattr(data, "CACHE", tmp_path / "cache")
    (planted / "train" / "ant").mkdir()
    (planted / "train" / "ant" / "1.png").write_bytes(b"no picture")
    result = edgecifar("inspect", planted)
    assert any(line.startswith("ant") for line in result.stdout.splitlines())
    assert "No training pictures of ant" in result.stdout


def test_the_command(edgecifar, planted, tmp_path, monkeypatch):
    monkeypatch.setattr(data, "CACHE", tmp_path / "cache")
    result = edgecifar("inspect", planted)
    assert result.exit_code == 0
    assert "1 near" in result.stdout
    assert "bad.png" in result.stdout
    assert edgecifar("inspect", planted, "--strict").exit_code == 1
    document = json.loads(edgecifar("inspect", planted, "--json", "--sheet", tmp_path / "s.png").stdout)
    counts = document["counts"]  # the data gives train and test alone
    assert {label: counts["train"][label] + counts["val"][label] for label in counts["train"]} == {"cat": 41, "dog": 42}
    assert (tmp_path / "s.png").exists()


def test_what_is_not_wrong_is_a_note(edgecifar, tmp_path, monkeypatch):
    monkeypatch.setattr(data, "CACHE", tmp_path / "cache")
    for number, picture in enumerate(np.random.default_rng(5).integers(0, 256, (80, 40, 40, 3), dtype=np.uint8)):
        label = "cat" if number % 2 else "dog"
        (tmp_path / "set" / label).mkdir(parents=True, exist_ok=True)
        save(picture, tmp_path / "set" / label / f"{number}.png")
    (tmp_path / "set" / "cat" / "notes.txt").touch()
    document = json.loads(edgecifar("inspect", tmp_path / "set", "--json").stdout)
    assert document["problems"] == []
    assert any("1 .txt" in note for note in document["notes"])
    assert any("held out for decisions" in note for note in document["notes"])
    assert edgecifar("inspect", tmp_path / "set", "--strict").exit_code == 0
    (tmp_path / "set" / "cat" / "drawing.svg").touch()  # may be a picture of the class
    assert edgecifar("inspect", tmp_path / "set", "--strict").exit_code == 1


def test_the_command_on_what_is_no_data_set(refused, tmp_path):
    (tmp_path / "only" / "cat").mkdir(parents=True)
    save(smooth(1)[0], tmp_path / "only" / "cat" / "1.png")
    assert "one class" in refused("inspect", tmp_path / "only")
    assert "not there" in refused("inspect", tmp_path / "nowhere")


@pytest.mark.cifar10
@pytest.mark.slow
def test_planted_faults_among_real_pictures(look, tmp_path):
    """20 unreadable, 20 exact copies under the same label, 20 across splits, 20 under two labels, 60 near ones."""
    if not os.environ.get("EDGECIFAR_DATA"):
        pytest.skip("EDGECIFAR_DATA does not name CIFAR-10's folder")
    cifar = data.load(os.environ["EDGECIFAR_DATA"], download=False)
    rng = np.random.default_rng(0)
    root, names = tmp_path / "set", cifar.contract.labels
    paths = []
    for index in range(5_000):
        split = "train" if index < 4_000 else "test"
        paths.append(root / split / names[cifar.train_labels[index]] / f"{index:04}.png")
        save(cifar.train_images[index], paths[-1])
    before = {(p.first, p.second) for p in look(root)[0].pairs}
    chosen = rng.choice(4_000, 140, replace=False)
    for number, index in enumerate(chosen):
        path, kind = paths[index], number // 20
        if kind == 0:
            path.write_bytes(path.read_bytes()[:60])
        elif kind == 1:
            os.link(path, path.with_name(f"copy-{number}.png"))
        elif kind == 2:
            os.link(path, root / "test" / path.parent.name / f"leak-{number}.png")
        elif kind == 3:
            other = names[(names.index(path.parent.name) + 1) % 10]
            os.link(path, root / "train" / other / f"wrong-{number}.png")
        else:
            altered = (as_jpeg, cropped, lighter)[kind - 4](cifar.train_images[index])
            save(altered, path.with_name(f"near-{number}.png"))
    report, _ = look(root)
    new = [pair for pair in report.pairs if (pair.first, pair.second) not in before]
    assert len(report.unreadable) == 20
    assert sum(pair.exact and pair.is_leak for pair in new) == 20
    assert sum(pair.exact and pair.is_contradiction for pair in new) == 20
    assert sum(pair.exact for pair in new) == 60
    assert sum("near-" in pair.first + pair.second and not pair.exact for pair in new) >= 57
