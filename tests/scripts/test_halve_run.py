"""`scripts/halve_run.py`: the copy is a run of half the size that computes nearly the same."""

from __future__ import annotations

import importlib.util
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from edgecifar.export.compress.distill import FOLDER
from edgecifar.runtime.errors import OutputError, RunError
from edgecifar.train.answers import store, stored
from edgecifar.train.run import METRICS, WEIGHTS, Run

SCRIPT = Path(__file__).parents[2] / "scripts" / "halve_run.py"


@pytest.fixture(scope="module")
def script():
    spec = importlib.util.spec_from_file_location("halve_run", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_half_the_bytes_and_weights_that_are_rounded(script, run, tmp_path):
    copy = script.halve(run, tmp_path / "half")
    sizes = [(one.folder / WEIGHTS).stat().st_size for one in (run, copy)]
    assert sizes[1] < 0.55 * sizes[0]
    before, after = run.net().state_dict(), copy.net().state_dict()
    for name, tensor in before.items():
        wanted = tensor.half().to(tensor.dtype) if tensor.is_floating_point() else tensor
        assert torch.equal(after[name], wanted), name
        assert after[name].dtype == tensor.dtype
    assert replace(copy.record, weights_sha256=None) == replace(run.record, weights_sha256=None)
    assert copy.metrics == run.metrics


def test_finished_students_are_rounded_where_they_are(script, tmp_path):
    net, key = {"weight": torch.randn(300), "seen": torch.tensor(7)}, "a digest"
    states = {
        "finished": {"key": key, "net": net, "optimizers": [], "epoch": 2},
        "begun": {"key": key, "net": net, "optimizers": [{}], "epoch": 1},
        "teacher_logits.0": {"key": key, "logits": torch.randn(9)},  # earlier versions kept answers here
    }
    paths = {name: tmp_path / FOLDER / f"{name}.state" for name in states}
    for name, state in states.items():
        store(paths[name], state)
    before = {name: path.read_bytes() for name, path in paths.items()}
    assert script.halve_students(Run(tmp_path)) == [paths["finished"]]
    found = stored(paths["finished"], key)
    assert found["epoch"] == 2
    assert torch.equal(found["net"]["weight"], net["weight"].half())
    assert torch.equal(found["net"]["seen"], net["seen"])
    assert paths["begun"].read_bytes() == before["begun"]


def test_a_run_without_students_is_named(script, tmp_path):
    with pytest.raises(RunError, match="no finished students"):
        script.halve_students(Run(tmp_path))


def test_damaged_metrics_leave_nothing(script, run, tmp_path):
    damaged = Run(tmp_path / "damaged")
    shutil.copytree(run.folder, damaged.folder)
    (damaged.folder / METRICS).write_text("{")
    with pytest.raises(RunError, match="damaged"):
        script.halve(damaged, tmp_path / "half")
    assert not (tmp_path / "half").exists()


def test_what_is_there_is_kept(script, run, tmp_path):
    (tmp_path / "half").mkdir()
    with pytest.raises(OutputError, match="exists already"):
        script.halve(run, tmp_path / "half")


def test_what_is_not_finished_is_refused(script, run, tmp_path):
    going = Run(tmp_path / "going")
    going.folder.mkdir()
    going.finish(run.net(), replace(run.record, status="running"), run.metrics)
    with pytest.raises(RunError, match="resume it first"):
        script.halve(going, tmp_path / "half")
    assert not (tmp_path / "half").exists()


def test_what_half_precision_cannot_hold_is_refused(script, run, tmp_path):
    net = run.net()
    net.fc3.weight.data[0, 0] = 1e6
    large = Run(tmp_path / "large")
    large.folder.mkdir()
    large.finish(net, run.record, run.metrics)
    with pytest.raises(RunError, match="half precision cannot hold"):
        script.halve(large, tmp_path / "half")
    assert not (tmp_path / "half").exists()
