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


def test_fewer_epochs_than_none():
    with pytest.raises(SystemExit) as stopped:
        widths.main(["RUN", "--epochs", "-1"])
    assert stopped.value.code == 2


@pytest.mark.slow
def test_the_script(run, small, tmp_path, capsys, check_document, monkeypatch):
    own = shutil.copytree(run.folder, tmp_path / "run")
    monkeypatch.setattr(data, "load_for_export", lambda *_: small)
    arguments = [str(own), "--data", "synthetic", "--seconds", "0.05"]
    narrow, wide = "8-8-8-16-16-16-16", "8-8-8-24-24-24-16"
    kept = tmp_path / "widths.json"
    widths.main([*arguments, "--epochs", "1", "--widths", narrow, "--widths", wide, "--save", str(kept)])
    document = check_document(capsys.readouterr().out.splitlines()[-1], entries=False)
    first, second = document["rows"]
    assert first["bytes"] < second["bytes"]
    assert first["multiply_adds"] < second["multiply_adds"]
    for row in document["rows"]:
        assert row["latency"]["1"]["milliseconds"]["p50"] > 0
        assert 0 <= row["test"]["accuracy"] <= 1
    assert any(row["frontier"] for row in document["rows"])
    found = draw.read(kept)
    assert not draw.lacks(found)
    draw.variants(found)

    monkeypatch.setattr(distill.Distiller, "_train_epoch", None)  # nothing is trained again
    widths.main([*arguments, "--epochs", "1", "--widths", wide])
    (again,) = json.loads(capsys.readouterr().out.splitlines()[-1])["rows"]
    assert again["test"] == second["test"]
    widths.main([*arguments, "--epochs", "0", "--widths", narrow, "--save", str(kept)])
    assert "trained" in draw.lacks(draw.read(kept))
