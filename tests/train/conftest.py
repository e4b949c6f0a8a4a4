"""What the tests of training share: one thread, a tiny data set, and a small net in Net's place."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from edgecifar.runtime.files import write_file
from edgecifar.train import data, loop, plots, run


class SmallNet(nn.Sequential):
    """The kinds of layers that Net has, 3,000 times fewer parameters."""

    def __init__(self, dropout: float = 0.5) -> None:
        super().__init__(
            nn.Conv2d(3, 8, 3, stride=4),
            nn.BatchNorm2d(8),
            nn.ReLU(),
            nn.Conv2d(8, 8, 3, padding=1),
            nn.ReLU(),
            nn.Flatten(),
            nn.Dropout(dropout),
            nn.Linear(8 * 8 * 8, 10),
        )


@pytest.fixture(scope="session", autouse=True)
def _one_thread():
    torch.set_num_threads(1)


@pytest.fixture(scope="session")
def tiny() -> data.Dataset:
    return data.synthetic(40, 20)


@pytest.fixture
def small_net(monkeypatch):
    monkeypatch.setattr(loop, "Net", SmallNet)
    monkeypatch.setattr(run, "Net", SmallNet)
    return SmallNet


@pytest.fixture
def no_plots(monkeypatch):
    """Files in the pictures' place, as drawing takes longer than all the rest."""
    for name in ("confusion", "curves"):
        monkeypatch.setattr(plots, name, lambda _, path: write_file(path, b"drawn"))
