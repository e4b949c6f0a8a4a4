"""A folder or a CSV as a data set: the pixels, the splits, the cache, and what is left out."""

from __future__ import annotations

import logging
import os
import sys
import threading
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from edgecifar.runtime import parallel
from edgecifar.runtime.errors import DataError, OutputError
from edgecifar.runtime.pictures import load_picture
from edgecifar.train import data, decoding, folders, loop
from edgecifar.train.folders import FolderOptions


def write(folder: Path, images: np.ndarray, labels: list[str]) -> None:
    """Write each image as a PNG into the folder of its label."""
    for number, (image, label) in enumerate(zip(images, labels, strict=True)):
        (folder / label).mkdir(parents=True, exist_ok=True)
        Image.fromarray(image).save(folder / label / f"{number:04}.png")


@pytest.fixture
def own(tmp_path) -> Path:
    """200 noisy pictures of two classes."""
    rng = np.random.default_rng(0)
    folder = tmp_path / "own"
    write(folder, rng.integers(0, 256, (200, 32, 32, 3), np.uint8), ["cat", "bird"] * 100)
    return folder


@pytest.fixture
def load(tmp_path):
    """Load with a cache of the test's own."""

    def call(path: Path, **options) -> data.Dataset:
        return data.load_labelled(path, FolderOptions(**options), cache=tmp_path / "cache")

    return call


def members(images: np.ndarray) -> set[bytes]:
    return {image.tobytes() for image in images}


def test_the_same_pictures_as_arrays_and_as_files(load, tmp_path, tiny):
    names = tiny.contract.labels
    for split, images, labels in (
        ("train", tiny.train_images, tiny.train_labels),
        ("test", tiny.test_images, tiny.test_labels),
    ):
        write(tmp_path / "files" / split, images, [names[label] for label in labels])
    found = load(tmp_path / "files")
    assert found.contract.labels == tuple(sorted(names))
    for images, labels, wanted, classes in (
        (found.train_images, found.train_labels, tiny.train_images, tiny.train_labels),
        (found.test_images, found.test_labels, tiny.test_images, tiny.test_labels),
    ):
        expected = {image.tobytes(): names[label] for image, label in zip(wanted, classes, strict=True)}
        assert len(images) == len(wanted)
        for image, label in zip(images, labels, strict=True):
            assert expected[image.tobytes()] == found.contract.labels[label]


def test_the_pixels_are_those_that_predict_sees(load, tmp_path):
    rng = np.random.default_rng(1)
    write(tmp_path / "wide" / "train", rng.integers(0, 256, (4, 40, 90, 3), np.uint8), ["a", "b"] * 2)
    write(tmp_path / "wide" / "test", rng.integers(0, 256, (2, 90, 40, 3), np.uint8), ["a", "b"])
    for fit in ("crop", "squash", "pad"):
        found = load(tmp_path / "wide", fit=fit)
        assert found.contract.fit == fit
        path = tmp_path / "wide" / "train" / "a" / "0000.png"
        np.testing.assert_array_equal(found.train_images[0], load_picture(path, found.contract))


def test_splits_are_apart_and_shares_hold(load, own):
    found = load(own, val=0.2, test=0.3)
    trained_on, held_out = found.hold_out(0.1)  # the split counts, not the share
    parts = [found.train_images[trained_on], found.train_images[held_out], found.test_images]
    assert sum(map(len, parts)) == 200
    assert len(members(np.concatenate(parts))) == 200
    for part, share in zip(parts, (0.5, 0.2, 0.3), strict=True):
        assert abs(len(part) / 200 - share) < 0.1  # three standard errors of 200 pictures


def test_nothing_is_held_out_of_a_run_on_all_images(load, own):
    trained_on, held_out = load(own).hold_out(0.0)
    assert len(held_out) == 0
    assert len(trained_on) == len(load(own).train_images)


def test_more_pictures_move_none_and_copies_stay_together(load, own):
    before = load(own)
    for name in ("0000", "0002", "0004"):
        (own / "cat" / f"copy-{name}.png").write_bytes((own / "cat" / f"{name}.png").read_bytes())
    after = load(own)
    assert members(before.test_images) == members(after.test_images)
    assert members(before.train_images) == members(after.train_images)
    assert members(after.train_images).isdisjoint(members(after.test_images))
    assert len(after.train_images) + len(after.test_images) == 203


def test_a_second_start_decodes_nothing(load, own, monkeypatch):
    first = load(own)
    monkeypatch.setattr(parallel, "decode_many", None)
    assert load(own).digest == first.digest


@pytest.mark.skipif(sys.platform != "linux", reason="names there are text")
def test_a_folder_whose_name_is_no_text(load, own):
    before = load(own)
    found = load(own.rename(own.with_name(os.fsdecode(b"own\xff"))))
    assert (found.train_images == before.train_images).all()
    assert (found.test_images == before.test_images).all()


def test_only_what_changed_is_decoded_again(load, own, tmp_path, monkeypatch):
    load(own)
    changed = own / "bird" / "0001.png"
    Image.new("RGB", (32, 32), (1, 2, 3)).save(changed)
    os.utime(changed, ns=(1, 1))
    asked: list[str] = []
    decode = parallel.decode_many

    def spy(paths, *args, **options):
        asked.extend(paths)
        return decode(paths, *args, **options)

    monkeypatch.setattr(parallel, "decode_many", spy)
    found = load(own)
    assert asked == [str(changed)]
    everything = members(np.concatenate([found.train_images, found.test_images]))
    assert np.full((32, 32, 3), (1, 2, 3), np.uint8).tobytes() in everything
    assert len(everything) == 200
    assert len([*(tmp_path / "cache").rglob("*.npy")]) == 1  # the earlier one is gone


def test_what_could_not_be_read_is_tried_again(load, own, monkeypatch):
    """The remedy may be outside of the file: a package, a permission."""
    bad = own / "bird" / "0001.png"
    whole = bad.read_bytes()
    bad.write_bytes(whole[:40])
    os.utime(bad, ns=(1, 1))
    first = load(own)
    assert len(first.pictures.pictures.errors) == 1
    assert load(own).digest == first.digest
    padded = whole[:40] + bytes(len(whole) - 40)
    bad.write_bytes(padded)
    os.utime(bad, ns=(2, 2))
    assert len(load(own).pictures.pictures.errors) == 1
    bad.write_bytes(whole)  # of the same size and time as what could not be read
    os.utime(bad, ns=(2, 2))
    found = load(own)
    assert not found.pictures.pictures.errors
    assert len(found.train_images) + len(found.test_images) == 200
    monkeypatch.setattr(parallel, "decode_many", None)
    assert load(own).digest == found.digest


class TestValidation:
    """Which pictures are held out is part of what a data set is: a run must not be judged on what it was trained on."""

    @pytest.fixture
    def given(self, tmp_path) -> Path:
        """A folder with the splits train and test."""
        rng = np.random.default_rng(5)
        for split, count in (("train", 120), ("test", 20)):
            images = rng.integers(0, 256, (count, 32, 32, 3), np.uint8)
            write(tmp_path / "given" / split, images, ["cat", "bird"] * (count // 2))
        return tmp_path / "given"

    def test_a_validation_split_that_is_not_given_is_made_by_content(self, load, given):
        found = load(given, val=0.25)
        assert 15 <= len(found.validation) <= 45
        assert found.origin["pictures"]["val"]
        again = load(given, **found.origin["options"])
        assert np.array_equal(again.validation, found.validation)
        assert len(found.test_images) == 20
        assert len(load(given, val=0.0).validation) == 0

    def test_copies_stand_on_one_side(self, load, given):
        for number, path in enumerate(sorted((given / "train" / "cat").iterdir())):
            path.with_name(f"copy-{number}.png").write_bytes(path.read_bytes())
        found = load(given, val=0.4)
        held_out = members(found.train_images[found.validation])
        assert not held_out & members(np.delete(found.train_images, found.validation, 0))

    def test_no_class_is_held_out_whole(self, load, tmp_path):
        rng = np.random.default_rng(6)
        labels = [f"class {number:02}" for number in range(40)]
        for split in ("train", "test"):
            write(tmp_path / "few" / split, rng.integers(0, 256, (40, 32, 32, 3), np.uint8), labels)
        found = load(tmp_path / "few", val=0.4)  # one picture of each class
        assert len(found.validation) == 0
        assert len(np.unique(found.train_labels)) == 40

    def test_another_split_is_another_data_set(self, load, own, given):
        for folder in (own, given):
            digests = {load(folder, val=share).digest for share in (0.0, 0.1, 0.3)}
            assert len(digests) == 3


def test_a_disk_that_fills_is_said_and_leaves_the_cache_as_it_was(load, own, tmp_path):
    """The system itself refuses to write on; through a map of the file, a full disk would kill the process."""
    resource = pytest.importorskip("resource")
    before, limits = load(own), resource.getrlimit(resource.RLIMIT_FSIZE)
    Image.new("RGB", (32, 32)).save(own / "cat" / "new.png")
    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, (300_000, limits[1]))
        with pytest.raises(OutputError, match="too large"):
            load(own)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert not list((tmp_path / "cache").rglob(".edgecifar-partial-*"))
    (own / "cat" / "new.png").unlink()
    assert load(own).digest == before.digest


def test_pictures_that_are_mapped_are_not_replaced(load, own, tmp_path, monkeypatch):
    """Windows would refuse it: what was unread is read now, from a file of the same size and time."""
    bad = own / "bird" / "0001.png"
    whole = bad.read_bytes()
    bad.write_bytes(bytes(len(whole)))
    os.utime(bad, ns=(1, 1))
    load(own)
    (before,) = (tmp_path / "cache").rglob("*.npy")
    bad.write_bytes(whole)
    os.utime(bad, ns=(1, 1))
    monkeypatch.setattr(Path, "unlink", _refuse)
    load(own)
    monkeypatch.undo()
    assert before.exists()
    assert len([*(tmp_path / "cache").rglob("*.npy")]) == 2


def test_two_trainings_whose_pictures_change_between_them(load, own, monkeypatch, caplog):
    """Each once deleted what the other had written and not yet named; now the second waits, and decodes what is new."""
    pytest.importorskip("fcntl")
    write, decode_many = decoding.write_file, parallel.decode_many
    decoded: list[str] = []
    others: list[data.Dataset] = []
    other = threading.Thread(target=lambda: others.append(load(own)))

    def spy(paths, *args, **options):
        decoded.extend(paths)
        return decode_many(paths, *args, **options)

    def begin_the_other(path: Path, content) -> None:
        write(path, content)
        if other.ident is None:
            Image.new("RGB", (32, 32)).save(own / "cat" / "new.png")
            other.start()
            while other.is_alive() and "waiting for it" not in caplog.text:
                other.join(0.05)

    monkeypatch.setattr(parallel, "decode_many", spy)
    monkeypatch.setattr(decoding, "write_file", begin_the_other)
    with caplog.at_level(logging.INFO, "edgecifar"):
        found = load(own)
    other.join()
    assert len(found.train_images) + len(found.test_images) == 200
    assert len(others[0].train_images) + len(others[0].test_images) == 201
    assert len(decoded) == len({*decoded}) == 201
    monkeypatch.setattr(parallel, "decode_many", None)
    assert load(own).digest == others[0].digest


def _refuse(path: Path, missing_ok: bool = False) -> None:
    if path.exists() or not missing_ok:
        raise PermissionError


@pytest.mark.parametrize("damage", [b"", b"{}", b'{"images": "../x.npy", "paths": ["a"], "states": 1}'])
def test_a_damaged_cache_is_made_anew(load, own, tmp_path, damage):
    first = load(own)
    for index in (tmp_path / "cache").rglob("index.json"):
        index.write_bytes(damage)
    assert load(own).digest == first.digest


def test_a_cache_whose_arrays_are_gone_is_made_anew(load, own, tmp_path):
    first = load(own)
    for arrays in (tmp_path / "cache").rglob("*.npy"):
        arrays.unlink()
    assert load(own).digest == first.digest


def test_unreadable_pictures_are_named_and_left_out(load, own, caplog):
    for name in ("0000", "0002"):
        (own / "cat" / f"{name}.png").write_bytes(b"not a picture")
    with caplog.at_level(logging.WARNING, "edgecifar"):
        found = load(own)
    assert len(found.train_images) + len(found.test_images) == 198
    assert found.origin["unreadable"] == 2
    assert "cat/0000.png" in caplog.text
    with pytest.raises(DataError, match=r"cat/0002\.png"):
        load(own, strict=True)


def test_many_unreadable_pictures(load, own, caplog):
    for number in range(20):
        (own / "bird" / f"bad-{number}.png").write_bytes(b"no")
    with caplog.at_level(logging.WARNING, "edgecifar"):
        load(own)
    assert "20 of 220" in caplog.text
    assert "15 more" in caplog.text


def test_the_folder_is_never_written_to(load, own):
    def state():
        return {path: path.stat().st_mtime_ns for path in (own, *own.rglob("*"))}

    before = state()
    load(own)
    load(own)
    assert state() == before


def test_a_class_without_training_pictures(load, tmp_path):
    rng = np.random.default_rng(2)
    folder = tmp_path / "few"
    write(folder, rng.integers(0, 256, (30, 32, 32, 3), np.uint8), ["many"] * 30)
    lone = next(  # a picture that falls into the test split
        image for image in rng.integers(0, 256, (200, 32, 32, 3), np.uint8) if _split(tmp_path, image) == "test"
    )
    write(folder, lone[None], ["lone"])
    with pytest.raises(DataError, match="lone"):
        load(folder)


def _split(folder: Path, image: np.ndarray) -> str:
    from edgecifar.runtime.files import sha256
    from edgecifar.runtime.splitting import assign_splits

    Image.fromarray(image).save(folder / "lone.png")
    return assign_splits([sha256(folder / "lone.png")])[0]


def test_a_class_without_test_pictures_is_named(load, tmp_path, caplog):
    rng = np.random.default_rng(3)
    write(tmp_path / "set" / "train", rng.integers(0, 256, (8, 32, 32, 3), np.uint8), ["a", "b"] * 4)
    write(tmp_path / "set" / "test", rng.integers(0, 256, (2, 32, 32, 3), np.uint8), ["a", "a"])
    with caplog.at_level(logging.WARNING, "edgecifar"):
        found = load(tmp_path / "set")
    assert "b" in caplog.text
    assert found.contract.labels == ("a", "b")  # a class that is missing in a split shifts no label
    assert set(found.test_labels) == {0}


def test_no_test_pictures_at_all(load, tmp_path):
    rng = np.random.default_rng(4)
    write(tmp_path / "set" / "train", rng.integers(0, 256, (8, 32, 32, 3), np.uint8), ["a", "b"] * 4)
    write(tmp_path / "set" / "val", rng.integers(0, 256, (2, 32, 32, 3), np.uint8), ["a", "b"])
    with pytest.raises(DataError, match="no pictures of the split test"):
        load(tmp_path / "set")


def test_a_csv_with_groups_and_unicode_labels(load, own, tmp_path):
    paths = sorted(own.rglob("*.png"))
    rows = [f"{path.relative_to(tmp_path)},{'Käfer' if i % 2 else 'Blüte'},g{i // 10}" for i, path in enumerate(paths)]
    (tmp_path / "list.csv").write_text("path,label,group\n" + "\n".join(rows) + "\n", encoding="utf-8")
    found = load(tmp_path / "list.csv", val=0.2, test=0.4)
    assert found.contract.labels == ("Blüte", "Käfer")
    assert found.name == "list.csv"
    tested = members(found.test_images)
    for start in range(0, len(paths), 10):
        group = members(np.stack([np.asarray(Image.open(path)) for path in paths[start : start + 10]]))
        assert group <= tested or group.isdisjoint(tested)


def test_a_file_that_vanishes_while_it_is_read(load, own, monkeypatch, caplog):
    decode = parallel.decode_many

    def remove_first(paths, *args, **options):
        (own / "cat" / "0000.png").unlink()
        return decode(paths, *args, **options)

    monkeypatch.setattr(parallel, "decode_many", remove_first)
    with caplog.at_level(logging.WARNING, "edgecifar"):
        found = load(own)
    assert found.origin["unreadable"] == 1
    assert "cat/0000.png" in caplog.text


@pytest.mark.parametrize("name", ["CIFAR-10", "synthetic"])
def test_no_folder_passes_for_a_known_data_set(load, own, name):
    folder = own.rename(own.parent / name)
    assert load(folder).name not in (data.CIFAR10_NAME, data.SYNTHETIC)


def test_shares_that_leave_nothing(load, own):
    with pytest.raises(DataError, match="split"):
        load(own, val=0.5, test=0.5)


def test_a_run_remembers_how_its_pictures_were_split(load, own, tmp_path, recipe, no_plots):
    found = load(own, fit="pad", val=0.2, test=0.2)
    loop.train(recipe, found, tmp_path / "run")
    record = loop.Run(tmp_path / "run").record
    assert record.contract.fit == "pad"
    assert record.dataset.origin["pictures"].keys() == {"train", "val", "test"}
    again = folders.FolderOptions.recorded(record.dataset.origin)
    assert again == FolderOptions(fit="pad", val=0.2, test=0.2)
    assert load(own, fit="pad", val=0.2, test=0.2).digest == record.dataset.sha256


def test_options_of_another_version():
    with pytest.raises(DataError, match="train again"):
        FolderOptions.recorded({"options": {"colour": "grey"}})


@pytest.mark.cifar10
@pytest.mark.slow
def test_six_of_cifar10s_classes_as_files_are_those_in_arrays(load, tmp_path):
    """The same pictures, labels, digest, and so training; and the shipped net is right about as many, to the last."""
    from edgecifar.runtime import evaluation
    from edgecifar.runtime.classifier import Classifier
    from edgecifar.runtime.metrics import evaluate

    if not os.environ.get("EDGECIFAR_DATA"):
        pytest.skip("EDGECIFAR_DATA does not name the folder of the CIFAR-10 files")
    cifar = data.load(download=False)
    names = tuple(sorted(cifar.contract.labels)[:6])
    classes = [cifar.contract.labels.index(name) for name in names]
    arrays = []
    for split, images, labels, each in (
        ("train", cifar.train_images, cifar.train_labels, 100),
        ("test", cifar.test_images, cifar.test_labels, 1_000),
    ):
        rows = np.concatenate([np.flatnonzero(labels == label)[:each] for label in classes])
        write(tmp_path / "six" / split, images[rows], [cifar.contract.labels[label] for label in labels[rows]])
        arrays += [images[rows], np.repeat(np.arange(len(classes)), each)]
    found = load(tmp_path / "six")
    assert found.contract.labels == names
    got = (found.train_images, found.train_labels, found.test_images, found.test_labels)
    for mine, wanted in zip(got, arrays, strict=True):
        np.testing.assert_array_equal(mine, wanted)
    classifier = Classifier(variant="tiny", provider="cpu")
    model = evaluation.load(classifier.bundle.folder, "tiny", "cpu")
    through_files = evaluation.evaluate(model, tmp_path / "six")
    on_arrays = evaluate(classifier.probabilities, arrays[2], np.repeat(classes, 1_000), cifar.contract.labels)
    assert not through_files.unread
    assert through_files.result.correct == on_arrays.correct > 0.85 * len(arrays[3])
    np.testing.assert_array_equal(through_files.result.confusion, on_arrays.confusion)
