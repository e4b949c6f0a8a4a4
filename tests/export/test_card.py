"""The model card: it says what the bundle takes, gives and was trained on, in whatever language its labels are."""

from __future__ import annotations

from dataclasses import replace

import pytest

from edgecifar.export import card
from edgecifar.runtime.manifest import Familiarity


def with_labels(bundle, *labels: str):
    contract = replace(bundle.contract, labels=labels)
    return card.text(replace(bundle.manifest, contract=contract, dataset="mushrooms"))


def test_three_labels_that_markdown_would_misread(bundle):
    text = with_labels(bundle, "Fliegenpilz", "キノコ", "*|_<b>")
    assert r"one of Fliegenpilz, キノコ, \*\|\_\<b\>." in text
    assert "3 classes and nothing else" in text
    assert "float32 `[batch, 3]`" in text
    assert "CIFAR" not in text


def test_a_thousand_labels_are_counted(bundle):
    text = with_labels(bundle, *(f"class {index}" for index in range(1_000)))
    assert "one of 1,000 classes" in text
    assert "class 7" not in text


@pytest.mark.parametrize(
    ("fit", "words"), [("crop", "middle square"), ("squash", "whatever its shape"), ("pad", "grey square")]
)
def test_the_fit_is_the_contract_s(bundle, fit, words):
    manifest = replace(bundle.manifest, contract=bundle.contract.with_fit(fit))
    assert words in card.text(manifest).split("## Variants")[0]


@pytest.mark.parametrize(("dataset", "said"), [("CIFAR-10", "airplane"), ("synthetic", "a trial of the pipeline")])
def test_what_a_reader_must_know_of_the_data_set(bundle, dataset, said):
    assert said in card.text(replace(bundle.manifest, dataset=dataset))
    assert said not in card.text(replace(bundle.manifest, dataset="mushrooms"))


def test_every_row_of_the_table_has_the_columns_of_its_head(bundle):
    lines = card.text(bundle.manifest).split("## None of these")[0].splitlines()
    rows = [line for line in lines if line.startswith("|")]
    assert len(rows) == 2 + len(bundle.manifest.variants)
    assert len({row.count("|") for row in rows}) == 1


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({}, "fitted on held-out images."),
        ({"temperature": 1.0}, "Confidence is not calibrated"),  # there was nothing to fit it on
        ({"finished": None}, "Confidence is not calibrated"),
        ({"finished": None, "selection_run": {"temperature": 1.5}}, "Confidence is not calibrated"),
        ({"selection_run": {"temperature": 1.5}}, "images of the selection run"),
        ({"trial": {"temperature": 1.5}}, "images of the selection run"),
    ],
)
def test_the_card_says_what_the_temperature_was_fitted_on(bundle, changes, said):
    manifest = replace(bundle.manifest, provenance={**bundle.manifest.provenance, **changes})
    assert said in card.text(manifest)


@pytest.mark.parametrize(
    ("names", "said"),
    [
        ([], "images.\n"),
        (["teacher"], "images, from the labels and from the answers of another run (by the recipe `teacher`).\n"),
        (["teacher", "best"], "of 2 other runs (by the recipe `teacher`, `best`).\n"),
    ],
)
def test_the_card_says_what_the_net_learnt_from(bundle, names, said):
    distillation = {"teachers": [{"recipe": {"name": name}} for name in names]}
    provenance = {**bundle.manifest.provenance, **({"distillation": distillation} if names else {})}
    assert said in card.text(replace(bundle.manifest, provenance=provenance))


def test_figures_name_the_images_that_they_are_of(bundle):
    text = card.text(bundle.manifest)  # 130 test images; agreement is on the 300 training images, too
    assert "on 130 test images" in text
    assert "on 430 images (synthetic test and training)" in text
    first = bundle.manifest.variants[0]
    assert f"| {100 * first.accuracy:.2f} % (" in text


def test_a_bundle_of_before_had_its_accuracy_from_all_images(bundle):
    variants = tuple(
        replace(v, parity={k: x for k, x in v.parity.items() if k != "tested"}) for v in bundle.manifest.variants
    )
    assert "agreement: on 430 images" in card.text(replace(bundle.manifest, variants=variants))


def test_how_well_it_tells_what_it_does_not_know(bundle):
    measured = {"drawn": {"images": 9, "auroc": 0.971, "passed": 0.123}}
    variants = (replace(bundle.manifest.variants[0], familiarity=Familiarity(-1.25, 0.9502, 5000, measured)),)
    text = card.text(replace(bundle.manifest, variants=variants + bundle.manifest.variants[1:]))
    assert "| `fp32` | -1.250 | 95.02 % | 12.30 % | not measured | not measured | 97.10 % | not measured |" in text
    assert "| `edge` | none: too few held-out pictures |" in text
    assert "`torchscript` | none" not in text
    without = card.text(replace(bundle.manifest, contract=replace(bundle.contract, familiarity_name=None)))
    assert "None of these" not in without
    assert "at times with confidence" in without


def test_accuracy_that_was_not_measured(bundle):
    variants = tuple(
        replace(v, accuracy=None, parity={**v.parity, "ece": None, "tested": None}) for v in bundle.manifest.variants
    )
    text = card.text(replace(bundle.manifest, variants=variants))
    assert "Accuracy was not measured" in text
    assert "on 430 images" in text


def test_images_that_were_shown_corrupted_are_said(bundle):
    origin = bundle.manifest.provenance
    manifest = replace(bundle.manifest, provenance={**origin, "recipe": {**origin["recipe"], "corrupted": 0.5}})
    assert "images, 50 % of those shown corrupted." in card.text(manifest)
    assert "corrupted" not in card.text(bundle.manifest)
