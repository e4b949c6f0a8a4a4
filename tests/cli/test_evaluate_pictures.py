"""`edgecifar evaluate` of bundles and ONNX files on labelled pictures, where torch is not installed."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image

from edgecifar.cli.evaluating import Split
from edgecifar.runtime.evaluation import ALL
from edgecifar.runtime.labelled import SPLITS


@pytest.fixture
def data(colours, tmp_path) -> Path:
    """A folder of the classes of `colours`, four pictures each, one of which is another class's colour."""
    root = tmp_path / "lab"
    for label, colour in colours.items():
        (root / label).mkdir(parents=True)
        for number in range(4):
            shown = colours["car"] if (label, number) == ("ship", 0) else colour
            Image.new("RGB", (40, 50), shown).save(root / label / f"{number}.png")
    return root


@pytest.fixture
def without_torch(tmp_path):
    """Run the command in a process that has no torch, torchvision or matplotlib."""
    code = (
        "import sys; sys.modules.update(dict.fromkeys(('torch', 'torchvision', 'matplotlib')))\n"
        "from edgecifar.cli.main import main; main()"
    )

    def call(*arguments):
        return subprocess.run([sys.executable, "-c", code, *arguments], capture_output=True, text=True)

    return call


@pytest.mark.parametrize("file", ["", "model.onnx"])
def test_without_torch(without_torch, tiny, data, file):
    result = without_torch("evaluate", tiny / file, "--data", data)
    assert result.returncode == 0
    assert "all of its pictures are measured" in result.stderr.splitlines()[-1]
    assert result.stdout.startswith("95.00 % of the 20 lab pictures (19 correct")


@pytest.mark.parametrize(("given", "said"), [("", "--data"), ("gone", "not there"), ("flat", "per class")])
def test_without_torch_what_is_no_data_set_is_said(without_torch, tiny, data, monkeypatch, given, said):
    monkeypatch.delenv("EDGECIFAR_DATA", raising=False)
    (data / "flat").mkdir()
    (data / "cat" / "0.png").rename(data / "flat" / "0.png")
    result = without_torch("evaluate", tiny, *(("--data", data / given) if given else ()))
    assert (result.returncode, result.stdout) == (1, "")
    assert said in result.stderr
    assert "pip install" not in result.stderr


def test_json(edgecifar, tiny, data):
    (data / "cat" / "0.png").write_bytes(b"")
    result = edgecifar("evaluate", tiny, "--data", data, "--json")
    assert result.exit_code == 1
    document = json.loads(result.stdout)
    assert (document["dataset"], document["split"], document["images"]) == ("lab", "all", 19)
    assert list(document["unread"]) == ["cat/0.png"]
    assert "cat/0.png" in result.stderr


def test_the_environment_names_the_data_too(edgecifar, tiny, data, monkeypatch):
    monkeypatch.setenv("EDGECIFAR_DATA", str(data))
    assert "20 lab pictures" in edgecifar("evaluate", tiny).stdout


@pytest.mark.parametrize("kind", ["run", "torchscript"])
def test_what_torch_runs_is_measured_on_another_folder_as_a_bundle_is(edgecifar, run, bundle, data, kind):
    result = edgecifar(
        "evaluate", run.folder if kind == "run" else bundle.folder / "model.torchscript.pt", "--data", data
    )
    assert "of the 20 lab pictures" in result.stdout
    assert ("does not say what it was trained on" in result.stderr) is (kind == "torchscript")


def test_an_unknown_class(refused, tiny, data):
    (data / "ship").rename(data / "boat")
    assert "boat" in refused("evaluate", tiny, "--data", data)


def test_a_split_of_data_that_has_none(refused, edgecifar, tiny, data):
    assert "--split" in refused("evaluate", tiny, "--data", data, "--split", "test")
    assert edgecifar("evaluate", tiny, "--data", "synthetic", "--split", "test").exit_code == 2


def test_the_choices_are_the_librarys():
    assert [choice.value for choice in Split] == [*SPLITS, ALL]
