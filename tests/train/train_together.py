"""Trains a small net in the processes that torchrun starts; run by test_distributed.py.

train_together.py library FOLDER    train FOLDER/recipes.json, {name: recipe}, each into FOLDER/name; end the run
                                    FOLDER/one, and begin the run FOLDER/two with the first recipe
train_together.py net FOLDER        train Net itself in float64, by the first of FOLDER/recipes.json, into
                                    FOLDER/net-PROCESSES
train_together.py train ...         `edgecifar train ...`, whose loss is not finite any more in the second epoch
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import torch
from conftest import SmallNet

from edgecifar.cli.main import main
from edgecifar.runtime.files import write_file
from edgecifar.train import data, distributed, loop, plots, run
from edgecifar.train.net import Net
from edgecifar.train.recipes import Recipe

DRAWN = data.synthetic(40, 20)


class Interrupt(loop.Silent):
    """Ctrl-C after the first epoch."""

    def epoch(self, metrics) -> None:
        raise KeyboardInterrupt


def library(root: Path) -> None:
    recipes = {name: Recipe(**recipe) for name, recipe in json.loads((root / "recipes.json").read_text()).items()}
    with distributed.joined() as group:
        device = group.connect(torch.device("cpu"))
        for name, recipe in recipes.items():
            loop.train(recipe, DRAWN, root / name, device, group=group)
        loop.resume(run.Run(root / "one"), DRAWN, device, group=group)
        try:
            loop.train(next(iter(recipes.values())), DRAWN, root / "two", device, listener=Interrupt(), group=group)
        except KeyboardInterrupt:
            sys.stdout.write(f"process {group.rank} of {group.size}\n")


def whole_net(root: Path) -> None:
    normalise = loop.normalise
    loop.Net = lambda dropout: Net(dropout).double()
    loop.normalise = lambda images: normalise(images).double()
    recipe = Recipe(**next(iter(json.loads((root / "recipes.json").read_text()).values())))
    with distributed.joined() as group:
        loop.train(recipe, DRAWN, root / f"net-{group.size}", group.connect(torch.device("cpu")), group=group)


def command() -> None:
    share = Recipe.share_of_lr
    Recipe.share_of_lr = lambda self, step, steps: 1e38 if step == steps // 2 else share(self, step, steps)
    data.synthetic = lambda: DRAWN
    main()


if __name__ == "__main__":
    torch.set_num_threads(1)
    loop.Net = run.Net = SmallNet
    for name in ("confusion", "curves"):
        setattr(plots, name, lambda _, path: write_file(path, b"drawn"))
    match sys.argv[1]:
        case "library":
            library(Path(sys.argv[2]))
        case "net":
            whole_net(Path(sys.argv[2]))
        case _:
            command()
