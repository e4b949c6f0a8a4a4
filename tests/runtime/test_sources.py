"""Folders and patterns become the pictures they mean, and what is left out is counted."""

from __future__ import annotations

import io
import os
from pathlib import Path

import pytest

from edgecifar.runtime import sources
from edgecifar.runtime.errors import PictureError
from edgecifar.runtime.sources import LeftOut, find_pictures, read_list


@pytest.fixture
def album(tmp_path, monkeypatch) -> Path:
    """A folder `album` in the current one, with pictures on two levels among other files."""
    monkeypatch.chdir(tmp_path)
    names = ("b.png", "a.JPG", "notes.txt", ".hidden.png", "trip/c.webp", "trip/d.tiff", ".cache/e.png", "none/f.txt")
    for name in names:
        path = tmp_path / "album" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    return tmp_path / "album"


def test_files_stay_as_they_are_and_in_order():
    assert find_pictures(["z.png", "-", "a.txt", "z.png"]) == ["z.png", "-", "a.txt", "z.png"]
    assert find_pictures([]) == []


@pytest.mark.usefixtures("album")
def test_a_folder_gives_its_pictures_sorted_without_hidden_ones():
    inside = ["album/a.JPG", "album/b.png", "album/trip/c.webp", "album/trip/d.tiff"]
    assert find_pictures(["album"]) == inside
    assert find_pictures(["first.png", "album/", "-"]) == ["first.png", *inside, "-"]


def test_a_pattern_gives_the_files_that_match(album):
    assert find_pictures(["album/*.png", "album/?.JPG"]) == ["album/b.png", "album/a.JPG"]
    assert find_pictures([f"{album}/**/[cd].*"]) == [f"{album}/trip/c.webp", f"{album}/trip/d.tiff"]


def test_a_file_whose_name_looks_like_a_pattern_is_a_file(album):
    (album / "b[1].png").touch()
    assert find_pictures(["album/b[1].png"]) == ["album/b[1].png"]


@pytest.mark.usefixtures("album")
@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="there are no named pipes here")
def test_a_pipe_in_a_folder_is_not_waited_for():
    os.mkfifo("album/pipe.png")
    Path("album/zero.png").symlink_to("/dev/zero")
    Path("album/broken.png").symlink_to("missing")  # stays, to be reported
    assert find_pictures(["album"])[:3] == ["album/a.JPG", "album/b.png", "album/broken.png"]
    assert len(find_pictures(["album"])) == 5
    assert find_pictures(["album/pipe.png"]) == ["album/pipe.png"]


@pytest.mark.usefixtures("album")
def test_a_folder_without_pictures_is_named():
    with pytest.raises(PictureError, match=r"There are no pictures in album/none: .*1 \.txt"):
        find_pictures(["album/b.png", "album/none"])
    Path("album/nothing").mkdir()
    with pytest.raises(PictureError, match="There are no pictures in album/nothing: it is empty"):
        find_pictures(["album/nothing"])


@pytest.mark.usefixtures("album")
def test_a_folder_of_unread_pictures_does_not_keep_others_from_being_read():
    Path("album/drawings").mkdir()
    Path("album/drawings/a.svg").touch()
    found = LeftOut()
    assert find_pictures(["album/b.png", "album/drawings"], found) == ["album/b.png"]
    assert found.unread == 1
    with pytest.raises(PictureError, match=r"album/drawings: .*1 \.svg"):
        find_pictures(["album/drawings"])


def left_out(folder: str) -> LeftOut:
    found = LeftOut()
    find_pictures([folder], found)
    return found


@pytest.mark.usefixtures("album")
def test_what_is_left_out_is_counted_by_reason(monkeypatch):
    monkeypatch.setattr(sources, "_reads_heic", lambda: False)
    for name in ("1.HEIC", "2.heic", "c.svg", "d.mov", "e", "f.tar.gz"):
        Path("album", name).touch()
    found = left_out("album")
    assert found.reasons == {
        ".txt": 2,
        ".heic": 2,
        ".svg": 1,
        ".mov": 1,
        ".gz": 1,
        "without suffix": 1,
        "hidden file": 1,
        "hidden folder": 1,
    }
    assert found.unread == 3
    assert str(found).startswith("10 files left out: 2 .heic (pip install pillow-heif), 2 .txt, 1 ")


def test_several_left_out_for_one_reason_are_in_the_plural():
    found = LeftOut()
    for reason in (".db", "hidden file", "linked folder that is here already", "without suffix"):
        found.reasons[reason] = 2
    assert str(found) == (
        "8 files left out: 2 .db, 2 hidden files, 2 linked folders that are here already, 2 without suffix"
    )


@pytest.mark.usefixtures("album")
def test_heic_is_a_picture_where_it_can_be_read(monkeypatch):
    Path("album/1.HEIC").touch()
    monkeypatch.setattr(sources, "_reads_heic", lambda: True)
    assert "album/1.HEIC" in find_pictures(["album"])


@pytest.mark.usefixtures("album")
def test_every_suffix_that_is_read_is_found():
    names = [f"z{suffix}" for suffix in (".jfif", ".jpe", ".mpo", ".apng", ".avif", ".jp2", ".ico", ".pfm", ".tga")]
    for name in names:
        Path("album", name).touch()
    assert {f"album/{name}" for name in names} <= set(find_pictures(["album"]))


@pytest.mark.usefixtures("album")
def test_a_folder_that_may_not_be_read_is_counted(monkeypatch):
    scan = os.scandir

    def closed(path):  # root, whom tests may run as, is denied nothing
        if Path(path).name == "trip":
            raise PermissionError(13, "Permission denied", path)
        return scan(path)

    monkeypatch.setattr(os, "scandir", closed)
    found = left_out("album")
    assert found.reasons["unreadable folder"] == 1
    assert found.unread == 1


@pytest.mark.usefixtures("album")
def test_linked_folders_are_followed_once_and_loops_end(tmp_path):
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "far.png").touch()
    Path("album/link").symlink_to(outside)
    Path("album/again").symlink_to(outside)
    Path("album/trip/loop").symlink_to("..")
    found = LeftOut()
    pictures = find_pictures(["album"], found)
    assert [path for path in pictures if path.endswith("far.png")] == ["album/again/far.png"]
    assert found.reasons["linked folder that is here already"] == 2
    assert found.unread == 0


@pytest.mark.usefixtures("album")
@pytest.mark.parametrize("pattern", ["album/*.gif", "album/tri*", "nowhere/*"])
def test_a_pattern_without_pictures_is_named(pattern):
    with pytest.raises(PictureError) as caught:
        find_pictures([pattern])
    assert str(caught.value) == f"There are no pictures in {pattern}: no file matches it; check the path."


def test_impossible_names_stay_as_they_are():
    names = ["x" * 5000, "a\0b", ""]
    assert find_pictures(names) == names


def test_a_list_as_windows_writes_it():
    written = "\ufeffone.png\r\n\r\nž two.png\r\n".encode()
    assert list(read_list(io.BufferedReader(io.BytesIO(written)))) == ["one.png", "ž two.png"]


@pytest.mark.parametrize("mark", [b"\n", b"\r\n", b"\0"])
@pytest.mark.parametrize("last", [b"-", b"-\0", b"z.png"])
def test_a_dash_in_a_list_is_a_file(mark, last):
    """It was read from standard input, which may be the list: the names after it were taken for the picture."""
    written = mark.join([b"a.png", b"-", b"b-.png", last.replace(b"\0", mark)])
    end = "z.png" if last == b"z.png" else "./-"
    assert list(read_list(io.BufferedReader(io.BytesIO(written)))) == ["a.png", "./-", "b-.png", end]


def test_a_dash_that_a_pattern_matches_is_a_file(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("-").touch()
    assert find_pictures(["?"]) == ["./-"]


@pytest.mark.parametrize("form", ["utf-16", "utf-16-be"])
def test_a_list_of_another_encoding_is_called_that(form):
    """Its zero bytes ended names: each letter was a picture that is not there."""
    written = "\ufeffone.png\r\n" if form == "utf-16-be" else "one.png\r\n"
    with pytest.raises(PictureError, match=r"UTF-16.* save it in UTF-8"):
        list(read_list(io.BufferedReader(io.BytesIO(written.encode(form)))))
