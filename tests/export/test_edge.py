"""The edge variant: low rank is the best of its rank, int8 enters as uint8, and what can't be had is refused."""

from __future__ import annotations

import copy
import json
import os

import numpy as np
import onnx
import pytest
import torch
from onnx import numpy_helper

from edgecifar.export import build, edge, to_onnx
from edgecifar.export.graph import Deployed
from edgecifar.runtime.errors import DataError, ParityError, RunError
from edgecifar.runtime.session import Session
from edgecifar.train.run import Run


@pytest.fixture(scope="module")
def principal(deployed, small):
    return edge.principal_outputs(deployed, small.train_images)


@pytest.fixture(scope="module")
def outputs(deployed, small):
    """What `fc1` reads and gives for the training images, float64."""
    with torch.inference_mode():
        inputs = torch.cat(
            [deployed.features(torch.from_numpy(part)) for part in np.array_split(small.train_images, 3)]
        )
        return inputs, deployed.fc1(inputs).double()


class TestPrincipalOutputs:
    def test_mean(self, principal, outputs):
        torch.testing.assert_close(principal[0], outputs[1].mean(0), atol=1e-5, rtol=1e-5)

    def test_directions_are_orthonormal(self, principal):
        _, directions = principal
        torch.testing.assert_close(directions.T @ directions, torch.eye(1024, dtype=torch.float64))

    def test_directions_are_ordered_by_variance(self, principal, outputs):
        mean, directions = principal
        variances = ((outputs[1] - mean) @ directions).pow(2).sum(0)
        largest = torch.linalg.svdvals(outputs[1] - outputs[1].mean(0)).pow(2)
        assert (variances[:-1] >= variances[1:] - 1e-6 * variances[0]).all()
        torch.testing.assert_close(variances[:50], largest[:50], rtol=1e-5, atol=0)


class TestLowRank:
    def test_exact_at_full_rank(self, deployed, principal, outputs):
        layers = edge.low_rank(deployed.fc1, *principal, rank=1024)
        torch.testing.assert_close(layers(outputs[0]).double(), outputs[1], atol=1e-4, rtol=1e-4)

    @pytest.mark.parametrize("rank", [1, 8, 64])
    def test_the_error_is_the_least_that_the_rank_allows(self, deployed, principal, outputs, rank):
        inputs, exact = outputs
        error = (edge.low_rank(deployed.fc1, *principal, rank)(inputs).double() - exact).pow(2).sum()
        left = torch.linalg.svdvals(exact - exact.mean(0))[rank:].pow(2).sum()  # Eckart, Young, Mirsky
        assert left > 0
        assert error.item() == pytest.approx(left.item(), rel=1e-3)

    def test_shapes_and_source(self, deployed, principal):
        before = deployed.fc1.weight.clone()
        down, up = edge.low_rank(deployed.fc1, *principal, rank=16)
        assert [tuple(layer.weight.shape) for layer in (down, up)] == [(16, 18432), (1024, 16)]
        assert not any(parameter.requires_grad for parameter in (*down.parameters(), *up.parameters()))
        assert torch.equal(deployed.fc1.weight, before)


@pytest.fixture
def graph(bundle):
    return onnx.load(bundle.folder / "model.edge.onnx").graph


class TestQuantize:
    def test_pictures_enter_as_uint8(self, graph):
        by_input = {}
        for node in graph.node:
            for name in node.input:
                by_input.setdefault(name, []).append(node)
        assert "Cast" not in {node.op_type for node in graph.node}
        (first,) = by_input["images"]
        assert first.op_type == "Transpose"
        (second,) = by_input[first.output[0]]
        assert second.op_type == "DequantizeLinear"
        values = {tensor.name: numpy_helper.to_array(tensor) for tensor in graph.initializer}
        scale, zero_point = (values[name] for name in second.input[1:])
        assert scale == 1
        assert zero_point == 0
        assert zero_point.dtype == np.uint8
        assert by_input[second.output[0]][0].op_type == "Conv"

    def test_weights_are_int8_within_seven_bits(self, graph):
        weights = {
            tensor.name: numpy_helper.to_array(tensor)
            for tensor in graph.initializer
            if tensor.name.endswith("weight_quantized")
        }
        assert len(weights) == 6 + 3  # the convolutions, both factors of fc1, fc2; fc3 stays as it is
        for name, weight in weights.items():
            assert weight.dtype == np.int8
            assert 60 <= np.abs(weight.astype(int)).max() <= 64, name

    def test_weights_have_a_scale_per_channel(self, graph):
        scales = {tensor.name: tensor.dims for tensor in graph.initializer if tensor.name.endswith("weight_scale")}
        assert list(scales["conv6.weight_scale"]) == [512]
        assert list(scales["fc2.weight_scale"]) == [256]

    def test_logits_are_near_those_of_the_same_rank_in_fp32(self, deployed, bundle, small):
        trained_on, _ = small.hold_out(0.4)
        reduced = copy.deepcopy(deployed)
        reduced.fc1 = edge.low_rank(deployed.fc1, *edge.principal_outputs(deployed, small.train_images[trained_on]), 8)
        with torch.inference_mode():
            _, before = reduced(torch.from_numpy(small.test_images))
        after = Session((bundle.folder / "model.edge.onnx").read_bytes(), "cpu").logits(small.test_images)
        spread = before.std().item()
        assert np.abs(after - before.numpy()).mean() < 0.2 * spread
        assert np.corrcoef(after.ravel(), before.numpy().ravel())[0, 1] > 0.95
        assert (after.argmax(1) == before.numpy().argmax(1)).mean() > 0.7

    def test_the_file_is_small(self, bundle):
        assert bundle.variant("edge").bytes < 3_200_000

    @pytest.mark.slow
    @pytest.mark.parametrize("calibrator", edge.CALIBRATORS)
    def test_every_calibrator_gives_a_model(self, deployed, small, tmp_path, calibrator):
        to_onnx.write(deployed, tmp_path / "fp32.onnx", {})
        quantized = edge.quantize(tmp_path / "fp32.onnx", small.train_images[:50], calibrator)
        session = Session(quantized.SerializeToString(), "cpu")
        with torch.inference_mode():
            _, exact = deployed(torch.from_numpy(small.test_images))
        agree = (session.logits(small.test_images).argmax(1) == exact.numpy().argmax(1)).mean()
        assert agree > 0.6


def edge_exporter(deployed, small, lines, budget=100.0):
    images, labels = small.train_images[:120], small.train_labels[:120]
    return edge.EdgeExporter(copy.deepcopy(deployed), small.train_images, images, labels, budget, lines.append)


class TestSearch:
    def test_the_smallest_rank_within_half_of_the_budget(self, deployed, small, monkeypatch):
        lines = []
        search = edge_exporter(deployed, small, lines, budget=1.0)
        accuracies = {8: 0.5, 12: 0.794, 16: 0.796, 24: 0.9}
        monkeypatch.setattr(search, "_accuracy", lambda logits: next(given))
        given = iter(accuracies.values())
        assert search._search_rank(0.8) == 16
        assert search.model.fc1[0].out_features == 16
        assert [trial["tried"] for trial in search.tried] == ["rank 8", "rank 12", "rank 16"]
        assert len(lines) == 3
        assert "79.60" in lines[2]

    def test_a_rank_that_cannot_be_found_names_the_closest(self, deployed, small, tmp_path, monkeypatch):
        monkeypatch.setattr(edge, "RANKS", (8, 16))
        search = edge_exporter(deployed, small, [], budget=0.2)
        given = iter([0.9, 0.8, 0.7])
        monkeypatch.setattr(search, "_accuracy", lambda logits: next(given))
        with pytest.raises(ParityError) as caught:
            search.write(tmp_path / "model.onnx", {})
        assert str(caught.value) == (
            "No edge variant that was tried keeps the budget of 0.2 points: the closest (rank 8) loses 10.00; "
            "allow more with --budget, or train longer."
        )
        assert list(tmp_path.iterdir()) == []

    def test_the_best_calibrator_is_kept(self, deployed, small, tmp_path, monkeypatch, quick_onnx, bundle):
        model = onnx.load(bundle.folder / "model.edge.onnx")
        search = edge_exporter(deployed, small, [], budget=100)
        monkeypatch.setattr(edge, "quantize", lambda source, images, calibrator: copy.deepcopy(model))
        given = iter([0.7, 0.9, 0.8])
        monkeypatch.setattr(search, "_accuracy", lambda logits: next(given))
        assert search._search_int8(8, 0.9, tmp_path / "model.onnx", {}) == ("Percentile", 0.9)
        assert (tmp_path / "model.onnx").exists()

    def test_int8_beyond_the_budget_is_refused(self, deployed, small, tmp_path, monkeypatch, quick_onnx, bundle):
        model = onnx.load(bundle.folder / "model.edge.onnx")
        search = edge_exporter(deployed, small, [], budget=0.5)
        search._note("fp32", 0.9, 0.9)
        monkeypatch.setattr(edge, "quantize", lambda source, images, calibrator: copy.deepcopy(model))
        given = iter([0.85, 0.89, 0.87])
        monkeypatch.setattr(search, "_accuracy", lambda logits: next(given))
        with pytest.raises(ParityError, match=r"closest \(rank 8, int8, Percentile\) loses 1\.00"):
            search._search_int8(8, 0.9, tmp_path / "model.onnx", {})
        assert list(tmp_path.iterdir()) == []

    def test_how_it_was_made_is_said(self, bundle):
        made_by = bundle.variant("edge").made_by
        assert made_by.startswith("fc1 at rank 8 by its principal outputs, then static int8 (QDQ, per channel, 7-bit")
        assert "MinMax ranges of 120 held-out images" in made_by


class TestRefusals:
    def test_too_few_calibration_images(self, deployed, small):
        with pytest.raises(DataError, match=r"^99 held-out images are too few to calibrate int8 on \(100 at least\)"):
            edge.EdgeExporter(deployed, small.train_images, small.train_images[:99], small.train_labels[:99], 1, print)

    def test_a_budget_that_cannot_be_met_ends_in_no_bundle(
        self, run, tmp_path, refused, monkeypatch, synthetic_is_small
    ):
        monkeypatch.setattr(edge, "RANKS", (1,))
        monkeypatch.setattr(edge.EdgeExporter, "_search_int8", lambda *_: pytest.fail("the rank is beyond the budget"))
        out = tmp_path / "bundles" / "new"
        sentence = refused("export", run.folder, "--variant", "edge", "--budget", "0", "--out", out)
        assert sentence.startswith(
            "No edge variant that was tried keeps the budget of 0 points: the closest (rank 1) loses "
        )
        assert list(out.parent.iterdir()) == []

    def test_a_recipe_that_holds_nothing_out(self, run, small, tmp_path):
        (tmp_path / "run").mkdir()
        os.link(run.folder / "weights.safetensors", tmp_path / "run" / "weights.safetensors")
        record = run.record
        record["recipe"] |= {"held_out": 0.0, "name": "reference"}
        (tmp_path / "run" / "run.json").write_text(json.dumps(record))
        with pytest.raises(RunError, match="The recipe reference holds no images out"):
            build.export(Run(tmp_path / "run"), tmp_path / "new", variants=["edge"], dataset=small)
        assert not (tmp_path / "new").exists()

    def test_the_search_leaves_the_model_of_other_formats_alone(self, net, small, tmp_path, monkeypatch):
        changed = []
        monkeypatch.setattr(edge.EdgeExporter, "write", lambda self, path, provenance: changed.append(self.model))
        targets = build._targets(
            net, {"recipe": {"held_out": 0.4, "name": "fast"}}, ["onnx"], ["edge"], small, 0.2, {}, print
        )
        targets[0].write(tmp_path / "model.edge.onnx")
        changed[0].fc1.weight.zero_()
        assert net.fc1.weight.abs().max() > 0
        assert isinstance(changed[0], Deployed)
