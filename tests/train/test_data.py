"""Data sets load whole and as they are, or not at all and with a sentence that says what to do."""

from __future__ import annotations

import errno
import hashlib
import io
import os
import pickle
import shutil
import tarfile
import tempfile
import urllib.error
import urllib.request
from pathlib import Path

import numpy as np
import pytest
import torchvision
from torchvision.datasets import CIFAR10

from edgecifar.runtime import files
from edgecifar.runtime.contract import CIFAR10 as CONTRACT
from edgecifar.runtime.contract import Contract
from edgecifar.runtime.errors import DataError, OutputError
from edgecifar.runtime.paths import CIFAR10_FILES
from edgecifar.train import data

FOLDER, ARCHIVE = "cifar-10-batches-py", "cifar-10-python.tar.gz"
BATCHES = [f"data_batch_{number}" for number in range(1, 6)]
FILES = {*BATCHES, "test_batch", "batches.meta"}


def refusal(root: Path, kind: type[Exception] = DataError, **options) -> str:
    """The message that `root` is refused with; nothing in it has changed."""
    before = snapshot(root)
    with pytest.raises(kind) as caught:
        data.load(root, **options)
    assert snapshot(root) == before
    message = str(caught.value)
    assert "\n" not in message
    assert message.endswith(".")
    return message


def snapshot(root: Path) -> dict[str, bytes | None]:
    return {
        str(path.relative_to(root)): path.read_bytes() if path.is_file() else None for path in sorted(root.rglob("*"))
    }


@pytest.fixture
def no_network(monkeypatch) -> list[str]:
    asked = []

    def refuse(request, *_, **__):
        asked.append(getattr(request, "full_url", request))
        raise urllib.error.URLError("Name or service not known")

    monkeypatch.setattr(urllib.request, "urlopen", refuse)
    return asked


@pytest.fixture
def stranger(tmp_path, monkeypatch, no_network):
    """A complete set in CIFAR-10's format, 20 images a batch, whose digests torchvision is made to expect."""
    folder = tmp_path / "data" / FOLDER
    folder.mkdir(parents=True)
    rng = np.random.default_rng(0)
    digests = {}
    for name in sorted(FILES):
        if name == "batches.meta":
            content = {"label_names": [f"name {i}" for i in range(10)]}
        else:
            content = {
                "data": rng.integers(0, 256, (20, 3072), dtype=np.uint8),
                "labels": rng.permutation(np.arange(20) % 10).tolist(),
            }
        (folder / name).write_bytes(pickle.dumps(content))
        digests[name] = hashlib.md5((folder / name).read_bytes(), usedforsecurity=False).hexdigest()
    monkeypatch.setattr(CIFAR10, "train_list", [[name, digests[name]] for name in BATCHES])
    monkeypatch.setattr(CIFAR10, "test_list", [["test_batch", digests["test_batch"]]])
    monkeypatch.setattr(CIFAR10, "meta", {**CIFAR10.meta, "md5": digests["batches.meta"]})
    return folder


@pytest.fixture
def archive(stranger, tmp_path, monkeypatch) -> bytes:
    """The same as an archive that torchvision is made to expect."""
    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode="w:gz") as tar:
        tar.add(stranger, FOLDER)
    content = packed.getvalue()
    monkeypatch.setattr(CIFAR10, "tgz_md5", hashlib.md5(content, usedforsecurity=False).hexdigest())
    return content


class Response(io.BytesIO):
    """What `urlopen` returns."""

    url = None

    @property
    def length(self) -> int:
        return len(self.getvalue())


def test_synthetic_is_reproducible():
    first, second = data.synthetic(60, 20), data.synthetic(60, 20)
    assert first.digest == second.digest
    for name in ("train_images", "train_labels", "test_images", "test_labels"):
        assert np.array_equal(getattr(first, name), getattr(second, name))
    assert data.synthetic(60, 20, seed=1).digest != first.digest


def test_synthetic_has_the_shapes_of_cifar_10_and_balanced_labels():
    dataset = data.load("synthetic")
    assert dataset.name == "synthetic"
    for images, labels, count in (
        (dataset.train_images, dataset.train_labels, 2000),
        (dataset.test_images, dataset.test_labels, 500),
    ):
        assert (images.shape, images.dtype) == ((count, 32, 32, 3), np.uint8)
        assert (labels.shape, labels.dtype) == ((count,), np.int64)
        assert np.bincount(labels).tolist() == [count // 10] * 10
    seen = {image.tobytes() for image in dataset.train_images}
    assert not any(image.tobytes() in seen for image in dataset.test_images)


def test_synthetic_draws_by_a_contract():
    contract = Contract(("Äpfel", "梨", "plum", *map(str, range(9))), 48)
    dataset = data.synthetic(48, 24, contract=contract)
    assert dataset.contract == contract
    assert dataset.train_images.shape == (48, 48, 48, 3)
    assert np.bincount(dataset.train_labels).tolist() == [4] * 12
    assert data.synthetic(60, 20).contract == CONTRACT


def test_synthetic_is_what_earlier_versions_drew():
    """Or runs on it could not be resumed."""
    assert data.synthetic(40, 20).digest == "a1b4f76088bc3c867871b11cf35649bed5b80a1077ae9c22056ac9941a6fe4a6"


def test_digest_covers_images_and_labels():
    dataset = data.synthetic(20, 10)
    digest = hashlib.sha256()
    for array in (dataset.train_images, dataset.train_labels, dataset.test_images, dataset.test_labels):
        digest.update(array.tobytes())
    assert dataset.digest == digest.hexdigest()


@pytest.mark.parametrize("share", [0.0, 0.1, 0.25, 0.5])
def test_hold_out_is_balanced_disjoint_and_always_the_same(share):
    dataset = data.synthetic(400, 10)
    trained_on, held_out = dataset.hold_out(share)
    assert sorted([*trained_on, *held_out]) == list(range(400))
    assert (trained_on == np.sort(trained_on)).all()
    assert (held_out == np.sort(held_out)).all()
    assert np.bincount(dataset.train_labels[held_out], minlength=10).tolist() == [round(share * 40)] * 10
    for label in range(10):  # the last ones of each class
        indices = np.flatnonzero(dataset.train_labels == label)
        assert set(indices[40 - round(share * 40) :]) == set(held_out) & set(indices)
    again = dataset.hold_out(share)
    assert np.array_equal(again[0], trained_on)
    assert np.array_equal(again[1], held_out)


def test_files_load_as_torchvision_gives_them(stranger, no_network):
    dataset = data.load(stranger.parent)
    train, test = CIFAR10(stranger.parent, train=True), CIFAR10(stranger.parent, train=False)
    assert dataset.name == "CIFAR-10"
    assert np.array_equal(dataset.train_images, train.data)
    assert dataset.train_labels.tolist() == train.targets
    assert np.array_equal(dataset.test_images, test.data)
    assert dataset.test_labels.tolist() == test.targets
    assert dataset.train_labels.dtype == np.int64
    assert no_network == []


def test_the_names_are_torchvisions():
    assert CIFAR10_FILES == (FOLDER, ARCHIVE) == (CIFAR10.base_folder, CIFAR10.filename)


def test_inner_folder_and_archive_may_be_named(stranger, archive, tmp_path, monkeypatch):
    wanted = data.load(stranger.parent).digest
    assert data.load(stranger).digest == wanted
    monkeypatch.chdir(stranger)
    assert data.load(".").digest == wanted
    other = tmp_path / "other"
    other.mkdir()
    (other / ARCHIVE).write_bytes(archive)
    assert data.load(other / ARCHIVE).digest == wanted


def test_the_variable_names_the_folder(stranger, monkeypatch):
    monkeypatch.setenv("EDGECIFAR_DATA", str(stranger.parent))
    assert data.load().digest == data.load(stranger.parent).digest
    monkeypatch.setenv("EDGECIFAR_DATA", "synthetic")
    assert data.load().name == "synthetic"
    monkeypatch.setenv("HOME", str(stranger.parent.parent))
    monkeypatch.setenv("EDGECIFAR_DATA", "~/data")
    assert data.load().name == "CIFAR-10"


def test_archive_is_extracted(stranger, archive, tmp_path, no_network, lines):
    root = tmp_path / "other"
    root.mkdir()
    (root / ARCHIVE).write_bytes(archive)
    assert data.load(root, download=False).digest == data.load(stranger.parent).digest
    assert lines() == [f"Extracting CIFAR-10 in {root} …"]
    assert {path.name for path in root.iterdir()} == {FOLDER, ARCHIVE}
    assert {path.name for path in (root / FOLDER).iterdir()} == FILES
    assert no_network == []


def test_no_other_container_takes_what_is_extracted_for_a_leftover(stranger, archive, tmp_path, monkeypatch):
    def look(archive, staging):
        assert (Path(staging).parent, files._is_taken(Path(staging))) == (tmp_path, True)
        raise OSError(28, "No space left on device")

    (tmp_path / ARCHIVE).write_bytes(archive)
    monkeypatch.setattr(torchvision.datasets.utils, "extract_archive", look)
    with pytest.raises(OutputError, match="full"):
        data.load(tmp_path)


def test_what_is_missing_comes_out_of_the_archive(stranger, archive):
    wanted = data.load(stranger.parent).digest
    (stranger.parent / ARCHIVE).write_bytes(archive)
    (stranger / "data_batch_3").unlink()
    (stranger / "batches.meta").unlink()
    intact = (stranger / "data_batch_1").stat().st_ino
    assert data.load(stranger.parent, download=False).digest == wanted
    assert (stranger / "data_batch_1").stat().st_ino == intact


def test_archive_is_downloaded(stranger, archive, tmp_path, monkeypatch, lines):
    monkeypatch.setattr(urllib.request, "urlopen", lambda *_, **__: Response(archive))
    root = tmp_path / "new" / "folder"
    root.mkdir(parents=True)
    assert data.load(root).digest == data.load(stranger.parent).digest
    assert lines() == [f"Downloading CIFAR-10 in {root} …"]
    assert {path.name for path in root.iterdir()} == {FOLDER}


def test_download_that_is_cut_off_leaves_nothing(stranger, archive, tmp_path, monkeypatch):
    monkeypatch.setattr(urllib.request, "urlopen", lambda *_, **__: Response(archive[: len(archive) // 2]))
    root = tmp_path / "new"
    root.mkdir()
    assert refusal(root).startswith(
        f"CIFAR-10 is not in {root} and could not be downloaded (File not found or corrupted): copy {ARCHIVE} or"
    )


def test_a_full_disk_is_not_called_a_network(stranger, archive, tmp_path, monkeypatch):
    class Full(Response):
        def read(self, *_):
            raise OSError(28, "No space left on device")

    monkeypatch.setattr(urllib.request, "urlopen", lambda *_, **__: Full(archive))
    root = tmp_path / "new"
    root.mkdir()
    assert f"the disk that holds {root} is full" in refusal(root, OutputError)


def test_neither_data_nor_network(tmp_path, no_network):
    message = refusal(tmp_path)
    assert "Name or service not known" in message
    for remedy in (ARCHIVE, FOLDER, "--data", "$EDGECIFAR_DATA", "synthetic"):
        assert remedy in message
    assert len(no_network) == 1


def test_nothing_is_downloaded_where_it_may_not_be(tmp_path, no_network):
    assert refusal(tmp_path, download=False).startswith(f"CIFAR-10 is not in {tmp_path}: copy {ARCHIVE} or its folder")
    assert no_network == []


@pytest.mark.parametrize("by_variable", [False, True])
def test_a_path_that_is_not_there_is_taken_for_a_mistake(tmp_path, no_network, monkeypatch, by_variable):
    if by_variable:
        monkeypatch.setenv("EDGECIFAR_DATA", str(tmp_path / "my_pictrues"))
    with pytest.raises(DataError, match="my_pictrues is not there: check the path"):
        data.load(None if by_variable else tmp_path / "my_pictrues")
    assert no_network == []
    assert not list(tmp_path.iterdir())


def test_a_file_that_is_no_csv(tmp_path, no_network):
    (tmp_path / "pictures.zip").write_bytes(b"PK")
    assert "pictures.zip is a file" in refusal(tmp_path / "pictures.zip")
    assert no_network == []


class TestRequireNamed:
    def test_pictures_of_ones_own_must_be_named(self, monkeypatch):
        monkeypatch.delenv("EDGECIFAR_DATA", raising=False)
        with pytest.raises(DataError, match=r"of your own \(birds\)") as caught:
            data.require_named(None, "birds", {"layout": "folders"})
        assert caught.value.option == "data"
        data.require_named("somewhere", "birds", {"layout": "folders"})
        monkeypatch.setenv("EDGECIFAR_DATA", "somewhere")
        data.require_named(None, "birds", {"layout": "folders"})

    def test_others_need_not(self, monkeypatch):
        monkeypatch.delenv("EDGECIFAR_DATA", raising=False)
        data.require_named(None, "CIFAR-10", {})


def test_text_file_that_is_called_an_archive(tmp_path, no_network):
    (tmp_path / ARCHIVE).write_text("Not found.\n")
    message = refusal(tmp_path)
    assert "not the official CIFAR-10 archive" in message
    assert "c58f30108f718f92721af3b95e74349a" in message
    assert no_network == []


class TestAFolderOfOtherThings:
    """Nothing is downloaded into a folder that somebody named and that holds other things."""

    @pytest.fixture(params=["cats/1.png", "notes.txt"])
    def other(self, request, tmp_path) -> Path:
        """A folder for each class, whose pictures cannot be read, or a folder of something else."""
        file = tmp_path / "mine" / request.param
        file.parent.mkdir(parents=True)
        file.write_text("mine")
        return tmp_path / "mine"

    def test_is_refused_by_what_it_is(self, other, no_network):
        message = refusal(other)
        assert ("notes.txt" in message) == (other / "notes.txt").exists()
        assert no_network == []

    def test_also_where_the_variable_names_it(self, other, no_network, monkeypatch):
        monkeypatch.setenv("EDGECIFAR_DATA", str(other))
        with pytest.raises(DataError):
            data.load()
        assert no_network == []

    def test_is_no_obstacle_where_cifar_10_is_in_it(self, other, stranger, archive, no_network):
        shutil.copytree(stranger, other / FOLDER)
        assert data.load(other).digest == data.load(stranger.parent).digest
        (other / FOLDER / "data_batch_4").unlink()
        assert f"data_batch_4 is not in {other / FOLDER}: copy" in refusal(other)
        (other / ARCHIVE).write_bytes(archive)  # extracting needs no network
        assert data.load(other).digest == data.load(stranger.parent).digest
        assert no_network == []

    def test_the_default_folder_may_hold_more(self, stranger, archive, tmp_path, monkeypatch):
        monkeypatch.delenv("EDGECIFAR_DATA", raising=False)
        monkeypatch.setattr(urllib.request, "urlopen", lambda *_, **__: Response(archive))
        monkeypatch.setattr(data, "CACHE", tmp_path / "cache")
        (tmp_path / "cache" / "pictures").mkdir(parents=True)
        assert data.load().digest == data.load(stranger.parent).digest

    def test_hidden_files_are_no_things(self, stranger, archive, tmp_path, monkeypatch):
        monkeypatch.setattr(urllib.request, "urlopen", lambda *_, **__: Response(archive))
        root = tmp_path / "new"
        root.mkdir()
        (root / ".DS_Store").write_text("")
        assert data.load(root).digest == data.load(stranger.parent).digest


class TestCacheFolder:
    def test_is_in_the_folder_that_the_environment_names(self, tmp_path, monkeypatch):
        monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
        assert data.cache_folder() == tmp_path / "edgecifar"

    @pytest.mark.parametrize("named", ["", "relative"])  # the specification ignores what is not absolute
    def test_is_in_the_home_otherwise(self, monkeypatch, named):
        monkeypatch.setenv("XDG_CACHE_HOME", named)
        assert data.cache_folder() == Path("~/.cache/edgecifar")


@pytest.mark.parametrize("name", sorted(FILES))
def test_one_flipped_bit(stranger, name, no_network):
    content = bytearray((stranger / name).read_bytes())
    content[len(content) // 2] ^= 1
    (stranger / name).write_bytes(content)
    assert refusal(stranger.parent).startswith(f"Corrupt in {stranger}: {name}; delete it to have CIFAR-10 extracted")
    assert no_network == []


def test_every_corrupt_file_is_named(stranger):
    for name in ("data_batch_2", "test_batch"):
        (stranger / name).write_bytes(b"")
    assert refusal(stranger.parent).startswith(f"Corrupt in {stranger}: data_batch_2, test_batch; delete them to")


def test_a_folder_that_was_not_there_is_not_left_behind(tmp_path, no_network, monkeypatch):
    monkeypatch.delenv("EDGECIFAR_DATA", raising=False)
    monkeypatch.setattr(data, "CACHE", tmp_path / "cache")
    with pytest.raises(DataError, match=r"CIFAR-10 is not in .*cache and could not be downloaded"):
        data.load()
    assert no_network
    assert list(tmp_path.iterdir()) == []


def test_missing_batch_is_named(stranger, no_network):
    (stranger / "data_batch_4").unlink()
    assert refusal(stranger.parent, download=False).startswith(f"data_batch_4 is not in {stranger}: copy {ARCHIVE}")
    assert refusal(stranger.parent).startswith(f"data_batch_4 is not in {stranger} and could not be downloaded (")
    (stranger / "batches.meta").unlink()
    assert refusal(stranger.parent, download=False).startswith(f"data_batch_4, batches.meta are not in {stranger}: ")


def test_folder_that_may_not_be_written_to(tmp_path, archive, monkeypatch):
    def deny(_suffix, _prefix, folder):  # root, whom tests may run as, is denied nothing
        raise PermissionError(errno.EACCES, "Permission denied", str(folder))

    monkeypatch.setattr(tempfile, "mkdtemp", deny)
    root = tmp_path / "locked"
    root.mkdir()
    (root / ARCHIVE).write_bytes(archive)
    assert f"{root} may not be written to" in refusal(root, OutputError)


def test_file_where_the_folder_should_be(tmp_path, monkeypatch):
    monkeypatch.delenv("EDGECIFAR_DATA", raising=False)
    monkeypatch.setattr(data, "CACHE", tmp_path / "data")
    (tmp_path / "data").write_text("")
    with pytest.raises(DataError, match="data is a file"):
        data.load()


def test_export_does_without_files_unless_they_were_named(stranger, tmp_path, monkeypatch, no_network, lines):
    assert data.load_for_export("synthetic", None).name == "synthetic"
    assert data.load_for_export("CIFAR-10", str(stranger.parent)).name == "CIFAR-10"
    assert data.load_for_export("synthetic", str(stranger.parent)).name == "CIFAR-10"  # and is refused
    assert lines() == []
    (tmp_path / "empty").mkdir()
    monkeypatch.setenv("EDGECIFAR_DATA", str(tmp_path / "empty"))
    assert data.load_for_export("CIFAR-10", None) is None
    (line,) = lines()
    assert "CIFAR-10 is not in" in line
    with pytest.raises(DataError):
        data.load_for_export("CIFAR-10", str(tmp_path / "absent"))
    assert no_network == []


@pytest.fixture(scope="module")
def real() -> data.Dataset:
    if not os.environ.get("EDGECIFAR_DATA"):
        pytest.skip("EDGECIFAR_DATA does not name CIFAR-10's folder")
    return data.load(download=False)


@pytest.mark.cifar10
def test_cifar_10_is_complete_and_as_torchvision_gives_it(real):
    assert real.name == "CIFAR-10"
    assert (real.train_images.shape, real.train_images.dtype) == ((50_000, 32, 32, 3), np.uint8)
    assert (real.test_images.shape, real.test_images.dtype) == ((10_000, 32, 32, 3), np.uint8)
    assert np.bincount(real.train_labels).tolist() == [5_000] * 10
    assert np.bincount(real.test_labels).tolist() == [1_000] * 10
    test = torchvision.datasets.CIFAR10(os.environ["EDGECIFAR_DATA"], train=False)
    assert np.array_equal(real.test_images, test.data)
    assert real.test_labels.tolist() == test.targets
    assert [name[:4] for name in test.classes] == ["airp", "auto", *(label[:4] for label in CONTRACT.labels[2:])]
    assert real.digest == "6b3883dca6c867f1e58def548c063d1865569b8575fcbce06b3e468a89f9895a"


@pytest.mark.cifar10
def test_5000_of_cifar_10_are_held_out(real):
    trained_on, held_out = real.hold_out(0.1)
    assert (len(trained_on), len(held_out)) == (45_000, 5_000)
    assert np.bincount(real.train_labels[held_out]).tolist() == [500] * 10


@pytest.mark.cifar10
def test_one_flipped_byte_of_cifar_10(tmp_path, real):
    folder = tmp_path / FOLDER
    shutil.copytree(Path(os.environ["EDGECIFAR_DATA"], FOLDER), folder)
    with (folder / "data_batch_5").open("r+b") as file:
        file.seek(10_000_000)
        byte = file.read(1)[0]
        file.seek(10_000_000)
        file.write(bytes([byte ^ 1]))
    with pytest.raises(DataError, match=r"^Corrupt in .*: data_batch_5; delete it"):
        data.load(tmp_path)


class TestLabelsOfAModel:
    def test_the_same_labels(self, small):
        assert small.test_labels_as(small.contract.labels) is small.test_labels

    def test_a_model_of_more_classes_in_another_order(self, small):
        labels = ("first", *reversed(small.contract.labels))
        found = small.test_labels_as(labels)
        assert [labels[one] for one in found] == [small.contract.labels[one] for one in small.test_labels]

    def test_a_class_that_the_model_does_not_know(self, small):
        with pytest.raises(DataError, match="plane"):
            small.test_labels_as(small.contract.labels[1:])
