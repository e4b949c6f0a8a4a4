"""Trains a small net in the processes that torchrun starts; run by test_distributed.py.

train_together.py library FOLDER    train FOLDER/recipes.json, {name: recipe}, each into FOLDER/name; end the run
                                    FOLDER/one, and begin the run FOLDER/two with the first recipe
train_together.py train ...         `edgecifar train ...`, whose loss is not finite any more in the second epoch
"""

from __future__ import annotations

import json
import sys
from dataclasses import replace
from pathlib import Path

import torch

from edgecifar.cli.main import main
from edgecifar.runtime.files import write_file
from edgecifar.train import data, distributed, loop, plots, run
from edgecifar.train.listeners import Silent
from edgecifar.train.loop import TrainingOptions
from edgecifar.train.recipes import RECIPES, Recipe

sys.path.insert(0, str(Path(__file__).parents[1] / "shared"))
import double_net  # noqa: F401  the net "double"
import small_net  # noqa: F401  the net "small"

DRAWN = data.synthetic(40, 20)


class Interrupt(Silent):
    """Ctrl-C after the first epoch."""

    def epoch(self, metrics) -> None:
        raise KeyboardInterrupt


def library(root: Path) -> None:
    recipes = {name: Recipe(**recipe) for name, recipe in json.loads((root / "recipes.json").read_text()).items()}
    with distributed.joined() as group:
        device = group.connect(torch.device("cpu"))
        for name, recipe in recipes.items():
            loop.train(recipe, DRAWN, root / name, TrainingOptions(device, group=group))
        loop.resume(run.Run(root / "one"), DRAWN, TrainingOptions(device, group=group))
        try:
            options = TrainingOptions(device, listener=Interrupt(), group=group)
            loop.train(next(iter(recipes.values())), DRAWN, root / "two", options)
        except KeyboardInterrupt:
            sys.stdout.write(f"process {group.rank} of {group.size}\n")


def command() -> None:
    factor = Recipe.lr_factor
    Recipe.lr_factor = lambda self, step, steps: 1e38 if step == steps // 2 else factor(self, step, steps)
    data.synthetic = lambda: DRAWN
    RECIPES["reference"] = replace(RECIPES["reference"], net="small")
    main()


if __name__ == "__main__":
    torch.set_num_threads(1)
    for name in ("confusion", "curves"):
        setattr(plots, name, lambda _, path: write_file(path, b"drawn"))
    if sys.argv[1] == "library":
        library(Path(sys.argv[2]))
    else:
        command()
