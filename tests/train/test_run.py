"""Run folders: nothing is overwritten, and what cannot be used is refused by name."""

from __future__ import annotations

import json
import pickle
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from edgecifar.runtime.errors import OutputError, RunError
from edgecifar.train.run import Run

RECORD = {
    "recipe": {"name": "reference", "epochs": 2, "batch_size": 16, "held_out": 0.0},
    "dataset": {"name": "synthetic", "sha256": "0" * 64, "trained_on": 2_000},
    "machine": {"cpu_features": [], "versions": {}},
    "seed": 0,
    "device": "cpu",
    "hardware": "a processor",
    "status": "running",
}
RESULTS = {"epochs_done": 1, "temperature": 1.0, "test": {}}


def refusal(function, *args, kind: type[Exception] = RunError) -> str:
    with pytest.raises(kind) as caught:
        function(*args)
    message = str(caught.value)
    assert "\n" not in message
    assert message.endswith(".")
    return message


def begin(folder: Path, started: str = "2026-01-01T00:00:00+00:00", **changes) -> Run:
    return Run.create(folder, {**RECORD, "started": started, **changes})


@pytest.fixture
def run(tmp_path, small_net) -> Run:
    """A run after its first epoch."""
    torch.manual_seed(0)
    run = begin(tmp_path / "run")
    run.write(small_net(), {**run.record, "epochs_done": 1}, [{"epoch": 1}], {"epoch": 1})
    return run


def change(run: Run, edit) -> None:
    path = run.folder / "weights.safetensors"
    state = load_file(path)
    edit(state)
    save_file(state, path)


def test_create_makes_parents_and_writes_the_record(tmp_path):
    run = begin(tmp_path / "a" / "b")
    assert [path.name for path in run.folder.iterdir()] == ["run.json"]
    assert run.record == {**RECORD, "started": "2026-01-01T00:00:00+00:00"}


def test_an_empty_folder_is_free(tmp_path):
    begin(tmp_path)
    assert (tmp_path / "run.json").exists()


def test_what_was_killed_at_its_first_write_leaves_the_folder_free(tmp_path):
    (tmp_path / ".edgecifar-partial-999999999-run.json").write_text("half")
    begin(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["run.json"]


@pytest.mark.parametrize("taken", ["folder", "file"])
def test_nothing_is_overwritten(tmp_path, taken):
    path = tmp_path / "run"
    if taken == "folder":
        path.mkdir()
        (path / "notes.txt").write_text("mine")
    else:
        path.write_text("mine")
    wanted = f"{path} exists already and is not empty: go on with it by --resume, or choose another --out."
    assert refusal(begin, path) == wanted
    assert refusal(Run(path).check_free) == wanted
    content = path / "notes.txt" if taken == "folder" else path
    assert content.read_text() == "mine"
    assert len(list(tmp_path.rglob("*"))) == (2 if taken == "folder" else 1)


def test_folder_that_cannot_be_made(tmp_path):
    (tmp_path / "file").write_text("")
    assert "is not a folder: choose another place" in refusal(begin, tmp_path / "file" / "run", kind=OutputError)


def test_newest_is_the_one_begun_last(tmp_path, small_net):
    for name, started, status in (("b", "2026-01-02", "running"), ("a", "2026-01-03", "finished"), ("c", "2026", None)):
        run = begin(tmp_path / name, started)
        run.write(small_net(), {**run.record, **RESULTS, "status": status}, [], {})
    later = begin(tmp_path / "e", "2026-01-03T12")  # a finished one is preferred to it
    later.write(small_net(), {**later.record, **RESULTS, "status": "running"}, [], {})
    begin(tmp_path / "d", "2026-01-04")  # without a complete epoch
    assert Run.newest(under=tmp_path).folder.name == "a"
    assert Run.newest(unfinished=True, under=tmp_path).folder.name == "d"
    (tmp_path / "d" / "run.json").unlink()
    (tmp_path / "a" / "run.json").unlink()
    assert Run.newest(under=tmp_path).folder.name == "e"
    (tmp_path / "e" / "run.json").unlink()
    assert Run.newest(unfinished=True, under=tmp_path).folder.name == "b"


@pytest.mark.parametrize("content", ["{", "[]", json.dumps({"status": "running", "started": "2027"})])
@pytest.mark.parametrize("unfinished", [True, False])
def test_newest_passes_over_damaged_records(run, tmp_path, content, unfinished):
    damaged, said = tmp_path / "a", []
    damaged.mkdir()
    (damaged / "run.json").write_text(content)
    (damaged / "weights.safetensors").write_bytes(b"")
    assert Run.newest(unfinished, tmp_path, said.append) == run
    (line,) = said
    assert line.startswith(f"Passed over: {damaged / 'run.json'} is damaged")
    (run.folder / "run.json").unlink()
    assert refusal(Run.newest, unfinished, tmp_path).startswith("There is no ")


def test_a_start_of_another_type_is_no_obstacle_to_the_newest(run, tmp_path):
    other = begin(tmp_path / "other", started=7)
    (other.folder / "weights.safetensors").write_bytes(b"")
    assert Run.newest(under=tmp_path) == max((run, other), key=lambda one: str(one.record["started"]))


@pytest.mark.parametrize(("unfinished", "kind"), [(False, "trained"), (True, "unfinished")])
def test_no_run_at_all(tmp_path, unfinished, kind):
    assert refusal(Run.newest, unfinished, tmp_path / "runs") == (
        f"There is no {kind} run under {tmp_path / 'runs'}/: train one with 'edgecifar train', or name its folder."
    )


def test_weights_come_back_in_eval_mode(tmp_path, small_net):
    torch.manual_seed(0)
    net, run = small_net(), begin(tmp_path / "run")
    run.write(
        net, {**run.record, "epochs_done": 2}, [{"epoch": 1}, {"epoch": 2}], {"epoch": 2, "momentum": torch.ones(3)}
    )
    back = run.net()
    assert not back.training
    for name, tensor in net.state_dict().items():
        assert torch.equal(back.state_dict()[name], tensor)
    assert [json.loads(line) for line in (run.folder / "metrics.jsonl").read_text().splitlines()] == [
        {"epoch": 1},
        {"epoch": 2},
    ]
    state = run.resume_state()
    assert state["epoch"] == 2
    assert torch.equal(state["momentum"], torch.ones(3))


def test_finish_deletes_the_resume_state(run, small_net):
    run.finish(small_net(), {**run.record, **RESULTS, "status": "finished"}, [])
    assert {path.name for path in run.folder.iterdir()} == {"run.json", "weights.safetensors", "metrics.jsonl"}
    assert refusal(run.resume_state) == f"{run.folder} is finished: there is nothing to resume."


def test_leftovers_of_a_killed_writer_are_swept(run, small_net):
    (run.folder / ".edgecifar-partial-999999999-resume.pt").write_text("half")
    run.write(small_net(), run.record, [], {})
    assert not list(run.folder.glob(".edgecifar-partial-*"))


@pytest.mark.parametrize("path", ["absent", "empty", "file"])
def test_what_is_no_run_folder(tmp_path, path):
    (tmp_path / "empty").mkdir()
    (tmp_path / "file").write_text("")
    folder = tmp_path / path
    wanted = f"{folder} is not a run folder (run.json is missing): name one that 'edgecifar train' made."
    assert refusal(Run(folder).net) == wanted
    assert refusal(Run(folder).resume_state) == wanted


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"{",
        b"\xff\xfe\x00",
        b"\x00",
    ],
)
def test_damaged_record(run, content):
    (run.folder / "run.json").write_bytes(content)
    wanted = f"{run.folder / 'run.json'} is damaged: restore it or train again."
    assert refusal(run.net) == wanted
    assert refusal(run.resume_state) == wanted


@pytest.mark.parametrize("content", [b"[]", b"{}", b'"recipe"', b'{"recipe": 1}', b'{"recipe": {}, "dataset": {}}'])
def test_record_of_something_else(run, content):
    (run.folder / "run.json").write_bytes(content)
    wanted = f"{run.folder / 'run.json'} is damaged (it lacks recipe.name): restore it or train again."
    assert refusal(run.net) == wanted
    assert refusal(run.resume_state) == wanted


@pytest.mark.parametrize(
    ("status", "lacking"),
    [
        *(("running", name) for name in ("dataset.sha256", "machine.versions", "seed", "status")),
        *(("running", name) for name in ("epochs_done", "weights_sha256")),
        *(("finished", name) for name in ("recipe.held_out", "epochs_done", "weights_sha256", "temperature", "test")),
    ],
)
def test_record_that_lacks_something(run, status, lacking):
    record = {**run.record, **RESULTS, "status": status}
    *part, key = lacking.split(".")
    del (record[part[0]] if part else record)[key]
    (run.folder / "run.json").write_text(json.dumps(record))
    wanted = f"{run.folder / 'run.json'} is damaged (it lacks {lacking}): restore it or train again."
    assert refusal(lambda: run.record) == wanted


def test_truncated_record(run):
    path = run.folder / "run.json"
    path.write_bytes(path.read_bytes()[:-3])
    assert refusal(run.net) == f"{path} is damaged: restore it or train again."


def test_missing_weights(tmp_path):
    run = begin(tmp_path / "run")
    assert refusal(run.net) == (
        f"{run.folder} holds no weights.safetensors: no epoch was completed; go on with 'edgecifar train --resume "
        f"--out {run.folder}'."
    )


@pytest.mark.parametrize("damage", ["truncated", "text", "empty", "folder"])
def test_damaged_weights(run, damage):
    path = run.folder / "weights.safetensors"
    content = path.read_bytes()
    path.unlink()
    if damage == "folder":
        path.mkdir()
    else:
        path.write_bytes({"truncated": content[:-1], "text": b"Not found.\n" * 9, "empty": b""}[damage])
    message = refusal(run.net)
    assert message.startswith(f"{path} is damaged (")
    assert message.endswith("): restore it or train again.")


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
    assert refusal(run.net) == (
        f"{run.folder / 'weights.safetensors'} is the checkpoint of another net ({reason}): "
        "name one that 'edgecifar train' made."
    )


def test_weights_that_changed_after_the_fact(run):
    change(run, lambda state: state["7.bias"].add_(1e-6))
    assert refusal(run.net).startswith(f"{run.folder / 'weights.safetensors'} is not the file that run.json describes")


def test_run_without_a_complete_epoch_resumes_from_its_start(tmp_path):
    assert begin(tmp_path / "run").resume_state() is None


def test_lost_resume_state(run):
    (run.folder / "resume.pt").unlink()
    path = run.folder / "resume.pt"
    assert refusal(run.resume_state) == f"{path} is missing or damaged: train again with another --out."


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
        b"q\x00.",
        b"h\x00.",
        b"PK\x03\x04junk",
        b"\x80\x02}q\x00.",
        b"\xff" * 99,
    ],
)
def test_damaged_resume_state(run, content):
    path = run.folder / "resume.pt"
    path.write_bytes(content)
    assert refusal(run.resume_state) == f"{path} is missing or damaged: train again with another --out."


@pytest.mark.parametrize("end", [0.1, 0.5, 0.99])
def test_truncated_resume_state(run, end):
    path = run.folder / "resume.pt"
    content = path.read_bytes()
    path.write_bytes(content[: int(len(content) * end)])
    assert "is missing or damaged" in refusal(run.resume_state)


def test_resume_state_of_another_kind(run):
    torch.save([1, 2], run.folder / "resume.pt")
    assert "is missing or damaged" in refusal(run.resume_state)
