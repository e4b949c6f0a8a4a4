"""Wrong answers are not timed, what is not installed says so, and the engines that are here say what the net says."""

from __future__ import annotations

import harness
import numpy as np
import pytest
from harness import Entry

pytest.importorskip("torch")
import peers
from peers import OURS, PLAIN, Peer, entry, random_images, set_bases

from edgecifar.runtime import Bundle
from edgecifar.runtime.errors import VariantError


def classify(images: np.ndarray) -> np.ndarray:
    """Stand in for a net: ten bins of the mean brightness, softened; deterministic, of several classes."""
    bins = images.mean((1, 2, 3), dtype=np.float64)[:, None] / 25.6 - np.arange(10)
    powers = np.exp(-(bins**2))
    return (powers / powers.sum(1, keepdims=True)).astype(np.float32)


class TestImages:
    def test_same_every_time(self):
        images = random_images(13)
        assert (images.dtype, images.shape) == (np.uint8, (13, 32, 32, 3))
        assert images.tolist() == random_images(20)[:13].tolist()
        assert images.tolist() != random_images(13, seed=1).tolist()

    def test_squares_of_every_size(self):
        for index, image in enumerate(random_images(12)):
            side = 2 ** (index % 6)
            assert (image == image[::side, ::side].repeat(side, 0).repeat(side, 1)).all()
            assert len(np.unique(image.reshape(-1, 3), axis=0)) > 0.9 * (32 // side) ** 2

    def test_several_classes(self):
        assert len(set(classify(random_images(48)).argmax(1))) >= 4


class TestEntry:
    def test_one_that_agrees(self):
        given = []

        def function(images: np.ndarray) -> np.ndarray:
            given.append(images.shape)
            return classify(images) + np.float32(1e-6)

        found = entry(Peer("other", "fp32", lambda batch: function), 7, 2, classify)
        assert given == [(7, 32, 32, 3)] * (peers.CHECKED // 7)
        assert found.problem == ""
        checked = 7 * (peers.CHECKED // 7)
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

    def test_a_batch_that_is_larger_than_the_check(self):
        assert entry(Peer("other", "fp32", lambda batch: classify), 100, 1, classify).details["checked"] == 100

    def test_one_wrong_answer_and_it_is_not_timed(self):
        calls = []

        def function(images: np.ndarray) -> np.ndarray:
            calls.append(0)
            answers = classify(images)
            return np.roll(answers, 1, axis=1) if len(calls) == 5 else answers

        found = entry(Peer("other", "fp32", lambda batch: function), 1, 1, classify)
        assert found.call is None
        assert found.problem == (
            f"only {peers.CHECKED - 1} of {peers.CHECKED} arg-maxes are those of eager torch: it is not the same net."
        )
        assert "n" not in found.row()

    def test_a_lossy_one_is_timed_and_its_agreement_told(self):
        found = entry(Peer("other", "int8", lambda batch: lambda images: classify(images // 2)), 1, 1, classify)
        agree = (classify(random_images(96) // 2).argmax(1) == classify(random_images(96)).argmax(1)).sum()
        assert found.labels["agree"] == f"{agree}/96"
        assert agree < 96
        assert found.call is not None

    def test_one_that_is_not_installed(self):
        peer = Peer("other", "fp32", lambda batch: classify, ("numpy", "no_such_engine", "nor_this"))
        assert entry(peer, 1, 1, classify).problem == (
            "no_such_engine and nor_this must be installed: 'pip install no_such_engine nor_this'."
        )

    def test_one_that_fails(self):
        def make(batch: int):
            raise RuntimeError("no such instruction.\nmore")

        assert entry(Peer("other", "fp32", make), 1, 1, classify).problem == (
            "it does not run here (no such instruction)."
        )


def timed(engine: str, precision: str, milliseconds: float) -> Entry:
    return Entry({"engine": engine, "precision": precision}, rounds=[np.full(4, milliseconds / 1000)] * 3)


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


def test_a_bundle_without_the_full_net(run, own_bundle, tmp_path):
    with pytest.raises(VariantError, match="has no fp32 ONNX variant: export one with --format onnx"):
        peers.Peers(run, Bundle.open(own_bundle), 1, random_images(1), tmp_path)


def test_the_script(run, bundle, check_document, monkeypatch, capsys):
    """All engines that are here but torch.compile, whose compiler takes a minute."""
    monkeypatch.setattr(peers, "CHECKED", 12)
    options = ["--batch=2", "--threads=1", "--seconds=0.05", "--rounds=2"]
    only = [f"--only={name}" for name in ("eager", "TorchScript", PLAIN, OURS, "OpenVINO fp32", "OpenVINO bf16")]
    monkeypatch.setattr("sys.argv", ["peers.py", str(run.folder), "--bundle", str(bundle.folder), *options, *only])
    peers.main()
    rows = check_document(capsys.readouterr().out.splitlines()[-1])["rows"]
    found = {(row["engine"], row["precision"]): row for row in rows}
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
