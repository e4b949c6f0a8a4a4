"""The lossy variants: low rank is the best of its rank, int8 enters as uint8, and what can't be had is refused."""

from __future__ import annotations

import copy
import itertools
import json
import os
import re

import numpy as np
import onnx
import pytest
import torch
from onnx import numpy_helper

from edgecifar.export import build, distill, edge, narrow, to_onnx
from edgecifar.runtime.errors import DataError, ParityError, RunError
from edgecifar.runtime.session import Session
from edgecifar.train.net import Net
from edgecifar.train.run import Run


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
        (pairs,) = by_input["images"]
        assert pairs.op_type == "Reshape"
        (first,) = by_input[pairs.output[0]]
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
        assert len(weights) == 3 + 2 * 4 + 1  # conv1 to conv3, two factors of four layers, fc2; fc3 stays as it is
        for name, weight in weights.items():
            assert weight.dtype == np.int8
            assert 60 <= np.abs(weight.astype(int)).max() <= 64, name

    def test_weights_have_a_scale_per_channel(self, graph):
        scales = {tensor.name: tensor.dims for tensor in graph.initializer if tensor.name.endswith("weight_scale")}
        assert list(scales["conv6.1.weight_scale"]) == [512]
        assert list(scales["fc2.weight_scale"]) == [256]

    def test_logits_are_near_those_of_the_same_rank_in_fp32(self, deployed, bundle, small):
        trained_on, _ = small.hold_out(0.4)
        reduced = deployed
        for name, principal in edge.principal_outputs(deployed, small.train_images[trained_on]).items():
            reduced, _ = edge.split(reduced, name, principal, edge.LOST[0])
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
        quantized = edge.quantize(
            tmp_path / "fp32.onnx", small.train_images[:70], calibrator
        )  # no multiple of its batches
        session = Session(quantized.SerializeToString(), "cpu")
        with torch.inference_mode():
            _, exact = deployed(torch.from_numpy(small.test_images))
        agree = (session.logits(small.test_images).argmax(1) == exact.numpy().argmax(1)).mean()
        assert agree > 0.6


def edge_exporter(deployed, small, lines):
    images, labels = small.train_images[:120], small.train_labels[:120]
    return edge.EdgeExporter(deployed, small.train_images, images, labels, lines.append)


RANKS = {0.4: 8, 0.3: 16, 0.2: 24, 0.1: 0}
"""Of each share lost in the trials below; at the last, splitting is not worth it."""


class TestSearch:
    @pytest.fixture
    def search(self, deployed, small, monkeypatch, quick_onnx, bundle):
        """Returns a search with one or two layers, whose trials have the accuracies given."""
        model = onnx.load(bundle.folder / "model.edge.onnx")
        monkeypatch.setattr(edge, "quantize", lambda source, images, calibrator: copy.deepcopy(model))
        monkeypatch.setattr(edge, "LOST", tuple(RANKS))

        def split(model, name, principal, lost):
            shape = model if isinstance(model, tuple) else ()
            return ((*shape, RANKS[lost]), RANKS[lost]) if RANKS[lost] else (model, 0)

        monkeypatch.setattr(edge, "split", split)

        def make(by_ranks, int8, layers=("fc1",)):
            monkeypatch.setattr(edge, "FACTORED", layers)
            monkeypatch.setattr(edge, "principal_outputs", lambda model, images: dict.fromkeys(layers))
            lines = []
            search = edge_exporter(deployed, small, lines)
            quantized = iter(int8)
            monkeypatch.setattr(search, "_float_logits", lambda model: model if isinstance(model, tuple) else ())
            monkeypatch.setattr(
                search, "_accuracy", lambda logits: by_ranks[logits] if isinstance(logits, tuple) else next(quantized)
            )
            return search, lines

        return make

    def test_the_smallest_rank_within_half_of_the_budget_by_the_best_calibrator(self, search, tmp_path):
        found, lines = search({(): 0.8, (8,): 0.5, (16,): 0.795, (24,): 0.798}, [0.79, 0.792, 0.791])
        made_by = found.write(tmp_path / "model.onnx", {}, budget=1.0)
        assert made_by.startswith("low rank by principal outputs (fc1 16), then static int8 (QDQ")
        assert "Percentile ranges" in made_by
        assert made_by.endswith("held-out accuracy 79.20 % against 80.00 %")
        tried = [trial["tried"] for trial in found.tried]
        assert tried[0] == "fp32"
        assert set(tried[1:-3]) >= {"ranks fc1 8", "ranks fc1 16"}
        assert tried[-3:] == [f"ranks fc1 16, int8, {calibrator}" for calibrator in edge.CALIBRATORS]
        assert len(lines) == len(tried)
        assert "79.20" in lines[-2]
        assert (tmp_path / "model.onnx").exists()

    def test_a_layer_keeps_the_budget_with_those_before_it(self, search, tmp_path):
        by_ranks = {(): 0.8, (8,): 0.797, (16,): 0.8, (24,): 0.8, (8, 8): 0.79, (8, 16): 0.794, (8, 24): 0.7955}
        found, _ = search(by_ranks, [0.795] * 3, ("fc1", "conv6"))
        assert "(fc1 8, conv6 24)" in found.write(tmp_path / "model.onnx", {}, budget=1.0)

    def test_layers_stay_whole_where_no_rank_keeps_the_budget(self, search, tmp_path):
        found, _ = search({(): 0.8, (8,): 0.5, (16,): 0.5, (24,): 0.5}, [0.8] * 3)
        assert "(full)" in found.write(tmp_path / "model.onnx", {}, budget=1.0)

    def test_where_int8_loses_too_much_higher_ranks_are_tried(self, search, tmp_path):
        by_ranks = {(): 0.8, (8,): 0.795, (16,): 0.7975, (24,): 0.8}
        found, _ = search(by_ranks, [0.7, 0.7, 0.7, 0.7, 0.7, 0.79])
        assert "(fc1 16)" in found.write(tmp_path / "model.onnx", {}, budget=1.0)

    def test_int8_beyond_the_budget_is_refused(self, search, tmp_path):
        found, _ = search({(): 0.9, (8,): 0.9, (16,): 0.9, (24,): 0.9}, [0.85, 0.89, 0.87] * 3)
        with pytest.raises(ParityError) as caught:
            found.write(tmp_path / "model.onnx", {"variant": "edge"}, budget=0.5)
        assert str(caught.value) == (
            "No edge that was tried keeps the budget of 0.5 points: the closest (ranks fc1 8, int8, Percentile) "
            "loses 1.00; allow more with --budget, train longer, or fine-tune it with --fine-tune, or leave out "
            "--variant edge."
        )
        assert list(tmp_path.iterdir()) == []

    def test_a_second_search_begins_anew(self, search, tmp_path):
        found, _ = search({(): 0.8, (8,): 0.795, (16,): 0.799, (24,): 0.8}, [0.8, 0.7, 0.7, 0.79, 0.7, 0.7])
        assert "(fc1 16)" in found.write(tmp_path / "edge.onnx", {}, budget=0.2)
        assert "(fc1 8)" in found.write(tmp_path / "tiny.onnx", {}, budget=1.0)
        assert [trial["tried"] for trial in found.tried].count("fp32") == 1

    def test_how_it_was_made_is_said(self, bundle):
        made_by = bundle.variant("edge").made_by
        assert re.match(
            r"low rank by principal outputs \(fc1 \d+, conv6 \d+, conv5 \d+, conv4 \d+\), then static", made_by
        )
        assert "MinMax ranges of 120 held-out images" in made_by


@pytest.mark.parametrize("name", edge.WIDTHS)
def test_widths_to_fine_tune_at_grow(name):
    ladder = [dict(zip(narrow.LAYERS, rung, strict=True)) for rung in edge.WIDTHS[name]]
    whole = Net()
    for rung in ladder:
        assert all(0 < width <= len(whole.get_submodule(layer).weight) for layer, width in rung.items())
        assert all(width % 8 == 0 for width in rung.values())  # int8 kernels work on 8 or 16 channels at once
    for low, high in itertools.pairwise(ladder):
        assert low != high
        assert all(low[layer] <= high[layer] for layer in narrow.LAYERS)


class TestRefusals:
    def test_too_few_calibration_images(self, deployed, small):
        with pytest.raises(DataError, match=r"^99 held-out images are too few to calibrate int8 on \(100 at least\)"):
            edge.EdgeExporter(deployed, small.train_images, small.train_images[:99], small.train_labels[:99], print)

    @pytest.mark.parametrize(
        "change",
        [
            lambda images: images.astype(np.float32),
            lambda images: images.transpose(0, 3, 1, 2),
            lambda images: images[:, :28],
        ],
    )
    def test_calibration_images_of_another_shape_or_type(self, deployed, small, change):
        images, labels = small.train_images, small.train_labels
        for given in ((change(images), images), (images, change(images))):
            with pytest.raises(DataError, match=r"^int8 is calibrated on images .* not \w+ \[.*\]: convert them first"):
                edge.EdgeExporter(deployed, *given, labels, print)

    def test_a_label_for_each_image(self, deployed, small):
        with pytest.raises(DataError, match=r"^There are 7 labels to .* held-out images: give one for each"):
            edge.EdgeExporter(deployed, small.train_images, small.train_images, small.train_labels[:7], print)

    def test_a_budget_that_cannot_be_met_ends_in_no_bundle(
        self, run, tmp_path, refused, monkeypatch, synthetic_is_small
    ):
        monkeypatch.setattr(edge, "LOST", ())  # all layers stay whole

        def quantize(self, *_):
            self._note("ranks full, int8, MinMax", -1.0, 0.0)
            return None, "MinMax", -1.0

        monkeypatch.setattr(edge.EdgeExporter, "_quantize", quantize)
        out = tmp_path / "bundles" / "new"
        sentence = refused("export", run.folder, "--variant", "edge", "--budget", "0", "--out", out)
        assert sentence.startswith("No edge that was tried keeps the budget of 0 points: the closest (")
        assert list(out.parent.iterdir()) == []

    @pytest.mark.parametrize(
        ("changes", "sentence"),
        [
            ({}, "was trained without held-out images"),
            ({"trial": {"temperature": 1.5}}, "run was trained on all images, .* the run that --final named"),
        ],
    )
    def test_a_run_that_holds_nothing_out(self, run, small, tmp_path, changes, sentence):
        (tmp_path / "run").mkdir()
        os.link(run.folder / "weights.safetensors", tmp_path / "run" / "weights.safetensors")
        record = run.record
        record["recipe"] |= {"held_out": 0.0, "name": "reference"}
        (tmp_path / "run" / "run.json").write_text(json.dumps({**record, **changes}))
        with pytest.raises(RunError, match=sentence):
            build.export(Run(tmp_path / "run"), tmp_path / "new", variants=["edge"], dataset=small)
        assert not (tmp_path / "new").exists()

    def test_tiny_may_lose_and_learn_five_times_as_much_and_shares_what_was_found(
        self, net, small, tmp_path, monkeypatch
    ):
        calls = []
        monkeypatch.setattr(edge.EdgeExporter, "write", lambda self, path, *rest: calls.append((self, *rest)))
        record = {"recipe": {"held_out": 0.4, "name": "fast"}, "weights_sha256": "", "seed": 0}
        targets = build._targets(net, record, ["onnx"], ["edge", "tiny"], small, 0.25, {}, print, tmp_path, 3, "cpu")
        for target in targets:
            target.write(tmp_path / target.file)
        assert [(target.file, target.budget) for target in targets] == [
            ("model.edge.onnx", 0.25),
            ("model.tiny.onnx", 1.25),
        ]
        (first, origin, *asked), (second, other, *asked_of_tiny) = calls
        assert first is second
        assert asked == [0.25, edge.WIDTHS["edge"], 1]
        assert asked_of_tiny == [1.25, edge.WIDTHS["tiny"], 5]
        assert (origin["fine_tuning"]["epochs"], other["fine_tuning"]["epochs"]) == (3, 15)
        assert first.tuner.lasting(5).recipe == distill.recipe(15)
