"""What a path is, told by what lies there and without opening it."""

from __future__ import annotations

from pathlib import Path

import pytest

from edgecifar.runtime.errors import DataError, ModelError
from edgecifar.runtime.paths import expanded, kind_of


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("bundle/manifest.json", "bundle"),
        ("run/run.json", "run"),
        ("model.onnx", "onnx"),
        ("model.torchscript.pt", "torchscript"),
        ("model.pt", "torchscript"),
        ("model.pt2", "pt2"),
    ],
)
def test_what_is_known(tmp_path, name, kind):
    path = tmp_path / name
    path.parent.mkdir(exist_ok=True)
    path.touch()
    assert kind_of(path.parent if "/" in name else path) == kind


def test_a_bundle_in_the_folder_of_a_run_is_a_bundle(tmp_path):
    (tmp_path / "run.json").touch()
    (tmp_path / "manifest.json").touch()
    assert kind_of(tmp_path) == "bundle"


@pytest.mark.parametrize(
    ("name", "word"), [("missing.onnx", "not there"), ("text.txt", "unknown ending"), ("folder.onnx", "neither")]
)
def test_what_is_not(tmp_path, name, word):
    (tmp_path / "text.txt").touch()
    (tmp_path / "folder.onnx").mkdir()
    with pytest.raises(ModelError, match=word):
        kind_of(tmp_path / name)


def test_a_home_folder(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("USERPROFILE", str(tmp_path))
    assert expanded("~/data") == tmp_path / "data"
    assert expanded("data/~") == Path("data/~")
    with pytest.raises(DataError, match="home"):
        expanded("~nobody-has-this-name/data")
