"""Wrong answers are not timed, what is not installed says so, and the engines that are here say what the net says."""

from __future__ import annotations

import harness
import numpy as np
import pytest
import report
from harness import CHECKED, PLAIN, Entry, random_images

pytest.importorskip("torch")
import engines_cuda
import peers
import torch
from engines import COMPILED, OURS, RESIDENT, Engines, OnDevice, Peer
from engines_cpu import CpuEngines
from engines_cuda import CudaEngines
from onnx_entries import Bound
from peers import entry, set_bases

from edgecifar.export.graph import Deployed
from edgecifar.runtime import Bundle
from edgecifar.runtime.contract import CIFAR10
from edgecifar.runtime.errors import EdgecifarError, ProviderError, VariantError
from edgecifar.runtime.session import Session


def classify(images: np.ndarray) -> np.ndarray:
    """Stand in for a net: ten bins of the mean brightness, softened; deterministic, of several classes."""
    bins = images.mean((1, 2, 3), dtype=np.float64)[:, None] / 25.6 - np.arange(10)
    powers = np.exp(-(bins**2))
    return (powers / powers.sum(1, keepdims=True)).astype(np.float32)


@pytest.fixture
def engines() -> Engines:
    """No engines, only what is asked of them; the reference is `classify`."""
    made = Engines.__new__(Engines)
    made.threads, made.contract, made.reference, made._checked = 2, CIFAR10, classify, {}
    return made


class TestEntry:
    def test_one_that_agrees(self, engines):
        given = []

        def function(images: np.ndarray) -> np.ndarray:
            given.append(images.shape)
            return classify(images) + np.float32(1e-6)

        found = entry(Peer("other", "fp32", lambda batch: function), 7, engines)
        assert given == [(7, 32, 32, 3)] * (CHECKED // 7)
        assert found.problem == ""
        checked = 7 * (CHECKED // 7)
        assert found.labels == {
            "engine": "other",
            "precision": "fp32",
            "batch": 7,
            "threads": 2,
            "agree": f"{checked}/{checked}",
        }
        assert found.details["largest_difference"] == pytest.approx(1e-6, rel=0.1)
        harness.alternate([found], 0.01, 2)
        assert found.row()["n"] >= 2
        assert found.row()["images_per_second"] > 0

    def test_a_batch_that_is_larger_than_the_check(self, engines):
        assert entry(Peer("other", "fp32", lambda batch: classify), 100, engines).details["checked"] == 100

    def test_the_reference_is_asked_once_a_batch_size_with_all_threads(self, engines, monkeypatch):
        asked = []

        def reference(images: np.ndarray) -> np.ndarray:
            asked.append((len(images), torch.get_num_threads()))
            return classify(images)

        engines.reference, before = reference, torch.get_num_threads()
        monkeypatch.setattr("engines.usable_cpus", lambda: before + 1)
        for batch in (100, 100, 120):
            assert entry(Peer("other", "fp32", lambda batch: classify), batch, engines).problem == ""
        assert asked == [(100, before + 1), (120, before + 1)]
        assert torch.get_num_threads() == before

    def test_one_wrong_answer_and_it_is_not_timed(self, engines):
        calls = []

        def function(images: np.ndarray) -> np.ndarray:
            calls.append(0)
            answers = classify(images)
            return np.roll(answers, 1, axis=1) if len(calls) == 5 else answers

        found = entry(Peer("other", "fp32", lambda batch: function), 1, engines)
        assert found.call is None
        assert f"{CHECKED - 1} of {CHECKED}" in found.problem
        assert "n" not in found.row()

    def test_a_lossy_one_is_timed_and_its_agreement_told(self, engines):
        def lossy(images: np.ndarray) -> np.ndarray:
            return classify(images - (images > 4) * np.uint8(4))

        found = entry(Peer("other", "int8", lambda batch: lossy), 1, engines)
        agree = (lossy(random_images(96, CIFAR10)).argmax(1) == classify(random_images(96, CIFAR10)).argmax(1)).sum()
        assert found.labels["agree"] == f"{agree}/96"
        assert 48 < agree < 96
        assert found.call is not None

    @pytest.mark.parametrize(
        ("engine", "precision", "timed"),
        [("other", "int8", False), ("other", "tf32", False), (OURS, "fp16", False), (OURS, "int8", True)],
    )
    def test_a_lossy_one_that_hardly_agrees_is_only_timed_where_it_is_a_narrower_net(
        self, engines, engine, precision, timed
    ):
        found = entry(Peer(engine, precision, lambda batch: lambda images: classify(images // 2)), 1, engines)
        assert (found.call is not None) == timed
        assert bool(found.problem) == (not timed)

    def test_one_that_is_not_installed(self, engines):
        peer = Peer("other", "fp32", lambda batch: classify, ("numpy", "no_such_engine", "nor_this"))
        assert "'pip install no_such_engine nor_this'" in entry(peer, 1, engines).problem

    def test_one_that_fails(self, engines):
        def make(batch: int):
            raise RuntimeError("no such instruction.\nmore")

        problem = entry(Peer("other", "fp32", make), 1, engines).problem
        assert "no such instruction" in problem
        assert "more" not in problem


def timed(engine: str, precision: str, milliseconds: float, **labels) -> Entry:
    labels = {"engine": engine, "precision": precision, **labels}
    return Entry(labels, images=labels.get("batch", 1), rounds=[np.full(4, milliseconds / 1000)] * 3)


class TestBases:
    def test_plain_and_the_fastest_that_are_not_ours(self):
        entries = [
            timed(PLAIN, "fp32", 4.0),
            timed("torch", "fp32", 3.0),
            timed("OpenVINO", "int8", 1.0),
            timed(f"{OURS} edge", "int8", 0.5),
            Entry({"engine": "ncnn", "precision": "fp32"}, problem="it is not installed."),
        ]
        set_bases(entries)
        ratios = [{name: r["median"] for name, r in entry.row()["ratios"].items()} for entry in entries[:4]]
        names = (PLAIN, "fastest peer", "fastest fp32/bf16")
        wanted = [(1, 4, 4 / 3), (0.75, 3, 1), (0.25, 1, 1 / 3), (0.125, 0.5, 1 / 6)]
        assert ratios == [pytest.approx(dict(zip(names, row, strict=True))) for row in wanted]
        assert entries[4].row() == {"engine": "ncnn", "precision": "fp32", "problem": "it is not installed."}

    def test_nothing_but_ours(self):
        entries = [timed(f"{OURS} edge", "int8", 0.5)]
        set_bases(entries)
        assert entries[0].row()["ratios"] == {}

    def test_on_a_gpu_what_copies_nothing_has_bases_of_its_own(self):
        entries = [
            timed(PLAIN, "tf32", 4.0, call="session.run"),
            timed(COMPILED, "tf32", 2.0, call="numpy"),
            timed(COMPILED, "fp16", 1.0, call="numpy"),
            timed("torch eager", "bf16", 0.8, call="numpy"),
            timed(f"{OURS} fp16", "fp16", 0.4, call="graph"),
            timed(COMPILED, "fp16", 0.2, call=RESIDENT),
            timed(f"{OURS} fp16", "fp16", 0.1, call=RESIDENT),
        ]
        set_bases(entries, "cuda")
        compiled, ours, resident = (
            {name: r["median"] for name, r in entry.row()["ratios"].items()} for entry in (entries[1], *entries[4:7:2])
        )
        fastest = f"fastest {COMPILED}"
        assert compiled == pytest.approx({PLAIN: 0.5, fastest: 2, "fastest peer": 2.5})
        assert ours == pytest.approx({PLAIN: 0.1, fastest: 0.4, "fastest peer": 0.5})
        assert resident == pytest.approx({fastest: 0.5, "fastest peer": 0.5})


class TestBestBatch:
    def test_the_most_images_of_each_engine(self):
        """Latency grows slower than the batch, up to a size."""
        entries = [
            timed(engine, "fp16", factor * milliseconds, call=call, batch=batch)
            for engine, call, factor in ((COMPILED, "numpy", 2), (OURS, "graph", 1), (OURS, RESIDENT, 0.5))
            for batch, milliseconds in ((1, 1.0), (64, 4.0), (1024, 128.0))
        ]
        entries.append(Entry({"engine": PLAIN, "precision": "tf32", "batch": 64}, problem="it is not here."))
        best = peers.best_batches(entries)
        assert [(e.labels["engine"], e.labels["call"], e.labels["batch"]) for e in best] == [
            (OURS, RESIDENT, 64),
            (OURS, "graph", 64),
            (COMPILED, "numpy", 64),
        ]
        entries[1].ceiling = 10 * entries[1].row()["images_per_second"]
        entries[0].details["ready_seconds"] = entries[6].details["ready_seconds"] = 41.7
        assert peers.remarks(entries) == [
            f"Most at its best batch size: {OURS}, fp16, {RESIDENT}, 32,000 images/s at batch 64",
            f"then: {OURS}, fp16, graph, 16,000 images/s at batch 64",
            f"then: {COMPILED}, fp16, numpy, 8,000 images/s at batch 64, 10.00 % of the peak",
            f"Compiled in 42 s: {COMPILED}, fp16, numpy, batch 1",
        ]

    def test_no_choice(self):
        entries = [timed(PLAIN, "fp32", 4.0, batch=8), timed("OpenVINO", "fp32", 2.0, batch=8)]
        assert peers.best_batches(entries) == peers.remarks(entries) == []


@pytest.fixture
def deployed(net) -> Deployed:
    return Deployed(net, 1.7)


class TestPeak:
    def test_operations(self, deployed):
        """Counted by hand: the side of what a convolution gives, squared, times its weights."""
        sides = {"conv1": 30, "conv2": 28, "conv3": 12, "conv4": 10, "conv5": 8, "conv6": 6}
        weights = {name.split(".")[0]: p.numel() for name, p in deployed.named_parameters() if name.endswith("weight")}
        assert weights.keys() == {*sides, "fc1", "fc2", "fc3"}
        by_hand = 2 * sum(count * sides.get(name, 1) ** 2 for name, count in weights.items())
        assert engines_cuda.operations(deployed, CIFAR10.picture_shape) == by_hand

    def test_of_the_fastest_products(self, monkeypatch):
        calls = []

        def time_calls(call, seconds):
            calls.append((call(), seconds))
            return np.array([4.0, 0.5, 1.0])

        monkeypatch.setattr(engines_cuda, "time_calls", time_calls)
        monkeypatch.setattr(engines_cuda, "PRODUCTS", 3)
        assert engines_cuda.peak(torch.float32, "cpu", 10, 7.0) == 3 * 2 * 1000 / 0.5
        assert calls == [(None, 7.0)]

    @pytest.mark.parametrize("dtype", engines_cuda.DTYPES.values())
    def test_of_every_precision(self, dtype):
        assert engines_cuda.peak(dtype, "cpu", 8, 0.001) > 0

    def test_share(self):
        entries = [timed("torch eager", "fp16", 2.0, batch=8), timed(PLAIN, "tf32", 4.0, batch=8)]
        assert "of peak" not in report.entry_table(entries)
        assert "peak_share" not in entries[0].row()
        entries[0].ceiling = 16_000.0  # and it gives 4,000
        assert entries[0].row()["peak_share"] == pytest.approx(0.25)
        lines = report.entry_table(entries).splitlines()
        assert " ".join(lines[0].split()).endswith("images/s calls of peak")
        assert lines[1].endswith("4,000     12  25.00 %")
        assert lines[2].endswith("2,000     12")


class TestInPrecision:
    def test_half_up_to_the_last_layer(self, deployed):
        images = torch.from_numpy(random_images(6, CIFAR10))
        half = engines_cuda.in_precision(deployed, torch.float16)
        dtypes = {name: parameter.dtype for name, parameter in half.named_parameters()}
        assert {dtype for name, dtype in dtypes.items() if not name.startswith("fc3")} == {torch.float16}
        (probabilities, logits), wanted = half(images), deployed(images)[0]
        assert (probabilities.dtype, logits.dtype) == (torch.float32, torch.float32)
        assert 0 < (probabilities - wanted).abs().max() < 0.02
        assert torch.equal(half.fc3[1].weight, deployed.fc3.weight)
        assert {parameter.dtype for parameter in deployed.parameters()} == {torch.float32}

    def test_fp32_is_as_it_was(self, deployed):
        images = torch.from_numpy(random_images(2, CIFAR10))
        assert torch.equal(engines_cuda.in_precision(deployed, torch.float32)(images)[0], deployed(images)[0])


@pytest.fixture
def restored():
    """torch's settings are as they were when the test is over."""
    precision, searched = torch.get_float32_matmul_precision(), torch.backends.cudnn.benchmark
    yield
    torch.set_float32_matmul_precision(precision)
    torch.backends.cudnn.benchmark = searched


@pytest.fixture
def compiled(monkeypatch) -> list[dict]:
    """What torch.compile is told; it gives back the module."""
    told: list[dict] = []
    monkeypatch.setattr(torch, "compile", lambda module, **options: told.append(options) or module)
    return told


class Copied(Bound):
    """A GPU's memory is copied to numpy; a CPU's is seen as it is, until the next answer is there."""

    def probabilities(self, images: np.ndarray | None = None) -> np.ndarray:
        return super().probabilities(images).copy()


@pytest.fixture
def on_the_cpu(run, bundle, compiled, restored, monkeypatch) -> CudaEngines:
    """As on a GPU, but for the names of device and provider, the compiler, and the precisions, which a CPU lacks."""
    monkeypatch.setitem(engines_cuda.GRAPH, "cpu", {"a_setting": "1"})
    monkeypatch.setattr(engines_cuda, "DTYPES", {"tf32": torch.float32, "fp16": torch.float64, "bf16": torch.float64})
    monkeypatch.setattr(engines_cuda, "Bound", Copied)
    monkeypatch.setattr(engines_cuda, "SIZE", 16)
    monkeypatch.setattr(harness, "CHECKED", 4)
    return CudaEngines(run, bundle, 1, "reduce-overhead", "cpu")


class TestCudaEngines:
    def test_all(self, on_the_cpu, compiled):
        entries = list(peers.measure(on_the_cpu, [2], 0.02, 2, None))
        *rows, absent = [entry.row() for entry in entries]
        names = [("torch eager", precision, "numpy") for precision in ("tf32", "fp16", "bf16")]
        names += [("TorchScript", precision, "numpy") for precision in ("tf32", "fp16")]
        names += [(COMPILED, precision, call) for precision in ("tf32", "fp16") for call in ("numpy", RESIDENT)]
        names += [(PLAIN, "tf32", "session.run")]
        names += [(f"{OURS} fp32", "tf32", call) for call in ("Classifier", "bound", "graph", RESIDENT)]
        assert [(row["engine"], row["precision"], row["call"]) for row in rows] == names
        for row in rows:
            assert (row["problem"], row["agree"], row["checked"], row["batch"]) == (None, 4, 4, 2)
            ceiling = on_the_cpu.peaks[row["precision"]] / on_the_cpu.operations
            assert row["peak_share"] == pytest.approx(row["images_per_second"] / ceiling)
            assert row["ready_seconds"] > 0
            if row["engine"] in (PLAIN, f"{OURS} fp32"):
                assert (row["ran_on"], row["share"]) == ("cpu", 1.0)
        assert "no fp16 variant" in absent["problem"]
        assert compiled == 2 * [{"mode": "reduce-overhead", "dynamic": False, "fullgraph": True}]
        assert all(entry.call is None for entry in entries)
        assert on_the_cpu.settings()["peaks"].keys() == {"tf32", "fp16", "bf16"}

    def test_copies_are_part_of_it_unless_resident(self, on_the_cpu):
        """After `resident` the answer is that of the images that were copied last."""
        for peer in on_the_cpu.all:
            if peer.call != RESIDENT:
                continue
            engine = peer.make(3)
            given, other = random_images(3, CIFAR10, seed=1), random_images(3, CIFAR10, seed=2)
            wanted = on_the_cpu.reference(given)
            assert engine(given) == pytest.approx(wanted, abs=1e-4)
            engine.resident()
            assert engine(other) == pytest.approx(on_the_cpu.reference(other), abs=1e-4)
            assert engine(given) == pytest.approx(wanted, abs=1e-4)

    def test_made_once_for_a_batch_size(self, on_the_cpu, compiled):
        numpy, resident = (peer for peer in on_the_cpu.all if (peer.engine, peer.precision) == (COMPILED, "tf32"))
        assert numpy.make(1) is resident.make(1)
        assert len(compiled) == 1
        first = numpy.make(1)
        assert numpy.make(2) is not first
        assert (len(on_the_cpu._made), len(compiled)) == (1, 2)  # the first is no longer held

    def test_graphs_are_asked_for(self, on_the_cpu, monkeypatch):
        given = []

        def init(self, model, *, contract=None, provider="auto", threads=None, name="", settings=None):
            given.append((provider, settings))
            raise ProviderError("It cannot be started.")

        monkeypatch.setattr(Session, "__init__", init)
        problems = {
            peer.call: entry(peer, 1, on_the_cpu).problem
            for peer in on_the_cpu.all
            if peer.engine in (PLAIN, f"{OURS} fp32")
        }
        assert set(problems) == {"session.run", "Classifier", "bound", "graph", RESIDENT}
        assert set(problems.values()) == {"It cannot be started."}
        graph = ("cpu", {"a_setting": "1"})
        assert given[2:] == [("cpu", {}), graph, graph]

    def test_one_that_falls_back_is_not_measured(self, on_the_cpu, monkeypatch):
        monkeypatch.setattr(harness, "assignment", lambda session: {"CPUExecutionProvider": 3, "Another": 2})
        (plain,) = (peer for peer in on_the_cpu.all if peer.engine == PLAIN)
        assert entry(plain, 1, on_the_cpu).problem.startswith("Only 3 of 5")


def test_resident_is_what_is_timed(engines):
    calls = []
    engine = OnDevice(classify, lambda: calls.append(0), {"ready_seconds": 1.5})
    found = entry(Peer("other", "tf32", lambda batch: engine, call=RESIDENT), 4, engines)
    assert (found.labels["call"], found.details["ready_seconds"], calls) == (RESIDENT, 1.5, [])
    found.call()
    assert calls == [0]


@pytest.mark.parametrize("option", ["--batch", "--threads", "--rounds"])
def test_none_at_all_is_wrong_usage(monkeypatch, capsys, option):
    monkeypatch.setattr("sys.argv", ["peers.py", "run", "--bundle", "bundle", option, "0"])
    with pytest.raises(SystemExit) as caught:
        peers.main()
    assert caught.value.code == 2


def test_a_name_of_no_engine_is_said():
    """It was left out without a word, and with --save a table of nothing took the place of the kept one."""
    there = [Peer(engine, "fp32", None) for engine in ("torch eager", "OpenVINO")]
    assert [*peers.choose(there, ["vino"])] == ["OpenVINO fp32"]
    assert [*peers.choose(there, [""])] == ["torch eager fp32", "OpenVINO fp32"]
    with pytest.raises(EdgecifarError, match="No engine is called tvm: there are torch eager fp32, OpenVINO fp32"):
        peers.choose(there, ["eager", "tvm"])


def test_no_gpu_is_one_sentence(run, bundle, monkeypatch, capsys):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(
        "sys.argv", ["peers.py", str(run.folder), "--bundle", str(bundle.folder), "--device", "cuda", "--batch", "1"]
    )
    with pytest.raises(EdgecifarError, match="no cuda device"):
        peers.main()
    assert capsys.readouterr().out == ""


@pytest.mark.gpu
@pytest.mark.slow
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_the_script_on_a_gpu(run, bundle, restored, check_document, monkeypatch, capsys):
    """Whatever onnxruntime is here: with that for CPUs alone, its rows say so."""
    options = ["--device=cuda", "--mode=reduce-overhead", "--batch=1", "--batch=64", "--seconds=0.2", "--rounds=2"]
    monkeypatch.setattr("sys.argv", ["peers.py", str(run.folder), "--bundle", str(bundle.folder), *options])
    peers.main()
    document = check_document(capsys.readouterr().out.splitlines()[-1])
    rows = document["rows"]
    assert document["settings"]["peaks"].keys() == engines_cuda.DTYPES.keys()
    for row in rows:
        if row["engine"] in ("torch eager", "TorchScript", COMPILED):
            assert row["problem"] is None
        if "n" in row:
            assert row["agree"] >= 0.9 * row["checked"]
            assert 0 < row["peak_share"] < 1


def test_a_bundle_without_the_full_net(run, own_bundle, tmp_path):
    with pytest.raises(VariantError, match="no fp32 ONNX variant"):
        CpuEngines(run, Bundle.open(own_bundle), 1, random_images(1, CIFAR10), tmp_path)


def test_the_script(run, bundle, check_document, monkeypatch, capsys):
    """All engines that are here but torch.compile, whose compiler takes a minute."""
    monkeypatch.setattr(harness, "CHECKED", 12)
    options = ["--batch=2", "--threads=1", "--seconds=0.05", "--rounds=2"]
    only = [f"--only={name}" for name in ("eager", "TorchScript", PLAIN, OURS, "OpenVINO fp32", "OpenVINO bf16")]
    monkeypatch.setattr("sys.argv", ["peers.py", str(run.folder), "--bundle", str(bundle.folder), *options, *only])
    peers.main()
    document = check_document(capsys.readouterr().out.splitlines()[-1])
    rows = document["rows"]
    found = {(row["engine"], row["precision"]): row for row in rows}
    settings = {"run", "bundle", "models", "seconds", "rounds", "device", "int8_calibration"}
    assert document["settings"].keys() == settings
    assert document["settings"]["models"]["edge"] == bundle.variant("edge").sha256
    assert not {"call", "peak_share", "ready_seconds"} & {key for row in rows for key in row}
    assert found[PLAIN, "fp32"]["ratios"].keys() == {PLAIN, "fastest peer", "fastest fp32/bf16"}
    exact = [("torch eager", "fp32"), ("TorchScript", "fp32"), ("TorchScript optimised", "fp32"), (PLAIN, "fp32")]
    for name in (*exact, (f"{OURS} fp32", "fp32")):
        row = found[name]
        assert (row["problem"], row["agree"], row["checked"], row["threads"]) == (None, 12, 12, 1)
        assert row["largest_difference"] < 1e-4
        assert row["ratios"][PLAIN]["median"] > 0
    assert found[f"{OURS} edge", "int8"]["n"] >= 2
    assert "torch.compile" not in {engine for engine, _ in found}
    assert found[PLAIN, "fp32"]["ratios"][PLAIN] == {"median": 1, "low": 1, "high": 1}
    if found["OpenVINO", "fp32"]["problem"] is None:
        assert found["OpenVINO", "fp32"]["agree"] == 12
