"""Over a thousand valid pictures: each is read right, or refused by name; none is wrong, none is called damaged."""

from __future__ import annotations

from pathlib import Path

import pytest

for package in ("cv2", "imagecodecs", "pillow_heif", "tifffile"):
    pytest.importorskip(package)

import corpus  # noqa: E402 - it needs them

FORMATS = ("PNG", "APNG", "GIF", "BMP", "TGA", "ICO", "PPM", "JPEG", "MPO", "WebP", "AVIF", "JPEG 2000", "HEIC", "TIFF")


def test_the_corpus_is_large_and_mostly_not_by_pillow():
    variants = corpus.variants()
    assert len(variants) >= 300
    assert sum(variant.encoder != "Pillow" for variant in variants) >= len(variants) / 2
    assert len({variant.data for variant in variants}) > 0.95 * len(variants)
    assert {variant.format for variant in variants} == set(FORMATS)


@pytest.mark.parametrize("name", FORMATS)
def test_every_picture_is_read_right_or_refused_by_name(name):
    assert list(corpus.failures(name)) == []


def test_a_wrong_pixel_is_found():
    variant = next(variant for variant in corpus.variants() if variant.expected is not None and variant.mean is None)
    off = variant.expected.copy()
    off[5, 10, 1] ^= 4
    from dataclasses import replace

    assert corpus.outcome(replace(variant, expected=off))[0] == "wrong"


def test_the_table_in_the_documentation_is_this_one():
    page = (Path(__file__).parents[2] / "docs" / "pictures.md").read_text()
    assert corpus.table() in page
