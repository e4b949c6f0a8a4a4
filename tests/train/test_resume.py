"""A training survives whatever stops it, and ends with the weights that it would have had."""

from __future__ import annotations

import errno
import json
import os
import resource
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from edgecifar.runtime import machine
from edgecifar.runtime.errors import DataError, OutputError, RunError
from edgecifar.runtime.files import sha256
from edgecifar.train import data, loop, plots
from edgecifar.train.listeners import Silent
from edgecifar.train.loop import TrainingOptions
from edgecifar.train.run import Run, pack

FINISHED = {"run.json", "weights.safetensors", "metrics.jsonl", "curves.png", "confusion.png"}


def digest(folder: Path) -> str:
    return sha256(folder / "weights.safetensors")


def test_a_run_is_trained_by_one_process_at_a_time(tmp_path, recipe, tiny, no_plots, stopper):
    pytest.importorskip("fcntl")
    run = Run(tmp_path / "run")
    with pytest.raises(KeyboardInterrupt):
        loop.train(recipe, tiny, run.folder, TrainingOptions(listener=stopper("epoch", 1)))
    kept = sorted(path.read_bytes() for path in run.folder.iterdir())
    with run.in_training(), pytest.raises(RunError, match="another process"):
        loop.resume(run, tiny)
    assert sorted(path.read_bytes() for path in run.folder.iterdir()) == kept
    loop.resume(run, tiny)
    assert run.record.is_finished


MOMENTS = [("progress", 1), ("epoch", 1), ("progress", 2), ("progress", 3), ("epoch", 3)]


@pytest.mark.parametrize(
    ("optimizer", "bfloat16", "when", "epoch"),
    [
        *(("sgd", False, *moment) for moment in MOMENTS),
        *(("adam", False, *moment) for moment in MOMENTS[2:3]),
        *(("muon", bfloat16, *MOMENTS[2]) for bfloat16 in (False, True)),
    ],
)
def test_interrupted_and_resumed_is_as_uninterrupted(
    tmp_path, recipe, tiny, no_plots, stopper, monkeypatch, optimizer, bfloat16, when, epoch
):
    monkeypatch.setattr("edgecifar.train.devices._cpu_has_bfloat16", lambda: True)  # emulated where it has not
    recipe = replace(recipe, optimizer=optimizer, lr=0.01, bfloat16=bfloat16)
    whole, run = tmp_path / "whole", Run(tmp_path / "run")
    wanted = loop.train(recipe, tiny, whole, TrainingOptions(seed=5))
    with pytest.raises(KeyboardInterrupt):
        loop.train(recipe, tiny, run.folder, TrainingOptions(seed=5, listener=stopper(when, epoch)))
    assert run.record.status == "running"
    torch.manual_seed(99)
    result = loop.resume(run, tiny)
    assert digest(run.folder) == digest(whole)
    assert np.array_equal(result.confusion, wanted.confusion)
    assert [line["epoch"] for line in run.metrics] == [1, 2, 3]
    assert [line["loss"] for line in run.metrics] == [line["loss"] for line in Run(whole).metrics]
    record = run.record
    assert (record.status, record.epochs_done, record.seed) == ("finished", 3, 5)
    assert record.conditions.precision == ("bfloat16" if bfloat16 else "float32")
    assert {path.name for path in run.folder.iterdir()} == FINISHED


def test_epochs_between_checkpoints_are_trained_again(whole, tmp_path, recipe, tiny, no_plots, stopper):
    run = Run(tmp_path / "run")
    with pytest.raises(KeyboardInterrupt):
        loop.train(recipe, tiny, run.folder, TrainingOptions(listener=stopper("epoch", 2), checkpoint_seconds=600))
    assert [path.name for path in run.folder.iterdir()] == ["run.json"]
    loop.resume(run, tiny, TrainingOptions(checkpoint_seconds=600))
    assert digest(run.folder) == digest(whole)
    assert [line["epoch"] for line in run.metrics] == [1, 2, 3]
    assert {path.name for path in run.folder.iterdir()} == FINISHED


def test_the_record_says_where_a_run_went_on_elsewhere(tmp_path, recipe, tiny, no_plots, stopper, monkeypatch):
    monkeypatch.setattr("edgecifar.train.devices._cpu_has_bfloat16", lambda: True)
    run, recipe = Run(tmp_path / "run"), replace(recipe, bfloat16=True)
    with pytest.raises(KeyboardInterrupt):
        loop.train(recipe, tiny, run.folder, TrainingOptions(listener=stopper("epoch", 1)))
    with pytest.raises(KeyboardInterrupt):
        loop.resume(run, tiny, TrainingOptions(listener=stopper("epoch", 2)))
    assert run.record.resumed == ()
    monkeypatch.setattr("edgecifar.train.devices._cpu_has_bfloat16", lambda: False)
    here = machine.versions()
    monkeypatch.setattr(machine, "versions", lambda: {**here, "torch": "9.9"})
    loop.resume(run, tiny)
    ((epochs, conditions),) = run.record.resumed
    assert (epochs, conditions.precision, conditions.torch) == (2, "float32", "9.9")
    assert (run.record.conditions.precision, run.record.conditions.torch) == ("bfloat16", here["torch"])


def test_resume_says_what_it_cannot_do(whole, tmp_path, recipe, tiny, no_plots, stopper):
    with pytest.raises(RunError, match="nothing to resume"):
        loop.resume(Run(whole), tiny)
    run = Run(tmp_path / "run")
    with pytest.raises(KeyboardInterrupt):
        loop.train(recipe, tiny, run.folder, TrainingOptions(listener=stopper("epoch", 1)))
    before = digest(run.folder)
    changed = data.synthetic(40, 20, seed=1)
    for other, said in ((changed, "changed since"), (replace(changed, name="lab"), r"other data \(synthetic\)")):
        with pytest.raises(DataError, match=said) as caught:
            loop.resume(run, other)
        assert caught.value.option == "data"
    assert digest(run.folder) == before
    record = json.loads((run.folder / "run.json").read_text())
    record["recipe"]["colour"] = "blue"
    (run.folder / "run.json").write_text(json.dumps(record))
    run.net()  # what a later version knows beyond is no obstacle to using the net
    with pytest.raises(RunError, match=r"another version of edgecifar .*colour"):
        loop.resume(run, tiny)


def script(kind: str, folder: Path) -> str:
    command = [sys.executable, Path(__file__).with_name("kill_and_resume.py"), kind, folder]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout


@pytest.mark.slow
def test_sigkill_at_every_write_loses_nothing(tmp_path):
    # run.json; resume state, weights, metrics and record of an epoch; pictures, weights, metrics, record: 10 writes
    assert script("writes", tmp_path) == "11 kills\n"


@pytest.mark.slow
def test_sigkill_at_random_moments_loses_nothing(tmp_path):
    assert script("moments", tmp_path) == "4 kills\n"


@pytest.fixture(scope="module")
def two_epochs(tmp_path_factory, recipe, tiny) -> str:
    """The digest of the weights after two epochs that nothing interrupted."""
    folder = tmp_path_factory.mktemp("two") / "run"
    with pytest.MonkeyPatch.context() as patch:
        for name in ("confusion", "curves"):
            patch.setattr(plots, name, lambda _result, _path: None)
        loop.train(replace(recipe, epochs=2), tiny, folder)
    return digest(folder)


WRITES = 14
"""run.json; resume state, weights, metrics and record of two epochs; pictures, weights, metrics and record."""


@pytest.mark.parametrize("write", [1, 2, 3, 4, 5, 8, 10, 12, 14])
def test_a_disk_that_fills_loses_nothing(tmp_path, recipe, tiny, no_plots, two_epochs, monkeypatch, write):
    recipe, replace_file, calls = replace(recipe, epochs=2), os.replace, []

    def full(source, target):
        calls.append(Path(target).name)
        if len(calls) == write:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        replace_file(source, target)

    run = Run(tmp_path / "run")
    with monkeypatch.context() as context:
        context.setattr(os, "replace", full)
        with pytest.raises(OutputError, match=f"{calls[-1] if calls else ''}.*full"):
            loop.train(recipe, tiny, run.folder)
    assert not list(run.folder.glob(".edgecifar-partial-*"))
    if write == 1:
        loop.train(recipe, tiny, run.folder)
    else:
        loop.resume(run, tiny)
    assert digest(run.folder) == two_epochs


def test_there_are_no_more_writes_than_were_made_to_fail(tmp_path, recipe, tiny, no_plots, monkeypatch):
    replace_file, calls = os.replace, []
    monkeypatch.setattr(os, "replace", lambda *paths: (calls.append(paths), replace_file(*paths)))
    loop.train(replace(recipe, epochs=2), tiny, tmp_path / "run")
    assert len(calls) == WRITES


def test_a_write_that_fails_half_way_loses_nothing(whole, tmp_path, recipe, tiny, no_plots):
    """The system itself refuses to write on: a limit on file sizes that the checkpoint reaches."""
    run, limits = Run(tmp_path / "run"), resource.getrlimit(resource.RLIMIT_FSIZE)

    class Limiter(Silent):
        def epoch(self, metrics):
            resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, limits[1]))

    try:
        with pytest.raises(OutputError, match=r"resume.pt.*File too large"):
            loop.train(recipe, tiny, run.folder, TrainingOptions(listener=Limiter()))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert not list(run.folder.glob(".edgecifar-partial-*"))
    assert [line["epoch"] for line in run.metrics] == [1]
    run.net()
    loop.resume(run, tiny)
    assert digest(run.folder) == digest(whole)


@pytest.mark.parametrize("damage", [lambda state: state.pop("epoch"), lambda state: state.update(optimizers=[])])
def test_a_state_of_another_version_is_refused(tmp_path, recipe, tiny, no_plots, stopper, damage):
    run = Run(tmp_path / "run")
    with pytest.raises(KeyboardInterrupt):
        loop.train(recipe, tiny, run.folder, TrainingOptions(listener=stopper("epoch", 1)))
    state = run.resume_state()
    damage(state)
    (run.folder / "resume.pt").write_bytes(pack(state))
    with pytest.raises(RunError, match=r"resume\.pt.*another version"):
        loop.resume(run, tiny)
