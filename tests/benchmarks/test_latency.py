"""The script on the tiny bundle; what is on the device is bound there, and what falls back or is not there says so."""

from __future__ import annotations

import subprocess
import sys
import types
from pathlib import Path

import harness
import latency
import numpy as np
import onnx_entries
import pytest
from onnx_entries import BARE, Bound, Measurement

from edgecifar.runtime import Bundle, Classifier, providers
from edgecifar.runtime.errors import ProviderError
from edgecifar.runtime.session import Session, import_onnxruntime

SCRIPT = Path(latency.__file__)


@pytest.fixture
def measurement(tiny) -> Measurement:
    return Measurement(Bundle.open(tiny), [1, 3])


def run(*arguments) -> subprocess.CompletedProcess:
    return subprocess.run([sys.executable, SCRIPT, *map(str, arguments)], capture_output=True, text=True, check=False)


def test_the_script(tiny, check_document, tmp_path):
    options = ("--seconds", 0.02, "--rounds", 2, "--batch", 3, "--threads", 1, "--save", tmp_path / "latency.json")
    done = run("--bundle", tiny, *options)
    assert done.returncode == 0, done.stderr
    document = check_document(done.stdout.splitlines()[-1])
    assert check_document((tmp_path / "latency.json").read_text()) == document
    rows = document["rows"]
    figures = {(row["provider"], row["variant"], row.get("batch"), row["call"]): row for row in rows if "n" in row}
    for variant in ("fp32", "edge"):
        ours, bare = (figures["cpu", variant, 3, call] for call in ("Classifier", BARE))
        assert ours["ratios"].keys() == {BARE}
        assert 0 < ours["overhead"]["low"] <= ours["overhead"]["high"]
        assert f"Classifier over session.run, call by call, provider cpu, variant {variant}, batch 3, " in done.stdout
        assert (ours["share"], ours["agree"], ours["largest_difference"]) == (1.0, 96, 0.0)
        assert ours["nodes"] == bare["nodes"]
    for call in ("infer", "decode 640x480.jpeg", "resize 4000x3000.jpeg", "predict 32x32.png"):
        assert ("cpu", "fp32", None, call) in figures
    absent = {row["provider"]: row["problem"] for row in rows if "n" not in row}
    for provider, (full_name, _) in providers.PROVIDERS.items():
        if provider in latency.ALWAYS and full_name not in import_onnxruntime().get_available_providers():
            assert f"The provider {provider} is not in the onnxruntime installed here: " in absent[provider]


def test_the_overhead_is_of_calls_that_follow_one_another(clock):
    """The machine gets slower all the time, and the ratio stays what it is."""
    calls = {"ours": 0, "bare": 0}

    def call(name: str, share: float):
        def function() -> None:
            calls[name] += 1
            clock.now += share * (1 + (calls["ours"] + calls["bare"]) // 4)

        return function

    found = latency.overhead(call("ours", 1.5), call("bare", 1.0), 40_000.0, clock)
    assert found["median"] == pytest.approx(1.5, rel=0.02)
    assert found["low"] <= found["median"] <= found["high"]
    assert calls["ours"] == calls["bare"] == found["pairs"] + latency.WARM_UP


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        (["--bundle", "nowhere"], "nowhere"),
        (["--variant", "huge"], "huge"),
    ],
)
def test_a_failure_is_one_sentence(options, sentence, monkeypatch, capsys):
    monkeypatch.setattr("sys.argv", ["latency.py", *options])
    with pytest.raises(SystemExit) as caught:
        harness.main(latency.main)
    assert sentence in str(caught.value.code)
    assert capsys.readouterr().out == ""


class TestBound:
    """On the CPU, whose memory can be bound like a GPU's."""

    @pytest.mark.parametrize("batch", [1, 5])
    def test_same_answers(self, tiny, batch):
        classifier = Classifier(tiny, "fp32", "cpu", 1)
        images = harness.random_images(batch, classifier.contract)
        bound = Bound(classifier.session, images, "cpu")
        wanted = classifier.probabilities(images)
        assert bound.probabilities().tolist() == wanted.tolist()
        images[:] = 255 - images  # copied anew for each call
        assert bound.probabilities().tolist() == classifier.probabilities(images).tolist() != wanted.tolist()
        bound.resident()


class TestMeasurement:
    def test_a_fall_back_is_refused(self, measurement, monkeypatch):
        monkeypatch.setattr(Session, "assignment", lambda self: {"CPUExecutionProvider": 3, "Another": 2})
        bundle = measurement.bundle
        with pytest.raises(ProviderError, match="3 of 5 nodes"):
            list(measurement.of_provider("cpu", bundle.variant("fp32"), 1))
        entries = onnx_entries.entries_of(measurement, [bundle.variant("fp32")], ["cpu"], [1, 2])
        assert [entry.row() for entry in entries] == [
            {"provider": "cpu", "variant": "fp32", "threads": threads, "problem": entries[0].problem}
            for threads in (1, 2)
        ]
        assert all(entry.call is None for entry in entries)

    def test_what_was_there_before_a_failure_is_kept(self, measurement, monkeypatch):
        """As where a GPU's memory runs out at the second batch size."""
        real = Measurement.check

        def check(self, entry, variant, classify):
            if entry.labels["batch"] == 3:
                raise RuntimeError("CUDA failure 2: out of memory.\n  at one.cc")
            real(self, entry, variant, classify)

        monkeypatch.setattr(Measurement, "check", check)
        entries = onnx_entries.entries_of(measurement, [measurement.bundle.variant("fp32")], ["cpu"], [1])
        assert [(entry.labels.get("batch"), entry.problem) for entry in entries] == [
            (1, ""),
            (1, ""),
            (None, "it does not run here (CUDA failure 2: out of memory)."),
        ]

    @pytest.mark.parametrize("batch", [0, 1])
    def test_another_answer_than_the_cpus_is_not_timed(self, measurement, batch):
        variant = measurement.bundle.variant("fp32")
        entry = [*measurement.of_provider("cpu", variant, 1)][2 * batch]
        session = measurement.bundle.load(variant, "cpu", 1)
        measurement.check(entry, variant, lambda images: session.probabilities(images)[:, ::-1])
        right = session.probabilities(harness.random_images(96, measurement.contract))
        agree = (right.argmax(1) == right[:, ::-1].argmax(1)).sum()
        assert f"{np.abs(right - right[:, ::-1]).max():.1e}" in entry.problem
        assert f"{agree} of 96" in entry.problem
        assert entry.call is None
        harness.alternate([entry], 0.01, 2)
        assert "n" not in entry.row()

    def test_an_answer_that_is_not_finite_is_not_timed(self, measurement):
        variant = measurement.bundle.variant("fp32")
        entry, *_ = measurement.of_provider("cpu", variant, 1)
        measurement.check(entry, variant, lambda images: np.full((len(images), 3), np.nan))
        assert "not finite" in entry.problem
        assert entry.call is None

    def test_a_graph_with_other_answers_leaves_nothing_resident(self, measurement, monkeypatch):
        class Wrong(Bound):
            def probabilities(self, images=None):
                return super().probabilities(images)[:, ::-1]

        monkeypatch.setitem(onnx_entries.GRAPH, "cpu", {})
        monkeypatch.setattr(onnx_entries, "TF32", 0.0)
        monkeypatch.setattr(onnx_entries, "Bound", lambda session, images, device: Wrong(session, images, "cpu"))
        entries = list(measurement.of_provider("cpu", measurement.bundle.variant("fp32"), 1))
        timed = [(entry.labels["batch"], entry.labels["call"]) for entry in entries if entry.call]
        assert timed == [(batch, call) for batch in (1, 3) for call in ("Classifier", BARE)]

    def test_gpus_have_their_buffers_measured(self, measurement, monkeypatch):
        """As on a GPU, but for the name of the memory and the setting, which only a GPU's onnxruntime knows."""
        monkeypatch.setitem(onnx_entries.GRAPH, "cpu", {})
        monkeypatch.setattr(onnx_entries, "Bound", lambda session, images, device: Bound(session, images, "cpu"))
        entries = list(measurement.of_provider("cpu", measurement.bundle.variant("edge"), 1))
        calls = ["Classifier", BARE, "bound", "graph", "resident"]
        assert [(entry.labels["batch"], entry.labels["call"]) for entry in entries] == [
            (batch, call) for batch in (1, 3) for call in calls
        ]
        harness.alternate(entries, 0.01, 2)
        assert all(entry.row()["n"] >= 2 and entry.images == entry.labels["batch"] for entry in entries)
        assert [entry.row()["ratios"].keys() for entry in entries[1:4]] == [set(), {BARE}, {BARE}]


class TestPlugIns:
    """Packages that are not installed here are stood in for by modules of the same interface."""

    @pytest.fixture
    def install(self, monkeypatch):
        def call(package: str, module, devices=()):
            found = [types.SimpleNamespace(metadata={"Name": name}) for name in (package, "numpy", package)]
            registered = []
            ort = types.SimpleNamespace(
                register_execution_provider_library=lambda *given: registered.append(given),
                get_ep_devices=lambda: list(devices),
            )
            monkeypatch.setattr(onnx_entries.metadata, "distributions", lambda: found)
            monkeypatch.setattr(onnx_entries, "import_onnxruntime", lambda: ort)
            if module:
                monkeypatch.setitem(sys.modules, package.replace("-", "_"), module)
            return registered

        return call

    MODULE = types.SimpleNamespace(get_library_path=lambda: "lib.so", get_ep_names=lambda: ["Fast"])

    def test_none(self, monkeypatch):
        monkeypatch.setattr(onnx_entries.metadata, "distributions", list)
        ((name, device, problem),) = onnx_entries.plug_ins()
        assert (name, device) == ("plug-in", None)
        assert "pip install onnxruntime-ep-openvino" in problem

    def test_one_without_a_device(self, install):
        registered = install("onnxruntime-ep-fast", self.MODULE, [types.SimpleNamespace(ep_name="Other")])
        ((name, device, problem),) = onnx_entries.plug_ins()
        assert (name, device) == ("onnxruntime-ep-fast", None)
        assert "no device" in problem
        assert registered == [("onnxruntime-ep-fast", "lib.so")]

    def test_its_devices(self, install):
        gpu = types.SimpleNamespace(
            ep_name="Fast", device=types.SimpleNamespace(type=types.SimpleNamespace(name="GPU"))
        )
        install("onnxruntime-ep-fast", self.MODULE, [gpu])
        assert list(onnx_entries.plug_ins()) == [("onnxruntime-ep-fast GPU", gpu, "")]

    def test_one_that_is_damaged(self, install):
        install("onnxruntime-ep-fast", None)
        ((name, device, problem),) = onnx_entries.plug_ins()
        assert (name, device) == ("onnxruntime-ep-fast", None)
        assert "onnxruntime_ep_fast" in problem

    def test_a_device_is_measured(self, measurement):
        """The CPU's own device goes the way of a plug-in's."""
        (device,) = [d for d in import_onnxruntime().get_ep_devices() if d.ep_name == "CPUExecutionProvider"]
        entries = list(measurement.of_device("plug", device, measurement.bundle.variant("fp32")))
        assert [(entry.labels["batch"], entry.images, entry.problem) for entry in entries] == [(1, 1, ""), (3, 3, "")]
        assert entries[0].details["share"] == 1.0
        assert entries[0].details["largest_difference"] == 0.0
