"""The model card: its table stays one, whatever a variant needs."""

from __future__ import annotations

from dataclasses import replace

import pytest

from edgecifar.export import card


def test_alternatives_of_what_a_variant_needs_are_one_cell(bundle):
    edge = replace(bundle.variant("edge"), needs="avx_vnni|avx512_vnni")
    lines = card.text(replace(bundle.manifest, variants=(edge,))).splitlines()
    head = next(line for line in lines if line.startswith("| name |"))
    row = next(line for line in lines if line.startswith("| `edge` |"))
    assert row.endswith(" | avx_vnni or avx512_vnni |")
    assert row.count("|") == head.count("|")


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({}, "fitted on held-out images."),
        ({"finished": None}, "Confidence is not calibrated"),
        ({"finished": None, "trial": {"temperature": 1.5}}, "Confidence is not calibrated"),
        ({"trial": {"temperature": 1.5}}, "fitted on held-out images of a trial, the same training without them."),
    ],
)
def test_the_card_says_what_the_temperature_was_fitted_on(bundle, changes, said):
    manifest = replace(bundle.manifest, provenance={**bundle.manifest.provenance, **changes})
    assert said in card.text(manifest)
