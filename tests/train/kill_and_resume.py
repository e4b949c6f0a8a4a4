"""Crashes a small net's training and exports as tests/stress/crashes.py does Net's; run by tests, as it forks.

kill_and_resume.py writes FOLDER    training is killed before each file is put in its place, and after the last
kill_and_resume.py moments FOLDER   training is killed at random moments
kill_and_resume.py exports FOLDER   an export in the place of a bundle is killed before each step, and after the last
kill_and_resume.py disks FOLDER     the disk under training and exports is full, then read-only
"""

from __future__ import annotations

import io
import os
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

from PIL import Image

from edgecifar.export import familiarity
from edgecifar.runtime import golden
from edgecifar.runtime.files import write_file
from edgecifar.train import plots
from edgecifar.train.recipes import RECIPES

TESTS = Path(__file__).parents[1]
sys.path[:0] = [str(TESTS / "stress"), str(TESTS / "shared")]
import crashes  # noqa: E402
import narrow_net  # noqa: E402, F401  the net "narrow"
import small_net  # noqa: E402, F401  the net "small"


def use(net: str) -> None:
    """Let every recipe train another net, put a point in the pictures' place, and learn little: these take longest."""
    for name, recipe in RECIPES.items():
        RECIPES[name] = replace(recipe, net=net)
    point = io.BytesIO()
    Image.new("L", (1, 1)).save(point, "png")
    familiarity.STEPS, familiarity.OUTLIERS = 3, 60
    for name in ("confusion", "curves"):
        setattr(plots, name, lambda _, path: write_file(path, point.getvalue()))


def writes(root: Path) -> Iterator[str]:
    training = crashes.Training(root / "train")
    training.options = ("--epochs", 1, *training.options[2:])
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
    use("small" if sys.argv[1] in ("writes", "moments") else "narrow")  # only such as Net are exported
    crashes.prepare_process()
    kills, root, drawn = 0, Path(sys.argv[2]), golden.draw()
    golden.draw = lambda: drawn  # in every child, again
    with crashes.exported_once(root):
        for lost in globals()[sys.argv[1]](root):
            kills += 1
            if lost:
                sys.exit(f"crash {kills}: {lost}")
    sys.stdout.write(f"{kills} kills\n")
