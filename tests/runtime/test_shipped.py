"""The bundle that ships in the wheel is whole, small, of CIFAR-10, and right about the drawn samples."""

from __future__ import annotations

from pathlib import Path

import pytest

from edgecifar.runtime import Bundle, Classifier
from edgecifar.runtime.bundle import DEFAULT

LEAST = {"edge": 0.905, "tiny": 0.90, "nano": 0.85}
"""Accuracy on CIFAR-10's test images, 0 to 1, that the documentation promises of each variant."""

SAMPLES = sorted((Path(__file__).parents[2] / "samples").iterdir())


def test_it_is_the_one_installed_and_passes_its_checks():
    bundle = Bundle.open()
    assert bundle.folder == DEFAULT
    assert [check for check in bundle.verify() if not check.passed] == []
    assert bundle.manifest.dataset == "CIFAR-10"


def test_it_is_small():
    assert sum(path.stat().st_size for path in DEFAULT.iterdir()) <= 2_500_000
    assert Bundle.open().variant("nano").bytes <= 98_496  # as MLPerf Tiny's IC01


@pytest.mark.parametrize("variant", [variant.name for variant in Bundle.open().manifest.variants])
def test_it_is_right_about_every_sample(variant):
    classifier = Classifier(variant=variant)
    assert len(SAMPLES) == 10
    predictions = classifier.predict(SAMPLES)
    assert [prediction.label for prediction in predictions] == [path.stem for path in SAMPLES]


def test_what_it_promises_of_its_variants():
    for variant in Bundle.open().manifest.variants:
        assert variant.accuracy is not None
        assert variant.accuracy > LEAST[variant.name]
        assert variant.parity["images"] == 10_000
        assert variant.parity["ece"] <= 0.012
