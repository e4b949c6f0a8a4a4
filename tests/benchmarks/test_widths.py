"""Widths are read, every row has its figures, students learn and are kept, and the frontier is drawn."""

from __future__ import annotations

import argparse
import json
import shutil

import draw
import pytest
import widths

from edgecifar.export.compress import distill
from edgecifar.export.compress.students import scaled
from edgecifar.train import data


def test_widths_of_an_option():
    assert widths.widths_of("16-32-64-96-96-96-192") == scaled(96)


@pytest.mark.parametrize("text", ["16-32", "16-32-64-96-96-80-128", "a-b", "16-32-64-96-96-96-0", ""])
def test_what_are_no_widths(text):
    with pytest.raises(argparse.ArgumentTypeError, match="7 widths"):
        widths.widths_of(text)


@pytest.mark.slow
def test_the_script(run, small, tmp_path, capsys, check_document, monkeypatch):
    own = shutil.copytree(run.folder, tmp_path / "run")
    monkeypatch.setattr(data, "load_for_export", lambda *_: small)
    arguments = [str(own), "--data", "synthetic", "--seconds", "0.05", "--epochs", "1"]
    arguments += ["--widths", "8-8-8-16-16-16-16", "--widths", "8-8-8-24-24-24-16"]
    widths.main([*arguments, "--save", str(tmp_path / "widths.json")])
    document = check_document(capsys.readouterr().out.splitlines()[-1], entries=False)
    narrow, wide = document["rows"]
    assert narrow["bytes"] < wide["bytes"]
    assert narrow["multiply_adds"] < wide["multiply_adds"]
    for row in document["rows"]:
        assert row["latency"]["1"]["milliseconds"]["p50"] > 0
        assert 0 <= row["test"]["accuracy"] <= 1
    assert any(row["frontier"] for row in document["rows"])
    monkeypatch.setattr(distill.Distiller, "_train_epoch", None)  # nothing is trained again
    widths.main(arguments)
    again = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert [row["test"] for row in again["rows"]] == [row["test"] for row in document["rows"]]
    found = draw.read(tmp_path / "widths.json")
    assert not draw.lacks(found)
    draw.variants(found)
    widths.main([*arguments[:-4], "--epochs", "0", "--save", str(tmp_path / "widths.json")])
    assert "trained" in draw.lacks(draw.read(tmp_path / "widths.json"))
