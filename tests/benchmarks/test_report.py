"""The table and the line of JSON say what was measured; the file that is kept is the line; scripts have a --help."""

from __future__ import annotations

import argparse
import ast
import json
import runpy
import sys
from pathlib import Path

import harness
import pytest
import report
from harness import Entry

from edgecifar.runtime.errors import EdgecifarError


def is_script(path: Path) -> bool:
    """Whether the module runs as a script; one that only holds the text of scripts does not."""
    body = ast.parse(path.read_text(encoding="utf-8")).body
    return any(isinstance(node, ast.If) and "__main__" in ast.unparse(node.test) for node in body)


SCRIPTS = sorted(
    path
    for folder in (report.RESULTS.parent, Path(__file__).parents[1] / "stress")
    for path in folder.glob("*.py")
    if is_script(path) and not path.name.startswith("test_")
)


@pytest.fixture
def measured(clock) -> list[Entry]:
    """A base, one that takes twice as long, and one that is not there."""
    base = Entry({"engine": "plain", "batch": 8}, clock.call("a", 0.5), images=8, details={"share": 1.0})
    twice = Entry({"engine": "other", "batch": 8}, clock.call("b", 1.0), images=8, bases={"plain": base})
    absent = Entry({"engine": "absent", "batch": 8}, problem="it is not installed: 'pip install absent'.")
    entries = [base, twice, absent]
    harness.alternate(entries, 50.0, 5, clock)
    return entries


def finish(entries: list[Entry], save: Path | None = None, **rest) -> None:
    document = report.document("latency", {"seconds": 0.1}, [entry.row() for entry in entries], **rest)
    report.finish(document, report.entry_table(entries), save)


def test_the_last_line_is_json(measured, check_document, capsys, monkeypatch):
    monkeypatch.setattr(report, "gpus", lambda: ["A card, 1.2, 3 MiB"])
    measured[1].ceiling = 32.0
    finish(measured, versions={"absent": "1.0"}, more=[1])
    first, *_, last = capsys.readouterr().out.splitlines()
    assert "A card, 1.2, 3 MiB" in first
    document = check_document(last)
    assert (document["benchmark"], document["settings"], document["more"]) == ("latency", {"seconds": 0.1}, [1])
    assert document["machine"]["versions"]["absent"] == "1.0"
    base, twice, absent = document["rows"]
    assert base["milliseconds"]["p50"] == pytest.approx(500)
    assert twice["images_per_second"] == pytest.approx(8)
    assert twice["ratios"]["plain"]["median"] == pytest.approx(2.0)
    assert (base.get("peak_share"), twice["peak_share"]) == (None, 0.25)
    assert absent == {"engine": "absent", "batch": 8, "problem": "it is not installed: 'pip install absent'."}


def test_the_schema_refuses_figures_that_are_not_all_there(measured, check_document):
    document = report.document("latency", {}, [entry.row() for entry in measured])
    check_document(json.dumps(document))
    del document["rows"][0]["milliseconds"]["p99"]
    with pytest.raises(ValueError, match="p99"):
        check_document(json.dumps(document))


def test_table(measured):
    header, plain, other, empty, note = report.entry_table(measured).splitlines()
    assert header.split()[:2] == ["engine", "batch"]
    assert plain.split() == ["plain", "8", "500.000", "500.000", "500.000", "500.000", "16", "100"]
    assert other.split()[-6:] == ["8", "50", "2.000", "(2.000", "to", "2.000)"]
    assert (empty, note) == ("", "absent 8: it is not installed: 'pip install absent'.")
    assert plain.index("500.000") == other.index("1000.000") + 1  # flush right
    assert "of peak" not in header
    measured[0].ceiling = 64.0
    assert "25.00 %" in report.entry_table(measured)


def test_what_is_kept_is_the_line(measured, tmp_path, capsys):
    finish(measured, tmp_path / "latency.json")
    assert json.loads((tmp_path / "latency.json").read_text()) == json.loads(capsys.readouterr().out.splitlines()[-1])


def test_figures_are_not_lost_with_the_file(measured, check_document, tmp_path, capsys):
    with pytest.raises(EdgecifarError, match="Could not write"):
        finish(measured, tmp_path / "none" / "latency.json")
    check_document(capsys.readouterr().out.splitlines()[-1])


def test_where_results_are_kept():
    parser = argparse.ArgumentParser()
    report.add_save(parser, "latency")
    assert parser.parse_args([]).save is None
    assert parser.parse_args(["--save"]).save == report.RESULTS / "latency.json"
    assert parser.parse_args(["--save", "x.json"]).save == Path("x.json")


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.name)
def test_every_script_says_what_it_takes(script, monkeypatch, capsys):
    """A "%" in a help text, say, ends argparse with a traceback."""
    monkeypatch.syspath_prepend(script.parent)
    monkeypatch.setattr(sys, "argv", [str(script), "--help"])
    with pytest.raises(SystemExit) as stopped:
        runpy.run_path(str(script), run_name="__main__")
    assert stopped.value.code == 0
    assert capsys.readouterr().out.startswith(f"usage: {script.name}")
