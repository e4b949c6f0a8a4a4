"""Metrics against values worked out by hand and against slow, independent computations."""

from __future__ import annotations

import json
import math
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as npst

from edgecifar.runtime.contract import CIFAR10
from edgecifar.runtime.metrics import evaluate, expected_calibration_error, score, wilson_interval

LABELS = CIFAR10.labels


def rows(*confident: tuple[int, float]) -> np.ndarray:
    """float32 [N, 10]: each row gives one class a probability and shares the rest among the others."""
    made = np.array([[(1 - p) / 9] * 10 for _, p in confident])
    for row, (index, p) in zip(made, confident, strict=True):
        row[index] = p
    return made.astype(np.float32)


def slow_ece(probabilities: np.ndarray, labels: np.ndarray, bins: int) -> float:
    """Equation 3 of Guo et al., word by word, in exact arithmetic."""
    total = Fraction(0)
    for index in range(bins):
        inside = []
        for row, label in zip(probabilities, labels, strict=True):
            confidence = Fraction(float(max(row)))
            low, high = Fraction(index, bins), Fraction(index + 1, bins)
            if low < confidence <= high or (index == 0 and confidence == 0):
                inside.append((confidence, int(list(row).index(max(row)) == label)))
        if inside:
            mean_confidence = sum(confidence for confidence, _ in inside) / len(inside)
            accuracy = Fraction(sum(correct for _, correct in inside), len(inside))
            total += Fraction(len(inside), len(labels)) * abs(accuracy - mean_confidence)
    return float(total)


class TestScore:
    def test_by_hand(self):
        probabilities = rows((0, 0.5), (0, 0.75), (3, 1.0), (9, 0.25))
        result = score(probabilities, np.array([0, 1, 3, 9]), LABELS, seconds=0.5)
        assert (result.images, result.correct, result.accuracy) == (4, 3, 0.75)
        assert result.images_per_second == 8.0
        assert result.predictions.tolist() == [0, 0, 3, 9]
        confusion = np.zeros((10, 10), int)
        confusion[0, 0] = confusion[1, 0] = confusion[3, 3] = confusion[9, 9] = 1
        assert result.confusion.tolist() == confusion.tolist()
        assert result.confusion.dtype == np.int64
        # -ln 0.5, -ln of the 0.25/9 that the true class 1 got, -ln 1, -ln 0.25
        assert result.nll == pytest.approx((math.log(2) + math.log(36) + 0 + math.log(4)) / 4, rel=1e-7)
        # each in a bin of its own: |0.5 - 1|, |0.75 - 0|, |1 - 1|, |0.25 - 1|
        assert result.ece == (0.5 + 0.75 + 0.0 + 0.75) / 4

    def test_row_is_the_truth_and_column_the_prediction(self):
        result = score(rows((2, 0.9), (2, 0.9), (7, 0.9)), np.array([5, 5, 2]), LABELS, 1.0)
        assert (result.confusion[5, 2], result.confusion[2, 7], result.confusion.sum()) == (2, 1, 3)

    def test_per_class(self):
        result = score(rows((0, 0.9), (1, 0.9), (1, 0.9), (1, 0.9)), np.array([0, 0, 1, 1]), LABELS, 1.0)
        assert tuple(result.per_class) == LABELS
        assert result.per_class["plane"] == 0.5
        assert result.per_class["car"] == 1.0
        assert all(math.isnan(result.per_class[label]) for label in LABELS[2:])

    def test_other_classes(self):
        probabilities = np.array([[0.9, 0.1], [0.8, 0.2], [0.3, 0.7]], np.float32)
        result = score(probabilities, np.array([0, 1, 1]), ["ja", "nein"], 1.0)
        assert result.per_class == {"ja": 1.0, "nein": 0.5}
        assert result.confusion.tolist() == [[1, 0], [1, 1]]

    def test_json(self):
        result = score(rows((0, 0.5), (1, 0.5)), np.array([0, 2]), LABELS, 1.0)
        document = json.loads(json.dumps(result.as_json(), allow_nan=False))
        assert document["per_class"] == {"plane": 1.0, "car": None, "bird": 0.0} | dict.fromkeys(LABELS[3:])
        assert document["confusion"] == result.confusion.tolist()
        assert {key: document[key] for key in ("images", "correct", "accuracy", "ece", "images_per_second")} == {
            "images": 2,
            "correct": 1,
            "accuracy": 0.5,
            "ece": 0.0,  # both in one bin, whose confidence and accuracy are 0.5
            "images_per_second": 2.0,
        }
        assert document["nll"] == pytest.approx((math.log(2) + math.log(18)) / 2, rel=1e-7)
        assert "predictions" not in document

    def test_a_probability_of_zero_costs_much_but_not_infinity(self):
        result = score(rows((0, 1.0)), np.array([1]), LABELS, 1.0)
        assert result.nll == pytest.approx(126 * math.log(2), rel=1e-12)  # float32's smallest normal number is 2**-126

    def test_no_time_at_all(self):
        assert score(rows((0, 1.0)), np.array([0]), LABELS, 0.0).images_per_second == pytest.approx(1e9)

    @given(st.data())
    @settings(max_examples=50, deadline=None)
    def test_against_a_slow_computation(self, data):
        count = data.draw(st.integers(1, 30))
        raw = data.draw(npst.arrays(np.float32, (count, 10), elements=st.floats(0, 1, width=32)))
        raw[:, data.draw(st.integers(0, 9))] += np.float32(0.1)
        probabilities = raw / raw.sum(1, keepdims=True)
        labels = data.draw(npst.arrays(np.int64, count, elements=st.integers(0, 9)))
        result = score(probabilities, labels, LABELS, 1.0)
        table = [[0] * 10 for _ in range(10)]
        costs = []
        for row, label in zip(probabilities.tolist(), labels.tolist(), strict=True):
            table[label][row.index(max(row))] += 1
            costs.append(-math.log(max(row[label], 2.0**-126)))
        assert result.confusion.tolist() == table
        assert result.correct == sum(table[k][k] for k in range(10))
        assert result.nll == pytest.approx(math.fsum(costs) / count, rel=1e-12, abs=1e-15)
        assert result.ece == pytest.approx(slow_ece(probabilities, labels, 15), abs=1e-12)
        for label, recall in result.per_class.items():
            row = table[LABELS.index(label)]
            if sum(row):
                assert recall == row[LABELS.index(label)] / sum(row)
            else:
                assert math.isnan(recall)


class TestCalibration:
    def test_perfect(self):
        probabilities = rows(*[(0, 0.75)] * 4)
        assert expected_calibration_error(probabilities, np.array([0, 0, 0, 1])) == 0.0

    def test_always_wrong_and_sure(self):
        assert expected_calibration_error(rows((0, 1.0), (1, 1.0)), np.array([1, 0])) == 1.0

    def test_errors_in_one_bin_cancel_and_across_bins_do_not(self):
        near = rows((0, 0.5), (0, 0.53125))  # both in (7/15, 8/15]
        apart = rows((0, 0.5), (0, 0.5625))  # in bins side by side
        assert expected_calibration_error(near, np.array([0, 1])) == 0.03125 / 2
        assert expected_calibration_error(apart, np.array([0, 1])) == (0.5 + 0.5625) / 2

    @pytest.mark.parametrize("bins", [1, 2, 4, 10, 15])
    def test_the_upper_edge_belongs_to_the_bin(self, bins):
        # With 4 bins 0.5 lies with 0.4375, not with 0.5625.
        probabilities = rows((0, 0.5), (0, 0.4375), (0, 0.5625), (0, 0.25), (0, 1.0))
        labels = np.array([0, 1, 1, 0, 0])
        assert expected_calibration_error(probabilities, labels, bins) == pytest.approx(
            slow_ece(probabilities, labels, bins), abs=1e-12
        )

    def test_four_bins_by_hand(self):
        probabilities = rows((0, 0.5), (0, 0.4375), (0, 0.5625))
        # (0.5 - 1 + 0.4375 - 0) in one bin, 0.5625 - 0 in the next
        assert expected_calibration_error(probabilities, np.array([0, 1, 1]), 4) == (0.0625 + 0.5625) / 3


class TestEvaluate:
    def test_batches_order_and_progress(self):
        images = np.zeros((7, 32, 32, 3), np.uint8)
        images[:, 0, 0, 0] = range(7)
        sizes, done = [], []

        def classify(batch: np.ndarray) -> np.ndarray:
            sizes.append(len(batch))
            return rows(*[(int(image[0, 0, 0]), 0.9) for image in batch])

        result = evaluate(classify, images, np.array([0, 1, 2, 3, 4, 5, 0]), LABELS, batch_size=3, progress=done.append)
        assert sizes == [1, 3, 3, 1]  # the first call only warms up
        assert done == [3, 6, 7]
        assert result.predictions.tolist() == list(range(7))
        assert (result.images, result.correct) == (7, 6)
        assert result.images_per_second > 0


class TestIntervals:
    @pytest.mark.parametrize(
        ("correct", "images", "low", "high"),
        [  # of Brown, Cai and DasGupta's formula, worked out by hand to four digits
            (0, 10, 0.0, 0.2775),
            (10, 10, 0.7225, 1.0),
            (8, 10, 0.4902, 0.9433),
            (1, 2, 0.0945, 0.9055),
            (9_130, 10_000, 0.9073, 0.9184),
        ],
    )
    def test_wilson(self, correct, images, low, high):
        assert wilson_interval(correct, images) == pytest.approx((low, high), abs=1e-4)

    def test_wilsons_limits_solve_his_equation(self):
        for correct, images in ((3, 17), (50, 60), (1, 1_000)):
            for limit in wilson_interval(correct, images):  # |share - p| = z * standard error of p
                assert abs(correct / images - limit) == pytest.approx(
                    1.959964 * math.sqrt(limit * (1 - limit) / images)
                )

    def test_no_images(self):
        assert all(math.isnan(limit) for limit in wilson_interval(0, 0))

    def test_covers_the_truth_nearly_always(self):
        found = np.random.default_rng(0).binomial(40, 0.9, 2_000)
        covered = [low <= 0.9 <= high for low, high in (wilson_interval(int(one), 40) for one in found)]
        assert 0.93 < np.mean(covered) < 0.98


class TestUnequalClasses:
    LABELS_ = np.array([0] * 90 + [1] * 10)

    def result(self, predicted):
        return score(np.eye(3, dtype=np.float32)[predicted], self.LABELS_, ("many", "few", "none"), seconds=1)

    def test_a_classifier_that_always_says_the_large_class(self):
        result = self.result(np.zeros(100, int))
        assert (result.accuracy, result.balanced_accuracy) == (0.9, 0.5)
        assert not result.is_balanced
        assert json.loads(json.dumps(result.as_json()))["balanced_accuracy"] == 0.5

    def test_equal_classes(self):
        result = score(rows((0, 0.5), (0, 0.75)), np.array([0, 1]), LABELS[:2], seconds=1)
        assert result.is_balanced
        assert result.balanced_accuracy == result.accuracy

    def test_intervals_hold_their_figures(self):
        result = self.result(np.array([0] * 80 + [1] * 20))
        low, high = result.balanced_interval
        assert low < result.balanced_accuracy < high
        assert high - low > result.interval[1] - result.interval[0]  # ten pictures decide half of it
        per_class = result.per_class_interval
        assert per_class["few"] == wilson_interval(10, 10)
        assert all(math.isnan(limit) for limit in per_class["none"])
        assert result.as_json()["per_class_interval"]["none"] is None

    def test_one_class_alone_has_wilsons_own(self):
        result = score(rows((0, 0.5), (1, 0.75)), np.array([0, 0]), LABELS, seconds=1)
        assert result.balanced_interval == pytest.approx(wilson_interval(1, 2))
