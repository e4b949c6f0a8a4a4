"""Run folders: nothing is overwritten, and what cannot be used is refused by name."""

from __future__ import annotations

import json
import pickle
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from small_net import SmallNet

from edgecifar.runtime.errors import OutputError, RunError
from edgecifar.train import run as runs
from edgecifar.train.following import follow
from edgecifar.train.recipes import Recipe
from edgecifar.train.record import FINISHED, Conditions, DatasetRecord, RunRecord
from edgecifar.train.run import Run


@pytest.fixture(scope="module")
def record(tiny) -> RunRecord:
    return RunRecord(
        recipe=Recipe("reference", epochs=2, batch_size=16, net="small"),
        contract=tiny.contract,
        seed=0,
        conditions=Conditions("cpu", "a processor"),
        machine={"cpu_features": [], "versions": {}},
        dataset=DatasetRecord("synthetic", "0" * 64, 2_000),
        started="2026-01-01T00:00:00+00:00",
    )


RESULTS = {"epochs_done": 1, "status": FINISHED, "temperature": 1.0, "test": {}}


def refusal(function, *args, kind: type[Exception] = RunError) -> str:
    with pytest.raises(kind) as caught:
        function(*args)
    message = str(caught.value)
    assert "\n" not in message
    assert message.endswith(".")
    return message


@pytest.fixture
def begin(record):
    """Begin a run in a folder, with changes to its record."""
    return lambda folder, **changes: Run.create(folder, replace(record, **changes))


@pytest.fixture
def run(tmp_path, begin) -> Run:
    """A run after its first epoch."""
    torch.manual_seed(0)
    run = begin(tmp_path / "run")
    run.write(SmallNet(10), replace(run.record, epochs_done=1), [{"epoch": 1}], {"epoch": 1})
    return run


def change(run: Run, edit) -> None:
    path = run.folder / "weights.safetensors"
    state = load_file(path)
    edit(state)
    save_file(state, path)


def test_create_makes_parents_and_writes_the_record(tmp_path, begin, record):
    run = begin(tmp_path / "a" / "b")
    assert [path.name for path in run.folder.iterdir()] == ["run.json"]
    assert run.record == record
    assert run.metrics == []


def test_an_empty_folder_is_free(tmp_path, begin):
    begin(tmp_path)
    assert (tmp_path / "run.json").exists()


def test_what_was_killed_at_its_first_write_leaves_the_folder_free(tmp_path, begin):
    (tmp_path / ".edgecifar-partial-999999999-run.json").write_text("half")
    begin(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["run.json"]


@pytest.mark.parametrize("taken", ["folder", "file"])
def test_nothing_is_overwritten(tmp_path, begin, taken):
    path = tmp_path / "run"
    if taken == "folder":
        path.mkdir()
        (path / "notes.txt").write_text("mine")
    else:
        path.write_text("mine")
    for function in (lambda: begin(path), Run(path).check_free):
        assert f"{path} exists already and is not empty" in refusal(function)
    content = path / "notes.txt" if taken == "folder" else path
    assert content.read_text() == "mine"
    assert len(list(tmp_path.rglob("*"))) == (2 if taken == "folder" else 1)


def test_folder_that_cannot_be_made(tmp_path, begin):
    (tmp_path / "file").write_text("")
    assert "is not a folder" in refusal(begin, tmp_path / "file" / "run", kind=OutputError)


def test_newest_is_the_one_begun_last(tmp_path, begin):
    for name, started, changes in (("b", "2026-01-02", {}), ("a", "2026-01-03", RESULTS), ("c", "2026", {})):
        run = begin(tmp_path / name, started=started)
        run.write(SmallNet(10), replace(run.record, **changes), [], {})
    later = begin(tmp_path / "e", started="2026-01-03T12")  # a finished one is preferred to it
    later.write(SmallNet(10), later.record, [], {})
    begin(tmp_path / "d", started="2026-01-04")  # without a complete epoch
    assert Run.newest(under=tmp_path).folder.name == "a"
    assert Run.newest(unfinished=True, under=tmp_path).folder.name == "d"
    (tmp_path / "d" / "run.json").unlink()
    (tmp_path / "a" / "run.json").unlink()
    assert Run.newest(under=tmp_path).folder.name == "e"


@pytest.mark.parametrize("content", ["{", "[]", json.dumps({"status": "running", "started": "2027"})])
@pytest.mark.parametrize("unfinished", [True, False])
def test_newest_passes_over_damaged_records(run, tmp_path, content, unfinished, lines):
    damaged = tmp_path / "a"
    damaged.mkdir()
    (damaged / "run.json").write_text(content)
    (damaged / "weights.safetensors").write_bytes(b"")
    assert Run.newest(unfinished, tmp_path) == run
    (line,) = lines()
    assert f"{damaged / 'run.json'} is damaged" in line
    (run.folder / "run.json").unlink()
    assert "There is no" in refusal(Run.newest, unfinished, tmp_path)


@pytest.mark.parametrize(("unfinished", "kind"), [(False, "trained"), (True, "unfinished")])
def test_no_run_at_all(tmp_path, unfinished, kind):
    assert f"no {kind} run under {tmp_path / 'runs'}/" in refusal(Run.newest, unfinished, tmp_path / "runs")


def test_weights_come_back_in_eval_mode(tmp_path, begin):
    torch.manual_seed(0)
    net, run = SmallNet(10), begin(tmp_path / "run")
    metrics = [{"epoch": 1}, {"epoch": 2}]
    run.write(net, replace(run.record, epochs_done=2), metrics, {"epoch": 2, "momentum": torch.ones(3)})
    back = run.net()
    assert not back.training
    assert all(parameter.requires_grad for parameter in back.parameters())
    for name, tensor in net.state_dict().items():
        assert torch.equal(back.state_dict()[name], tensor)
    assert run.metrics == metrics
    state = run.resume_state()
    assert state["epoch"] == 2
    assert torch.equal(state["momentum"], torch.ones(3))


def test_finish_deletes_the_resume_state(run):
    run.finish(SmallNet(10), replace(run.record, **RESULTS), [])
    assert {path.name for path in run.folder.iterdir()} == {"run.json", "weights.safetensors", "metrics.jsonl"}
    assert "nothing to resume" in refusal(run.resume_state)


def test_leftovers_of_a_killed_writer_are_swept(run):
    (run.folder / ".edgecifar-partial-999999999-resume.pt").write_text("half")
    run.write(SmallNet(10), run.record, [], {})
    assert not list(run.folder.glob(".edgecifar-partial-*"))


def test_damaged_metrics(run):
    (run.folder / "metrics.jsonl").write_text("{")
    assert "metrics.jsonl is damaged" in refusal(lambda: run.metrics)


@pytest.mark.parametrize("path", ["absent", "empty", "file"])
def test_what_is_no_run_folder(tmp_path, path):
    (tmp_path / "empty").mkdir()
    (tmp_path / "file").write_text("")
    folder = tmp_path / path
    for function in (Run(folder).net, Run(folder).resume_state):
        assert "is not a run folder (run.json is missing)" in refusal(function)


def test_missing_weights(tmp_path, begin):
    run = begin(tmp_path / "run")
    message = refusal(run.net)
    assert "no epoch was completed" in message
    assert f"edgecifar train --resume --out {run.folder}" in message


@pytest.mark.parametrize("damage", ["truncated", "text", "empty", "folder"])
def test_damaged_weights(run, damage):
    path = run.folder / "weights.safetensors"
    content = path.read_bytes()
    path.unlink()
    if damage == "folder":
        path.mkdir()
    else:
        path.write_bytes({"truncated": content[:-1], "text": b"Not found.\n" * 9, "empty": b""}[damage])
    assert f"{path} is damaged (" in refusal(run.net)


@pytest.mark.parametrize(
    ("edit", "reason"),
    [
        (lambda state: state.pop("7.bias"), "7.bias is missing"),
        (lambda state: state.update(fc9=torch.zeros(1)), "fc9 is unknown"),
        (lambda state: state.update({"7.bias": torch.zeros(11)}), "7.bias has shape [11], not [10]"),
    ],
)
def test_checkpoint_of_another_net(run, edit, reason):
    change(run, edit)
    assert f"weights.safetensors is the checkpoint of another net ({reason})" in refusal(run.net)


def test_weights_that_changed_after_the_fact(run):
    change(run, lambda state: state["7.bias"].add_(1e-6))
    assert "weights.safetensors is not the file that run.json describes: where it is being trained" in refusal(run.net)


def test_an_epoch_that_is_completed_while_the_net_is_read(run, monkeypatch):
    """Its weights were called another file than the record describes."""
    later = SmallNet(10)

    def late(path):
        monkeypatch.setattr(runs, "load_file", load_file)
        run.write(later, replace(run.record, epochs_done=2), [], {})
        return load_file(path)

    monkeypatch.setattr(runs, "load_file", late)
    found = run.net().state_dict()
    assert all(torch.equal(found[name], tensor) for name, tensor in later.state_dict().items())


def test_run_without_a_complete_epoch_resumes_from_its_start(tmp_path, begin):
    assert begin(tmp_path / "run").resume_state() is None


def test_lost_resume_state(run):
    (run.folder / "resume.pt").unlink()
    assert "resume.pt is missing or damaged" in refusal(run.resume_state)


class Evil:
    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self):
        return Path.mkdir, (self.path,)


@pytest.mark.parametrize("pack", [pickle.dump, torch.save])
def test_a_pickle_is_never_run(run, tmp_path, pack):
    trap = tmp_path / "executed"
    with (run.folder / "resume.pt").open("wb") as file:
        pack(Evil(trap), file)
    assert "is missing or damaged" in refusal(run.resume_state)
    assert not trap.exists()
    with (run.folder / "resume.pt").open("rb") as file:  # the trap is armed: any other reader falls into it
        torch.load(file, weights_only=False) if pack is torch.save else pickle.load(file)  # noqa: S301
    assert trap.exists()


@pytest.mark.parametrize("pack", [pickle.dump, torch.save])
def test_a_pickle_in_place_of_the_weights_is_never_run(run, tmp_path, pack):
    trap = tmp_path / "executed"
    with (run.folder / "weights.safetensors").open("wb") as file:
        pack(Evil(trap), file)
    assert "weights.safetensors is damaged (" in refusal(run.net)
    assert not trap.exists()


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"Not found.\n" * 9,
        b"hello",
        b".",
        b"PK\x03\x04junk",
        b"\x80\x02}q\x00.",
        b"\xff" * 99,
    ],
)
def test_damaged_resume_state(run, content):
    path = run.folder / "resume.pt"
    path.write_bytes(content)
    assert "resume.pt is missing or damaged" in refusal(run.resume_state)


@pytest.mark.parametrize("end", [0.1, 0.5, 0.99])
def test_truncated_resume_state(run, end):
    path = run.folder / "resume.pt"
    content = path.read_bytes()
    path.write_bytes(content[: int(len(content) * end)])
    assert "is missing or damaged" in refusal(run.resume_state)


def test_resume_state_of_another_kind(run):
    torch.save([1, 2], run.folder / "resume.pt")
    assert "is missing or damaged" in refusal(run.resume_state)


def test_a_flipped_bit_of_the_resume_state_is_noticed(run):
    """torch's own reader would return another tensor without a word."""
    run.write(SmallNet(10), run.record, [], {"epoch": 1, "momentum": torch.zeros(1_000)})
    path = run.folder / "resume.pt"
    content = bytearray(path.read_bytes())
    content[content.index(bytes(1_000)) + 500] ^= 1
    path.write_bytes(content)
    assert "is missing or damaged" in refusal(run.resume_state)


def test_the_resume_state_of_an_earlier_version_is_read(run):
    torch.save({"epoch": 3}, run.folder / "resume.pt")
    assert run.resume_state() == {"epoch": 3}


def test_what_a_killed_process_left_of_a_finished_run_is_deleted(run):
    """It was killed between the last record and the deletion: there is nothing to train, and nothing is."""
    state = (run.folder / "resume.pt").read_bytes()
    run.finish(SmallNet(10), replace(run.record, **RESULTS), [])
    (run.folder / "resume.pt").write_bytes(state)
    assert "nothing to resume" in refusal(run.resume_state)
    assert not (run.folder / "resume.pt").exists()


@pytest.mark.parametrize("content", [None, ""])
def test_a_run_without_metrics_is_not_followed(run, content):
    run.finish(SmallNet(10), replace(run.record, **RESULTS), [])
    (run.folder / "metrics.jsonl").unlink()
    if content is not None:
        (run.folder / "metrics.jsonl").write_text(content)
    assert "metrics.jsonl" in refusal(follow, run)
