"""Folders and patterns become the pictures they mean, and what is left out is counted."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from edgecifar.runtime import sources
from edgecifar.runtime.errors import PictureError
from edgecifar.runtime.sources import LeftOut, find_pictures


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
    with pytest.raises(PictureError, match=r"There are no pictures in album/none: .* ends with \.bmp, .*, \.webp; "):
        find_pictures(["album/b.png", "album/none"])


@pytest.mark.usefixtures("album")
@pytest.mark.parametrize("pattern", ["album/*.gif", "album/tri*", "nowhere/*"])
def test_a_pattern_without_pictures_is_named(pattern):
    with pytest.raises(PictureError) as caught:
        find_pictures([pattern])
    assert str(caught.value) == f"There are no pictures in {pattern}: no file matches it; check the path."


def test_impossible_names_stay_as_they_are():
    names = ["x" * 5000, "a\0b", ""]
    assert find_pictures(names) == names
