"""`scripts/draw_shapes.py`: as many pictures as were asked for, and no others beside them."""

from __future__ import annotations

import runpy
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[2] / "scripts" / "draw_shapes.py"


@pytest.fixture
def draw(monkeypatch):
    """Run the script in this process; return what it ends with, None where all is well."""

    def call(*arguments: object) -> object:
        monkeypatch.setattr(sys, "argv", [SCRIPT.name, *map(str, arguments)])
        try:
            runpy.run_path(str(SCRIPT), run_name="__main__")
        except SystemExit as ended:
            return ended.code
        return None

    return call


def drawn(folder: Path) -> dict[str, bytes]:
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*.png")}


def test_a_folder_that_is_there_is_refused(draw, tmp_path):
    folder = tmp_path / "new" / "shapes"
    assert draw(folder, "--each", 2) is None
    before = drawn(folder)
    assert sorted(before) == [f"{s}/000{n}.png" for s in ("circle", "square", "star", "triangle") for n in (0, 1)]
    assert "exists already" in str(draw(folder, "--each", 1))
    assert drawn(folder) == before
    assert draw(tmp_path / "again", "--each", 2) is None
    assert drawn(tmp_path / "again") == before


@pytest.mark.parametrize("arguments", [("--each", 0), ("--seed", -1)])
def test_what_draws_nothing_is_wrong_usage(draw, tmp_path, capsys, arguments):
    assert draw(tmp_path / "shapes", *arguments) == 2
    assert arguments[0] in capsys.readouterr().err
    assert not (tmp_path / "shapes").exists()
