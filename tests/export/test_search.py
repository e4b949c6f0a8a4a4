"""The search for a lossy variant: the smallest within the budget, and what can't be had is refused."""

from __future__ import annotations

import copy
import itertools
import re
from dataclasses import asdict, replace

import numpy as np
import pytest

from edgecifar.export import build
from edgecifar.export.compress import distill, lossy, search
from edgecifar.export.options import ExportOptions
from edgecifar.export.variants import Source, targets
from edgecifar.runtime.errors import DataError, ParityError, RunError
from edgecifar.train.net import LAYERS, Net

RANKS = {0.4: 8, 0.3: 16, 0.2: 24, 0.1: 0}
"""The rank of each share lost in the trials below; at the last, splitting is not worth it."""

SELECTION = {"weights_sha256": "", "data_sha256": "", "held_out": 0.4, "seed": 7, "temperature": 1.5}
"""What run.json said of the selection run when it was called the trial."""

EDGE = lossy.LossyVariant("edge", 1, ())


def search_of(deployed, small) -> search.Search:
    images, labels = small.train_images[:120], small.train_labels[:120]
    return search.Search(deployed, small.contract, small.train_images, images, labels)


class TestLowRank:
    @pytest.fixture
    def searching(self, deployed, small, monkeypatch, quick_onnx, plain_onnx):
        """Returns a search with one or two layers, whose trials have the accuracies given."""
        model = plain_onnx("model.edge.onnx")
        monkeypatch.setattr(search, "quantize", lambda source, images, contract, calibrator: copy.deepcopy(model))
        monkeypatch.setattr(search, "LOST_VARIANCE", tuple(RANKS))

        def split(model, name, principal, lost):
            shape = model if isinstance(model, tuple) else ()
            return ((*shape, RANKS[lost]), RANKS[lost]) if RANKS[lost] else (model, 0)

        monkeypatch.setattr(search, "split", split)

        def make(by_ranks, int8, layers=("fc1",)):
            monkeypatch.setattr(search, "FACTORED", layers)
            monkeypatch.setattr(search, "principal_outputs", lambda model, images: dict.fromkeys(layers))
            found, quantized = search_of(deployed, small), iter(int8)
            monkeypatch.setattr(found, "_float_logits", lambda model: model if isinstance(model, tuple) else ())
            monkeypatch.setattr(
                found, "_accuracy", lambda logits: by_ranks[logits] if isinstance(logits, tuple) else next(quantized)
            )
            return found

        return make

    def test_the_smallest_rank_within_half_of_the_budget_by_the_best_calibrator(self, searching, tmp_path, lines):
        found = searching({(): 0.8, (8,): 0.5, (16,): 0.795, (24,): 0.798}, [0.79, 0.792, 0.791])
        made = found.write(tmp_path / "model.onnx", EDGE, 1.0, {})
        assert "(fc1 16), then static int8" in made.made_by
        assert "Percentile ranges" in made.made_by
        assert made.made_by.endswith("79.20 % against 80.00 %")
        assert made.held_out_accuracy == 0.792
        tried = [name for name, _ in found.trials]
        assert tried[0] == "the net"
        assert set(tried[1:-3]) >= {"ranks fc1 8", "ranks fc1 16"}
        assert tried[-3:] == [f"ranks fc1 16, int8, {calibrator}" for calibrator in search.CALIBRATORS]
        said = lines()
        assert len(said) == len(tried)
        assert "79.20" in said[-2]
        assert (tmp_path / "model.onnx").exists()

    def test_a_layer_keeps_the_budget_with_those_before_it(self, searching, tmp_path):
        by_ranks = {(): 0.8, (8,): 0.797, (16,): 0.8, (24,): 0.8, (8, 8): 0.79, (8, 16): 0.794, (8, 24): 0.7955}
        found = searching(by_ranks, [0.795] * 3, ("fc1", "conv6"))
        assert "(fc1 8, conv6 24)" in found.write(tmp_path / "model.onnx", EDGE, 1.0, {}).made_by

    def test_layers_stay_whole_where_no_rank_keeps_the_budget(self, searching, tmp_path):
        found = searching({(): 0.8, (8,): 0.5, (16,): 0.5, (24,): 0.5}, [0.8] * 3)
        assert "(full)" in found.write(tmp_path / "model.onnx", EDGE, 1.0, {}).made_by

    def test_where_int8_loses_too_much_higher_ranks_are_tried(self, searching, tmp_path):
        by_ranks = {(): 0.8, (8,): 0.795, (16,): 0.7975, (24,): 0.8}
        found = searching(by_ranks, [0.7, 0.7, 0.7, 0.7, 0.7, 0.79])
        assert "(fc1 16)" in found.write(tmp_path / "model.onnx", EDGE, 1.0, {}).made_by

    def test_int8_beyond_the_budget_is_refused(self, searching, tmp_path):
        found = searching({(): 0.9, (8,): 0.9, (16,): 0.9, (24,): 0.9}, [0.85, 0.89, 0.87] * 3)
        with pytest.raises(ParityError, match=r"0\.5 points: .*fc1 8, int8, Percentile.* loses 1\.00") as caught:
            found.write(tmp_path / "model.onnx", EDGE, 0.5, {})
        assert caught.value.option == "budget"
        assert list(tmp_path.iterdir()) == []

    def test_a_second_search_begins_anew(self, searching, tmp_path):
        found = searching({(): 0.8, (8,): 0.795, (16,): 0.799, (24,): 0.8}, [0.8, 0.7, 0.7, 0.79, 0.7, 0.7])
        assert "(fc1 16)" in found.write(tmp_path / "edge.onnx", EDGE, 0.2, {}).made_by
        tiny = lossy.LossyVariant("tiny", 5, ())
        assert "(fc1 8)" in found.write(tmp_path / "tiny.onnx", tiny, 0.2, {}).made_by
        assert [name for name, _ in found.trials].count("the net") == 1

    def test_how_it_was_made_is_said(self, bundle):
        made_by = bundle.variant("edge").made_by
        assert re.match(r"low rank by principal outputs \(.*fc1 \d+", made_by)
        assert "120 of them held out" in made_by


@pytest.mark.parametrize("variant", [lossy.EDGE, lossy.TINY], ids=lambda variant: variant.name)
def test_candidates_grow(variant):
    candidates = [dict(zip(LAYERS, candidate, strict=True)) for candidate in variant.candidates]
    whole = Net(10)
    for widths in candidates:
        assert all(0 < width <= len(whole.get_submodule(layer).weight) for layer, width in widths.items())
        assert all(width % 8 == 0 for width in widths.values())  # int8 kernels work on 8 or 16 channels at once
    for low, high in itertools.pairwise(candidates):
        assert low != high
        assert all(low[layer] <= high[layer] for layer in LAYERS)


class TestRefusals:
    def test_too_few_calibration_images(self, deployed, small):
        images, labels = small.train_images[:60], small.train_labels[:60]
        with pytest.raises(DataError, match=r"99 images are too few .*100 at least"):
            search.Search(deployed, small.contract, small.train_images[60:99], images, labels)

    def test_training_images_stand_in_where_few_are_held_out(self, deployed, small):
        images, rest = small.train_images[:20], small.train_images[20:]
        made = search.Search(deployed, small.contract, rest, images, small.train_labels[:20])
        np.testing.assert_array_equal(made.calibration[:20], images)
        assert len(images) + len(rest) >= len(made.calibration) >= 100

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
            with pytest.raises(DataError, match="convert them"):
                search.Search(deployed, small.contract, *given, labels)

    def test_a_label_for_each_image(self, deployed, small):
        with pytest.raises(DataError, match="7 labels"):
            search.Search(deployed, small.contract, small.train_images, small.train_images, small.train_labels[:7])

    def test_a_budget_that_cannot_be_met_ends_in_no_bundle(
        self, run, tmp_path, refused, monkeypatch, synthetic_is_small
    ):
        monkeypatch.setattr(search, "LOST_VARIANCE", ())  # all layers stay whole

        def quantize(self, model, shown):
            self._note(f"{shown}, as integers", -1.0, quantized=True)
            return None, "MinMax", -1.0

        monkeypatch.setattr(search.Search, "_quantize", quantize)
        out = tmp_path / "bundles" / "new"
        sentence = refused("export", run.folder, "--variant", "edge", "--budget", "0", "--out", out)
        assert "keeps the budget of 0 points" in sentence
        assert "--budget" in sentence
        assert list(out.parent.iterdir()) == []

    @pytest.mark.parametrize(
        ("changes", "sentence"),
        [
            ({}, "was trained without held-out images"),
            ({"trial": SELECTION}, "was trained on all images"),
        ],
    )
    def test_a_run_that_holds_nothing_out(self, linked, small, tmp_path, changes, sentence):
        recipe = {"recipe": {**asdict(linked().record.recipe), "held_out": 0.0, "name": "reference"}}
        with pytest.raises(RunError, match=sentence):
            build.export(linked(**recipe, **changes), tmp_path / "new", small, ExportOptions(variants=("edge",)))
        assert not (tmp_path / "new").exists()

    def test_tiny_may_lose_and_learn_five_times_as_much_and_shares_what_was_found(
        self, run, small, tmp_path, monkeypatch
    ):
        calls = []
        monkeypatch.setattr(search.Search, "write", lambda self, path, *rest: calls.append((self, *rest)))
        options = ExportOptions(variants=("edge", "tiny"), budget=0.25, fine_tune=3, device="cpu")
        made = targets(Source(run, small, options))
        for target in made:
            target.make(tmp_path / target.file)
        assert [(target.file, target.limits.accuracy_drop) for target in made] == [
            ("model.edge.onnx", 0.25),
            ("model.tiny.onnx", 1.25),
        ]
        (first, *asked, origin), (second, *asked_of_tiny, other) = calls
        assert first is second
        assert asked == [lossy.EDGE, 0.25]
        assert asked_of_tiny == [lossy.TINY, 0.25]
        assert (origin["fine_tuning"]["epochs"], other["fine_tuning"]["epochs"]) == (3, 15)
        assert first.distiller.lasting(5).recipe == distill.recipe(15)


class TestDefault:
    """Which variant a bundle gives by default: `edge`, unless something smaller is no less accurate."""

    @pytest.mark.parametrize(
        ("tiny", "bytes_", "default"),
        [(0.80, 100, "tiny"), (0.79, 100, "tiny"), (0.789, 100, "edge"), (0.80, 9_000_000, "edge")],
    )
    def test_edge_or_tiny(self, bundle, tiny, bytes_, default, lines):
        edge = replace(bundle.variant("edge"), bytes=5_000_000)
        variants = (bundle.variant("fp32"), edge, replace(edge, name="tiny", bytes=bytes_))
        assert build.choose_default(variants, {"fp32": None, "edge": 0.79, "tiny": tiny}) == default
        said = lines()
        assert bool(said) == (default == "tiny")  # never without a word
        assert all("tiny is smaller than edge" in line for line in said)

    @pytest.mark.parametrize(
        ("names", "default"),
        [(["fp32", "tiny"], "fp32"), (["tiny", "pt2"], "tiny"), (["fp16", "pt2"], "fp16"), (["pt2"], "pt2")],
    )
    def test_without_edge(self, bundle, names, default):
        known = {"fp32": ("onnx", "fp32"), "fp16": ("onnx", "fp16"), "tiny": ("onnx", "int8"), "pt2": ("pt2", "fp32")}
        some = bundle.variant("edge")
        variants = tuple(replace(some, name=name, format=known[name][0], precision=known[name][1]) for name in names)
        assert build.choose_default(variants, dict.fromkeys(names)) == default
