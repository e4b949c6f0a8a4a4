"""What a recipe becomes for few pictures and for classes of unequal size."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from torch.nn import functional

from edgecifar.runtime.errors import DataError
from edgecifar.train import loop, start
from edgecifar.train.adapting import adapt, held_out_remark, imbalance
from edgecifar.train.answers import distillation_loss
from edgecifar.train.recipes import FAST, REFERENCE, RecipeError
from edgecifar.train.run import Run
from edgecifar.train.step import class_weights, weighted_cross_entropy


@pytest.fixture
def own(tiny):
    """An own data set of so many training images, of two classes in these shares; one in ten is held out."""

    def make(images: int, small: float = 0.5):
        labels = np.arange(images) >= images * (1 - small)
        picked = np.arange(images) % len(tiny.train_images)
        return replace(
            tiny,
            train_images=tiny.train_images[picked],
            train_labels=labels.astype(np.int64),
            validation=np.flatnonzero(np.arange(images) % 10 == 0),
            origin={"layout": "folders"},
        )

    return make


def test_the_validation_share_of_own_pictures_is_not_the_recipe_s(own, tiny):
    given = ("held_out",)
    with pytest.raises(RecipeError, match="val"):
        adapt(replace(FAST, held_out=0.3), own(1_000), given)
    assert adapt(replace(FAST, held_out=0.0), own(1_000), given).held_out == 0
    assert adapt(replace(FAST, held_out=0.3), tiny, given).held_out == 0.3


def test_a_rate_of_zero_stays_zero(own):
    still = FAST.with_settings({"lr": 0.0})
    adapted = adapt(still, own(1_000), ("lr",))
    assert adapted.batch_size == 90
    assert (adapted.lr, adapted.muon_lr, adapted.head_lr) == (0, 0, 0)


def test_advice_suits_the_split(own, lines):
    few = own(600)
    adapt(FAST, replace(few, origin={"options": {"val": 0.1, "test": 0.1}}), ())
    assert "--val" in lines()[-1]
    adapt(FAST, replace(few, origin={"options": {}}), ())
    assert "--val" not in lines()[-1]


def test_recipes_are_made_for_cifar10(tiny):
    assert not tiny.is_own
    assert adapt(FAST, tiny, ()) is FAST


@pytest.mark.parametrize(
    ("images", "batch_size", "epochs"),
    [
        (60, 16, 125),  # 54 are trained on: 4 steps an epoch
        (1_000, 90, 50),
        (3_000, 270, 50),
        (50_000, 512, 6),  # 88 steps an epoch
        (500_000, 512, 2),
    ],
)
def test_few_pictures_have_smaller_batches_and_more_epochs(own, images, batch_size, epochs, lines):
    adapted = adapt(FAST, own(images), ())
    assert (adapted.batch_size, adapted.epochs) == (batch_size, epochs)
    share = (batch_size / FAST.batch_size) ** 0.5
    assert (adapted.lr, adapted.muon_lr) == pytest.approx((share * FAST.lr, share * FAST.muon_lr))
    assert replace(adapted, lr=FAST.lr, muon_lr=FAST.muon_lr) == replace(FAST, batch_size=batch_size, epochs=epochs)
    trained_on = images * 9 // 10
    assert adapted.epochs * -(-trained_on // batch_size) >= 500
    said = "\n".join(lines())
    assert ("adapted" in said) == (adapted != FAST)


def test_what_somebody_set_stays(own, lines):
    adapted = adapt(replace(FAST, epochs=3), own(100), {"epochs"})
    assert (adapted.epochs, adapted.batch_size) == (3, 16)
    assert adapt(FAST, own(100), {"epochs", "batch_size"}) == FAST


def test_a_recipe_that_takes_steps_enough_stays(own):
    assert adapt(REFERENCE, own(5_000), {"held_out"}) == REFERENCE


class TestValidation:
    """Every recipe holds the validation split of own pictures out unless somebody says otherwise."""

    def test_a_recipe_that_holds_nothing_of_cifar10_out_does_too(self, own, lines):
        dataset = own(5_000)
        adapted = adapt(REFERENCE, dataset, ())
        assert adapted == replace(REFERENCE, held_out=0.1)
        assert len(dataset.hold_out(adapted.held_out)[1]) == 500
        assert "500 pictures of the validation split are held out" in "\n".join(lines())

    def test_somebody_may_train_on_it_but_not_choose_its_size_too(self, own):
        dataset = replace(own(5_000), origin={"options": {"val": 0.2, "test": 0.1}})
        assert adapt(REFERENCE, dataset, {"held_out"}).held_out == 0
        with pytest.raises(RecipeError, match="val"):
            adapt(REFERENCE, dataset, {"held_out", "val"})

    def test_without_one_nothing_is_held_out(self, own, lines):
        assert adapt(REFERENCE, replace(own(5_000), validation=np.array([], int)), ()).held_out == 0
        assert "validation split" not in "\n".join(lines())


@pytest.mark.parametrize("option", ["fit", "val", "test", "strict"])
def test_options_of_own_pictures_are_for_them_alone(own, tiny, option):
    with pytest.raises(RecipeError, match=f"{option}.*synthetic"):
        adapt(FAST, tiny, {option, "epochs"})
    adapt(FAST, replace(own(500), origin={"options": {"fit": "crop", "val": 0.1, "test": 0.1}}), {option})


@pytest.mark.parametrize(
    ("named", "refused"),
    [
        ("synthetic", True),
        (None, True),
        ("cifar", True),
        ("cifar/cifar-10-batches-py", True),
        ("empty", True),
        ("own", False),
    ],
)
def test_they_are_refused_before_anything_is_read_or_downloaded(tmp_path, monkeypatch, named, refused):
    (tmp_path / "cifar" / "cifar-10-batches-py").mkdir(parents=True)
    (tmp_path / "own" / "cats").mkdir(parents=True)
    (tmp_path / "empty").mkdir()
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("EDGECIFAR_DATA", raising=False)
    monkeypatch.setattr(start.datasets, "load", lambda *_, **__: (_ for _ in ()).throw(DataError("was read.")))
    request = start.TrainingRequest(data=named, pictures={"fit": "pad"}, device="cpu")
    with pytest.raises(RecipeError if refused else DataError, match="fit" if refused else "was read"):
        start.start(request, lambda plan: pytest.fail("it trains"))


@pytest.mark.parametrize(("option", "refused"), [("val", False), ("test", True), ("fit", False), ("strict", False)])
def test_shares_of_a_split_that_is_given_are_refused(own, option, refused):
    """A folder with train and test, from which a validation split is made."""
    dataset = replace(own(500), origin={"options": {"fit": "crop", "val": 0.1, "strict": False}})
    if not refused:
        adapt(FAST, dataset, {option})
        return
    with pytest.raises(RecipeError, match=option):
        adapt(FAST, dataset, {option})


@pytest.mark.parametrize(("small", "balanced"), [(0.5, False), (0.3, False), (0.2, True)])
def test_unequal_classes_are_balanced_beyond_three_to_one(own, small, balanced):
    assert adapt(FAST, own(1_000, small), ()).balance == balanced
    assert not adapt(FAST, own(1_000, small), {"balance"}).balance


def test_imbalance():
    assert imbalance(np.array([5, 5, 5, 2])) == 3


def test_a_small_held_out_set_is_said(own, lines):
    adapt(FAST, own(1_000), ())
    (said,) = [line for line in lines() if "held out for decisions" in line]
    assert "100 pictures" in said
    assert "1.0 points" in said
    adapt(FAST, own(5_000), ())
    assert not [line for line in lines() if "held out for decisions" in line]
    adapt(REFERENCE, own(1_000), {"held_out"})
    assert not [line for line in lines() if "held out" in line]


def test_the_remark_depends_on_the_budget():
    assert held_out_remark(5_000, 0.2) == ""
    assert held_out_remark(40, 200) == ""
    assert "40 pictures" in held_out_remark(40, 0.2)
    assert "no pictures" in held_out_remark(0, 0.2).lower()


class TestWeights:
    def test_classes_count_the_same_and_images_one_on_average(self):
        labels = np.array([0] * 6 + [1] * 2)
        weights = class_weights(labels, 3)
        assert weights.tolist() == pytest.approx([8 / 12, 2.0, 0.0])
        assert weights[labels].mean().item() == pytest.approx(1)
        assert (weights[labels][:6].sum() / weights[labels][6:].sum()).item() == pytest.approx(1)

    def test_without_weights_the_loss_is_torchs_to_the_bit(self):
        logits, labels = torch.randn(8, 3), torch.arange(8) % 3
        assert weighted_cross_entropy(logits, labels, None, 0.1) == functional.cross_entropy(
            logits, labels, label_smoothing=0.1
        )

    @pytest.mark.parametrize("smoothing", [0.0, 0.1])
    def test_a_weight_of_two_is_as_if_the_image_came_twice(self, smoothing):
        logits, labels = torch.randn(3, 4, dtype=torch.double), torch.tensor([0, 1, 2])
        weights = torch.tensor([0.75, 0.75, 1.5], dtype=torch.double)
        twice = torch.tensor([0, 1, 2, 2])
        wanted = functional.cross_entropy(logits[twice], labels[twice], label_smoothing=smoothing)
        torch.testing.assert_close(weighted_cross_entropy(logits, labels, weights, smoothing), wanted)
        teacher = torch.randn(3, 4, dtype=torch.double)
        torch.testing.assert_close(
            distillation_loss(logits, teacher, labels, smoothing, weights),
            distillation_loss(logits[twice], teacher[twice], labels[twice], smoothing),
        )


def test_a_balanced_run_differs_resumes_and_is_recorded(own, recipe, tmp_path, no_plots, stopper):
    dataset, balanced = own(40, 0.2), replace(recipe, balance=True)
    loop.train(recipe, dataset, tmp_path / "plain")
    loop.train(balanced, dataset, tmp_path / "balanced")
    with pytest.raises(KeyboardInterrupt):
        loop.train(balanced, dataset, tmp_path / "cut", loop.TrainingOptions(listener=stopper("epoch", 2)))
    loop.resume(Run(tmp_path / "cut"), dataset)
    plain, balanced_, cut = (Run(tmp_path / name).record for name in ("plain", "balanced", "cut"))
    assert balanced_.recipe.balance
    assert cut.weights_sha256 == balanced_.weights_sha256 != plain.weights_sha256


def test_of_equal_classes_balancing_changes_only_rounding(own, recipe, tmp_path, no_plots):
    dataset = replace(own(40), validation=np.arange(0, 40, 4))
    for name, balance in (("plain", False), ("balanced", True)):
        loop.train(replace(recipe, balance=balance), dataset, tmp_path / name)
    plain, balanced = (Run(tmp_path / name).net().state_dict() for name in ("plain", "balanced"))
    for name in plain:
        torch.testing.assert_close(plain[name], balanced[name], rtol=1e-3, atol=1e-4)
