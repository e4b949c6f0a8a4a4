"""Each picture is drawn from the results that are kept, no label covers another, and what cannot be drawn says why."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import draw
import drawing
import harness
import pytest
from drawing import Point
from frontier import frontier
from PIL import Image
from report import RESULTS

from edgecifar.runtime.errors import EdgecifarError

pytest.importorskip("matplotlib")


@pytest.fixture
def boxes(monkeypatch) -> list:
    """What `place_labels` returns, call by call."""
    found: list = []
    place = drawing.place_labels

    def call(*arguments):
        found.append(place(*arguments))
        return found[-1]

    monkeypatch.setattr(drawing, "place_labels", call)
    return found


def kept(name: str) -> dict:
    return draw.read(RESULTS / f"{name}.json")


def overlapping(boxes) -> int:
    return sum(one.overlaps(other) for one in boxes for other in boxes if one is not other)


def run(monkeypatch, *arguments) -> None:
    monkeypatch.setattr(sys, "argv", ["draw.py", *map(str, arguments)])
    draw.main()


def test_the_picture_of_the_readme_has_all_labels_and_none_covers_another(boxes):
    """Drawn from what is kept now: results that have no room for a label must not be kept without a look."""
    found = kept("variants")
    draw.variants(found)
    assert len(boxes[0]) == sum(bool(row["latency"]) for row in found["rows"])
    assert overlapping(boxes[0]) == 0


def test_the_kept_frontier_is_one():
    rows = kept("variants")["rows"]
    assert [row["frontier"] for row in rows] == frontier([draw.costs(row) for row in rows])


def test_every_picture(monkeypatch, tmp_path):
    """Of all that is kept; curves of training are drawn from such as the script keeps."""
    results, pictures = tmp_path / "results", tmp_path / "pictures"
    results.mkdir()
    pictures.mkdir()
    files = {name: draw.RESULTS_OF.get(name, name) for name in draw.DRAWERS}
    measured = [name for name, file in files.items() if (RESULTS / f"{file}.json").exists()]
    assert {"variants", "sizes", "peers", "latency", "accuracy", "training"} <= {*measured}
    for name in {files[name] for name in measured}:
        found = kept(name)
        if name == "training":
            found["curves"] = [{"recipe": "fast", "seed": 0, "points": [[1, 50.0], [2, None]]}]
        (results / f"{name}.json").write_text(json.dumps(found))
    run(monkeypatch, "--results", results, "--pictures", pictures)
    assert sorted(path.name for path in pictures.iterdir()) == sorted(f"{name}.png" for name in measured)
    for path in pictures.iterdir():
        with Image.open(path) as image:
            image.load()
            assert len(image.convert("RGB").getcolors(1 << 24) or ()) > 10


@pytest.mark.parametrize(
    "found",
    [
        {"benchmark": "training", "rows": [{"recipe": "fast"}]},
        {"benchmark": "latency", "rows": [{"call": "x", "problem": "it is not here."}]},
        {"benchmark": "accuracy", "rows": [{"model": "fp32", "corrupted": {}}]},
    ],
)
def test_nothing_is_drawn_of_nothing(found, monkeypatch, tmp_path):
    (tmp_path / f"{found['benchmark']}.json").write_text(json.dumps({"machine": {}, "settings": {}, **found}))
    run(monkeypatch, "--results", tmp_path, "--pictures", tmp_path)
    assert not list(tmp_path.glob("*.png"))


@pytest.mark.parametrize("content", [None, "no JSON", "{}", "[]"])
def test_results_that_are_none(content, monkeypatch, tmp_path):
    if content:
        (tmp_path / "latency.json").write_text(content)
    with pytest.raises(EdgecifarError, match=r"run benchmarks/latency\.py with --save"):
        run(monkeypatch, "latency", "--results", tmp_path)


def test_results_that_are_missing_name_a_script_that_is_there(tmp_path):
    for name in draw.DRAWERS:
        with pytest.raises(EdgecifarError) as missing:
            draw.read(tmp_path / f"{draw.RESULTS_OF.get(name, name)}.json")
        script = str(missing.value).partition("run benchmarks/")[2].split()[0]
        assert (Path(draw.__file__).parent / script).is_file(), script


def test_a_picture_that_there_is_not(monkeypatch):
    with pytest.raises(SystemExit) as caught:
        run(monkeypatch, "weights")
    assert caught.value.code == 2


def test_without_matplotlib(monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib.backends.backend_agg", None)
    with pytest.raises(EdgecifarError, match="pip install matplotlib"):
        drawing.new_figure((1, 1))


class TestLabels:
    @pytest.fixture
    def axes(self):
        figure = drawing.new_figure((6, 4))
        axes = figure.subplots()
        axes.set(xlim=(0, 1), ylim=(0, 1))
        figure.canvas.draw()
        return axes

    def test_of_points_close_together(self, axes):
        points = [Point(0.5 + place / 300, 0.5, 6.0, f"a point called {place}") for place in range(12)]
        boxes = drawing.place_labels(axes, points)
        frame = axes.get_window_extent()
        assert len(boxes) == 12
        assert overlapping(boxes) == 0
        assert all(frame.x0 < box.x0 and box.x1 < frame.x1 for box in boxes)

    def test_not_on_the_line(self, axes):
        (box,) = drawing.place_labels(axes, [Point(0.5, 0.5, 3.0, "a point")], [(0.5, 0.5), (1.0, 0.5)])
        _, y = axes.transData.transform((0.5, 0.5))
        assert not box.y0 < y < box.y1 or box.x1 < axes.transData.transform((0.5, 0.5))[0]

    def test_no_room(self, axes):
        with pytest.raises(EdgecifarError, match="no room"):
            drawing.place_labels(axes, [Point(0.5, 0.5, 3.0, "long " * 100)])


def test_harness_is_what_progress_is_said_by(monkeypatch, tmp_path, caplog):
    caplog.set_level("INFO", harness.log.name)
    run(monkeypatch, "training", "--pictures", tmp_path)
    assert "training: not drawn" in caplog.text
