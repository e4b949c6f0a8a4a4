"""Labelled pictures: which file has which label and split, every fault in a sentence, and splits that stay."""

from __future__ import annotations

import os
import unicodedata
from hashlib import sha256
from pathlib import Path

import numpy as np
import pytest

from edgecifar.runtime import labelled
from edgecifar.runtime.errors import DataError
from edgecifar.runtime.labelled import Entry, read, recognise
from edgecifar.runtime.splitting import assign_splits


@pytest.fixture
def folder(tmp_path):
    """Make files below a folder `data`, each with its name as content: `folder("cat/1.png", "dog/2.png")`."""

    def make(*names: str) -> Path:
        root = tmp_path / "data"
        root.mkdir(exist_ok=True)
        for name in names:
            path = root / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(name)
        return root

    return make


@pytest.fixture
def table(folder):
    """Write a CSV beside the files that it names, and return its path: `table("path,label", "1.png,cat")`."""

    def make(*lines: str, files: tuple[str, ...] = ("1.png", "2.png", "deep/3.png"), encoding: str = "utf-8") -> Path:
        root = folder(*files)
        (root / "list.csv").write_text("\n".join(lines) + "\n", encoding=encoding)
        return root / "list.csv"

    return make


def refusal(path: Path) -> str:
    """The sentence of the fault in `path`, found when it is read or when its labels are asked for."""
    with pytest.raises(DataError) as caught:
        read(path).labels()
    assert str(caught.value).endswith(".")
    return str(caught.value)


class TestFolders:
    def test_each_folder_is_a_class_and_goes_as_deep_as_it_likes(self, folder):
        root = folder("dog/2.png", "cat/1.JPG", "cat/deep/er/3.webp", "cat/notes.txt", ".git/4.png")
        found = read(root)
        assert recognise(root) == found.layout == "folders"
        assert found.entries == (
            Entry("cat/1.JPG", "cat"),
            Entry("cat/deep/er/3.webp", "cat"),
            Entry("dog/2.png", "dog"),
        )
        assert found.labels() == ("cat", "dog")
        assert not found.has_splits
        assert found.left_out.reasons == {".txt": 1}
        assert found.remarks == ()
        assert all((found.root / entry.path).is_file() for entry in found.entries)

    @pytest.mark.parametrize(("train", "val"), [("train", "val"), ("Training", "valid")])
    def test_split_folders(self, folder, train, val):
        root = folder(f"{train}/cat/1.png", f"{train}/dog/2.png", f"{val}/cat/3.png", "test/dog/4.png", "more/5.png")
        found = read(root)
        assert recognise(root) == found.layout == "splits"
        assert {(entry.label, entry.split) for entry in found.entries} == {
            *(("cat", "train"), ("dog", "train"), ("cat", "val"), ("dog", "test")),
        }
        assert found.labels() == ("cat", "dog")
        assert [entry.path for entry in found.of_split("test").entries] == ["test/dog/4.png"]
        (remark,) = found.remarks
        assert "more" in remark

    def test_a_class_called_train_is_a_class(self, folder):
        assert read(folder("train/1.png", "plane/2.png")).labels() == ("plane", "train")

    def test_a_class_missing_in_a_split_shifts_no_label(self, folder):
        found = read(folder("train/a/1.png", "train/b/2.png", "train/c/3.png", "test/c/4.png"))
        assert found.labels() == ("a", "b", "c")
        assert found.of_split("test").indices(found.labels()) == [2]

    def test_a_class_in_another_split_only_is_named(self, folder):
        root = folder("train/a/1.png", "train/b/2.png", "test/zebra/3.png")
        assert "zebra" in refusal(root)

    def test_a_class_without_pictures_in_another_split_is_none(self, folder):
        root = folder("train/a/1.png", "train/b/2.png", "test/a/3.png")
        (root / "test" / "b").mkdir()
        assert [entry.label for entry in read(root).of_split("test").entries] == ["a"]

    def test_an_empty_folder(self, folder):
        assert "is empty" in refusal(folder())

    def test_a_folder_without_folders(self, folder):
        assert "it has 2 pictures in no class's folder" in refusal(folder("1.png", "2.png"))

    def test_folders_without_pictures(self, folder):
        sentence = refusal(folder("cat/notes.txt", "cat/more.HEX"))
        assert "The class cat has no pictures" in sentence
        assert ".txt" in sentence

    def test_one_class(self, folder):
        sentence = refusal(folder("cat/1.png", "cat/2.png"))
        assert "one class, cat" in sentence
        assert "or name" not in sentence

    def test_one_folder_around_the_classes(self, folder):
        root = folder("pets/cat/1.png", "pets/dog/2.png")
        assert f"name {root / 'pets'}" in refusal(root)

    def test_a_class_without_pictures(self, folder):
        root = folder("cat/1.png", "dog/2.png")
        (root / "emu").mkdir()
        assert "The class emu has no pictures" in refusal(root)

    def test_too_many_classes(self, folder, monkeypatch):
        monkeypatch.setattr(labelled, "MAX_CLASSES", 2)
        assert "3 classes: at most 2" in refusal(folder("a/1.png", "b/1.png", "c/1.png"))

    def test_names_that_differ_in_case(self, folder):
        root = folder("cat/1.png", "Cat/2.png")
        if len(os.listdir(root)) == 1:
            pytest.skip("this file system does not tell case apart")
        assert "'Cat' and 'cat' differ only in case" in refusal(root)
        splits = folder("train/cat/1.png", "train/dog/1.png", "val/Dog/2.png")
        assert "differ only in case" in refusal(splits)

    def test_names_that_differ_in_unicode_form(self, folder):
        forms = [unicodedata.normalize(form, "grün") for form in ("NFC", "NFD")]
        root = folder(*(f"{form}/1.png" for form in forms))
        if len(os.listdir(root)) == 1:
            pytest.skip("this file system does not tell unicode forms apart")
        sentence = refusal(root)
        assert "differ only in unicode form" in sentence
        assert sentence.isascii()  # else the two would look alike

    def test_labels_are_composed_and_paths_are_as_on_the_disk(self, folder):
        apart = unicodedata.normalize("NFD", "grün 🌲")
        found = read(folder(f"{apart}/1.png", "röd/1.png"))
        assert found.labels() == ("grün 🌲", "röd")
        assert all((found.root / entry.path).is_file() for entry in found.entries)

    @pytest.mark.parametrize("name", ["re\x1b[31md", "x" * 201])
    def test_a_name_that_cannot_be_shown(self, folder, name):
        sentence = refusal(folder(f"{name}/1.png", "cat/1.png"))
        assert "rename it" in sentence
        assert sentence.isprintable()

    def test_pictures_beside_the_class_folders_are_counted_and_named(self, folder):
        found = read(folder("cat/1.png", "dog/2.png", "stray.png", "list.txt"))
        assert len(found.entries) == 2
        assert found.left_out.reasons["picture beside the class folders"] == 1
        assert "1 picture beside the class folders in " in found.remarks[0]
        assert "(stray.png)" in found.remarks[0]

    def test_nested_classes_are_remarked_on(self, folder):
        found = read(folder("pets/cat/1.png", "pets/dog/2.png", "cars/3.png", "cars/old/4.png", "ships/ships/5.png"))
        assert found.labels() == ("cars", "pets", "ships")
        (remark,) = found.remarks
        assert "pets" in remark
        assert "cat, dog" in remark

    def test_a_folder_that_vanishes_while_it_is_read(self, folder, monkeypatch):
        root = folder("cat/1.png", "dog/2.png")
        walk = labelled.walk

        def late(where, *arguments, **options):
            if Path(where).name == "dog":
                (root / "dog" / "2.png").unlink()
                (root / "dog").rmdir()
            return walk(where, *arguments, **options)

        monkeypatch.setattr(labelled, "walk", late)
        assert "The class dog has no pictures (1 file left out: 1 unreadable folder)" in refusal(root)

    def test_a_missing_path_and_another_file(self, folder, tmp_path):
        assert "is not there" in refusal(tmp_path / "none")
        root = folder("cat/1.png")
        assert "is not a data set" in refusal(root / "cat" / "1.png")
        assert recognise(root / "cat" / "1.png") is None
        assert "cannot be read" in refusal(Path("x" * 5000))

    @pytest.mark.parametrize("above", ["", "train/"])
    def test_runs_of_training_are_no_class(self, folder, above):
        """A run has drawings of its own; one that was killed early has nothing but its record."""
        classes = (f"{above}cat/1.png", f"{above}dog/2.png", *(["test/cat/3.png"] if above else []))
        runs = ("runs/fast-1/run.json", "runs/fast-1/curves.png", "mine/run.json", "mine/data.png")
        found = read(folder(*classes, *(f"{above}{name}" for name in runs)))
        assert found.labels() == ("cat", "dog")
        assert {entry.label for entry in found.entries} == {"cat", "dog"}
        (remark,) = found.remarks
        assert "mine, runs" in remark

    def test_the_folder_is_not_written_to(self, folder):
        root = folder("cat/1.png", "dog/2.png")
        before = sorted(root.rglob("*"))
        read(root)
        assert sorted(root.rglob("*")) == before


class TestCsv:
    def test_paths_and_labels(self, table):
        path = table("label, Path ,more", "cat,1.png,x", '"a, b",deep/3.png,y', "cat,./2.png,")
        found = read(path)
        assert recognise(path) == found.layout == "csv"
        assert found.root == path.parent
        assert found.entries == (Entry("1.png", "cat"), Entry("deep/3.png", "a, b"), Entry("2.png", "cat"))
        assert found.labels() == ("a, b", "cat")

    def test_splits_and_groups(self, table):
        path = table("path,label,split,group", "1.png,a,train,film", "2.png,b,Training,", "deep\\3.png,a,validation,x")
        assert read(path).entries == (
            Entry("1.png", "a", "train", "film"),
            Entry("2.png", "b", "train"),
            Entry("deep/3.png", "a", "val", "x"),
        )

    def test_a_byte_order_mark(self, table):
        assert read(table("path,label", "1.png,ä", "2.png,b", encoding="utf-8-sig")).labels() == ("b", "ä")

    @pytest.mark.parametrize("mark", [";", "\t"])
    def test_other_separators_that_spreadsheets_write(self, table, mark):
        rows = ("Path,Label,Note", "1.png,ä,", 'deep\\3.png,b,"1,5 x 2,5"')
        path = table(*(mark.join(row.split(",", 2)) for row in rows), encoding="utf-8-sig")
        path.write_bytes(path.read_bytes().replace(b"\n", b"\r\n"))
        assert read(path).entries == (Entry("1.png", "ä"), Entry("deep/3.png", "b"))

    def test_a_test_split_alone_can_be_measured_but_not_trained_on(self, table):
        path = table("path,label,split", "1.png,a,test", "2.png,b,test")
        assert read(path).of_split("test").indices(("b", "a")) == [1, 0]
        assert "train" in refusal(path)

    @pytest.mark.parametrize(
        ("lines", "words"),
        [
            (("path|label", "1.png|a"), "no column 'path' (it has path|label)"),
            (("sep=;", "path;label", "1.png;a"), "no column 'path' (it has sep=, )"),
            (("path,class", "1.png,a"), "no column 'label'"),
            (("path,label,label", "1.png,a,b"), "'label' twice"),
            (("",), "no column 'path' (it has none)"),
            (("path,label",), "no rows"),
            (("path,label", "1.png,a", "9.png,b", "8.png,b"), "not there, 2 files: 9.png, 8.png"),
            (("path,label", "1.png,a", ",b"), "line 3 has no path"),
            (("path,label", "1.png,a", "2.png"), "line 3 has no label"),
            (("path,label", "1.png,a,b"), "more fields"),
            (("path,label,note", "1.png,a,x", '2.png,b,"5 inch', "deep/3.png,b,y"), "line 3, cannot be read as CSV"),
            (("path,label,note", '1.png,a,"5 inch', '2.png,b,"6 inch', "deep/3.png,b,"), "line 2, cannot be read"),
            (('path,"label', "1.png,a"), "line 1, cannot be read as CSV"),
            (("path,label", "../1.png,a"), "begin in the CSV's own folder and stay below it"),
            (("path,label", "deep/../../1.png,a"), "begin in the CSV's own folder and stay below it"),
            (("path,label", "/etc/1.png,a"), "begin in the CSV's own folder and stay below it"),
            (("path,label", "C:\\1.png,a"), "begin in the CSV's own folder and stay below it"),
            (("path,label,split", "1.png,a,train", "2.png,b,later"), "'later'"),
            (("path,label,split", "1.png,a,train", "2.png,b,"), "some rows a split and others none"),
            (("path,label", "1.png,a", "2.png,a"), "one class, a"),
            (("path,label", "1.png,a", "2.png,b", "./1.png,a"), "1 file more than once: 1.png"),
            (("path,label", "1.png,a", "2.png,b", "1.png,b"), "two labels to 1 file: 1.png"),
            (("path,label", "1.png,a", "2.png,A"), "differ only in case"),
            (("path,label,split", "1.png,a,train", "2.png,b,train", "deep/3.png,c,test"), "c has pictures in test"),
            (("path,label,split,group", "1.png,a,train,g", "2.png,b,test,g"), "1 group into two splits: g"),
            (("path,label", f"{'x' * 5000}.png,a"), "not there"),
            (("path,label", '1.png,"' + "a" * 200_000 + '"'), "field larger"),
        ],
    )
    def test_faults(self, table, lines, words):
        path = table(*lines)
        sentence = refusal(path)
        assert words in sentence
        assert str(path) in sentence or "class" in sentence

    def test_it_is_no_text(self, table):
        path = table("path,label")
        path.write_bytes(b"path,label\n1.png,caf\xe9\n")
        assert "UTF-8" in refusal(path)
        path.write_bytes(b"path,label\n1.png,a\0b\n")
        assert refusal(path).isprintable()

    def test_a_class_that_the_model_does_not_know(self, table):
        listing = read(table("path,label", "1.png,a", "2.png,b"))
        with pytest.raises(DataError, match="does not know: b"):
            listing.indices(("a", "c"))


def digest(number: int) -> str:
    return sha256(str(number).encode()).hexdigest()


class TestSplits:
    def test_shares_hold_in_expectation(self):
        splits = assign_splits([digest(n) for n in range(20_000)], val=0.2, test=0.05)
        # Five standard errors of a share p of n: 5 * sqrt(p * (1 - p) / n).
        assert splits.count("val") / 20_000 == pytest.approx(0.2, abs=0.0142)
        assert splits.count("test") / 20_000 == pytest.approx(0.05, abs=0.0078)

    def test_no_share_is_none_of_it(self):
        assert set(assign_splits([digest(n) for n in range(2_000)], val=0, test=0)) == {"train"}
        assert set(assign_splits([digest(n) for n in range(2_000)], val=0, test=0.5)) == {"train", "test"}

    @pytest.mark.parametrize(("val", "test"), [(0.5, 0.5), (-0.1, 0.1), (0.1, 1), (float("nan"), 0.1)])
    def test_shares_that_leave_nothing(self, val, test):
        with pytest.raises(ValueError, match="train"):
            assign_splits([digest(1)], val=val, test=test)

    def test_pictures_that_are_added_move_none(self):
        """Whatever the order, and with groups: a picture's side hangs on its own content or its group's name."""
        first, more = [digest(n) for n in range(500)], [digest(n) for n in range(500, 900)]
        groups = [f"g{n // 5}" if n % 2 else None for n in range(900)]
        before = dict(zip(first, assign_splits(first, groups[:500], 0.3, 0.3), strict=True))
        mixed = list(zip(first + more, groups, strict=True))
        mixed = [mixed[place] for place in np.random.default_rng(0).permutation(len(mixed))]
        after = dict(
            zip(
                [key for key, _ in mixed],
                assign_splits([key for key, _ in mixed], [group for _, group in mixed], 0.3, 0.3),
                strict=True,
            )
        )
        assert {key: after[key] for key in first} == before

    def test_a_larger_share_takes_from_the_rest_only(self):
        """The test pictures of a small share are test pictures of a larger one."""
        digests = [digest(n) for n in range(1_000)]
        small, large = assign_splits(digests, test=0.1), assign_splits(digests, test=0.2)
        assert all(after == "test" for before, after in zip(small, large, strict=True) if before == "test")

    def test_copies_are_on_one_side(self):
        digests = [digest(n % 50) for n in range(200)]
        groups = [f"g{n}" if n % 3 == 0 else None for n in range(200)]
        for found in (assign_splits(digests, val=0.3, test=0.3), assign_splits(digests, groups, 0.3, 0.3)):
            sides: dict[str, set[str]] = {}
            for key, split in zip(digests, found, strict=True):
                sides.setdefault(key, set()).add(split)
            assert all(len(side) == 1 for side in sides.values())
            assert len(set(found)) == 3

    def test_groups_are_never_torn_even_where_they_share_files(self):
        digests = [digest(n % 400) for n in range(500)]  # a hundred copies, that join groups
        numbers = np.random.default_rng(1).integers(0, 150, 500)
        groups = [f"g{number}" if number else None for number in numbers]
        found = assign_splits(digests, groups, 0.3, 0.3)
        sides: dict[str, set[str]] = {}
        for key, group, split in zip(digests, groups, found, strict=True):
            sides.setdefault(key, set()).add(split)
            if group:
                sides.setdefault(group, set()).add(split)
        assert all(len(side) == 1 for side in sides.values())
        assert len(set(found)) == 3


class TestNamed:
    def test_the_option_comes_before_the_variable(self, monkeypatch):
        monkeypatch.setenv("EDGECIFAR_DATA", "there")
        assert (labelled.named("here"), labelled.named(None)) == ("here", "there")
        monkeypatch.setenv("EDGECIFAR_DATA", "")
        assert labelled.named(None) is None

    def test_a_shells_variable_that_is_not_set_names_nothing(self, monkeypatch):
        """CIFAR-10 would be trained on in the place of what was meant."""
        monkeypatch.setenv("EDGECIFAR_DATA", "there")
        with pytest.raises(DataError, match="variable") as caught:
            labelled.named("")
        assert caught.value.option == "data"
