"""Run folders: the weights, settings, metrics and resume state of one training run, each written whole."""

from __future__ import annotations

import contextlib
import hashlib
import io
import json
import logging
from collections.abc import Generator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save
from torch import nn

from ..runtime.errors import DataError, RunError
from ..runtime.files import STAGING, lock, make_folder, remove_leftovers, sha256, write_file
from ..runtime.paths import RUN_RECORD
from .nets import is_teacher, make_net
from .record import RUNNING, RecordError, RunRecord

if TYPE_CHECKING:
    from .data import Dataset

RUNS = Path("runs")
"""Where runs go unless told otherwise."""

WEIGHTS, RECORD, METRICS, RESUME = "weights.safetensors", RUN_RECORD, "metrics.jsonl", "resume.pt"

DIGEST_BYTES = 32
"""A SHA-256 has so many."""

ZIP = b"PK\x03\x04"
"""What a file of torch begins with."""

log = logging.getLogger("edgecifar")


@dataclass(frozen=True)
class Run:
    """A run folder on the disk.

    `run.json`, there from the start, holds every setting and result, `weights.safetensors` the net after the last
    complete epoch, `metrics.jsonl` a line per epoch, `resume.pt` (until the run is finished) what training goes on
    from; before the first epoch is complete there is none, and training begins anew.
    """

    folder: Path

    def check_free(self) -> None:
        """Make sure that a run can begin here.

        Raises:
            RunError: the folder exists and is not empty: nothing is ever overwritten.
        """
        taken = self.folder.exists() and not self.folder.is_dir()
        if taken or any(not path.name.startswith(STAGING) for path in self.folder.glob("*")):
            raise RunError(
                f"{self.folder} exists already and is not empty: choose another folder, or resume the run in it.",
                option="resume",
            )

    @classmethod
    def create(cls, folder: Path, record: RunRecord) -> Run:
        """Make a run folder that holds `record` alone.

        Raises:
            RunError: the folder exists and is not empty.
            OutputError: it cannot be written.
        """
        run = cls(folder)
        run.check_free()
        make_folder(folder)
        remove_leftovers(folder)
        run._write_record(record)
        return run

    @contextlib.contextmanager
    def in_training(self) -> Generator[None]:
        """Keep other processes from training this run, whose folder is there, at the same time.

        Raises:
            RunError: another process trains it.
        """
        try:
            let_go = lock(self.folder)
        except BlockingIOError:
            raise RunError(f"{self.folder} is being trained by another process: wait for it, or end it.") from None
        try:
            yield
        finally:
            let_go()

    def check_data(self, dataset: Dataset) -> None:
        """Make sure that `dataset` is what the run was trained on.

        Raises:
            DataError: it is another one, has changed since, or its classes were renamed.
        """
        if differs := self.record.differs(dataset.name, dataset.digest, dataset.contract.labels):
            raise DataError(f"{self.folder} {differs}", option="data")

    @classmethod
    def newest(cls, unfinished: bool = False, under: Path = RUNS, without_teachers: bool = False) -> Run:
        """Return the finished run under `under` that was begun last, or where none is, the last with weights.

        Where `unfinished` ones are asked for, the last of those; where `without_teachers`, of those that can be
        exported. Those whose record is damaged are passed over with a line in the log.

        Raises:
            RunError: there is none.
        """
        found: list[tuple[bool, str, str, Run]] = []
        for path in sorted(under.glob(f"*/{RECORD}")):
            run = cls(path.parent)
            try:
                record = run.record
            except RunError as error:
                log.warning("Passed over: %s", error)
                continue
            if without_teachers and is_teacher(record.recipe.net):
                continue
            if record.status == RUNNING if unfinished else (run.folder / WEIGHTS).exists():
                found.append((record.is_finished, record.started, run.folder.name, run))
        if not found:
            kind = "unfinished run" if unfinished else "trained run"
            raise RunError(f"There is no {kind} under {under}/: train one with 'edgecifar train', or name its folder.")
        return max(found, key=lambda entry: entry[:-1])[-1]

    @classmethod
    def recorded(cls, folder: str, weights_sha256: str | None, role: str) -> Run:
        """Return a run that another's record names.

        Args:
            folder: where it was.
            weights_sha256: of its weights, then.
            role: what it was to the other, in words that follow its name.

        Raises:
            RunError: it is not there any more, is damaged, or holds other weights by now.
        """
        run = cls(Path(folder))
        if not (run.folder / RECORD).exists():
            raise RunError(f"{run.folder}, {role}, is not there any more: put it back, or train again.")
        if run.record.weights_sha256 != weights_sha256:
            raise RunError(f"{run.folder}, {role}, holds other weights by now: restore them.")
        return run

    @property
    def record(self) -> RunRecord:
        """The contents of run.json.

        Raises:
            RunError: it is missing, not a run's record, or lacks something that it was written with.
        """
        path = self.folder / RECORD
        try:
            return RunRecord.parse(json.loads(path.read_text()))
        except (FileNotFoundError, NotADirectoryError):
            raise RunError(
                f"{self.folder} is not a run folder ({RECORD} is missing): name one that 'edgecifar train' made."
            ) from None
        except RecordError as error:
            raise RunError(f"{path} is damaged ({error}): restore it or train again.") from None
        except (OSError, ValueError):
            raise RunError(f"{path} is damaged: restore it or train again.") from None

    @property
    def metrics(self) -> list[dict[str, Any]]:
        """The lines of metrics.jsonl, one an epoch; none before the first epoch is complete.

        Raises:
            RunError: it is damaged.
        """
        path = self.folder / METRICS
        try:
            return [json.loads(line) for line in path.read_text().splitlines()]
        except FileNotFoundError:
            return []
        except (OSError, ValueError):
            raise RunError(f"{path} is damaged: restore it or train again.") from None

    def net(self) -> nn.Module:
        """Return the trained net in eval mode on the CPU.

        Raises:
            RunError: the weights are missing, damaged, changed since they were written, or of another net.
        """
        path, record = self.folder / WEIGHTS, self.record
        again = f"go on with 'edgecifar train --resume --out {self.folder}'"
        try:
            state = load_file(path)
        except FileNotFoundError:
            if record.is_finished:
                raise RunError(f"{self.folder} has lost its {WEIGHTS}: restore the file or train again.") from None
            raise RunError(f"{self.folder} holds no {WEIGHTS}: no epoch was completed; {again}.") from None
        except (OSError, SafetensorError) as error:
            raise RunError(f"{path} is damaged ({error}): restore it or train again.") from None
        with torch.device("meta"):  # without weights: these are not drawn first and thrown away
            net = make_net(record.recipe.net, record.contract)
        load_state(net, state, path, assign=True)
        if record.weights_sha256 != sha256(path):
            if self.record != record:  # a process that trains it has completed an epoch meanwhile
                return self.net()
            going = f"where it is being trained, try again; else {again}, or "
            remedy = f"{'' if record.is_finished else going}restore it or train again"
            raise RunError(f"{path} is not the file that {RECORD} describes: {remedy}.")
        return net.eval()

    def write(self, net: nn.Module, record: RunRecord, metrics: list[dict[str, Any]], resume: dict[str, Any]) -> None:
        """Store the state after an epoch. The state that training resumes from is written first and rules the rest.

        Raises:
            OutputError: the disk is full, and so on; what was stored before stays usable.
        """
        remove_leftovers(self.folder)
        write_file(self.folder / RESUME, pack(resume))
        self._publish(net, record, metrics)

    def finish(
        self, net: nn.Module, record: RunRecord, metrics: list[dict[str, Any]], dtype: torch.dtype | None = None
    ) -> None:
        """Store the finished run and delete the resume state.

        Args:
            net: the trained net.
            record: of the run; the digest of the weights is added.
            metrics: a line an epoch.
            dtype: what floating point weights are stored in; None for each as it is. `net` gives float32 in any case.
        """
        remove_leftovers(self.folder)
        self._publish(net, record, metrics, dtype)
        (self.folder / RESUME).unlink(missing_ok=True)

    def _publish(
        self, net: nn.Module, record: RunRecord, metrics: list[dict[str, Any]], dtype: torch.dtype | None = None
    ) -> None:
        state = {
            name: tensor.detach().to("cpu", dtype if tensor.is_floating_point() else None).contiguous()
            for name, tensor in net.state_dict().items()
        }
        path = self.folder / WEIGHTS
        write_file(path, save(state))
        write_file(self.folder / METRICS, "".join(json.dumps(line) + "\n" for line in metrics).encode())
        self._write_record(replace(record, weights_sha256=sha256(path)))

    def _write_record(self, record: RunRecord) -> None:
        write_file(self.folder / RECORD, (json.dumps(record.as_json(), indent=2) + "\n").encode())

    def resume_state(self) -> dict[str, Any] | None:
        """Return what `write` was given as `resume`, or None where no epoch was completed.

        Raises:
            RunError: the run is finished, was never begun, or the state is damaged. A finished run loses the state that
                it keeps where it was killed before `finish` had deleted it.
        """
        path, record = self.folder / RESUME, self.record
        if record.is_finished:
            with contextlib.suppress(OSError):
                path.unlink(missing_ok=True)
            raise RunError(f"{self.folder} is finished: there is nothing to resume.")
        if not path.exists() and record.weights_sha256 is None:
            return None
        try:
            return unpack(path.read_bytes())
        except (OSError, ValueError):
            raise RunError(f"{path} is missing or damaged: train again into another folder.") from None


def pack(state: dict[str, Any]) -> bytes:
    """Return what `unpack` reads: the SHA-256 of the file that torch makes of `state`, and the file.

    torch itself does not notice a flipped bit, and hides what fails in writing a file.
    """
    packed = io.BytesIO()
    torch.save(state, packed)
    content = packed.getvalue()
    return hashlib.sha256(content).digest() + content


def unpack(content: bytes) -> dict[str, Any]:
    """Return what `pack` was given, on the CPU; or what torch alone wrote, as earlier versions of edgecifar had it do.

    Raises:
        ValueError: it is damaged.
    """
    digest, packed = content[:DIGEST_BYTES], content[DIGEST_BYTES:]
    if hashlib.sha256(packed).digest() != digest:
        if not content.startswith(ZIP):
            raise ValueError("its digest is another")
        packed = content
    try:
        state = torch.load(io.BytesIO(packed), map_location="cpu", weights_only=True)
    except Exception:  # torch's unpickler raises whatever the bytes lead it to
        raise ValueError("torch cannot read it") from None
    if not isinstance(state, dict):
        raise ValueError("it is no state")
    return state


def load_state(net: nn.Module, state: dict[str, torch.Tensor], source: Path, assign: bool = False) -> None:
    """Load `state` into `net`, strictly.

    Args:
        net: the net.
        state: its `state_dict`, of that net or another one.
        source: where the state comes from, for the message.
        assign: whether the net takes the tensors over instead of copying them.

    Raises:
        RunError: names or shapes differ; the first difference is named.
    """
    wanted = net.state_dict()
    for name in sorted(wanted.keys() | state.keys()):
        if name not in state:
            reason = f"{name} is missing"
        elif name not in wanted:
            reason = f"{name} is unknown"
        elif state[name].shape != wanted[name].shape:
            reason = f"{name} has shape {list(state[name].shape)}, not {list(wanted[name].shape)}"
        else:
            continue
        raise RunError(f"{source} is the checkpoint of another net ({reason}): name one that 'edgecifar train' made.")
    net.load_state_dict({name: tensor.to(wanted[name].dtype) for name, tensor in state.items()}, assign=assign)
