"""run.json is parsed once, strictly; what earlier versions wrote is still read."""

from __future__ import annotations

import json
from dataclasses import asdict, replace

import pytest

from edgecifar.runtime.contract import CIFAR10, Contract
from edgecifar.runtime.errors import RunError
from edgecifar.train.recipes import REFERENCE
from edgecifar.train.record import (
    FINISHED,
    Conditions,
    DatasetRecord,
    RecordError,
    RunRecord,
    SelectionRun,
    validation_accuracy,
)
from edgecifar.train.run import Run

BEGUN = RunRecord(
    recipe=REFERENCE,
    contract=Contract(("one", "zwei", "三"), 32),
    seed=3,
    conditions=Conditions("cpu", "a processor", "float32", processes=2, threads=1, torch="2"),
    machine={"cpu_features": [], "versions": {"torch": "2"}},
    dataset=DatasetRecord("synthetic", "0" * 64, 2_000),
    started="2026-01-01T00:00:00+00:00",
    selection_run=SelectionRun("1" * 64, "0" * 64, 0.1, 3, 1.5),
    resumed=((1, Conditions("cuda", "a GPU", "tf32", processes=1, threads=1)),),
)
TRAINED = replace(BEGUN, epochs_done=1, training_seconds=1.5, weights_sha256="2" * 64)
DONE = replace(TRAINED, status=FINISHED, finished="2026-01-02", temperature=1.2, test={"accuracy": 0.5})
RECORDS = {"begun": BEGUN, "trained": TRAINED, "finished": DONE}


@pytest.mark.parametrize("record", RECORDS.values(), ids=RECORDS)
def test_a_record_comes_back_through_json(record):
    assert RunRecord.parse(json.loads(json.dumps(record.as_json()))) == record
    assert record.is_finished == (record is DONE)
    assert record.latest_conditions.device == "cuda"


@pytest.mark.parametrize("record", RECORDS.values(), ids=RECORDS)
def test_what_is_not_known_yet_is_not_written(record):
    assert ("weights_sha256" in record.as_json()) == (record is not BEGUN)
    assert ("test" in record.as_json()) == (record is DONE)
    assert "unknown_settings" not in record.as_json()


def without(values: dict, name: str) -> dict:
    *part, key = name.split(".")
    inner = values[part[0]] if part else values
    return (
        {**values, part[0]: {k: v for k, v in inner.items() if k != key}}
        if part
        else {k: v for k, v in values.items() if k != key}
    )


@pytest.mark.parametrize(
    ("record", "name"),
    [
        *((BEGUN, name) for name in ("recipe.name", "recipe.held_out", "dataset.sha256", "machine.versions")),
        *((BEGUN, name) for name in ("seed", "device", "started", "status", "selection_run.seed")),
        *((TRAINED, name) for name in ("epochs_done", "weights_sha256")),
        *((DONE, name) for name in ("epochs_done", "weights_sha256", "temperature", "test")),
    ],
)
def test_what_is_missing_is_named(record, name):
    with pytest.raises(RecordError, match=f"lacks {name}"):
        RunRecord.parse(without(record.as_json(), name))


@pytest.mark.parametrize(
    ("changes", "word"),
    [
        ({"seed": "7"}, "seed"),
        ({"seed": True}, "seed"),
        ({"started": 7}, "started"),
        ({"epochs_done": 1.5}, "epochs_done"),
        ({"machine": []}, "machine"),
        ({"resumed": [{}]}, "after_epochs"),
        ({"recipe": {**asdict(REFERENCE), "lr": -1.0}}, "lr"),
        ({"recipe": {**asdict(REFERENCE), "lr": "fast"}}, "lr|str"),
        ({"contract": {"labels": ["one"]}}, "contract"),
        ({"selection_run": 3}, "selection_run"),
    ],
    ids=str,
)
def test_what_cannot_be_is_named(changes, word):
    with pytest.raises(RecordError, match=word):
        RunRecord.parse({**TRAINED.as_json(), **changes})


@pytest.mark.parametrize("values", [[], {}, "recipe", None, {"recipe": 1}, {"recipe": {}, "dataset": {}}], ids=str)
def test_something_else_is_no_record(values):
    with pytest.raises(RecordError, match="recipe"):
        RunRecord.parse(values)


@pytest.mark.parametrize("content", [b"", b"{", b"\xff\xfe\x00", b"\x00", b"[]", b'{"recipe": {}}'])
def test_a_damaged_file_is_named(tmp_path, content):
    (tmp_path / "run.json").write_bytes(content)
    for function in (Run(tmp_path).net, Run(tmp_path).resume_state, lambda: Run(tmp_path).record):
        with pytest.raises(RunError, match=r"run\.json is damaged"):
            function()


def test_records_of_before_contracts_and_new_names():
    old = without({**DONE.as_json(), "trial": DONE.as_json()["selection_run"]}, "selection_run")
    for name in ("contract", "precision", "processes", "threads", "torch", "resumed"):
        del old[name]
    old["recipe"] |= {"filter_lr": 0.3, "shift": 4}
    del old["recipe"]["muon_lr"], old["recipe"]["translate"], old["recipe"]["net"]
    record = RunRecord.parse(old)
    assert record.contract == CIFAR10
    assert record.conditions == Conditions("cpu", "a processor", torch="2")  # as the machine's versions say
    assert record.selection_run == DONE.selection_run
    assert (record.recipe.muon_lr, record.recipe.translate, record.recipe.net) == (0.3, 4, "net")
    assert record.unknown_settings == ()


def test_settings_of_a_later_version_are_told_apart():
    later = BEGUN.as_json()
    later["recipe"] |= {"colour": "blue"}
    assert RunRecord.parse(later).unknown_settings == ("colour",)


def test_the_accuracy_of_an_epoch_says_of_which_images():
    assert validation_accuracy({"held_out_accuracy": 0.5}) == ("held-out", 0.5)
    assert validation_accuracy({"test_accuracy": 0.25}) == ("test", 0.25)
    assert validation_accuracy({"loss": 1.0}) is None


def test_renamed_classes_are_another_data_set():
    """Their digest is the same, as labels are numbers in it."""
    same = DONE.dataset.name, DONE.dataset.sha256
    assert DONE.differs(*same, ["one", "zwei", "三"]) == ""
    assert "(zwei, now two)" in DONE.differs(*same, ["one", "two", "三"])
    assert "on other data" in DONE.differs("birds", "1" * 64, ["one", "zwei", "三"])
