"""Familiarity: learnt from pictures of nothing, the third output of the file, the threshold, and its gate."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import onnx
import pytest
from onnx import helper, numpy_helper

from edgecifar.export import familiarity
from edgecifar.export.familiarity import Detectors, Examples, compare, fit_threshold, learn
from edgecifar.export.formats import onnx as onnx_format
from edgecifar.export.outliers import MAKERS, outliers
from edgecifar.export.parity import BATCH_SIZES
from edgecifar.runtime.contract import Contract
from edgecifar.runtime.errors import ParityError
from edgecifar.runtime.manifest import Familiarity
from edgecifar.runtime.session import Session
from edgecifar.train.inference import BATCH_SIZE, in_batches

NONE = np.zeros((0, 2, 2, 3), np.uint8)
COLOURS = {"a": (200, 20, 20), "b": (20, 200, 20), "c": (20, 20, 200)}


class TestOutliers:
    @pytest.mark.parametrize("size", [8, 33, 64])
    def test_pictures_of_the_nets_size_the_same_each_time(self, size):
        rng = np.random.default_rng(0)
        images, labels = rng.integers(0, 256, (6, size, size, 3), np.uint8), np.array([0, 0, 1, 1, 2, 2])
        made = outliers(images, labels, 2 * len(MAKERS), seed=3)
        assert made.shape == (2 * len(MAKERS), size, size, 3)
        assert made.dtype == np.uint8
        assert (made == outliers(images, labels, 2 * len(MAKERS), seed=3)).all()
        assert (made != outliers(images, labels, 2 * len(MAKERS), seed=4)).any(axis=(1, 2, 3)).all()

    def test_of_one_picture(self):
        image = np.full((1, 32, 32, 3), 90, np.uint8)
        assert len(outliers(image, np.array([0]), len(MAKERS))) == len(MAKERS)


class TestLearn:
    def test_known_is_told_from_unknown(self):
        rng = np.random.default_rng(0)
        known = rng.normal(0, 0.3, (400, 4)).astype(np.float32)
        known[:200, 0] += 2
        known[200:, 1] += 2
        unknown = rng.normal(0, 0.5, (400, 4)).astype(np.float32)
        found = learn(known, unknown, (np.eye(2, 4, dtype=np.float32), np.zeros(2, np.float32)))
        assert found.weight.shape == (familiarity.MAX_DETECTORS, 4)
        assert familiarity.auroc(found(known), found(unknown)) > 0.95
        again = learn(known, unknown, (np.eye(2, 4, dtype=np.float32), np.zeros(2, np.float32)))
        assert (found.weight == again.weight).all()

    def test_it_stays_small_whatever_the_features(self):
        hidden = np.random.default_rng(0).normal(size=(50, 500)).astype(np.float32)
        found = learn(hidden, -hidden, (np.zeros((10, 500), np.float32), np.zeros(10, np.float32)))
        assert 0 < found.weight.size <= familiarity.MAX_CONSTANTS


@pytest.fixture(scope="module")
def contract() -> Contract:
    return Contract(tuple(COLOURS), 8)


class TestFile:
    def test_the_graph_gives_what_numpy_gives_and_all_else_as_before(self, make_tiny_bundle, contract):
        before = make_tiny_bundle.model(contract, COLOURS, 1.5)
        named, model = replace(contract, familiarity_name="familiarity"), onnx.load_from_string(before)
        rng = np.random.default_rng(1)
        head = familiarity.head_of(model, named)
        detectors = Detectors(rng.normal(size=(5, 3)).astype(np.float32) / 50, head)
        familiarity.append(model, named, detectors)
        del model.metadata_props[:]
        session = Session(model.SerializeToString(), contract=named, provider="cpu")
        images = rng.integers(0, 256, (7, 8, 8, 3), np.uint8)
        probabilities, logits, found = session.outputs(images)
        colour = images.mean((1, 2), np.float64)
        values = [colour @ weight.T.astype(float) + bias for weight, bias in ((detectors.weight, 0), head)]
        wanted = sum(np.logaddexp.reduce(each, axis=1) for each in values)
        np.testing.assert_allclose(found, wanted, rtol=1e-5)
        plain = Session(before, provider="cpu")
        assert (probabilities == plain.probabilities(images)).all()
        assert (logits == plain.logits(images)).all()
        assert len(model.SerializeToString()) - len(before) < 8_192

    @pytest.mark.parametrize("by_class", [0, 1])
    def test_the_head_is_read_as_the_graph_multiplies_by_it(self, make_tiny_bundle, contract, by_class):
        """Where there are as many features as classes, the shape does not tell which is which."""
        model = onnx.load_from_string(make_tiny_bundle.model(contract, COLOURS, 1.5))
        last = onnx_format.last_layer(model, contract)
        rng = np.random.default_rng(3)
        constant = next(each for each in model.graph.initializer if each.name == last.input[1])
        constant.CopyFrom(numpy_helper.from_array(rng.normal(size=(3, 3)).astype(np.float32) / 50, constant.name))
        del last.attribute[:]
        last.attribute.append(helper.make_attribute("transB", by_class))
        weight, bias = familiarity.head_of(model, contract)
        images = rng.integers(0, 256, (7, 8, 8, 3), np.uint8)
        logits = Session(model.SerializeToString(), contract=contract, provider="cpu").outputs(images)[1]
        np.testing.assert_allclose(images.mean((1, 2)) @ weight.T + bias, logits, rtol=1e-3, atol=1e-4)

    @pytest.mark.parametrize("held_out", [0, 199, 200])
    def test_added_to_a_file(self, make_tiny_bundle, contract, tmp_path, held_out):
        path = tmp_path / "model.onnx"
        path.write_bytes(make_tiny_bundle.model(contract, COLOURS, 1.5))
        rng = np.random.default_rng(2)
        labels = rng.integers(0, 3, 300)
        images = np.array(list(COLOURS.values()), np.uint8)[labels][:, None, None].repeat(8, 1).repeat(8, 2)
        images += rng.integers(0, 20, images.shape, np.uint8)
        examples = Examples.of(images[:100], labels[:100], images[100 : 100 + held_out])
        added = familiarity.add(path, replace(contract, familiarity_name="familiarity"), examples)
        session = Session(path.read_bytes(), provider="cpu")
        assert session.contract.familiarity_name == "familiarity"
        assert session.metadata()["provenance"] == {"made by": "make_tiny_bundle.py"}
        scores = session.scores(images)[1]
        np.testing.assert_allclose(scores, added.detectors(images.mean((1, 2), dtype=np.float32)), rtol=1e-4, atol=1e-4)
        if held_out < 200:
            assert added.threshold is None
            assert "familiarity" not in session.metadata()
            return
        passed = (scores[100:] >= added.threshold.threshold).mean()
        assert 0.95 <= passed == added.threshold.accepted
        assert session.metadata()["familiarity"] == {"threshold": added.threshold.threshold}
        assert isinstance(added.threshold, Familiarity)
        assert added.threshold.measured["drawn"]["auroc"] > 0.5

    def test_it_is_measured_on_pictures_that_it_was_not_learnt_from(self):
        images = np.random.default_rng(0).integers(0, 256, (40, 8, 8, 3), np.uint8)
        found = Examples.of(images, np.arange(40) % 2, NONE)
        assert (len(found.known), len(found.unknown), len(found.drawn)) == (40, 80, 16)
        learnt = {picture.tobytes() for picture in found.unknown}
        assert not [picture for picture in found.drawn if picture.tobytes() in learnt]

    def test_a_full_disk_is_no_damage_of_the_model(self, make_tiny_bundle, contract, tmp_path, monkeypatch):
        path = tmp_path / "model.onnx"
        path.write_bytes(make_tiny_bundle.model(contract, COLOURS, 1.5))

        def full(*_):
            raise OSError(28, "No space left on device")

        monkeypatch.setattr(onnx_format, "save", full)
        monkeypatch.setattr(familiarity, "STEPS", 2)
        images = np.random.default_rng(0).integers(0, 256, (6, 8, 8, 3), np.uint8)
        examples = Examples(images, 255 - images, NONE, NONE)
        with pytest.raises(OSError, match="No space left"):
            familiarity.add(path, replace(contract, familiarity_name="familiarity"), examples)

    def test_what_is_no_model_stays_as_it_is(self, contract, tmp_path):
        path = tmp_path / "model.onnx"
        path.write_bytes(b"no model")
        examples = Examples(NONE, NONE, NONE, NONE)
        with pytest.raises(ParityError, match="familiarity"):
            familiarity.add(path, replace(contract, familiarity_name="familiarity"), examples)
        assert path.read_bytes() == b"no model"


class TestGate:
    IMAGES = np.random.default_rng(0).integers(0, 256, (200, 2, 2, 3), np.uint8)

    @staticmethod
    def score(images):
        return images.mean((1, 2, 3), dtype=np.float64).astype(np.float32)

    def by_size(self, change):
        sizes = {**{size: self.IMAGES[: 2 * size] for size in BATCH_SIZES}, BATCH_SIZE: self.IMAGES}
        return {size: in_batches(lambda some: change(self.score(some)), some, size) for size, some in sizes.items()}

    @pytest.mark.parametrize(("file", "net", "correlation"), [(0, 1, 0), (1, 0, 0), (0, 0, 1), (1, 1, 1)])
    def test_a_constant_correlates_with_a_constant_alone(self, file, net, correlation):
        found = self.by_size(lambda x: file * x)
        figures, failure = compare(found, net * self.score(self.IMAGES), exact=False)
        assert figures["correlation"] == pytest.approx(correlation)
        assert bool(failure) == (correlation == 0)

    @pytest.mark.parametrize(
        ("change", "exact", "failure"),
        [
            (lambda x: x, True, ""),
            (lambda x: x + 1e-5, True, ""),
            (lambda x: x + 1, True, "moves a familiarity"),
            (lambda x: x + 1, False, ""),
            (lambda x: x * 1e5 % 7, False, "correlate"),
            (lambda x: x[:, None], False, "another shape"),
            (lambda x: x * np.nan, False, "not finite"),
            (lambda x: x + 3 * len(x), True, "batch size"),
            (lambda x: x * (np.nan if len(x) == 7 else 1), True, "batch size 7"),
            (lambda x: x * (np.nan if len(x) == 1 else 1), False, "batch size 1"),
            (lambda x: x + 60 * (len(x) == 7), False, "batch size 7"),  # three standard deviations
            (lambda x: x + 5 * (len(x) == 7), False, ""),
        ],
    )
    def test_verdicts(self, change, exact, failure):
        figures, found = compare(self.by_size(change), self.score(self.IMAGES), exact)
        assert failure in found
        assert bool(found) == bool(failure)
        if not failure:
            assert figures["correlation"] > 0.99


class TestThreshold:
    def test_as_many_pass_as_asked_for(self):
        images = np.random.default_rng(0).integers(0, 256, (300, 2, 2, 3), dtype=np.uint8)
        found = fit_threshold(lambda some: some.mean((1, 2, 3)).astype(np.float32), images, images[:50] // 4)
        scores = images.mean((1, 2, 3)).astype(np.float32)
        assert found.accepted == (scores >= found.threshold).mean()
        assert 0.95 <= found.accepted < 0.96
        assert found.images == 300
        assert found.measured == {"drawn": {"images": 50, "auroc": 1.0, "passed": 0.0}}

    def test_too_few_pictures_set_none(self):
        assert fit_threshold(lambda images: pytest.fail("asked"), np.zeros((199, 2, 2, 3), np.uint8), NONE) is None

    def test_what_is_not_finite_is_said(self):
        with pytest.raises(ValueError, match="finite"):
            fit_threshold(lambda images: np.full(len(images), np.nan), np.zeros((300, 2, 2, 3), np.uint8), NONE)


class TestFigures:
    def test_auroc_counts_pairs(self):
        rng = np.random.default_rng(1)
        known, unknown = rng.integers(0, 20, 50).astype(float), rng.integers(0, 15, 70).astype(float)
        pairs = [(k > u) + 0.5 * (k == u) for k in known for u in unknown]
        assert familiarity.auroc(known, unknown) == pytest.approx(np.mean(pairs))

    def test_false_positives_where_95_of_100_pass(self):
        known, unknown = np.arange(100.0), np.array([-1.0, 4.0, 5.0, 90.0])
        assert familiarity.false_positive_rate(known, unknown) == 0.75
