"""What the tests of training share: one thread, a tiny data set, a small net, and pictures that take no time."""

from __future__ import annotations

from pathlib import Path

import pytest
import small_net  # noqa: F401  adds the net that the recipes of these tests name
import torch

from edgecifar.runtime.files import write_file
from edgecifar.train import data, loop, plots
from edgecifar.train.listeners import Progress, Silent
from edgecifar.train.recipes import Recipe


@pytest.fixture(scope="session", autouse=True)
def _one_thread():
    torch.set_num_threads(1)


@pytest.fixture(scope="session")
def tiny() -> data.Dataset:
    return data.synthetic(40, 20)


@pytest.fixture
def no_plots(monkeypatch):
    """Files in the pictures' place, as drawing takes longer than all the rest."""
    for name in ("confusion", "curves"):
        monkeypatch.setattr(plots, name, lambda _, path: write_file(path, b"drawn"))


@pytest.fixture(scope="session")
def recipe() -> Recipe:
    """A recipe that uses everything, three epochs of four steps on the tiny data set."""
    return Recipe(
        "tiny",
        epochs=3,
        batch_size=8,
        lr=0.05,
        nesterov=True,
        weight_decay=5e-4,
        schedule="one-cycle",
        warm_up=0.3,
        label_smoothing=0.1,
        dropout=0.3,
        flip=True,
        translate=2,
        cutout=4,
        corrupted=0.5,
        held_out=0.25,
        net="small",
    )


@pytest.fixture(scope="session")
def whole(tmp_path_factory, recipe, tiny) -> Path:
    """A run by `recipe` that nothing interrupted. It is shared: read it only."""
    folder = tmp_path_factory.mktemp("whole") / "whole"
    with pytest.MonkeyPatch.context() as patch:
        for name in ("confusion", "curves"):
            patch.setattr(plots, name, lambda _, path: write_file(path, b"drawn"))
        loop.train(recipe, tiny, folder)
    return folder


class Stopper(Silent):
    """Ctrl-C in an epoch ("progress") or after one ("epoch")."""

    def __init__(self, when: str, epoch: int) -> None:
        self.when, self.at = when, epoch

    def progress(self, progress: Progress) -> None:
        if (self.when, self.at) == ("progress", progress.epoch):
            raise KeyboardInterrupt

    def epoch(self, metrics: dict) -> None:
        if (self.when, self.at) == ("epoch", metrics["epoch"]):
            raise KeyboardInterrupt


@pytest.fixture
def stopper():
    return Stopper


@pytest.fixture
def lines(caplog):
    """The lines that were logged; `lines()` returns those since the last call."""
    caplog.set_level("INFO", logger="edgecifar")

    def call() -> list[str]:
        found = [record.getMessage() for record in caplog.records if record.name == "edgecifar"]
        caplog.clear()
        return found

    return call
