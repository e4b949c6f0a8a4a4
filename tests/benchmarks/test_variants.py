"""Figures against the reference, int8 as defined, one failure that costs no others' figures, and the script."""

from __future__ import annotations

import shutil
import types

import numpy as np
import pytest
from onnx import TensorProto, helper, numpy_helper

pytest.importorskip("torch")
import variants
from candidates import FULL, Candidate
from harness import PLAIN, PlainSession
from variants import Timing, against

from edgecifar.runtime.contract import Contract
from edgecifar.runtime.errors import DataError, EdgecifarError
from edgecifar.runtime.metrics import score

QUICK = Timing(1, 0.01, 1)


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
        "bytes": size,
        "bytes_ratio": size / 1000,
        "test": test(correct),
        "test_as_defined": None if defined is None else test(defined),
        "latency": {} if problem else {"1": times(1), "64": times(4)},
        "frontier": name != "worse",
        "problem": problem or None,
    }


def test_figures_against_the_reference():
    labels = np.arange(10)
    reference = np.array([0, 1, 2, 3, 4, 5, 6, 7, 0, 1])  # 8 right
    result = np.array([1, 1, 2, 3, 4, 5, 6, 7, 8, 1])  # the first wrong now, the ninth right
    names = [str(label) for label in labels]
    scored = [score(np.eye(10, dtype=np.float32)[them], labels, names, 1) for them in (result, reference)]
    found = against(*scored, labels)
    assert (found["images"], found["correct"], found["accuracy"], found["points"]) == (10, 8, 0.8, 0)
    assert (found["agreement"], found["p_value"]) == (0.8, 1)
    assert found["ece"] == pytest.approx(0.2)


class TestPlainSession:
    """A QDQ layer whose sums of two products do not go into 16 bits."""

    CONTRACT = Contract(("a", "b"), 4)

    @pytest.fixture
    def model(self) -> bytes:
        weights = numpy_helper.from_array(np.full((48, 2), 127, np.int8), "w")
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
        result = helper.make_tensor_value_info("probabilities", TensorProto.FLOAT, ["batch", 2])
        tensors = [weights, shape, *(numpy_helper.from_array(value, name) for name, value in scalars.items())]
        graph = helper.make_graph(nodes, "g", [given], [result], tensors)
        return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10).SerializeToString()

    def test_as_defined(self, model):
        images = np.full((2, 4, 4, 3), 255, np.uint8)
        wanted = 10_000 * round(48 * 255 * 127 / 10_000)  # with pairs cut off at 32,767 it would be 790,000
        session = PlainSession(model, self.CONTRACT, 1, optimised=False)
        assert session.probabilities(images).tolist() == [[wanted] * 2] * 2

    def test_as_this_processor_computes_it(self, model):
        images = np.full((1, 4, 4, 3), 20, np.uint8)  # nothing saturates
        session = PlainSession(model, self.CONTRACT, 1)
        assert session.probabilities(images).tolist() == [[120_000.0] * 2]
        assert session.ran_on()["ran_on"] == "cpu"


def test_table():
    made = [row(FULL, 900, 10, 1000), row("int8", 890, 2.5, 250, 895), row("worse", 880, 5, 300)]
    made += [row("absent", 0, 1, 1, problem="it was not made.")]
    header, full, int8, worse, base, _, note = variants.table(made, made[0]["latency"]).splitlines()
    assert header.split()[0] == "variant"
    assert full.split()[:4] == [FULL, "1,000", "1.0000", "90.00"]
    assert int8.split()[:9] == ["int8", "250", "0.2500", "89.00", "-1.00", "0.5", "95.00", "1.00", "89.50"]
    assert int8.split()[9:] == ["2.500", "4.00x", "1,600", "4.00x", "*"]
    assert worse.split()[-1] == "2.00x"  # no star
    assert base.split() == [PLAIN, "10.000", "1.00x", "400", "1.00x"]
    assert note == "absent: it was not made."


def test_one_that_fails_costs_no_others_figures(bundle, small):
    model = bundle.read(bundle.variant("edge"))
    made = [Candidate(FULL, None, "fp32", "a test", model), Candidate("broken", None, "int8", "a test", model[:99])]
    made += [Candidate("absent", None, "int8", "a test", problem="it was not made.")]
    rows, _ = variants.measure(made, small, 8, QUICK)
    assert [bool(row["latency"]) for row in rows] == [True, False, False]
    assert "broken" in rows[1]["problem"]
    assert rows[2]["problem"] == "it was not made."
    assert [row["frontier"] for row in rows] == [True, False, False]
    with pytest.raises(EdgecifarError, match="broken"):
        variants.measure(made[1:], small, 8, QUICK)


@pytest.mark.parametrize(
    ("options", "word"),
    [(["nowhere"], "nowhere"), (["RUN", "--bundle=nowhere"], "nowhere"), (["RUN", "--variant=h5"], "h5")],
)
def test_a_failure_is_one_sentence(run, synthetic_is_small, options, word, monkeypatch, capsys):
    given = [str(run.folder) if option == "RUN" else option for option in options]
    monkeypatch.setattr("sys.argv", ["variants.py", *given])
    with pytest.raises(EdgecifarError, match=word):
        variants.main()
    assert capsys.readouterr().out == ""


def test_other_data(run, monkeypatch):
    """The run's data set under the same name, but not the same images."""
    monkeypatch.setattr(variants.datasets, "load", lambda *_: types.SimpleNamespace(digest="0" * 64))
    monkeypatch.setattr("sys.argv", ["variants.py", str(run.folder)])
    with pytest.raises(DataError, match="other data"):
        variants.main()


@pytest.mark.parametrize("option", ["--images=0", "--rounds=0", "--threads=-1"])
def test_no_images(option, monkeypatch):
    monkeypatch.setattr("sys.argv", ["variants.py", "RUN", option])
    with pytest.raises(SystemExit) as caught:
        variants.main()
    assert caught.value.code == 2


def test_the_script(run, bundle, tmp_path, synthetic_is_small, check_document, monkeypatch, capsys):
    names = ["edge", "edge-8bit", "fc1-16"]
    earlier = shutil.copytree(bundle.folder, tmp_path / "earlier")
    options = [
        f"--beside={earlier}",
        "--images=40",
        "--threads=1",
        "--seconds=0.05",
        "--rounds=2",
        *(f"--variant={name}" for name in names),
    ]
    monkeypatch.setattr("sys.argv", ["variants.py", str(run.folder), "--bundle", str(bundle.folder), *options])
    variants.main()
    document = check_document(capsys.readouterr().out.splitlines()[-1], entries=False)
    found = {row["variant"]: row for row in document["rows"]}
    assert [*found] == [FULL, *names, "earlier/edge"]
    assert document["settings"]["dataset"] == "synthetic"
    assert document[PLAIN].keys() == {"1", "64"}
    for row in document["rows"]:
        assert row["problem"] is None
        assert row["test"]["images"] == 40
        for times in row["latency"].values():
            assert times["n"] >= 2
            assert 0 < times["ratios"][PLAIN]["low"] <= times["ratios"][PLAIN]["high"]
    assert [row["bundle"] for row in document["rows"]] == [bundle.folder.name] * 2 + [None] * 2 + ["earlier"]
    assert found[FULL]["test"]["agreement"] == 1
    assert found[FULL]["test_as_defined"] is None
    computed, defined = (found["edge"][name]["accuracy"] for name in ("test", "test_as_defined"))
    assert computed == pytest.approx(defined, abs=0.1)
    assert found["earlier/edge"]["test"] == found["edge"]["test"]
    assert found["edge"]["bytes"] == len(bundle.read(bundle.variant("edge")))
    assert found["edge"]["sha256"] == bundle.variant("edge").sha256
    assert found["edge-8bit"]["bytes"] == pytest.approx(found["edge"]["bytes"], rel=0.05)
    assert 0.1 < found["fc1-16"]["bytes_ratio"] < 0.9
    assert "(fc1 16)" in found["fc1-16"]["made_by"]
    assert any(row["frontier"] for row in document["rows"])
