"""Other pictures: kinds that share nothing, scores by their formulas, and a bundle whose figures can be computed."""

from __future__ import annotations

import sys
from dataclasses import replace

import numpy as np
import pytest
import unknown
import unknown_kinds
import unknown_scores
from unknown_kinds import REPORTED, TUNING, Kind
from unknown_scores import OURS, Answers

from edgecifar.runtime.contract import Contract
from edgecifar.runtime.errors import EdgecifarError

CONTRACT = Contract(("a", "b"), 16)
DRAWN = [kind for kind in (*TUNING, *REPORTED) if kind.make.func is unknown_kinds.drawn]


class TestKinds:
    def test_what_is_tuned_on_is_not_reported(self):
        made = {kinds: [kind.make.keywords for kind in kinds] for kinds in (TUNING, REPORTED)}
        folders, ranges = (
            {kinds: [value for given in made[kinds] for value in given.get(name, ())] for kinds in made}
            for name in ("folders", "ranges")
        )
        assert not set(folders[TUNING]) & set(folders[REPORTED])
        codes = [{c for first, last in ranges[kinds] for c in range(first, last + 1)} for kinds in (TUNING, REPORTED)]
        assert not codes[0] & codes[1]
        drawers = [{given.get("draw") for given in made[kinds]} - {None} for kinds in (TUNING, REPORTED)]
        assert not drawers[0] & drawers[1]
        assert len(drawers[0]) + len(drawers[1]) == len(DRAWN)

    @pytest.mark.parametrize("kind", DRAWN, ids=lambda kind: kind.name)
    def test_drawn_the_same_each_time_and_no_two_alike(self, kind, monkeypatch):
        monkeypatch.setattr(unknown_kinds, "DRAWN", 4)
        found = kind.make(CONTRACT)
        assert found.dtype == np.uint8
        assert found.shape == (4, 16, 16, 3)
        assert (found == kind.make(CONTRACT)).all()
        assert len({picture.tobytes() for picture in found}) == 4

    @pytest.mark.parametrize(("name", "package"), [("STAMPS", "tuxpaint"), ("EMOJI", "fonts-noto")])
    def test_a_missing_package_is_named(self, name, package, monkeypatch, tmp_path):
        monkeypatch.setattr(unknown_kinds, name, tmp_path / "none")
        kind = next(kind for kind in TUNING if kind.make.func is getattr(unknown_kinds, name.lower()))
        with pytest.raises(EdgecifarError, match=package):
            kind.make(CONTRACT)


def answers(hidden, logits):
    powers = np.exp(logits - logits.max(1, keepdims=True))
    return Answers(powers / powers.sum(1, keepdims=True), logits, hidden[:, 0], hidden)


@pytest.fixture(scope="module")
def found():
    rng = np.random.default_rng(0)
    labels = np.arange(300) % 3
    weight, bias = np.eye(3, 6) * 4, np.zeros(3)
    hidden = np.abs(rng.normal(0, 0.2, (300, 6))) + 2 * np.eye(3, 6)[labels]
    scores = unknown_scores.scores_of(answers(hidden, hidden @ weight.T), labels, weight, bias)
    known = np.abs(rng.normal(0, 0.2, (60, 6))) + 2 * np.eye(3, 6)[np.arange(60) % 3]
    other = np.abs(rng.normal(0, 0.2, (60, 6))) + np.eye(6)[3 + np.arange(60) % 3]
    return scores, answers(known, known @ weight.T), answers(other, other @ weight.T)


class TestScores:
    @pytest.mark.parametrize("name", ["max-softmax", "energy", "GEN", "fDBD", "ViM", "KNN", "class means", OURS])
    def test_known_ones_score_higher(self, found, name):
        scores, known, other = found
        assert unknown.figures(scores[name](known), scores[name](other))["auroc"] > 0.7

    def test_formulas(self, found):
        scores, known, _ = found
        logits = known.logits
        np.testing.assert_allclose(scores["energy"](known), np.log(np.exp(logits).sum(1)), rtol=1e-6)
        np.testing.assert_allclose(scores["max-softmax"](known), known.probabilities.max(1))
        p = known.probabilities
        np.testing.assert_allclose(scores["GEN"](known), -((p * (1 - p)) ** 0.1).sum(1), rtol=1e-6)
        assert scores["class means"](known).max() <= 1 + 1e-9
        assert (scores[OURS](known) == known.hidden[:, 0]).all()

    def test_an_array_of_other_pictures_of_any_length(self, found):
        scores, known, _ = found
        for name, score in scores.items():
            np.testing.assert_allclose(score(known[:7]), score(known)[:7], rtol=1e-5, err_msg=name)


def test_rejections():
    logits = np.array([[1.0, 0], [1, 0], [0, 1], [0, 1]])
    given = Answers(logits, logits, np.array([5.0, 1, 5, 1]), logits)
    found = unknown.rejections(given, np.array([0, 0, 1, 0]), threshold=2.0)
    assert found == {"images": 4, "accuracy": 0.75, "passed": 0.5, "right_rejected": 1 / 3, "wrong_rejected": 1.0}
    assert "passed" not in unknown.rejections(given, np.array([0, 0, 1, 0]), None)


class TestFar:
    def test_a_row_a_variant(self, bundle, small, monkeypatch):
        monkeypatch.setattr(unknown_kinds, "DRAWN", 6)
        monkeypatch.setattr(unknown, "NOISE", {"gaussian noise": (5,)})
        kinds = [Kind(kind.name, kind.make) for kind in DRAWN[:2]]
        rows = unknown.far(bundle, small, kinds, 60)
        assert [row["model"] for row in rows] == ["fp32", "edge"]
        for row in rows:
            assert row["images"] == 12
            assert set(row["scores"][OURS]["kinds"]) == {kind.name for kind in kinds}
            assert row["auroc"] == row["scores"][OURS]["auroc"]
            assert row["threshold"] is row["passed"] is None  # 120 held-out pictures are too few
        text = unknown.far_table(rows)
        assert all(name in text for name in ("fDBD", "gaussian noise, severity 5", DRAWN[0].name))

    def test_a_bundle_of_other_classes(self, tiny, small):
        """Its accuracy was that by numbers of classes which mean others."""
        other = replace(small, contract=replace(small.contract, labels=small.contract.labels[::-1]))
        with pytest.raises(EdgecifarError, match="other classes"):
            unknown.far(unknown.Bundle.open(tiny), other, [], 10)

    def test_a_bundle_without_the_score(self, tiny):
        with pytest.raises(EdgecifarError, match="familiarity"):
            unknown.Probe(unknown.Bundle.open(tiny), unknown.Bundle.open(tiny).variant())


def test_six_classes_of_ten(small):
    part = unknown.part_of(small, (9, 2, 5))
    assert part.contract.labels == tuple(small.contract.labels[label] for label in (9, 2, 5))
    assert set(part.train_labels) == {0, 1, 2}
    first = np.flatnonzero(np.isin(small.test_labels, (9, 2, 5)))[0]
    assert (part.test_images[0] == small.test_images[first]).all()
    assert part.contract.labels[part.test_labels[0]] == small.contract.labels[small.test_labels[first]]
    assert part.digest != unknown.part_of(small, (9, 2, 4)).digest


def test_the_splits_know_six_classes_each():
    assert all(len(set(known)) == 6 and set(known) < set(range(10)) for known in unknown.SPLITS)


@pytest.mark.parametrize("arguments", [["--splits", "6"], ["--images", "0"], ["--kinds", "mine"]])
def test_wrong_usage(arguments, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["unknown.py", *arguments])
    with pytest.raises(SystemExit) as stopped:
        unknown.main()
    assert stopped.value.code == 2


def test_near_of_a_table():
    found = {"auroc": 0.8, "fpr95": 0.5, "kinds": {}}
    rows = [{"split": n, "accuracy": 0.9, "scores": {"energy": {**found, "auroc": 0.8 + 0.1 * n}}} for n in range(2)]
    assert unknown.near_table(rows).splitlines()[-1].split() == ["mean", "85.0", "/", "50.0"]
