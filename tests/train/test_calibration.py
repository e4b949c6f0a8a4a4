"""The fitted temperature is the one that a grid finds, whatever the logits are; a sharpness does what one cannot."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from edgecifar.train.calibration import Sharpness, fit_sharpness, fit_temperature


def drawn(temperature: float, count: int = 20_000, spread: float = 3.0) -> tuple[np.ndarray, np.ndarray]:
    """Logits that are calibrated at `temperature`, with labels drawn by them."""
    rng = np.random.default_rng(0)
    true = rng.normal(0, spread, (count, 10))
    labels = (true + rng.gumbel(size=true.shape)).argmax(1)  # a draw from softmax(true)
    return (true * temperature).astype(np.float32), labels


def loss(logits: np.ndarray, labels: np.ndarray, temperature: float) -> float:
    z = logits.astype(np.float64) / temperature
    z -= z.max(1, keepdims=True)
    return float((np.log(np.exp(z).sum(1)) - z[np.arange(len(labels)), labels]).mean())


@pytest.mark.parametrize("temperature", [0.2, 0.7, 1.0, 1.5, 4.0, 12.0])
def test_known_temperature_is_recovered(temperature):
    assert fit_temperature(*drawn(temperature)) == pytest.approx(temperature, rel=0.03)


@pytest.mark.parametrize("temperature", [0.4, 1.0, 3.0])
def test_no_temperature_of_a_grid_is_better(temperature):
    logits, labels = drawn(temperature, 500)
    fitted = fit_temperature(logits, labels)
    grid = np.geomspace(0.05, 20, 2001)
    losses = [loss(logits, labels, other) for other in grid]
    assert loss(logits, labels, fitted) <= min(losses)
    assert fitted == pytest.approx(grid[int(np.argmin(losses))], rel=0.004)  # the grid's step is 0.3 %


@settings(max_examples=60, deadline=None)
@given(
    seed=st.integers(0, 1000),
    scale=st.sampled_from([1e-6, 1e-2, 1, 30, 1e3, 1e6, 1e30]),
    right=st.floats(0, 1),
    count=st.integers(1, 40),
)
def test_extreme_logits_give_the_best_temperature_within_the_bounds(seed, scale, right, count):
    rng = np.random.default_rng(seed)
    logits = (rng.normal(0, 1, (count, 10)) * scale * rng.choice([0.1, 1, 10], (count, 1))).astype(np.float32)
    labels = np.where(rng.random(count) < right, logits.argmax(1), rng.integers(0, 10, count))
    fitted = fit_temperature(logits, labels)
    if (logits.max(1) == logits[np.arange(count), labels]).all():
        assert fitted == 1
        return
    assert 0.05 <= fitted <= 20 * (1 + 1e-12)
    best = loss(logits, labels, fitted)
    for other in np.geomspace(0.05, 20, 41):
        assert best <= loss(logits, labels, other) * (1 + 1e-9) + 1e-12


def test_all_right_says_nothing_and_all_wrong_is_as_unsure_as_the_bounds_allow():
    logits = np.eye(10, dtype=np.float32)
    assert fit_temperature(logits, np.arange(10)) == 1
    assert fit_temperature(logits, (np.arange(10) + 1) % 10) == pytest.approx(20)


def test_overconfident_mistakes_do_not_run_into_a_bound():
    """Newton's method from 1 jumps over the minimum here."""
    logits = np.zeros((10, 10), np.float32)
    logits[:, 0] = 30
    labels = np.array([0] * 6 + [1] * 4)  # 60 % right at any confidence: p(0) = 0.6 is best
    fitted = fit_temperature(logits, labels)
    assert 1 / (1 + 9 * np.exp(-30 / fitted)) == pytest.approx(0.6, abs=1e-9)


def test_the_logits_are_left_alone():
    logits = np.arange(20.0).reshape(2, 10)
    before = logits.copy()
    fit_temperature(logits, np.array([3, 4]))
    assert np.array_equal(logits, before)


class TestSharpness:
    @staticmethod
    def too_sure_in_the_middle() -> tuple[np.ndarray, np.ndarray]:
        """Logits that are right about the sure pictures and too sure of the others, as a small student's are."""
        logits, labels = drawn(1.0, 20_000)
        ordered = np.sort(logits, 1)
        gap = (ordered[:, -1] - ordered[:, -2])[:, None]
        return (logits * (1 + 0.8 * np.exp(-((gap - 2) ** 2)))).astype(np.float32), labels

    @staticmethod
    def calibration_error(logits: torch.Tensor, labels: np.ndarray) -> float:
        sure, chosen = logits.softmax(1).max(1)
        bins, right = (sure * 15).long().clamp(max=14), chosen == torch.from_numpy(labels)
        return sum(float((sure - right.double())[bins == one].sum().abs()) for one in range(15)) / len(labels)

    def test_it_mends_what_a_temperature_cannot(self):
        logits, labels = self.too_sure_in_the_middle()
        half = len(labels) // 2
        temperature = fit_temperature(logits[:half], labels[:half])
        sharpness = fit_sharpness(logits[:half], labels[:half], temperature)
        assert sharpness is not None
        others = torch.from_numpy(logits[half:]).double()
        before = self.calibration_error(others / temperature, labels[half:])
        after = self.calibration_error(others * sharpness(others) / temperature, labels[half:])
        assert after < 0.6 * before

    def test_what_is_calibrated_stays_as_it_is(self):
        logits, labels = drawn(2.0)
        sharpness = fit_sharpness(logits, labels, 2.0)
        assert sharpness is not None
        factors = sharpness(torch.from_numpy(logits))
        assert factors.shape == (len(logits), 1)
        assert float((factors - 1).abs().mean()) < 0.05

    def test_classes_stay_and_a_wider_gap_stays_wider(self):
        logits, labels = self.too_sure_in_the_middle()
        sharpness = fit_sharpness(logits, labels, 1.0)
        assert sharpness is not None
        wide = 3 * torch.from_numpy(logits)  # gaps that were not fitted on, too
        sharp = wide * sharpness(wide)
        assert torch.equal(sharp.argmax(1), wide.argmax(1))
        order = (wide.topk(2).values @ torch.tensor([1.0, -1.0])).argsort()
        gaps = (sharp.topk(2).values @ torch.tensor([1.0, -1.0]))[order]
        assert (gaps.diff() > -1e-4).all()

    def test_there_is_none_where_it_would_say_nothing(self):
        logits, labels = drawn(1.0, 999)
        assert fit_sharpness(logits, labels, 1.0) is None
        logits, _ = drawn(1.0, 2_000)
        assert fit_sharpness(logits, logits.argmax(1), 1.0) is None

    @pytest.mark.parametrize(
        ("coefficients", "sound"),
        [((1.0, 0.0, 0.0), True), ((1.3, -0.2, 0.06), True), ((1.0, -0.2, 0.0), False), ((-1.0, 0.0, 0.0), False)],
    )
    def test_what_would_narrow_a_wider_gap_is_not_sound(self, coefficients, sound):
        assert Sharpness(coefficients, 5.0).is_sound is sound
