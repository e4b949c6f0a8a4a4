"""Candidates are what their names say, a variant's float form has the same weights or is not taken, and refusals."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import helper, numpy_helper

pytest.importorskip("torch")
import candidates
from candidates import FULL, Candidate, ReferenceModels, beside, choose, of_bundles, same_weights

from edgecifar.export.compress import distill, narrow
from edgecifar.export.compress.quantize import quantize
from edgecifar.export.formats import onnx as onnx_format
from edgecifar.export.graph import Deployed
from edgecifar.runtime import Bundle
from edgecifar.runtime.errors import BundleError, DataError, VariantError
from edgecifar.runtime.files import sha256
from edgecifar.runtime.manifest import MANIFEST, SUMS
from edgecifar.train.net import LAYERS


class TestSameWeights:
    @staticmethod
    def model(**arrays) -> onnx.ModelProto:
        tensors = [numpy_helper.from_array(array, name) for name, array in arrays.items()]
        return helper.make_model(helper.make_graph([], "g", [], [], tensors))

    @pytest.fixture
    def weight(self) -> np.ndarray:
        return np.random.default_rng(0).normal(size=(4, 3, 2)).astype(np.float32)

    @pytest.fixture
    def quantized(self, weight) -> onnx.ModelProto:
        scale = np.abs(weight).max((1, 2)) / np.float32(64)
        steps = np.rint(weight / scale[:, None, None]).astype(np.int8)
        return self.model(a_quantized=steps, a_scale=scale, a_zero_point=np.zeros(4, np.int8))

    def test_the_same(self, weight, quantized):
        assert same_weights(quantized, self.model(a=weight, b=weight))

    def test_one_that_differs(self, weight, quantized):
        weight[2, 1, 0] += 2 * np.abs(weight[2]).max() / 64
        assert not same_weights(quantized, self.model(a=weight))

    def test_another_shape_and_none(self, weight, quantized):
        assert not same_weights(quantized, self.model(a=weight.reshape(4, 6)))
        assert not same_weights(quantized, self.model(b=weight))


class TestOfBundles:
    def test_fp32_first_and_a_file_once(self, run, bundle, own_bundle):
        found = of_bundles([Bundle.open(own_bundle), bundle], run)
        assert [(one.name, one.bundle, one.precision) for one in found] == [
            (FULL, bundle.folder.name, "fp32"),
            ("edge", "own", "int8"),
        ]
        assert found[1].model == (own_bundle / "model.edge.onnx").read_bytes()
        assert not any(one.problem for one in found)

    def test_variants_of_one_name_have_their_bundles_name_too(self, run, bundle, own_bundle):
        file = own_bundle / "model.edge.onnx"
        model = onnx.load(file)
        model.doc_string = "another file"
        onnx.save(model, file)
        described(own_bundle, lambda manifest: describe(manifest["variants"][0], file))
        found = of_bundles([bundle, Bundle.open(own_bundle)], run)
        assert [one.name for one in found] == [FULL, f"{bundle.folder.name}/edge", "own/edge"]
        shutil.copytree(own_bundle, own_bundle.parent / "other" / bundle.folder.name)
        with pytest.raises(VariantError, match="folders differ"):
            of_bundles([bundle, Bundle.open(own_bundle.parent / "other" / bundle.folder.name)], run)

    def test_of_another_run(self, run, own_bundle):
        described(own_bundle, lambda manifest: manifest["provenance"].update(checkpoint_sha256="0" * 64))
        with pytest.raises(BundleError, match="checkpoints differ"):
            of_bundles([Bundle.open(own_bundle)], run)

    def test_none_that_is_onnx(self, run, own_bundle):
        (own_bundle / "model.edge.onnx").rename(own_bundle / "model.pt2")
        described(own_bundle, lambda m: m["variants"][0].update(format="pt2", file="model.pt2"))
        with pytest.raises(VariantError, match="no ONNX variant"):
            of_bundles([Bundle.open(own_bundle)], run)


class TestBeside:
    def test_the_int8_variants_under_their_bundle_s_name(self, own_bundle, small):
        (found,) = beside(Bundle.open(own_bundle), small.contract)
        assert (found.name, found.precision) == ("own/edge", "int8")
        assert found.model == (own_bundle / "model.edge.onnx").read_bytes()

    def test_one_of_other_pictures(self, own_bundle, small):
        with pytest.raises(BundleError, match="other labels"):
            beside(Bundle.open(own_bundle), replace(small.contract, labels=("a", "b")))


def describe(variant: dict, file: Path) -> None:
    variant.update(sha256=sha256(file), bytes=file.stat().st_size)


def described(folder: Path, change) -> None:
    """Change the manifest of a bundle, and write its digests anew."""
    manifest = json.loads((folder / MANIFEST).read_text())
    change(manifest)
    (folder / MANIFEST).write_text(json.dumps(manifest))
    files = [path for path in sorted(folder.iterdir()) if path.name != SUMS]
    (folder / SUMS).write_text("".join(f"{sha256(path)}  {path.name}\n" for path in files))


@pytest.fixture
def models(run, bundle, small, tmp_path) -> ReferenceModels:
    return ReferenceModels(run, small, of_bundles([bundle], run), tmp_path)


class TestReferenceModels:
    def test_names(self, models, run, small, tmp_path):
        low = [f"fc1-{rank}" for rank in candidates.RANKS] + [f"all-{lost}" for lost in candidates.LOSSES]
        assert [*models.makers] == ["int8-7bit", "int8-8bit", "edge-8bit", *low]
        assert [*ReferenceModels(run, small, [], tmp_path).makers] == [FULL, "int8-7bit", "int8-8bit", *low]

    def test_ranks(self, models):
        """The share that is lost at a rank leads back to the rank."""
        for rank in (8, 16, 64):
            reduced, shown = models._split(models.model, {"fc1": models._lost("fc1", rank)})
            assert shown == f"fc1 {rank}"
            assert len(reduced.fc1[0].weight) == rank
            assert reduced.conv6 is models.model.conv6

    def test_where_splitting_is_not_worth_it(self, models):
        found = models.makers["all-0.01"].func(0.0)
        assert found.problem
        assert found.model == b""

    def test_a_variant_with_other_weights_than_the_run_gives(self, models, bundle):
        model = onnx.load_from_string(bundle.read(bundle.variant("edge")))
        weight = next(tensor for tensor in model.graph.initializer if tensor.name == "fc2.weight_quantized")
        steps = numpy_helper.to_array(weight).copy()
        steps[5] = -steps[5]
        weight.raw_data = steps.tobytes()
        found = models._in_eight_bits(Candidate("edge", "all", "int8", "a test", model.SerializeToString()))
        assert "weights of edge" in found.problem
        assert found.model == b""

    def test_a_variant_that_was_fine_tuned(self, models, net, small, tmp_path, monkeypatch):
        """It is made again from what the run's folder holds, and only from that."""
        widths = dict(zip(LAYERS, (8, 8, 16, 16, 16, 16, 32, 16), strict=True))
        student = narrow.narrowed(net, widths, narrow.importance(net, models._few)).eval()
        path = tmp_path / "tiny.onnx"
        onnx_format.write(Deployed(student, paired=True), path, small.contract, {})
        quantized = quantize(path, small.train_images[:100], small.contract, "MinMax")
        onnx_format.save(quantized, path, small.contract, {"fine_tuning": {"epochs": 3}})
        tiny = Candidate("tiny", "all", "int8", "MinMax ranges", path.read_bytes())
        earlier = onnx.load_from_string(tiny.model)  # an earlier version's: its layers have other names
        for tensor in earlier.graph.initializer:
            tensor.name = tensor.name.replace("conv4.", "conv4.0.")
        for missing in (replace(tiny, model=earlier.SerializeToString()), tiny):
            assert "does not hold the fine-tuned net of tiny" in models._in_eight_bits(missing).problem
        asked = []
        monkeypatch.setattr(distill.Distiller, "holds", lambda self, *_: asked.append(self.recipe.epochs) or True)
        monkeypatch.setattr(distill.Distiller, "tune", lambda self, student, widths: student.eval())
        found = models._in_eight_bits(tiny)
        assert (asked, found.problem, found.name) == ([3], "", "tiny-8bit")
        assert max(steps_of(found)) > 120

    def test_int8_of_the_whole_net(self, models):
        for bits, largest in ((7, 64), (8, 127)):
            found = models.makers[f"int8-{bits}bit"]()
            assert (found.name, found.precision, found.problem) == (f"int8-{bits}bit", "int8", "")
            assert f"{bits}-bit weights" in found.made_by
            steps = steps_of(found)
            assert len(steps) == 8  # of nine layers; the last stays in float
            assert max(steps) == largest


def steps_of(candidate: Candidate) -> list[int]:
    """The largest int8 weight of each layer."""
    return [
        int(np.abs(numpy_helper.to_array(tensor).astype(int)).max())
        for tensor in onnx.load_from_string(candidate.model).graph.initializer
        if tensor.name.endswith("weight_quantized")
    ]


class TestChoose:
    @pytest.fixture
    def without_training(self, models) -> ReferenceModels:
        """Of a run that held out 10 images."""
        models.held_out = models.held_out[:10]
        return models

    def test_too_few_held_out(self, without_training):
        with pytest.raises(DataError, match="10 held-out images"):
            choose([without_training.full], without_training, None)

    def test_unless_nothing_is_to_be_calibrated(self, without_training):
        assert choose([without_training.full], without_training, [FULL]) == [without_training.full]

    def test_an_unknown_variant(self, models):
        with pytest.raises(VariantError, match=r"h5.*fp32, int8-7bit"):
            choose([models.full], models, ["h5", FULL])
