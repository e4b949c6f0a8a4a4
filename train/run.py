"""Run folders: the weights, settings, metrics and resume state of one training run, each written whole."""

from __future__ import annotations

import json
import pickle
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from ..runtime.errors import RunError
from ..runtime.files import make_folder, remove_leftovers, sha256, write_file
from .net import Net

RUNS = Path("runs")
"""Where runs go unless told otherwise."""

WEIGHTS, RECORD, METRICS, RESUME = "weights.safetensors", "run.json", "metrics.jsonl", "resume.pt"


@dataclass(frozen=True)
class Run:
    """A run folder on the disk.

    `run.json` holds every setting and result, `weights.safetensors` the net after the last complete
    epoch, `metrics.jsonl` a line per epoch, `resume.pt` (until the run is finished) what training goes on from.
    """

    folder: Path

    def check_free(self) -> None:
        """Make sure that a run can begin here.

        Raises:
            RunError: the folder exists and is not empty: nothing is ever overwritten.
        """
        if self.folder.exists() and (not self.folder.is_dir() or any(self.folder.iterdir())):
            raise RunError(
                f"{self.folder} exists already and is not empty: go on with it by --resume, or choose another --out."
            )

    @classmethod
    def create(cls, folder: Path) -> Run:
        """Make an empty run folder.

        Raises:
            RunError: the folder exists and is not empty.
            OutputError: it cannot be written.
        """
        run = cls(folder)
        run.check_free()
        make_folder(folder)
        return run

    @classmethod
    def newest(cls, unfinished: bool = False, under: Path = RUNS) -> Run:
        """Return the run under `under` that was begun last; only unfinished ones where asked.

        Raises:
            RunError: there is none.
        """
        wanted = RESUME if unfinished else WEIGHTS
        found = [path.parent for path in under.glob(f"*/{wanted}") if (path.parent / RECORD).exists()]
        if not found:
            kind = "an unfinished run" if unfinished else "a trained run"
            raise RunError(f"There is no {kind} under {under}/: train one with 'edgecifar train', or name its folder.")
        return cls(max(found, key=lambda folder: (Run(folder).record.get("started", ""), folder.name)))

    @property
    def record(self) -> dict[str, Any]:
        """The contents of run.json.

        Raises:
            RunError: it is missing or not a run's record.
        """
        try:
            record = json.loads((self.folder / RECORD).read_text())
            if not isinstance(record, dict) or "recipe" not in record:
                raise ValueError
        except FileNotFoundError:
            raise RunError(
                f"{self.folder} is not a run folder ({RECORD} is missing): name one that 'edgecifar train' made."
            ) from None
        except (OSError, ValueError):
            raise RunError(f"{self.folder / RECORD} is damaged: restore it or train again.") from None
        return record

    def net(self) -> Net:
        """Return the trained net in eval mode on the CPU.

        Raises:
            RunError: the weights are missing, damaged, changed since they were written, or of another net.
        """
        path, record = self.folder / WEIGHTS, self.record
        try:
            state = load_file(path)
        except FileNotFoundError:
            raise RunError(
                f"{self.folder} holds no {WEIGHTS}: no epoch was completed; go on with 'edgecifar train --resume "
                f"--out {self.folder}'."
            ) from None
        except (OSError, SafetensorError) as error:
            raise RunError(f"{path} is damaged ({error}): restore it or train again.") from None
        net = Net(record["recipe"]["dropout"])
        load_state(net, state, path)
        if record.get("weights_sha256") != sha256(path):
            raise RunError(
                f"{path} is not the file that {RECORD} describes: go on with 'edgecifar train --resume --out "
                f"{self.folder}', or restore it."
            )
        return net.eval()

    def write(self, net: Net, record: dict[str, Any], metrics: list[dict[str, Any]], resume: dict[str, Any]) -> None:
        """Store the state after an epoch. What training resumes from is written first and rules the rest.

        Raises:
            OutputError: the disk is full, and so on; what was stored before stays usable.
        """
        remove_leftovers(self.folder)
        write_file(self.folder / RESUME, lambda path: torch.save(resume, path))
        self._publish(net, record, metrics)

    def finish(self, net: Net, record: dict[str, Any], metrics: list[dict[str, Any]]) -> None:
        """Store the finished run and delete the resume state."""
        self._publish(net, record, metrics)
        (self.folder / RESUME).unlink(missing_ok=True)

    def _publish(self, net: Net, record: dict[str, Any], metrics: list[dict[str, Any]]) -> None:
        state = {name: tensor.detach().cpu().contiguous() for name, tensor in net.state_dict().items()}
        path = self.folder / WEIGHTS
        write_file(path, lambda staged: save_file(state, staged))
        record = {**record, "weights_sha256": sha256(path)}
        write_file(self.folder / RECORD, (json.dumps(record, indent=2) + "\n").encode())
        write_file(self.folder / METRICS, "".join(json.dumps(line) + "\n" for line in metrics).encode())

    def resume_state(self) -> dict[str, Any]:
        """Return what `write` was given as `resume`.

        Raises:
            RunError: the run is finished, was never begun, or the state is damaged.
        """
        path = self.folder / RESUME
        try:
            return torch.load(path, map_location="cpu", weights_only=True)
        except FileNotFoundError:
            finished = (self.folder / WEIGHTS).exists()
            raise RunError(
                f"{self.folder} is finished: there is nothing to resume."
                if finished
                else f"{self.folder} has no {RESUME}: no epoch was completed; train again without --resume."
            ) from None
        except (OSError, RuntimeError, EOFError, ValueError, pickle.UnpicklingError):
            raise RunError(f"{path} is damaged: train again without --resume and with another --out.") from None


def load_state(net: Net, state: dict[str, torch.Tensor], source: Path) -> None:
    """Load `state` into `net`, strictly.

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
    net.load_state_dict(state)
