"""Crashes a small net's training and exports as tests/stress/crashes.py does Net's; run by tests, as it forks.

kill_and_resume.py writes FOLDER    training is killed before and after each file is put in its place
kill_and_resume.py moments FOLDER   training of Net itself is killed at random moments
kill_and_resume.py exports FOLDER   an export in the place of a bundle is killed before and after each step
kill_and_resume.py disks FOLDER     the disk under training and exports is full, then read-only
"""

from __future__ import annotations

import io
import os
import sys
from collections.abc import Iterator
from pathlib import Path

from PIL import Image
from torch import Tensor, nn

from edgecifar.export import build
from edgecifar.runtime.files import write_file
from edgecifar.train import plots
from edgecifar.train.augment import normalise

sys.path.insert(0, str(Path(__file__).parents[2] / "tests" / "stress"))
import crashes


class SmallDeployed(nn.Module):
    """What `Deployed` is for Net: uint8 pictures to probabilities and logits."""

    def __init__(self, net: SmallNet, temperature: float = 1.0) -> None:
        super().__init__()
        self.net, self.temperature = net, temperature

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        logits = self.net(normalise(images))
        return torch.softmax(logits / self.temperature, dim=1), logits


def small() -> None:
    """Put the small net in Net's place, and a point in the pictures' place, as drawing takes longest."""
    for module in (net, loop, run):
        module.Net = SmallNet
    build.Deployed = SmallDeployed
    point = io.BytesIO()
    Image.new("L", (1, 1)).save(point, "png")
    for name in ("confusion", "curves"):
        setattr(plots, name, lambda _, path: write_file(path, point.getvalue()))


def writes(root: Path) -> Iterator[str]:
    training = crashes.Training(root / "train")
    training.whole()
    return training.at_steps([(os, "replace")])


def moments(root: Path) -> Iterator[str]:
    training = crashes.Training(root / "train")
    training.whole()
    return training.at_moments(4)


def exports(root: Path) -> Iterator[str]:
    _, replacing = crashes.prepare(crashes.Training(root / "train"), root)
    return replacing.at_steps()


def disks(root: Path) -> Iterator[str]:
    training = crashes.Training(root / "train")
    training.whole()
    yield from training.on_disks(3)  # before `prepare`, after which no forked child can train
    _, replacing = crashes.prepare(training, root)
    yield from replacing.on_disks(3)


if __name__ == "__main__":
    if sys.argv[1] != "moments":
        small()
    crashes.prepare_process()
    kills = 0
    for lost in globals()[sys.argv[1]](Path(sys.argv[2])):
        kills += 1
        if lost:
            sys.exit(f"crash {kills}: {lost}")
    sys.stdout.write(f"{kills} kills\n")
