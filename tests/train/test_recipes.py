"""Recipes hold valid settings, and the reference's are the reference experiment's."""

from __future__ import annotations

from dataclasses import asdict, replace

import pytest

from edgecifar.cli.training import Optimizer, RecipeName
from edgecifar.train.nets import NETS
from edgecifar.train.optimizer import NAMES
from edgecifar.train.recipes import BEST, FAST, RECIPES, REFERENCE, TEACHER, Recipe, RecipeError


def test_reference_is_the_reference_experiment():
    assert asdict(REFERENCE) == {
        "name": "reference",
        "epochs": 50,
        "batch_size": 16,
        "optimizer": "sgd",
        "lr": 1e-3,
        "muon_lr": 0.1,
        "momentum": 0.9,
        "nesterov": False,
        "weight_decay": 0.0,
        "schedule": "constant",
        "warm_up": 0.0,
        "label_smoothing": 0.0,
        "dropout": 0.5,
        "flip": False,
        "translate": 0,
        "cutout": 0,
        "corrupted": 0.0,
        "held_out": 0.0,
        "bfloat16": False,
        "cuda_epochs": 0,
        "net": "net",
        "head_lr": 0.0,
        "balance": False,
    }


@pytest.mark.parametrize(
    ("cuda_epochs", "device", "epochs"), [(0, "cpu", 3), (0, "cuda", 3), (9, "cpu", 3), (9, "cuda", 9), (9, "mps", 3)]
)
def test_epochs_of_a_device(cuda_epochs, device, epochs):
    assert replace(REFERENCE, epochs=3, cuda_epochs=cuda_epochs).on(device).epochs == epochs


def test_command_line_names_every_recipe():
    assert [member.value for member in RecipeName] == list(RECIPES)
    assert [member.value for member in Optimizer] == list(NAMES)


def test_recipes_are_called_as_they_are_named():
    assert RECIPES == {"reference": REFERENCE, "fast": FAST, "best": BEST, "teacher": TEACHER}
    assert all(recipe.name == name for name, recipe in RECIPES.items())


@pytest.mark.parametrize("recipe", RECIPES.values(), ids=RECIPES)
def test_every_recipe_can_be_trained_with(recipe):
    assert recipe.optimizer in NAMES
    assert recipe.net in NETS
    assert recipe.lr > 0
    assert recipe.muon_lr > 0
    assert not recipe.nesterov or recipe.momentum > 0
    assert recipe.held_out <= 0.5


@pytest.mark.parametrize(
    "setting",
    [
        {"epochs": 0},
        {"cuda_epochs": -1},
        {"batch_size": 1},
        {"lr": -0.1},
        {"muon_lr": float("nan")},
        {"momentum": 1.0},
        {"weight_decay": -1.0},
        {"schedule": "cosine"},
        {"warm_up": 1.5},
        {"label_smoothing": 1.0},
        {"dropout": 1.0},
        {"translate": -1},
        {"cutout": -1},
        {"corrupted": 1.1},
        {"held_out": 1.0},
    ],
    ids=str,
)
def test_what_cannot_be_trained_with(setting):
    ((name, value),) = setting.items()
    with pytest.raises(RecipeError, match=f"{name} cannot be {value}"):
        replace(FAST, **setting)


def test_constant_rate_is_constant():
    assert {REFERENCE.lr_factor(step, 1000) for step in range(1000)} == {1}


@pytest.mark.parametrize("warm_up", [0.0, 0.2, 0.5, 1.0])
def test_one_cycle_rises_to_the_rate_and_falls_to_nothing(warm_up):
    steps = 999  # so that step i is done at (i + 1) / 1000
    recipe = replace(FAST, warm_up=warm_up)
    rates = [recipe.lr_factor(step, steps) for step in range(steps)]
    peak = round(1000 * warm_up)
    for step, rate in enumerate(rates, start=1):
        wanted = step / peak if step <= peak else (1000 - step) / (1000 - peak)
        assert rate == pytest.approx(wanted, rel=1e-9)
    if 0 < peak < 1000:
        assert rates[peak - 1] == max(rates) == pytest.approx(1)
        assert rates[-1] == pytest.approx(1 / (1000 - peak))
    assert min(rates) > 0


def test_another_rate_is_one_for_muon_too():
    assert FAST.with_settings({"lr": 0.3}).muon_lr == pytest.approx(2 * FAST.muon_lr)
    assert FAST.with_settings({"lr": 0.3, "muon_lr": 0.7}).muon_lr == 0.7
    assert FAST.with_settings({"epochs": 3}) == replace(FAST, epochs=3)


def test_settings_of_older_and_newer_versions():
    old = {**asdict(FAST), "filter_lr": 0.4, "shift": 3, "colour": "blue"}
    del old["muon_lr"], old["translate"], old["net"]
    settings, unknown = Recipe.known(old)
    assert Recipe(**settings) == replace(FAST, muon_lr=0.4, translate=3)
    assert unknown == ("colour",)
