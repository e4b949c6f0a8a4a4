"""Outputs grow by whole rows, are gone on with after anything, and are refused where that would mix two jobs."""

from __future__ import annotations

import csv
import io
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from edgecifar.runtime.classifier import Prediction
from edgecifar.runtime.errors import OutputError, PictureError
from edgecifar.runtime.files import STAGING
from edgecifar.runtime.outputs import _Output, open_output
from edgecifar.runtime.rows import csv_cells, csv_columns, json_line

SETTINGS = {"bundle": "ab" * 32, "variant": "edge", "fit": "crop", "top_k": 2, "unknown": "keep"}

FORMS = ["rows.jsonl", "rows.csv", pytest.param("rows", id="parquet")]


def predicted(name: str, known: bool | None = None) -> tuple[str, Prediction]:
    score = None if known is None else 0.25
    return name, Prediction("cat", 0.75, (("cat", 0.75), ("dog", 0.25)), name, known, score)


def failed(name: str) -> tuple[str, PictureError]:
    return name, PictureError(f'Could not read "{name}": it is\nempty.')


@pytest.fixture(params=FORMS)
def path(request, tmp_path) -> Path:
    if request.param == "rows":
        pytest.importorskip("pyarrow")
    return tmp_path / request.param


def rows(path: Path) -> list[dict]:
    """What a reader finds, each row with source, error and label."""
    if path.is_dir():
        import pyarrow.parquet as parquet

        return parquet.read_table(path).to_pylist()
    if path.suffix == ".jsonl":
        return [{"error": None, "label": None} | json.loads(line) for line in path.read_bytes().splitlines()]
    text = path.read_bytes().decode("utf-8", "surrogateescape")
    found = csv.DictReader(io.StringIO(text, newline=""))
    return [{**row, "error": row["error"] or None, "label": row["label_1"] or None} for row in found]


def names(path: Path) -> list[str]:
    return [row["source"] for row in rows(path)]


def begun(path: Path, *results) -> None:
    with open_output(path, SETTINGS) as output:
        output.write(list(results))


def test_rows_are_what_was_written(path):
    begun(path, predicted("a.png"), failed("b\n.png"), predicted("ü,\"'.png", known=False))
    assert names(path) == ["a.png", "b\n.png", "ü,\"'.png"]
    first, second, third = rows(path)
    assert (first["label"], first["error"]) == ("cat", None)
    assert second["label"] is None
    assert "it is\nempty" in second["error"]
    assert str(first["known"] or None).lower() == "none"
    assert str(third["known"]).lower() == "false"
    assert float(third["familiarity"]) == 0.25


def test_a_name_that_is_no_text_survives(path):
    name = os.fsdecode(b"\xff.png")
    begun(path, predicted(name))
    with open_output(path, SETTINGS, resume=True) as output:
        assert list(output.remaining([name, "b.png"])) == ["b.png"]


def test_going_on_leaves_out_what_is_done_and_counts_what_is_named_twice(path):
    begun(path, predicted("a"), predicted("b"), failed("c"), predicted("a"))
    with open_output(path, SETTINGS, resume=True) as output:
        assert list(output.remaining(["a", "d", "a", "a", "c", "b"])) == ["d", "a"]
        assert output.passed_over == 4
        output.write([predicted("d")])
    assert names(path) == ["a", "b", "c", "a", "d"]


def test_what_is_not_there_is_begun(path):
    with open_output(path, SETTINGS, resume=True) as output:
        assert list(output.remaining(["a"])) == ["a"]
        output.write([predicted("a")])
    assert names(path) == ["a"]


def test_errors_are_tried_again_where_that_is_asked_for(path):
    begun(path, failed("a"), predicted("b"), failed("c\n"))
    with open_output(path, SETTINGS, resume=True, retry_errors=True) as output:
        assert list(output.remaining(["a", "b", "c\n"])) == ["a", "c\n"]
        assert names(path) == ["b"]
        output.write([predicted("a"), failed("c\n")])
    assert sorted(names(path)) == ["a", "b", "c\n"]


def test_what_is_there_is_never_overwritten(path):
    begun(path, predicted("a"))
    with pytest.raises(OutputError, match="exists already") as caught:
        open_output(path, SETTINGS)
    assert caught.value.option == "resume"
    assert names(path) == ["a"]


@pytest.mark.parametrize("changed", [{"bundle": "cd" * 32}, {"variant": "tiny"}, {"fit": "pad"}, {"top_k": 3}])
def test_other_settings_are_refused_and_named(path, changed):
    begun(path, predicted("a"))
    with pytest.raises(OutputError, match="other settings") as caught:
        open_output(path, SETTINGS | changed, resume=True)
    assert next(iter(changed)) in str(caught.value)
    assert names(path) == ["a"]


def test_an_output_without_its_settings_is_refused(path):
    begun(path, predicted("a"))
    (path / "_settings.json" if path.is_dir() else path.with_name(path.name + ".settings.json")).unlink()
    with pytest.raises(OutputError, match=r"settings\.json"):
        open_output(path, SETTINGS, resume=True)


def test_two_processes_do_not_write_at_once(path):
    pytest.importorskip("fcntl")
    with open_output(path, SETTINGS) as output:
        output.write([predicted("a")])
        code = (
            "import sys; from pathlib import Path; from edgecifar.runtime.outputs import open_output\n"
            f"open_output(Path({str(path)!r}), {SETTINGS!r}, resume=True)"
        )
        other = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
        assert "is being written by another process" in other.stderr
    open_output(path, SETTINGS, resume=True).close()


def test_two_that_begin_at_once(path, monkeypatch):
    """The second comes after the first has looked, and before it has locked the settings."""
    pytest.importorskip("fcntl")
    take, both = _Output._take, []

    def taking(self):
        monkeypatch.setattr(_Output, "_take", take)
        both.append(open_output(path, SETTINGS))
        take(self)

    monkeypatch.setattr(_Output, "_take", taking)
    with pytest.raises(OutputError, match="another process"):
        open_output(path, SETTINGS)
    with both[0] as output:
        output.write([predicted("a")])
    assert names(path) == ["a"]
    open_output(path, SETTINGS, resume=True).close()


def test_one_that_ended_meanwhile_is_not_overwritten(path, monkeypatch):
    take = _Output._take

    def taking(self):
        monkeypatch.setattr(_Output, "_take", take)
        begun(path, predicted("a"))
        take(self)

    monkeypatch.setattr(_Output, "_take", taking)
    with pytest.raises(OutputError, match="exists already"):
        open_output(path, SETTINGS)
    assert names(path) == ["a"]


@pytest.mark.parametrize("name", ["a\rb.png", "a\r\nb.png", '"a"\r.png'])
def test_carriage_returns_in_names(path, name):
    begun(path, predicted(name), predicted("c"))
    with open_output(path, SETTINGS, resume=True) as output:
        assert list(output.remaining([name, "c", "d"])) == ["d"]
    assert names(path) == [name, "c"]


@pytest.mark.parametrize("form", ["rows.jsonl", "rows.csv"])
def test_a_row_cut_at_any_byte_is_cut_off_and_done_again(tmp_path, form):
    path = tmp_path / form
    everything = [predicted("a"), failed("b\n"), predicted('"c"')]
    begun(path, *everything)
    whole = path.read_bytes()
    for length in range(len(whole)):
        path.write_bytes(whole[:length])
        with open_output(path, SETTINGS, resume=True) as output:
            left = set(output.remaining([name for name, _ in everything]))
            output.write([result for result in everything if result[0] in left])
        assert path.read_bytes() == whole, length


@pytest.mark.parametrize(
    ("form", "damage"),
    [
        *(("rows.jsonl", damage) for damage in (b"{}\n", b"\0\0\n", b'{"source": ["a"]}\n', b"[" * 100_000 + b"\n")),
        *(("rows.csv", damage) for damage in (b"a,b\n", b"\n", b"a" * 200_000 + b"\n")),
    ],
    ids=range(7),
)
def test_a_damaged_row_is_named(tmp_path, form, damage):
    path = tmp_path / form
    begun(path, predicted("a"))
    with path.open("ab") as file:
        file.write(damage)
    before = path.read_bytes()
    with pytest.raises(OutputError, match=r"line (2|3),"):
        open_output(path, SETTINGS, resume=True)
    assert path.read_bytes() == before


def test_a_csv_of_other_columns_keeps_its_rows(tmp_path):
    path = tmp_path / "rows.csv"
    begun(path, predicted("a"))
    path.write_bytes(path.read_bytes().replace(b"label_1", b"first", 1))
    before = path.read_bytes()
    with pytest.raises(OutputError, match="does not have the columns"):
        open_output(path, SETTINGS, resume=True)
    assert path.read_bytes() == before


@pytest.mark.parametrize("place", [2, 3, 4])
@pytest.mark.parametrize("quoted", [("\n", '\n"'), (",", ',"'), ("a", 'a"')])
def test_a_stray_quote_cuts_off_no_rows_after_it(tmp_path, place, quoted):
    """All rows from it on were taken for one that was cut short, and were cut off."""
    path = tmp_path / "rows.csv"
    begun(path, *(predicted(f"a{number},b.png" if number == 9 else f"a{number}.png") for number in range(10)))
    lines = path.read_bytes().decode().splitlines(keepends=True)
    before, after = (text.strip("\n") for text in quoted)
    lines[place - 1] = lines[place - 1].replace(before, after, 1)
    path.write_text("".join(lines))
    with pytest.raises(OutputError, match=rf"line {place},"):
        open_output(path, SETTINGS, resume=True)
    assert path.read_text() == "".join(lines)


def test_a_row_that_was_cut_short_in_a_name_of_several_lines_is_cut_off(tmp_path):
    path = tmp_path / "rows.csv"
    begun(path, predicted("a"), predicted("b\n" * 20))
    path.write_bytes(path.read_bytes()[:-60])
    with open_output(path, SETTINGS, resume=True) as output:
        assert list(output.remaining(["a", "b\n" * 20])) == ["b\n" * 20]
    assert names(path) == ["a"]


def test_a_write_that_was_interrupted_leaves_no_part_of_a_row(tmp_path, monkeypatch):
    path = tmp_path / "rows.jsonl"
    output = open_output(path, SETTINGS)
    output.write([predicted("a")])
    file = output._file

    class Interrupted:
        def __getattr__(self, name):
            return getattr(file, name)

        def write(self, data):
            file.write(bytes(data)[:10])
            raise KeyboardInterrupt

    monkeypatch.setattr(output, "_file", Interrupted())
    with pytest.raises(KeyboardInterrupt):
        output.write([predicted("b")])
    output.close()
    assert names(path) == ["a"]


class TestParts:
    @pytest.fixture(autouse=True)
    def _arrow(self):
        pytest.importorskip("pyarrow")

    def test_parts_are_written_when_they_are_full_or_old(self, tmp_path, monkeypatch):
        from edgecifar.runtime import outputs

        monkeypatch.setattr(outputs, "PART_ROWS", 3)
        with open_output(tmp_path / "rows", SETTINGS) as output:
            for name in "abcd":
                output.write([predicted(name)])
            assert names(tmp_path / "rows") == ["a", "b", "c"]
            monkeypatch.setattr(outputs, "PART_SECONDS", 0)
            output.write([predicted("e")])
            assert names(tmp_path / "rows") == ["a", "b", "c", "d", "e"]
        parts = sorted(path.name for path in (tmp_path / "rows").iterdir())
        assert parts == ["_settings.json", "part-00000.parquet", "part-00001.parquet"]

    def test_numbers_go_on_and_leftovers_are_removed(self, tmp_path):
        folder = tmp_path / "rows"
        begun(folder, predicted("a"))
        (folder / f"{STAGING}999999999-part-00001.parquet").write_bytes(b"half")
        with open_output(folder, SETTINGS, resume=True) as output:
            output.write([predicted("b")])
        assert sorted(path.name for path in folder.glob("*part*")) == ["part-00000.parquet", "part-00001.parquet"]

    def test_a_part_of_errors_alone_goes_where_they_are_tried_again(self, tmp_path):
        folder = tmp_path / "rows"
        begun(folder, failed("a"), failed("b"))
        with open_output(folder, SETTINGS, resume=True, retry_errors=True) as output:
            assert list(output.remaining(["a", "b"])) == ["a", "b"]
            output.write([predicted("a"), predicted("b")])
        assert names(folder) == ["a", "b"]
        assert [path.name for path in folder.glob("*part*")] == ["part-00001.parquet"]

    def test_a_damaged_part_is_named(self, tmp_path):
        begun(tmp_path / "rows", predicted("a"))
        (tmp_path / "rows" / "part-00000.parquet").write_bytes(b"PAR1")
        with pytest.raises(OutputError, match=r"part-00000\.parquet is damaged"):
            open_output(tmp_path / "rows", SETTINGS, resume=True)

    def test_without_pyarrow_the_extra_is_named(self, tmp_path, monkeypatch):
        monkeypatch.setitem(sys.modules, "pyarrow", None)
        with pytest.raises(OutputError, match=r"\.\[parquet\]"):
            open_output(tmp_path / "rows", SETTINGS)
        assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("name", ["rows.txt", "rows.json", "rows.arrow"])
def test_another_suffix_is_refused(tmp_path, name):
    with pytest.raises(OutputError, match=r"FILE\.jsonl"):
        open_output(tmp_path / name, SETTINGS)


def test_a_place_that_cannot_be_written_is_explained(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(OutputError, match="Could not write"):
        open_output(tmp_path / "file" / "rows.jsonl", SETTINGS)


def test_columns_of_csv_are_as_many_as_cells():
    """Also where a bundle has fewer classes than are listed."""
    for result in (predicted("a"), predicted("a", known=True), failed("b")):
        assert len(csv_cells(*result, 3)) == len(csv_columns(3))
    assert csv_columns(1) == ["source", "error", "label_1", "probability_1", "known", "familiarity"]
    assert csv_cells(*predicted("a", known=True), 1)[-2:] == ["true", "0.250000"]


def test_a_json_line_is_one_line_whatever_the_name():
    for name in ("a\nb", "\u2028", os.fsdecode(b"\xff"), "🌲"):
        line = json_line(*predicted(name))
        assert line.count(b"\n") == 1
        assert json.loads(line)["source"] == name
