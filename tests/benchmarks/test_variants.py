"""The frontier of known points, forms that are what their names say, refusals, and the script on the small net."""

from __future__ import annotations

import copy
import json
import shutil
import types
from pathlib import Path

import harness
import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper
from PIL import Image

pytest.importorskip("torch")
import variants
from variants import FULL, PLAIN, Form, Workshop, against, bare, frontier, of_bundles, same_weights

from edgecifar.export import distill, edge, narrow, to_onnx
from edgecifar.export.graph import Deployed
from edgecifar.runtime import Bundle
from edgecifar.runtime.bundle import MANIFEST, SUMS
from edgecifar.runtime.errors import BundleError, DataError, EdgecifarError, VariantError
from edgecifar.runtime.files import sha256
from edgecifar.runtime.metrics import score

FIGURES = {"type": "object", "required": ["mean", "p50", "p90", "p99", "p99.9"]}
RATIO = {"type": "object", "required": ["median", "low", "high"]}
SETTINGS = ["run", "bundles", "dataset", "threads", "seconds", "rounds", "vnni"]
SHARE = {"type": "number", "minimum": 0, "maximum": 1}
TEST = {
    "type": "object",
    "required": ["images", "correct", "accuracy", "points", "agreement", "p_value", "nll", "ece"],
    "additionalProperties": False,
    "properties": {
        "images": {"type": "integer", "minimum": 1},
        "correct": {"type": "integer", "minimum": 0},
        "points": {"type": "number", "minimum": -100, "maximum": 100},
        "nll": {"type": "number", "minimum": 0},
        **dict.fromkeys(("accuracy", "agreement", "p_value", "ece"), SHARE),
    },
}
TIMES = {
    "type": "object",
    "required": ["n", "milliseconds", "images_per_second", "ratios"],
    "additionalProperties": False,
    "properties": {
        "n": {"type": "integer", "minimum": 1},
        "milliseconds": FIGURES,
        "images_per_second": {"type": "number", "exclusiveMinimum": 0},
        "ratios": {"type": "object", "additionalProperties": RATIO},
    },
}
LATENCY = {"type": "object", "required": ["1", "64"], "additionalProperties": TIMES}
ROW = {
    "type": "object",
    "properties": {
        "variant": {"type": "string"},
        "bundle": {"type": ["string", "null"]},
        "precision": {"enum": ["fp32", "fp16", "int8"]},
        "made_by": {"type": "string", "minLength": 1},
        "needs": {"type": "string", "minLength": 1},
        "bytes": {"type": ["integer", "null"], "minimum": 1},
        "bytes_ratio": {"type": ["number", "null"], "exclusiveMinimum": 0},
        "test": {"anyOf": [TEST, {"type": "null"}]},
        "test_as_defined": {"anyOf": [TEST, {"type": "null"}]},
        "latency": {"anyOf": [LATENCY, {"const": {}}]},
        "frontier": {"type": "boolean"},
        "problem": {"type": ["string", "null"], "pattern": r".\.$"},
    },
    "additionalProperties": False,
}
ROW["required"] = [*ROW["properties"]]
SCHEMA = {
    "type": "object",
    "required": ["benchmark", "machine", "settings", "rows", PLAIN],
    "additionalProperties": False,
    "properties": {
        "benchmark": {"const": "variants"},
        "machine": {"required": ["cpu", "cpu_features", "usable_cpus", "cpu_quota", "versions", "load_average"]},
        "settings": {"type": "object", "required": SETTINGS},
        "rows": {"type": "array", "items": ROW, "minItems": 1},
        PLAIN: LATENCY,
    },
}


def row(name: str, correct: int, milliseconds: float, size: int, defined: int | None = None, problem: str = "") -> dict:
    """A row as `measure` makes it, of 1,000 test images, the fp32 file having 1,000 bytes and 10 ms, 900 right."""

    def test(count: int) -> dict:
        figures = {"images": 1000, "correct": count, "accuracy": count / 1000, "points": (count - 900) / 10}
        return {**figures, "agreement": 0.95, "p_value": 0.5, "nll": 0.3, "ece": 0.01}

    def times(factor: float) -> dict:
        ratio = dict.fromkeys(("median", "low", "high"), milliseconds / 10)
        known = {"mean": 1.0, "p50": milliseconds * factor, "p90": None, "p99": None, "p99.9": None}
        speed = 1000 * factor / milliseconds
        return {"n": 5, "milliseconds": known, "images_per_second": speed, "ratios": {PLAIN: ratio}}

    return {
        "variant": name,
        "bundle": None,
        "precision": "fp32" if defined is None else "int8",
        "made_by": "a test",
        "needs": "any",
        "bytes": None if problem else size,
        "bytes_ratio": None if problem else size / 1000,
        "test": None if problem else test(correct),
        "test_as_defined": None if defined is None else test(defined),
        "latency": {} if problem else {"1": times(1), "64": times(4)},
        "frontier": False,
        "problem": problem or None,
    }


@pytest.fixture
def rows() -> list[dict]:
    made = [row(FULL, 900, 10, 1000), row("int8", 890, 2.5, 250, 895), row("worse", 880, 5, 300)]
    made += [row("absent", 0, 1, 1, problem="it was not made.")]
    for one, best in zip(made, [True, True, False, False], strict=True):
        one["frontier"] = best
    return made


class TestFrontier:
    @pytest.mark.parametrize(
        ("points", "wanted"),
        [
            ([(1, 1, 1)], [True]),
            ([(1, 2, 3), (3, 2, 1), (2, 2, 2)], [True, True, True]),
            ([(1, 2, 3), (1, 2, 4)], [True, False]),  # larger in one, equal in the others
            ([(2, 2, 2), (1, 1, 1), (1, 1, 3)], [False, True, False]),
            ([(5, 5), (5, 5)], [True, True]),  # neither is better than the other
            ([(1, 9), (2, 8), (2, 9), (9, 1), (8.9, 1.1)], [True, True, False, True, True]),
            ([], []),
        ],
    )
    def test_known_points(self, points, wanted):
        assert frontier(points) == wanted

    def test_of_random_points(self):
        """Whoever is not on it is beaten by one that is, and those on it do not beat one another."""
        points = np.random.default_rng(0).integers(0, 6, (60, 3))
        best = np.array(frontier(points.tolist()))
        assert 0 < best.sum() < len(points)
        beaten = (points[best][:, None] <= points).all(-1) & (points[best][:, None] < points).any(-1)
        assert beaten.any(0).tolist() == (~best).tolist()

    def test_an_accurate_one_counts_as_small(self):
        """More right is better, though the coordinates of a row should be small."""
        costs = [variants.costs(row("a", correct, 2.0, 30)) for correct in (900, 901)]
        assert costs == [(100, 2.0, 30), (99, 2.0, 30)]
        assert frontier(costs) == [False, True]


def test_figures_against_the_reference():
    labels = np.array([0, 1, 2, 3, 4, 5, 6, 7, 8, 9])
    reference = np.array([0, 1, 2, 3, 4, 5, 6, 7, 0, 1])  # 8 right
    result = np.array([1, 1, 2, 3, 4, 5, 6, 7, 8, 1])  # the first wrong now, the ninth right
    found = against(*(score(np.eye(10, dtype=np.float32)[them], labels, 1) for them in (result, reference)), labels)
    assert (found["images"], found["correct"], found["accuracy"], found["points"]) == (10, 8, 0.8, 0)
    assert (found["agreement"], found["p_value"]) == (0.8, 1)
    assert found["ece"] == pytest.approx(0.2)


class TestBare:
    """A QDQ layer whose sums of two products do not go into 16 bits."""

    @pytest.fixture
    def model(self) -> bytes:
        weights = numpy_helper.from_array(np.full((48, 10), 127, np.int8), "w")
        scalars = {"one": np.float32(1), "zero_w": np.int8(0), "zero": np.uint8(0), "large": np.float32(10_000)}
        shape = numpy_helper.from_array(np.array([-1, 48]), "shape")
        nodes = [
            helper.make_node("Reshape", ["images", "shape"], ["rows"]),
            helper.make_node("DequantizeLinear", ["rows", "one", "zero"], ["x"]),
            helper.make_node("DequantizeLinear", ["w", "one", "zero_w"], ["weight"]),
            helper.make_node("MatMul", ["x", "weight"], ["y"]),
            helper.make_node("QuantizeLinear", ["y", "large", "zero"], ["quantized"]),
            helper.make_node("DequantizeLinear", ["quantized", "large", "zero"], ["probabilities"]),
        ]
        given = helper.make_tensor_value_info("images", TensorProto.UINT8, ["batch", 4, 4, 3])
        result = helper.make_tensor_value_info("probabilities", TensorProto.FLOAT, ["batch", 10])
        tensors = [weights, shape, *(numpy_helper.from_array(value, name) for name, value in scalars.items())]
        graph = helper.make_graph(nodes, "g", [given], [result], tensors)
        return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10).SerializeToString()

    def test_as_defined(self, model):
        images = np.full((2, 4, 4, 3), 255, np.uint8)
        wanted = 10_000 * round(48 * 255 * 127 / 10_000)  # with pairs cut off at 32,767 it would be 790,000
        assert bare(model, 1, fused=False)(images).tolist() == [[wanted] * 10] * 2

    def test_as_this_processor_computes_it(self, model):
        images = np.full((1, 4, 4, 3), 20, np.uint8)  # nothing saturates
        assert bare(model, 1)(images).tolist() == bare(model, 1, fused=False)(images).tolist() == [[120_000.0] * 10]


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
        forms = of_bundles([Bundle.open(own_bundle), bundle], run)
        assert [(form.name, form.bundle, form.precision) for form in forms] == [
            (FULL, bundle.folder.name, "fp32"),
            ("edge", "own", "int8"),
        ]
        assert forms[1].model == (own_bundle / "model.edge.onnx").read_bytes()
        assert not any(form.problem for form in forms)

    def test_variants_of_one_name_have_their_bundles_name_too(self, run, bundle, own_bundle):
        file = own_bundle / "model.edge.onnx"
        model = onnx.load(file)
        model.doc_string = "another file"
        onnx.save(model, file)
        described(own_bundle, lambda manifest: describe(manifest["variants"][0], file))
        forms = of_bundles([bundle, Bundle.open(own_bundle)], run)
        assert [form.name for form in forms] == [FULL, f"{bundle.folder.name}/edge", "own/edge"]
        shutil.copytree(own_bundle, own_bundle.parent / "other" / bundle.folder.name)
        with pytest.raises(VariantError, match=r"would be called \w+/edge: name bundles whose folders differ\.$"):
            of_bundles([bundle, Bundle.open(own_bundle.parent / "other" / bundle.folder.name)], run)

    def test_of_another_run(self, run, own_bundle):
        described(own_bundle, lambda manifest: manifest["provenance"].update(checkpoint_sha256="0" * 64))
        with pytest.raises(BundleError, match=r"own was not exported from .* \(the checkpoints differ\): name the run"):
            of_bundles([Bundle.open(own_bundle)], run)

    def test_none_that_is_onnx(self, run, own_bundle):
        (own_bundle / "model.edge.onnx").rename(own_bundle / "model.pt2")
        described(own_bundle, lambda m: m["variants"][0].update(format="pt2", file="model.pt2"))
        with pytest.raises(VariantError, match="has no ONNX variant to measure: export one with --format onnx"):
            of_bundles([Bundle.open(own_bundle)], run)


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
def workshop(run, bundle, small, tmp_path) -> Workshop:
    return Workshop(run, small, of_bundles([bundle], run), tmp_path, say=lambda line: None)


class TestWorkshop:
    def test_names(self, workshop, run, small, tmp_path):
        low = [f"fc1-{rank}" for rank in variants.RANKS] + [f"all-{lost}" for lost in variants.LOSSES]
        assert [*workshop.makers] == ["int8-7bit", "int8-8bit", "edge-8bit", *low]
        assert [*Workshop(run, small, [], tmp_path).makers] == [FULL, "int8-7bit", "int8-8bit", *low]

    def test_ranks(self, workshop):
        """The share that is lost at a rank leads back to the rank."""
        for rank in (8, 16, 64, 128):
            reduced, shown = workshop._split(workshop.model, {"fc1": workshop._lost("fc1", rank)})
            assert shown == f"fc1 {rank}"
            assert len(reduced.fc1[0].weight) == rank
            assert reduced.conv6 is workshop.model.conv6

    def test_where_splitting_is_not_worth_it(self, workshop):
        form = workshop.makers["all-0.01"].func(0.0)
        assert form.problem == "no layer becomes smaller by being split at such ranks."

    def test_a_variant_with_other_weights_than_the_run_gives(self, workshop, bundle):
        form = Form("edge", "all", "int8", "a test", model=bundle.read(bundle.variant("edge")))
        model = onnx.load_from_string(form.model)
        weight = next(tensor for tensor in model.graph.initializer if tensor.name == "fc2.weight_quantized")
        steps = numpy_helper.to_array(weight).copy()
        steps[5] = -steps[5]
        weight.raw_data = steps.tobytes()
        changed = Form("edge", "all", "int8", "a test", model=model.SerializeToString())
        found = workshop._in_eight_bits(changed)
        assert found.problem == "the run does not give the weights of edge again."
        assert found.model == b""

    def test_a_variant_that_was_fine_tuned(self, workshop, run, net, small, tmp_path, monkeypatch):
        """It is made again from what the run's folder holds, and only from that."""
        widths = dict(zip(narrow.LAYERS, (8, 8, 16, 16, 16, 16, 32, 16), strict=True))
        student = narrow.narrowed(net, widths, narrow.importance(net, workshop._few)).eval()
        to_onnx.write(Deployed(student, paired=True), tmp_path / "float.onnx", {})
        quantized = edge.quantize(tmp_path / "float.onnx", small.train_images[:100], "MinMax")
        to_onnx.save(quantized, tmp_path / "tiny.onnx", {"fine_tuning": {"epochs": 3}})
        form = Form("tiny", "all", "int8", "MinMax ranges", model=(tmp_path / "tiny.onnx").read_bytes())
        earlier = onnx.load_from_string(form.model)  # an earlier version's: its layers have other names
        for tensor in earlier.graph.initializer:
            tensor.name = tensor.name.replace("conv4.", "conv4.0.")
        old = Form("tiny", "all", "int8", "MinMax ranges", model=earlier.SerializeToString())
        assert (
            workshop._in_eight_bits(old).problem
            == f"{run.folder} does not hold the fine-tuned net of tiny as it is made on a processor like this."
        )
        found = workshop._in_eight_bits(form)
        assert (
            found.problem
            == f"{run.folder} does not hold the fine-tuned net of tiny as it is made on a processor like this."
        )
        asked = []
        monkeypatch.setattr(distill.Tuner, "holds", lambda self, *_: asked.append(self.recipe.epochs) or True)
        monkeypatch.setattr(distill.Tuner, "tune", lambda self, student, widths: student.eval())
        found = workshop._in_eight_bits(form)
        assert asked == [3]
        assert found.problem == ""
        assert found.name == "tiny-8bit"
        steps = [t for t in onnx.load_from_string(found.model).graph.initializer if "weight_quantized" in t.name]
        assert all(np.abs(numpy_helper.to_array(t).astype(int)).max() > 120 for t in steps)


@pytest.fixture
def without_training(run, small, tmp_path):
    """A workshop of a run that held out 3 % of its 300 training images."""
    record = copy.deepcopy(run.record)
    record["recipe"]["held_out"] = 0.03
    given = [Form(FULL, "bundle", "fp32", "a test", model=b"model")]
    return Workshop(types.SimpleNamespace(record=record, net=run.net), small, given, tmp_path)


class TestRefusals:
    def test_too_few_held_out(self, without_training):
        sentence = r"^10 held-out images are too few to calibrate int8 on \(100 at least\): name a run whose recipe "
        with pytest.raises(DataError, match=sentence):
            variants.choose([without_training.full], without_training, None)

    def test_unless_nothing_is_to_be_calibrated(self, without_training):
        assert variants.choose([without_training.full], without_training, [FULL]) == [without_training.full]

    def test_an_unknown_variant(self, workshop):
        with pytest.raises(VariantError, match=r"^There is no variant called h5 here: choose among fp32, int8-7bit, "):
            variants.choose([workshop.full], workshop, ["h5", FULL])

    @pytest.mark.parametrize(
        ("options", "sentence"),
        [
            (["nowhere"], "variants.py: nowhere is not a run folder"),
            (["RUN", "--bundle=nowhere"], "variants.py: nowhere is not a bundle"),
            (["RUN", "--variant=h5"], "variants.py: There is no variant called h5 here: choose among fp32, int8-7bit,"),
        ],
    )
    def test_a_failure_is_one_sentence(self, run, synthetic_is_small, options, sentence, monkeypatch, capsys):
        given = [str(run.folder) if option == "RUN" else option for option in options]
        monkeypatch.setattr("sys.argv", ["variants.py", *given])
        with pytest.raises(SystemExit) as caught:
            harness.main(variants.main)
        assert str(caught.value.code).startswith(sentence)
        assert capsys.readouterr().out == ""

    def test_other_data(self, run, small, monkeypatch):
        """The run's data set under the same name, but not the same images."""
        other = types.SimpleNamespace(digest="0" * 64)
        monkeypatch.setattr(variants.datasets, "load", lambda *_: other)
        monkeypatch.setattr("sys.argv", ["variants.py", str(run.folder)])
        with pytest.raises(DataError, match=r"was trained on other data \(synthetic\): name those with --data\.$"):
            variants.main()

    @pytest.mark.parametrize("option", ["--images=0", "--rounds=0", "--threads=-1"])
    def test_no_images(self, option, monkeypatch, capsys):
        monkeypatch.setattr("sys.argv", ["variants.py", "RUN", option])
        with pytest.raises(SystemExit) as caught:
            variants.main()
        assert caught.value.code == 2
        assert "must be at least 1" in capsys.readouterr().err


class TestReport:
    def test_table(self, rows):
        lines = variants.table(rows, rows[0]["latency"]).splitlines()
        assert " ".join(lines[0].split()) == (
            "variant bytes of fp32 accuracy, % points p agrees, % ECE, % as defined, % p50 ms, batch 1 faster "
            "images/s, batch 64 more frontier"
        )
        full, int8, worse, base = (line.split() for line in lines[1:5])
        assert full[:4] == [FULL, "1,000", "1.0000", "90.00"]
        assert int8[:9] == ["int8", "250", "0.2500", "89.00", "-1.00", "0.5", "95.00", "1.00", "89.50"]
        assert int8[9:] == ["2.500", "4.00x", "1,600", "4.00x", "*"]
        assert (worse[0], worse[-1]) == ("worse", "2.00x")  # no star
        assert base == [PLAIN, "10.000", "1.00x", "400", "1.00x"]
        assert lines[5:] == ["", "absent: it was not made."]

    def test_picture(self, rows, tmp_path):
        variants.draw(rows, tmp_path / "all.png", "a title")
        with Image.open(tmp_path / "all.png") as image:
            image.load()
            colours = set(image.convert("RGB").get_flattened_data())
        assert image.format == "PNG"
        assert len(colours) > 10
        assert [path.name for path in tmp_path.iterdir()] == ["all.png"]

    def test_names_do_not_cover_one_another(self, rows):
        from matplotlib.figure import Figure

        figure = Figure()
        axes = figure.subplots()
        axes.set(xlim=(0, 1), ylim=(0, 1))
        variants._name(axes, [(0.5, 0.5 + place / 200, 3.0, f"a point called {place}") for place in range(4)])
        boxes = [text.get_window_extent() for text in axes.texts]
        assert len(boxes) == 4
        assert not any(one.overlaps(other) for one in boxes for other in boxes if one is not other)


def test_one_that_fails_costs_no_others_figures(bundle, small):
    model = bundle.read(bundle.variant("edge"))
    forms = [Form(FULL, None, "fp32", "a test", model=model), Form("broken", None, "int8", "a test", model=model[:99])]
    forms += [Form("absent", None, "int8", "a test", problem="it was not made.")]
    rows, _ = variants.measure(forms, small.test_images[:8], small.test_labels[:8], 1, 0.01, 1, lambda line: None)
    assert [bool(row["latency"]) for row in rows] == [True, False, False]
    assert rows[1]["problem"].startswith("broken is not a model that onnxruntime can load")
    assert rows[2]["problem"] == "it was not made."
    assert [row["frontier"] for row in rows] == [True, False, False]
    with pytest.raises(EdgecifarError, match=r"^broken is not a model"):
        variants.measure(forms[1:], small.test_images[:8], small.test_labels[:8], 1, 0.01, 1, lambda line: None)


def test_the_script(run, bundle, synthetic_is_small, monkeypatch, capsys, tmp_path):
    jsonschema = pytest.importorskip("jsonschema")
    picture = tmp_path / "variants.png"
    names = ["edge", "edge-8bit", "fc1-16"]
    options = ["--images=40", "--threads=1", "--seconds=0.05", "--rounds=2", "--picture", str(picture)]
    options += [f"--variant={name}" for name in names]
    monkeypatch.setattr("sys.argv", ["variants.py", str(run.folder), "--bundle", str(bundle.folder), *options])
    variants.main()
    *lines, last = capsys.readouterr().out.splitlines()
    document = json.loads(last)
    jsonschema.Draft202012Validator(SCHEMA).validate(document)
    found = {row["variant"]: row for row in document["rows"]}
    assert [*found] == [FULL, *names]
    assert document["settings"]["dataset"] == "synthetic"
    assert "40 synthetic test images, 1 thread" in lines
    assert [row["problem"] for row in document["rows"]] == [None] * 4
    assert [row["bundle"] for row in document["rows"]] == [bundle.folder.name] * 2 + [None] * 2
    assert found[FULL]["test"]["agreement"] == 1
    assert found[FULL]["test_as_defined"] is None
    accuracy = {variant.name: variant.accuracy for variant in bundle.manifest.variants}
    assert abs(found[FULL]["test"]["accuracy"] - accuracy[FULL]) < 0.3  # of 40 of the 130 images
    assert found["edge"]["test_as_defined"]["agreement"] > 0.5
    assert found["edge"]["bytes"] == len(bundle.read(bundle.variant("edge")))
    assert found["edge-8bit"]["bytes"] == pytest.approx(found["edge"]["bytes"], rel=0.01)
    assert found["edge-8bit"]["needs"] == "avx_vnni|avx512_vnni|amx_int8|asimddp|i8mm"
    assert found["fc1-16"]["bytes_ratio"] == pytest.approx(
        1 - 4 * (1024 * 18432 - 16 * (1024 + 18432 + 1)) / found[FULL]["bytes"], abs=0.001
    )
    assert "(fc1 16)" in found["fc1-16"]["made_by"]
    assert any(row["frontier"] for row in document["rows"])
    assert picture.read_bytes().startswith(b"\x89PNG")


def test_int8_of_the_whole_net(workshop, monkeypatch):
    """The whole net is 83 MB: one whose `fc1` is at low rank takes its place."""
    monkeypatch.setitem(vars(workshop), "full", workshop.makers["fc1-16"]())
    for bits, largest in ((7, 64), (8, 127)):
        form = workshop.makers[f"int8-{bits}bit"]()
        assert (form.name, form.precision, form.problem) == (f"int8-{bits}bit", "int8", "")
        assert f"{bits}-bit weights" in form.made_by
        assert (form.needs == "any") == (bits == 7)
        weights = [
            np.abs(numpy_helper.to_array(tensor).astype(int)).max()
            for tensor in onnx.load_from_string(form.model).graph.initializer
            if tensor.name.endswith("weight_quantized")
        ]
        assert len(weights) == 9
        assert max(weights) == largest
