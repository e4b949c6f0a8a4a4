"""The bundle that ships in the wheel is whole, small, of CIFAR-10, and right about the drawn samples."""

from __future__ import annotations

from pathlib import Path

import pytest

from edgecifar.runtime import Bundle, Classifier
from edgecifar.runtime.bundle import DEFAULT

SAMPLES = sorted((Path(__file__).parents[2] / "samples").iterdir())


def test_it_is_the_one_installed_and_passes_its_checks():
    bundle = Bundle.open()
    assert bundle.folder == DEFAULT
    assert [check for check in bundle.verify() if not check.passed] == []
    assert bundle.manifest.dataset == "CIFAR-10"


def test_it_is_at_most_six_megabytes():
    assert sum(path.stat().st_size for path in DEFAULT.iterdir()) <= 6_000_000


@pytest.mark.parametrize("variant", [variant.name for variant in Bundle.open().manifest.variants])
def test_it_is_right_about_every_sample(variant):
    classifier = Classifier(variant=variant)
    assert len(SAMPLES) == 10
    predictions = classifier.predict(SAMPLES)
    assert [prediction.label for prediction in predictions] == [path.stem for path in SAMPLES]


def test_what_it_promises_of_its_variants():
    for variant in Bundle.open().manifest.variants:
        assert variant.accuracy is not None
        assert variant.accuracy > 0.9
        assert variant.parity["images"] == 10_000
        assert variant.parity["ece"] <= 0.012
