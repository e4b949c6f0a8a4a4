"""Runs that the first version wrote are read, evaluated, exported and resumed.

tests/fixtures/old_run is what `edgecifar train --final` of that version left of a run on 40 drawn pictures, without the
weights.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from small_net import SmallNet

from edgecifar.export.models import load
from edgecifar.export.provenance import Provenance
from edgecifar.runtime.contract import CIFAR10
from edgecifar.runtime.files import sha256
from edgecifar.train import loop
from edgecifar.train.loop import TrainingOptions
from edgecifar.train.nets import NETS
from edgecifar.train.record import validation_accuracy
from edgecifar.train.run import Run

FIXTURE = Path(__file__).parents[1] / "fixtures" / "old_run"


@pytest.fixture
def old(tmp_path, monkeypatch) -> Run:
    """The old run, with fresh weights of a small net whose digest run.json names."""
    monkeypatch.setitem(NETS, "net", SmallNet)  # 83 MB less
    folder = tmp_path / "old"
    shutil.copytree(FIXTURE, folder)
    torch.manual_seed(0)
    written = Run(tmp_path / "written")
    written.folder.mkdir()
    written.finish(SmallNet(10), Run(folder).record, [])
    shutil.copy(written.folder / "weights.safetensors", folder)
    record = json.loads((folder / "run.json").read_text())
    record["weights_sha256"] = sha256(folder / "weights.safetensors")
    (folder / "run.json").write_text(json.dumps(record))
    return Run(folder)


def test_the_record_is_read(old):
    record = old.record
    assert record.is_finished
    assert record.contract == CIFAR10
    assert (record.recipe.muon_lr, record.recipe.translate, record.recipe.net) == (0.2, 2, "net")
    assert record.unknown_settings == ()
    assert record.selection_run.seed == record.seed == 7
    assert record.selection_run.temperature == record.temperature
    assert record.conditions.precision == "float32"
    assert list(record.test["per_class"]) == list(CIFAR10.labels)
    assert [validation_accuracy(line) for line in old.metrics] == [None, None]


def test_the_net_is_evaluated_with_its_temperature(old, tiny):
    model = load(old.folder)
    assert (model.kind, model.dataset, model.contract) == ("run", "synthetic", CIFAR10)
    logits = model.logits(tiny.test_images)
    wanted = torch.softmax(torch.from_numpy(logits) / old.record.temperature, 1).numpy()
    assert np.array_equal(model.probabilities(tiny.test_images), wanted)


def test_the_provenance_of_an_export_names_the_selection_run(old):
    described = Provenance.of(old.record).as_json()
    assert described["recipe"]["muon_lr"] == 0.2
    assert described["selection_run"]["seed"] == 7
    assert described["checkpoint_sha256"] == old.record.weights_sha256


@pytest.mark.parametrize("optimizer", ["sgd", "muon"])
def test_an_interrupted_run_goes_on(whole, recipe, tiny, tmp_path, no_plots, stopper, monkeypatch, optimizer):
    """Its record and its resume state have the names of before."""
    recipe = recipe.with_settings({"optimizer": optimizer})
    loop.train(recipe, tiny, tmp_path / "whole")
    run = Run(tmp_path / "run")
    with pytest.raises(KeyboardInterrupt):
        loop.train(recipe, tiny, run.folder, TrainingOptions(listener=stopper("epoch", 2)))
    record, state = json.loads((run.folder / "run.json").read_text()), run.resume_state()
    del record["contract"], record["recipe"]["net"]
    record["recipe"]["filter_lr"] = record["recipe"].pop("muon_lr")
    record["recipe"]["shift"] = record["recipe"].pop("translate")
    for part in state["optimizers"]:
        for group in part["param_groups"]:
            group["peak_lr"] = group.pop("max_lr")
    (run.folder / "run.json").write_text(json.dumps(record))
    torch.save(state, run.folder / "resume.pt")
    monkeypatch.setitem(NETS, "net", SmallNet)
    loop.resume(run, tiny)
    assert sha256(run.folder / "weights.safetensors") == sha256(tmp_path / "whole" / "weights.safetensors")
    assert run.record.recipe.translate == recipe.translate
