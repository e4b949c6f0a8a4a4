"""Familiarity: scores by their formulas, the third output of the file, and the threshold."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from edgecifar.export import familiarity
from edgecifar.export.compress.quantize import quantize
from edgecifar.export.compress.students import Residual
from edgecifar.export.familiarity import BoundaryDistance, ClassMeans, Familiar, fit_threshold, hidden_of
from edgecifar.export.formats import onnx as onnx_format
from edgecifar.runtime.errors import DataError
from edgecifar.runtime.session import Session

HIDDEN = torch.tensor([[1.0, 0.0], [3.0, 0.0], [0.0, 2.0], [0.0, 4.0]])


class TestScores:
    def test_class_means_by_its_formula(self):
        score = ClassMeans(HIDDEN, torch.tensor([0, 0, 1, 1]), 2)
        found = score(torch.tensor([[5.0, 0.0], [1.0, 1.0], [-1.0, 0.0]]), torch.zeros(3, 2))
        np.testing.assert_allclose(found, [1.0, 0.5**0.5, 0.0], atol=1e-6)

    def test_a_class_without_pictures_is_said(self):
        with pytest.raises(DataError, match="each class"):
            ClassMeans(HIDDEN, torch.tensor([0, 0, 1, 1]), 3)

    def test_boundary_distance_by_its_formula(self):
        weight, mean = torch.tensor([[1.0, 0.0], [0.0, 1.0], [-1.0, 2.0]]), HIDDEN.mean(0)
        hidden = torch.tensor([[2.0, 1.0], [0.0, 3.0]])
        logits = hidden @ weight.T
        wanted = []
        for features, own in zip(hidden, logits, strict=True):
            best = int(own.argmax())
            others = [label for label in range(3) if label != best]
            away = [float((own[best] - own[c]) / (weight[best] - weight[c]).norm()) for c in others]
            wanted.append(sum(away) / 2 / float((features - mean).norm()))
        np.testing.assert_allclose(BoundaryDistance(HIDDEN, weight)(hidden, logits), wanted, rtol=1e-5)


@pytest.fixture(scope="module")
def student():
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(3)
        return Residual(10, (8, 8, 8, 16, 8, 16, 16)).eval().requires_grad_(False).deployed(1.7)


class TestFamiliar:
    @pytest.mark.parametrize("kind", ["means", "boundary"])
    def test_the_file_gives_what_torch_gives(self, student, small, tmp_path, kind):
        contract, images = replace(small.contract, familiarity_name="familiarity"), small.train_images[:100]
        hidden, labels = hidden_of(student, images), torch.from_numpy(small.train_labels[:100])
        score = ClassMeans(hidden, labels, 10) if kind == "means" else BoundaryDistance(hidden, student.head.weight)
        model, path = Familiar(student, score), tmp_path / "model.onnx"
        onnx_format.write(model, path, contract, {})
        session = Session(path.read_bytes(), provider="cpu")
        assert session.contract.familiarity_name == "familiarity"
        probabilities, found = session.scores(small.test_images)
        with torch.inference_mode():
            wanted = model(torch.from_numpy(small.test_images))
        assert found.shape == (len(small.test_images),)
        np.testing.assert_allclose(probabilities, wanted[0], atol=1e-5)
        np.testing.assert_allclose(found, wanted[2], atol=1e-3 * float(wanted[2].abs().max()))
        without = tmp_path / "without.onnx"
        onnx_format.write(student, without, small.contract, {})
        assert path.stat().st_size - without.stat().st_size < 8_192
        int8 = quantize(path, images, contract, "MinMax")
        rough = Session(int8.SerializeToString(), contract=contract, provider="cpu")
        near = rough.scores(small.test_images)[1]
        assert np.abs(near - found).max() < 0.2 * np.abs(found).max()

    def test_of_net_itself(self, deployed, small):
        hidden = hidden_of(deployed, small.train_images)
        model = Familiar(deployed, ClassMeans(hidden, torch.from_numpy(small.train_labels), 10))
        images = torch.from_numpy(small.test_images)
        with torch.inference_mode():
            probabilities, logits, score = model(images)
            wanted = deployed(images)
        assert torch.equal(logits, wanted[1])
        assert torch.equal(probabilities, wanted[0])
        assert score.abs().max() <= 1 + 1e-6


class TestThreshold:
    def test_as_many_pass_as_asked_for(self):
        images = np.random.default_rng(0).integers(0, 256, (300, 2, 2, 3), dtype=np.uint8)
        found = fit_threshold(lambda some: some.mean((1, 2, 3)).astype(np.float32), images)
        scores = images.mean((1, 2, 3)).astype(np.float32)
        assert found.accepted == (scores >= found.threshold).mean()
        assert 0.95 <= found.accepted < 0.96
        assert found.images == 300

    def test_too_few_pictures_set_none(self):
        assert fit_threshold(lambda images: pytest.fail("asked"), np.zeros((199, 2, 2, 3), np.uint8)) is None

    def test_what_is_not_finite_is_said(self):
        with pytest.raises(ValueError, match="finite"):
            fit_threshold(lambda images: np.full(len(images), np.nan), np.zeros((300, 2, 2, 3), np.uint8))


class TestFigures:
    def test_auroc_counts_pairs(self):
        rng = np.random.default_rng(1)
        known, unknown = rng.integers(0, 20, 50).astype(float), rng.integers(0, 15, 70).astype(float)
        pairs = [(k > u) + 0.5 * (k == u) for k in known for u in unknown]
        assert familiarity.auroc(known, unknown) == pytest.approx(np.mean(pairs))

    def test_false_positives_where_95_of_100_pass(self):
        known, unknown = np.arange(100.0), np.array([-1.0, 4.0, 5.0, 90.0])
        assert familiarity.false_positive_rate(known, unknown) == 0.75
