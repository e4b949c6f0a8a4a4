"""What the tests of the command line share."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from PIL import Image

COLOURS = {"car": (255, 0, 0), "frog": (0, 250, 5), "ship": (10, 0, 240), "deer": (20, 20, 20), "cat": (250, 128, 0)}
"""Colours near to those that the tiny bundle takes for a label."""


@pytest.fixture
def tmp_path(tmp_path):
    """pytest's own, emptied after each test: a run or a bundle is 83 MB and more."""
    yield tmp_path
    shutil.rmtree(tmp_path, ignore_errors=True)


@pytest.fixture
def colours() -> dict[str, tuple[int, int, int]]:
    """Label: the colour, RGB, of the picture in `pictures` at the same place."""
    return COLOURS


@pytest.fixture
def pictures(colours, tmp_path) -> list[Path]:
    """Five PNG files, one a colour of `colours`, in order."""
    folder = tmp_path / "pictures"
    folder.mkdir()
    paths = [folder / f"{index}.png" for index in range(len(colours))]
    for path, colour in zip(paths, colours.values(), strict=True):
        Image.new("RGB", (40, 50), colour).save(path)
    return paths
