"""Corruption spoils the share that it should, each family in its way, and the same again by the same generator."""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from edgecifar.train.corruption import FAMILIES, _places, corrupt
from edgecifar.train.epochs import Material
from edgecifar.train.recipes import FAST
from edgecifar.train.step import epoch_plan

ROOT = Path(__file__).parents[2]


def pictures(count: int, height: int = 32, width: int = 32) -> torch.Tensor:
    """Smooth pictures with an edge: uint8 [count, height, width, 3]."""
    rows, columns = torch.meshgrid(torch.linspace(0, 1, height), torch.linspace(0, 1, width), indexing="ij")
    plane = 0.2 + 0.3 * rows + 0.3 * (columns > 0.5)
    colours = torch.linspace(0.7, 1.2, 3)
    return (255 * plane[..., None] * colours).clamp(0, 255).to(torch.uint8).expand(count, -1, -1, -1).contiguous()


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def apply(family: str, strength: float, count: int = 8) -> tuple[torch.Tensor, torch.Tensor]:
    """Return pictures in [0, 1] before and after a family at one strength."""
    before = pictures(count).permute(0, 3, 1, 2).float() / 255
    return before, FAMILIES[family](before.clone(), torch.full((count, 1, 1, 1), strength), generator())


class TestCorrupt:
    @pytest.mark.parametrize("share", [0.0, 0.25, 0.5, 1.0])
    def test_a_share_is_changed_and_the_others_are_as_they_were(self, share):
        images = pictures(200)
        result = corrupt(images, share, generator())
        changed = (result != images).flatten(1).any(1)
        assert result.dtype == torch.uint8
        assert result.shape == images.shape
        assert 200 * share * 0.9 <= changed.sum() <= 200 * share  # a weak one may change nothing
        assert torch.equal(images, pictures(200))

    def test_every_part_of_a_batch_has_its_share(self):
        changed = (corrupt(pictures(400), 0.5, generator()) != pictures(400)).flatten(1).any(1)
        assert all(40 <= part.sum() <= 50 for part in changed.split(100))

    def test_it_is_a_function_of_the_generator(self):
        images = pictures(60)
        assert torch.equal(corrupt(images, 0.5, generator(1)), corrupt(images, 0.5, generator(1)))
        assert not torch.equal(corrupt(images, 0.5, generator(1)), corrupt(images, 0.5, generator(2)))

    def test_families_get_as_many_each_and_no_picture_the_same_twice(self):
        places = _places(0, 4000, 0.5, len(FAMILIES))
        first, second = places[: len(FAMILIES)], places[len(FAMILIES) :]
        assert [len(some) for _, some in first] == [400] * 5
        assert [len(some) for _, some in second] == [200] * 5
        by_place = {int(place): number for number, some in first for place in some}
        pairs = {(by_place[int(place)], number) for number, some in second for place in some}
        assert len(by_place) == 2000
        assert pairs == {(one, other) for one in range(5) for other in range(5) if one != other}

    @pytest.mark.parametrize(("batch", "share"), [(16, 0.05), (16, 0.1), (20, 0.2), (500, 0.5), (7, 1.0)])
    def test_small_batches_have_their_share_of_every_family_too(self, batch, share):
        found = [pair for first in range(0, 10_000, batch) for pair in _places(first, batch, share, len(FAMILIES))]
        counts = [sum(len(places) for number, places in found if number == family) for family in range(5)]
        assert min(counts) > 0.9 * max(counts)
        assert sum(counts) == pytest.approx(1.5 * share * 10_000, rel=0.05)  # half of them twice

    def test_one_family_alone(self):
        images = pictures(10)
        changed = (corrupt(images, 1.0, generator(), families=["blocks"]) != images).flatten(1).any(1)
        assert changed.sum() >= 8

    @pytest.mark.parametrize("family", FAMILIES)
    @pytest.mark.parametrize(("height", "width"), [(32, 32), (20, 20), (33, 33), (8, 8)])
    def test_any_size(self, family, height, width):
        assert corrupt(pictures(3, height, width), 1.0, generator(), families=[family]).shape == (3, height, width, 3)


class TestFamilies:
    @pytest.mark.parametrize("family", [name for name in FAMILIES if name != "blocks"])
    def test_strength_zero_is_the_picture(self, family):
        before, after = apply(family, 0.0)
        assert torch.allclose(before, after, atol=1e-5)

    @pytest.mark.parametrize("family", FAMILIES)
    def test_stronger_is_farther(self, family):
        (before, weak), (_, strong) = apply(family, 0.2, 64), apply(family, 1.0, 64)
        assert 0 < (weak - before).abs().mean() < (strong - before).abs().mean()

    def test_noise_has_the_deviation_that_it_says(self):
        before = torch.full((64, 3, 32, 32), 0.5)
        after = FAMILIES["noise"](before, torch.ones(64, 1, 1, 1), generator())
        dead = ((after == 0) | (after == 1)).flatten(1).any(1)
        assert 16 < dead.sum() < 48
        after = after[~dead]
        deviations = (after - 0.5).flatten(1).std(1)
        assert 0.07 < deviations.min() < deviations.max() < 0.16
        assert abs(float((after - 0.5).mean())) < 0.002

    def test_motion_keeps_the_light_and_smooths(self):
        before, after = apply("motion", 1.0)
        assert torch.allclose(before.mean((1, 2, 3)), after.mean((1, 2, 3)), atol=0.03)
        assert after.diff(dim=3).abs().amax((1, 2, 3)).mean() < 0.9 * before.diff(dim=3).abs().amax()

    def test_motion_of_a_point_is_a_line_through_it(self):
        point = torch.zeros(16, 1, 15, 15)
        point[:, :, 7, 7] = 1
        after = FAMILIES["motion"](point, torch.ones(16, 1, 1, 1), generator())
        assert torch.allclose(after.sum((1, 2, 3)), torch.ones(16))
        assert (after[:, 0, 7, 7] > 0).all()
        assert torch.allclose(after, after.flip(2, 3), atol=1e-6)  # alike on both sides of the point
        assert ((after > 0).sum((1, 2, 3)) >= 5).all()

    def test_blocks_are_the_picture_up_to_half_a_step(self):
        # The transform keeps lengths, and each of 64 coefficients is off by half a step at most.
        before, after = apply("blocks", 0.1)
        errors = (after - before).view(8, 3, 4, 8, 4, 8).pow(2).sum((3, 5)).sqrt()
        assert 0 < errors.max() <= 8 * 0.03 / 2 + 1e-4

    def test_haze_takes_contrast(self):
        before, after = apply("haze", 1.0)
        assert torch.allclose(after.std((2, 3)), 0.25 * before.std((2, 3)), rtol=1e-3)


def test_what_the_benchmark_measures_is_not_trained_on():
    sys.path.insert(0, str(ROOT / "benchmarks"))
    from accuracy import CORRUPTIONS

    assert not {word for name in CORRUPTIONS for word in name.lower().split()} & {*FAMILIES} - {"noise"}


class TestMaterial:
    @pytest.fixture
    def material(self):
        images, labels = pictures(40), torch.zeros(40, dtype=torch.int64)
        return lambda teacher=None: Material(0, epoch_plan(0, 0, 40, 20, images.device), images, labels, teacher)

    def test_a_teachers_answers_are_to_the_picture_before(self, material):
        taught = material(torch.zeros(40, 10))
        recipe = replace(FAST, corrupted=0.5)
        changed = (taught.shown(0, recipe) != taught.images[taught.plan.batches[0]]).flatten(1).any(1)
        assert 8 <= changed.sum() <= 10
        assert not taught.is_shown_as_it_is(recipe)
        assert taught.is_shown_as_it_is(FAST)
        assert not material().is_shown_as_it_is(FAST)

    def test_over_the_epochs_few_pictures_see_every_family(self, monkeypatch):
        """Three of ten are corrupted in an epoch: by the first three families, were places counted from 0 each time."""
        seen, labels = [], torch.zeros(10, dtype=torch.int64)
        for name, family in FAMILIES.items():
            monkeypatch.setitem(FAMILIES, name, lambda *given, n=name, f=family: seen.append(n) or f(*given))
        recipe = replace(FAST, corrupted=0.3)
        firsts = []
        for epoch in range(4):
            material = Material(epoch, epoch_plan(0, epoch, 10, 5, labels.device), pictures(10), labels)
            for index in range(2):
                material.shown(index, recipe)
            firsts.append(len(seen))
        assert set(seen[: firsts[0]]) == {"noise", "light", "motion"}
        assert set(seen) == {*FAMILIES}
