"""Two classes and a thousand, in scripts of the world, go from a folder of pictures to a bundle that predicts."""

from __future__ import annotations

from pathlib import Path

import narrow_net  # noqa: F401  the net "narrow"
import numpy as np
import pytest
from PIL import Image

from edgecifar.export import build
from edgecifar.export.options import ExportOptions
from edgecifar.runtime.classifier import Classifier
from edgecifar.train import data, loop
from edgecifar.train.folders import FolderOptions
from edgecifar.train.recipes import FAST
from edgecifar.train.run import Run

ALPHABETS = ("Pilz", "キノコ", "гриб", "μανιτάρι", "فطر", "mush $room_")


def draw(folder: Path, labels: list[str]) -> None:
    """Draw two training pictures and a test picture of each class, in a colour of its own."""
    rng = np.random.default_rng(0)
    for label in labels:
        colour = rng.integers(0, 256, 3)
        for split, count in (("train", 2), ("test", 1)):
            (folder / split / label).mkdir(parents=True)
            for number in range(count):
                pixels = (colour + rng.normal(0, 12, (32, 32, 3))).clip(0, 255).astype(np.uint8)
                Image.fromarray(pixels).save(folder / split / label / f"{number}.bmp")


@pytest.mark.slow
@pytest.mark.parametrize("classes", [2, 1_000])
def test_the_whole_way(classes, tmp_path, caplog):
    labels = [f"{ALPHABETS[number % len(ALPHABETS)]} {number}" for number in range(classes)]
    draw(tmp_path / "own", labels)
    dataset = data.load_labelled(tmp_path / "own", FolderOptions(), cache=tmp_path / "cache")
    recipe = FAST.with_settings({"net": "narrow", "epochs": 1, "batch_size": 100, "held_out": 0.5})
    result = loop.train(recipe, dataset, tmp_path / "run")
    assert result.confusion.shape == (classes, classes)
    with Image.open(tmp_path / "run" / "confusion.png") as drawn:
        assert max(drawn.size) < 1_200  # no figure of a thousand rows
    bundle, _ = build.export(Run(tmp_path / "run"), tmp_path / "bundle", dataset, ExportOptions())
    assert [check for check in bundle.verify() if not check.passed] == []
    assert bundle.contract.labels == tuple(sorted(labels))
    classifier = Classifier(bundle.folder, provider="cpu")
    (prediction,) = classifier.predict([tmp_path / "own" / "test" / labels[0] / "0.bmp"], top_k=classes)
    assert {label for label, _ in prediction.top} == set(labels)
    assert sum(probability for _, probability in prediction.top) == pytest.approx(1, abs=1e-4)
    card = (bundle.folder / "README.md").read_text(encoding="utf-8")
    assert (labels[0] if classes == 2 else "1,000 classes") in card
    assert "CIFAR" not in card
    assert max(map(len, card.splitlines())) < 1_000
