"""`edgecifar export`: what it needs is at hand or named, what it would replace is a bundle, what is wrong is said."""

from __future__ import annotations

import json
import os
import shutil

import pytest

from edgecifar.runtime.bundle import Bundle

pytestmark = pytest.mark.usefixtures("quick_onnx")


@pytest.fixture
def on_cifar10(run, tmp_path, monkeypatch):
    """The folder of a run that says that it was trained on CIFAR-10, which is not at hand."""
    folder = tmp_path / "cifar-run"
    folder.mkdir()
    os.link(run.folder / "weights.safetensors", folder / "weights.safetensors")
    record = json.loads((run.folder / "run.json").read_text())
    record["dataset"] |= {"name": "CIFAR-10", "sha256": "0" * 64}
    (folder / "run.json").write_text(json.dumps(record))
    monkeypatch.setenv("EDGECIFAR_DATA", str(tmp_path / "nothing"))
    return folder


def test_the_newest_run_and_a_bundle_in_it_are_the_defaults(edgecifar, run, tmp_path, monkeypatch, synthetic_is_small):
    folder = tmp_path / "runs" / "mine"
    folder.mkdir(parents=True)
    os.link(run.folder / "weights.safetensors", folder / "weights.safetensors")
    shutil.copy(run.folder / "run.json", folder)
    monkeypatch.chdir(tmp_path)
    result = edgecifar("export")
    assert result.exit_code == 0
    assert result.stdout == ""
    assert "pass  fp32" in result.stderr
    assert "--bundle runs/mine/bundle" in result.stderr
    assert edgecifar("verify", folder / "bundle").exit_code == 0


class TestWithoutData:
    def test_it_must_be_asked_for(self, refused, on_cifar10):
        assert "--without-data" in refused("export", on_cifar10)
        assert not (on_cifar10 / "bundle").exists()

    def test_it_is_said_loudly(self, edgecifar, on_cifar10):
        result = edgecifar("export", on_cifar10, "--without-data")
        assert result.exit_code == 0
        assert "WITHOUT THE DATA SET" in result.stderr
        assert "of 1,000 images (drawn pictures)" in result.stderr
        variant = Bundle.open(on_cifar10 / "bundle").variant()
        assert variant.accuracy is None
        assert variant.parity["data"] == "drawn pictures"

    def test_no_lossy_variant_is_made(self, refused, on_cifar10):
        assert "--data" in refused("export", on_cifar10, "--without-data", "--variant", "edge")
        assert not (on_cifar10 / "bundle").exists()

    def test_it_contradicts_naming_them(self, edgecifar, on_cifar10):
        assert edgecifar("export", on_cifar10, "--without-data", "--data", "synthetic").exit_code == 2

    def test_other_data_are_refused(self, refused, on_cifar10, tmp_path, synthetic_is_small):
        sentence = refused("export", on_cifar10, "--data", "synthetic", "--out", tmp_path / "new")
        assert "trained on other data (CIFAR-10)" in sentence
        assert "--data" in sentence
        assert not (tmp_path / "new").exists()


class TestRefusals:
    def test_no_run_at_all(self, refused, tmp_path, monkeypatch):
        monkeypatch.chdir(tmp_path)
        assert "no trained run under runs/" in refused("export")

    def test_a_budget_that_no_variant_has(self, edgecifar, tmp_path, monkeypatch):
        monkeypatch.chdir(tmp_path)
        assert edgecifar("export", "--budget", "0.5", "--variant", "fp16").exit_code == 2
        assert edgecifar("export", "--budget", "0.5", "--variant", "edge").exit_code == 1  # there is no run

    def test_a_folder_that_is_no_run(self, refused, tmp_path):
        assert f"{tmp_path} is " in refused("export", tmp_path)

    @pytest.mark.parametrize("name", ["", "model.edge.onnx"])
    def test_what_is_exported_already(self, refused, own_bundle, name):
        sentence = refused("export", own_bundle / name)
        assert "is not a run folder" in sentence
        assert ("--layout" in sentence) == (name == "")

    def test_a_run_without_an_epoch(self, refused, run, tmp_path, synthetic_is_small):
        record = json.loads((run.folder / "run.json").read_text())
        for name in ("epochs_done", "weights_sha256"):
            del record[name]
        (tmp_path / "run.json").write_text(json.dumps({**record, "status": "running"}))
        assert "no epoch was completed" in refused("export", tmp_path, "--data", "synthetic")

    def test_a_finished_run_without_its_weights(self, refused, run, tmp_path, synthetic_is_small):
        shutil.copy(run.folder / "run.json", tmp_path)
        assert "weights.safetensors" in refused("export", tmp_path)

    def test_a_bundle_that_is_there(self, refused, run, own_bundle, synthetic_is_small):
        assert "(--force)" in refused("export", run.folder, "--out", own_bundle)

    def test_force_does_not_replace_the_run(self, refused, run):
        assert "only a bundle is replaced" in refused("export", run.folder, "--out", run.folder, "--force")
        assert (run.folder / "weights.safetensors").exists()


def test_help_ends_with_examples(edgecifar):
    *_, last = edgecifar("export", "--help").stdout.rstrip().splitlines()
    assert last.strip().startswith("edgecifar export")
