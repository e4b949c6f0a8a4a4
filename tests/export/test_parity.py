"""The parity gate can fail: each kind of difference is found, named, and leaves no bundle."""

from __future__ import annotations

import copy
import json
import re
import shutil

import numpy as np
import onnx
import pytest
import torch
from onnx import numpy_helper

from edgecifar.export import parity
from edgecifar.export.formats import onnx as onnx_format
from edgecifar.export.formats import pt2, torchscript
from edgecifar.runtime.metrics import score
from edgecifar.train.inference import in_batches

LOGITS = np.random.default_rng(0).normal(0, 2, (130, 10)).astype(np.float32)
IMAGES = np.zeros((130, 32, 32, 3), np.uint8)
IMAGES[:, 0, 0, 0] = np.arange(130)  # an image says which it is
LABELS = LOGITS.argmax(1)


def table_lookup(images: np.ndarray) -> np.ndarray:
    return LOGITS[images[:, 0, 0, 0]]


def compare(exported, exact: bool = True, labels=LABELS, budget=0.2, within=None, temperature=1.0) -> parity.Parity:
    reference = parity.Reference(IMAGES, "numbers", LOGITS, labels, temperature)
    answers = parity.ask(with_softmax(exported, temperature), reference)
    return parity.compare(answers, reference, parity.Limits(None if exact else budget, within))


def with_softmax(exported, temperature=1.0):
    """Return a model of the logits that a function gives."""

    def outputs(images):
        logits = exported(images)
        return torch.softmax(torch.from_numpy(logits) / temperature, -1).numpy(), logits

    return outputs


class TestMcnemar:
    @pytest.mark.parametrize(("alone", "against"), [(0, 0), (1, 0), (3, 9), (9, 3), (5, 5), (0, 12), (40, 71)])
    def test_as_the_binomial_test_of_torch(self, alone, against):
        right = np.array([True] * alone + [False] * against + [True, False])
        other = np.array([False] * alone + [True] * against + [True, False])
        trials = alone + against
        heads = torch.distributions.Binomial(trials, torch.tensor(0.5, dtype=torch.float64))
        tail = heads.log_prob(torch.arange(min(alone, against) + 1, dtype=torch.float64)).exp().sum().item()
        assert parity.mcnemar(right, other) == pytest.approx(min(1.0, 2 * tail))

    def test_ten_thousand_images(self):
        right = np.arange(10_000) % 2 == 0
        assert parity.mcnemar(right, ~right) == 1
        assert parity.mcnemar(np.ones(10_000, bool), np.zeros(10_000, bool)) == 0


class TestCompare:
    def test_the_same_model_passes(self):
        result = compare(table_lookup)
        assert result.passed
        assert (result.images, result.data, result.agree, result.accuracy) == (130, "numbers", 130, 1.0)
        assert (result.max_abs_difference, result.max_rel_difference, result.failure) == (0, 0, "")
        assert result.batch_sizes == (1, 2, 7, 64)

    def test_it_is_run_at_the_batch_sizes_it_names(self):
        seen = set()

        def logits(images):
            seen.add(len(images))
            return table_lookup(images)

        compare(logits)
        assert seen == {1, 2, 7, 64, 130}

    @pytest.mark.parametrize(("count", "sizes"), [(63, (1, 2, 7)), (64, (1, 2, 7, 64)), (6, (1, 2)), (1, (1,))])
    def test_a_batch_size_that_there_are_too_few_images_for_is_not_named(self, count, sizes):
        """63 images said 64, of which no batch was compared."""
        reference = parity.Reference(IMAGES[:count], "numbers", LOGITS[:count], LABELS[:count])
        seen = set()

        def logits(images):
            seen.add(len(images))
            return table_lookup(images)

        answers = parity.ask(with_softmax(logits), reference)
        for limits in (parity.Limits(), parity.Limits(0.2)):
            result = parity.compare(answers, reference, limits)
            assert result.passed
            assert result.batch_sizes == sizes
        assert seen >= set(sizes)

    def test_without_labels_the_accuracy_is_unknown(self):
        assert compare(table_lookup, labels=None).accuracy is None

    def test_accuracy_is_the_exported_models_own(self):
        def last_is_wrong(images):
            logits = table_lookup(images)
            logits[images[:, 0, 0, 0] == 129] *= -1
            return logits

        assert compare(last_is_wrong, exact=False).accuracy == pytest.approx(129 / 130)

    def test_calibration_is_that_of_the_probabilities(self):
        labels = np.where(np.arange(130) < 91, LABELS, (LABELS + 1) % 10)  # 70 % are right
        result = compare(table_lookup, labels=labels, temperature=2.0)
        names = [str(index) for index in range(10)]
        expected = score(torch.softmax(torch.from_numpy(LOGITS) / 2, 1).numpy(), labels, names, seconds=1)
        assert result.accuracy == 0.7
        assert result.nll == pytest.approx(expected.nll)
        assert result.ece == pytest.approx(expected.ece)
        assert result.p_value == 1

    def test_without_labels_calibration_is_unknown_too(self):
        result = compare(table_lookup, labels=None)
        assert (result.nll, result.ece, result.p_value) == (None, None, None)

    def test_rounding_passes(self):
        result = compare(lambda images: table_lookup(images) * np.float32(1 + 2e-5) + np.float32(2e-5))
        assert result.passed
        assert 2e-5 < result.max_abs_difference < 3e-4
        assert 0 < result.max_rel_difference < 1e-4

    def test_a_difference_above_tolerance(self):
        result = compare(lambda images: table_lookup(images) + np.float32(2e-3))
        assert not result.passed
        assert "logits differ by more than 1e-04" in result.failure
        assert result.agree == 130
        assert result.max_abs_difference == pytest.approx(2e-3, rel=0.01)

    def test_one_logit_of_one_image_is_enough(self):
        def logits(images):
            result = table_lookup(images)
            result[images[:, 0, 0, 0] == 129, 3] += 1e-3
            return result

        result = compare(logits)
        assert "differ" in result.failure
        assert result.max_abs_difference == pytest.approx(1e-3, rel=0.01)

    def test_one_other_arg_max_is_enough(self):
        def logits(images):
            result = table_lookup(images)
            result[images[:, 0, 0, 0] == 128] = -result[images[:, 0, 0, 0] == 128]
            return result

        result = compare(logits)
        assert result.failure == "disagrees on 1 of 130 arg-maxes"
        assert result.agree == 129

    @pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
    @pytest.mark.parametrize("exact", [True, False])
    def test_what_is_not_finite(self, value, exact):
        def logits(images):
            result = table_lookup(images)
            result[images[:, 0, 0, 0] == 100, 0] = value
            return result

        assert compare(logits, exact).failure == "gives logits that are not finite"

    @pytest.mark.parametrize("exact", [True, False])
    def test_wrong_number_of_classes(self, exact):
        result = compare(lambda images: table_lookup(images)[:, :9], exact)
        assert result.failure == "gives logits of shape [2, 9] at batch size 1"
        assert result.agree == 0
        assert result.batch_sizes == ()
        assert result.max_abs_difference is None

    def test_wrong_number_of_rows(self):
        result = compare(lambda images: table_lookup(images[:1]))
        assert result.failure == "gives logits of shape [2, 10] at batch size 2"  # of four images

    @pytest.mark.parametrize("exact", [True, False])
    def test_an_engine_that_raises(self, exact):
        def logits(images):
            if len(images) == 7:
                raise RuntimeError("no kernel for 7\nand much more")
            return table_lookup(images)

        result = compare(logits, exact)
        assert result.failure == "cannot run batch size 7: no kernel for 7"
        assert result.batch_sizes == (1, 2)

    def test_an_engine_that_raises_only_on_all_images(self):
        def logits(images):
            if len(images) > 64:
                raise MemoryError
            return table_lookup(images)

        assert compare(logits).failure == "cannot run batch size 130: MemoryError"  # there are no more

    @pytest.mark.parametrize("row", [0, 1, 63])
    def test_other_logits_at_one_batch_size(self, row):
        def logits(images):
            result = table_lookup(images)
            if len(images) == 64:
                result[row] += 0.01
            return result

        assert compare(logits).failure == "gives other logits at batch size 64"

    @pytest.mark.parametrize("value", [np.nan, np.inf, 9.0])
    @pytest.mark.parametrize("size", [1, 64])
    def test_a_lossy_model_gives_its_own_logits_at_every_batch_size(self, size, value):
        """A device asks for one image at a time, so that the accuracy on large batches alone says nothing to it."""

        def logits(images):
            result = table_lookup(images)
            if len(images) == size:
                result[-1, 3] = value
            return result

        assert compare(logits, exact=False).failure == f"gives other logits at batch size {size}"

    def test_a_lossy_model_may_round_differently_at_a_batch_size(self):
        """It is what becomes of the probabilities that counts, and so the temperature, too."""

        def logits(images):
            result = table_lookup(images)
            if len(images) == 64:
                result[:, 3] += 0.5
            return result

        assert compare(logits, exact=False).failure == "gives other logits at batch size 64"
        assert compare(logits, exact=False, temperature=20.0).passed

    def test_lossy_models_may_differ(self):
        result = compare(
            lambda images: table_lookup(images) + np.float32(0.3) * (images[:, :10, 0, 0] > 5), exact=False
        )
        assert result.passed
        assert 0 < result.agree <= 130
        assert result.max_abs_difference == pytest.approx(0.3, rel=1e-3)

    @pytest.mark.parametrize(
        ("wrong", "budget", "passes"), [(9, 0, True), (10, 0, False), (11, 1, True), (12, 1, False)]
    )
    def test_lossy_models_are_held_to_their_accuracy(self, wrong, budget, passes):
        # n more wrong and none more right: n may be 3 * sqrt(n) + 1.3 images a point of budget, of 130.
        result = compare(
            lambda images: table_lookup(images) * np.where(images[:, :1, 0, 0] < wrong, -1, 1).astype(np.float32),
            exact=False,
            budget=budget,
        )
        assert result.agree == 130 - wrong
        assert result.passed == passes
        if not passes:
            assert result.failure.startswith(f"classifies {wrong} of 130 images fewer correctly")

    def test_images_without_labels_count_for_agreement_alone(self):
        def wrong_at(*numbers):
            def logits(images):
                found = table_lookup(images).copy()
                found[np.isin(images[:, 0, 0, 0], numbers)] *= -1
                return found

            return logits

        result = compare(wrong_at(100, 120), labels=LABELS[:50], exact=False, budget=0)
        assert (result.images, result.tested, result.agree, result.accuracy) == (130, 50, 128, 1.0)
        assert result.passed
        assert not compare(wrong_at(100), labels=LABELS[:50]).passed  # an exact format agrees on every image
        lost = compare(wrong_at(*range(40)), labels=LABELS[:50], exact=False, budget=1)
        assert lost.accuracy == pytest.approx(0.2)
        assert "40 of 50 images" in lost.failure

    def test_lossy_models_need_labels(self):
        assert "no labels" in compare(table_lookup, exact=False, labels=None).failure

    @pytest.mark.parametrize("labels", [LABELS, None])
    def test_lossy_models_may_be_held_to_their_probabilities(self, labels):
        def colder(images):
            return 1.02 * table_lookup(images)

        probabilities = [np.exp(x) / np.exp(x).sum(1, keepdims=True) for x in (LOGITS / 2, 1.02 * LOGITS / 2)]
        moved = np.abs(probabilities[0] - probabilities[1]).max()
        held = [
            compare(colder, exact=False, labels=labels, within=within, temperature=2.0)
            for within in (moved * 1.01, moved * 0.99)
        ]
        assert [result.max_probability_difference for result in held] == [pytest.approx(moved, rel=1e-4)] * 2
        assert held[0].passed
        assert held[1].failure == f"moves a probability by {moved:.3f}, more than {moved * 0.99:g}"

    def test_a_net_that_gives_no_numbers_proves_nothing(self):
        reference = parity.Reference(IMAGES, "numbers", LOGITS * np.nan)
        answers = parity.ask(with_softmax(table_lookup), reference)
        assert not parity.compare(answers, reference, parity.Limits(0.1, 0.02)).passed

    def test_one_that_keeps_its_probabilities_may_still_lose_too_much(self):
        flat = np.where(np.arange(10) == 3, np.float32(1e-3), 0).astype(np.float32)  # every image, by a little, class 3

        def other(images):
            return np.tile(flat[::-1], (len(images), 1))

        reference = parity.Reference(IMAGES, "numbers", np.tile(flat, (130, 1)), np.full(130, 3))
        result = parity.compare(parity.ask(with_softmax(other), reference), reference, parity.Limits(0.2, 0.02))
        assert result.max_probability_difference < 0.001
        assert result.failure.startswith("classifies 130 of 130 images fewer correctly")

    @pytest.mark.parametrize("exact", [True, False])
    @pytest.mark.parametrize("size", [1, 64, 250])
    @pytest.mark.parametrize(
        ("change", "says"),
        [
            (lambda p: p[::-1], "differ from"),
            (lambda p: p**1.01, "differ from"),
            (lambda p: p * np.nan, "probabilities"),
            (lambda p: p[:, :9], r"probabilities of shape \["),
        ],
    )
    def test_the_output_probabilities_is_looked_at_too(self, change, says, size, exact):
        reference = parity.Reference(IMAGES, "numbers", LOGITS, LABELS, 2.0)

        def outputs(images):
            probabilities, logits = with_softmax(table_lookup, 2.0)(images)
            return change(probabilities) if len(images) == min(size, 130) else probabilities, logits

        def verdict(outputs):
            return parity.compare(parity.ask(outputs, reference), reference, parity.Limits(None if exact else 0.2))

        if size == 1 and says == "differ from":
            change = lambda p: p**1.01  # noqa: E731 - one row cannot be turned round
        assert re.search(says, verdict(outputs).failure)
        assert verdict(with_softmax(table_lookup, 2.0)).passed

    def test_figures_are_of_the_output_probabilities(self):
        reference = parity.Reference(IMAGES, "numbers", LOGITS, LABELS)
        exact = with_softmax(table_lookup)

        def other(images):
            probabilities, logits = exact(images)
            return probabilities * 0.9 + 0.01, logits

        found, was = (parity.compare(parity.ask(one, reference), reference, parity.Limits()) for one in (other, exact))
        assert found.nll > was.nll
        assert found.max_probability_difference > 0.02 > was.max_probability_difference

    @pytest.mark.parametrize("labels", [LABELS, LABELS[:5]])
    def test_agreement_needs_no_labels(self, labels):
        """Of five labelled images a model may have none right: three standard errors are more."""

        def other_for(count):
            return lambda images: table_lookup(images) * np.where(images[:, :1, 0, 0] < count, -1, 1).astype(np.float32)

        reference = parity.Reference(IMAGES, "numbers", LOGITS, labels)
        limits = parity.Limits(100, agreement=0.9)
        good, bad = (
            parity.compare(parity.ask(with_softmax(other_for(count)), reference), reference, limits)
            for count in (13, 14)
        )
        assert good.passed
        assert bad.failure == "gives the same class for 116 of 130 images, less than 90 %"

    @pytest.mark.parametrize("exported", [table_lookup, lambda images: images[:, 0]], ids=["the same", "no model"])
    def test_as_json_is_json(self, exported):
        values = compare(exported).as_json()
        assert {**json.loads(json.dumps(values, allow_nan=False)), "batch_sizes": values["batch_sizes"]} == values


def test_in_batches_covers_every_image_once():
    sizes = []

    def logits(images):
        sizes.append(len(images))
        return table_lookup(images)

    np.testing.assert_array_equal(in_batches(logits, IMAGES, 50), LOGITS)
    assert sizes == [50, 50, 30]


def test_table_says_which_failed_and_why():
    good, bad = compare(table_lookup), compare(lambda images: -table_lookup(images))
    _, first, second = parity.table({"fp32": good, "pt2": bad}).splitlines()
    assert first.startswith("pass  fp32")
    assert "130 / 130" in first
    assert second.startswith("FAIL  pt2")
    assert second.endswith(bad.failure)


# Sabotage: what the gate must find in a file, made by editing what an intact exporter wrote.


def edit(name: str, change):
    """A change of the initializer `name` of an ONNX model."""

    def sabotage(model: onnx.ModelProto) -> None:
        (tensor,) = (tensor for tensor in model.graph.initializer if tensor.name == name)
        tensor.CopyFrom(numpy_helper.from_array(change(numpy_helper.to_array(tensor).copy()), name))

    return sabotage


def one_weight(weight: np.ndarray) -> np.ndarray:
    weight[5, 7] *= 1.02
    return weight


def drop_normalisation(model: onnx.ModelProto) -> None:
    """Undo the fold: conv1 gets pixels of 0 to 255 as if they were in -1 to 1."""
    (weight,) = (numpy_helper.to_array(t) * 127.5 for t in model.graph.initializer if t.name == "conv1.weight")
    edit("conv1.bias", lambda bias: bias + weight.sum((1, 2, 3)))(model)
    edit("conv1.weight", lambda _: weight)(model)


def declare_batch(size: int):
    def sabotage(model: onnx.ModelProto) -> None:
        for value in (*model.graph.input, *model.graph.output):
            value.type.tensor_type.shape.dim[0].dim_value = size

    return sabotage


SABOTAGE = {
    "one weight": (edit("fc3.weight", one_weight), "logits differ by more than"),
    "channels swapped": (edit("conv1.weight", lambda weight: weight[:, ::-1].copy()), "arg-maxes"),
    "normalisation dropped": (drop_normalisation, "arg-maxes"),
    "batch declared 1": (declare_batch(1), "takes only batches of 1"),
    "batch of the head frozen": (edit("val_7", lambda shape: np.array([1, 36 * 96])), "cannot run batch size 2: "),
}


@pytest.fixture
def export(edgecifar, run, tmp_path, synthetic_is_small):
    """Run `edgecifar export`; return the result and the folder that was to become the bundle."""

    def call(*arguments):
        out = tmp_path / "bundles" / "new"
        return edgecifar("export", run.folder, "--out", out, *arguments), out

    return call


def assert_no_bundle(result, out, name: str, reason: str) -> None:
    assert result.exit_code == 1
    assert result.stdout == ""
    *_, sentence = result.stderr.splitlines()
    assert sentence.startswith(f"edgecifar: Not the same model, so no bundle was made: {name} ")
    assert reason in sentence
    assert any(line.startswith(f"FAIL  {name} ") for line in result.stderr.splitlines())
    assert "Traceback" not in result.stderr
    assert ".partial" not in result.stderr
    assert not list(out.parent.iterdir())  # neither a bundle nor what was to become one


def sabotaged_onnx(plain_onnx, sabotage):
    def write(model, path, contract, provenance):
        graph = plain_onnx("model.onnx")
        sabotage(graph)
        onnx.save(graph, path)

    return write


def test_without_sabotage_the_same_way_gives_a_bundle(export, plain_onnx, monkeypatch):
    monkeypatch.setattr(onnx_format, "write", sabotaged_onnx(plain_onnx, lambda model: None))
    result, out = export()
    assert result.exit_code == 0
    assert "pass  fp32" in result.stderr
    assert (out / "manifest.json").exists()


@pytest.mark.parametrize("kind", SABOTAGE)
def test_a_sabotaged_onnx_file_ends_in_no_bundle(export, plain_onnx, monkeypatch, kind):
    sabotage, reason = SABOTAGE[kind]
    monkeypatch.setattr(onnx_format, "write", sabotaged_onnx(plain_onnx, sabotage))
    assert_no_bundle(*export(), "fp32", reason)


def frozen(model, path, contract, provenance) -> None:
    """Export as torch does unless told that the batch is free."""
    import warnings

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch's exporter warns about its own internals
        program = torch.onnx.export(
            model,
            (torch.zeros(1, 32, 32, 3, dtype=torch.uint8),),
            dynamo=True,
            opset_version=18,
            input_names=["images"],
            output_names=["probabilities", "logits"],
            verbose=False,
        )
    onnx_format.save(program.model_proto, path, contract, provenance)


@pytest.mark.slow
def test_an_exporter_that_freezes_the_batch_ends_in_no_bundle(export, monkeypatch):
    monkeypatch.setattr(onnx_format, "write", frozen)
    assert_no_bundle(*export(), "fp32", "takes only batches of 1")


def with_swapped_channels(write):
    def sabotaged(model, path, contract):
        changed = copy.deepcopy(model)
        changed.conv1.weight.copy_(model.conv1.weight.flip(1))
        write(changed, path, contract)

    return sabotaged


@pytest.mark.parametrize(("name", "module"), [("torchscript", torchscript), ("pt2", pt2)])
def test_sabotaged_torch_formats_end_in_no_bundle(export, monkeypatch, name, module):
    monkeypatch.setattr(module, "write", with_swapped_channels(module.write))
    assert_no_bundle(*export("--format", name), name, "arg-maxes")


@pytest.mark.slow
def test_a_pt2_file_of_a_frozen_batch_ends_in_no_bundle(export, monkeypatch):
    def write(model, path, contract):
        torch.export.save(torch.export.export(model, (torch.zeros(1, 32, 32, 3, dtype=torch.uint8),)), path)

    monkeypatch.setattr(pt2, "write", write)
    assert_no_bundle(*export("--format", "pt2"), "pt2", "is not a model that")


@pytest.mark.slow
def test_only_the_offender_is_named_and_the_good_one_is_not_shipped_either(export, plain_onnx, bundle, monkeypatch):
    monkeypatch.setattr(onnx_format, "write", sabotaged_onnx(plain_onnx, SABOTAGE["channels swapped"][0]))
    monkeypatch.setattr(
        torchscript, "write", lambda model, path, contract: shutil.copy(bundle.folder / "model.torchscript.pt", path)
    )
    result, out = export("--format", "onnx", "--format", "torchscript")
    assert_no_bundle(result, out, "fp32", "arg-maxes")
    assert "pass  torchscript" in result.stderr
    assert "torchscript" not in result.stderr.splitlines()[-1]
