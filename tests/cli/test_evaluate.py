"""`edgecifar evaluate`: one accuracy whatever the format; what is wrong is said in a sentence."""

from __future__ import annotations

import json
import shutil

import numpy as np
import pytest
from PIL import Image

FILES = {"onnx": "model.onnx", "torchscript": "model.torchscript.pt", "pt2": "model.pt2", "bundle": ""}

pytestmark = pytest.mark.usefixtures("synthetic_is_small")


@pytest.fixture
def evaluated(edgecifar):
    def call(model, *arguments) -> dict:
        result = edgecifar("evaluate", model, "--data", "synthetic", "--json", *arguments)
        assert result.exit_code == 0
        return json.loads(result.stdout)

    return call


def test_every_format_has_the_same_accuracy(evaluated, bundle, run, small):
    documents = {"run": evaluated(run.folder)}
    for kind, file in FILES.items():
        documents[kind] = evaluated(bundle.folder / file, *(["--variant", "fp32"] if kind == "bundle" else []))
    first = documents["run"]
    assert first["accuracy"] == run.record.test["accuracy"]
    assert first["images"] == 130
    assert 0.1 < first["accuracy"] < 1  # neither chance nor certainty: the comparison means something
    assert np.array(first["confusion"]).sum(1).tolist() == np.bincount(small.test_labels).tolist()
    assert np.trace(first["confusion"]) == first["correct"]
    for kind, document in documents.items():
        assert document["kind"] == kind
        assert document["variant"] == ("fp32" if kind == "bundle" else None)
        assert document["dataset"] == "synthetic"
        for key in ("images", "correct", "accuracy", "per_class", "confusion"):
            assert document[key] == first[key], (kind, key)
        assert document["nll"] == pytest.approx(first["nll"], abs=1e-5)
        assert document["ece"] == pytest.approx(first["ece"], abs=1e-5)


def test_the_edge_variant_has_the_manifests_accuracy(evaluated, bundle):
    assert evaluated(bundle.folder)["accuracy"] == bundle.variant("edge").accuracy


def test_table_and_picture(edgecifar, bundle, tmp_path):
    picture = tmp_path / "confusion.png"
    result = edgecifar("evaluate", bundle.folder, "--data", "synthetic", "--plot", picture)
    assert result.exit_code == 0
    accuracy = bundle.variant("edge").accuracy
    assert result.stdout.startswith(f"{100 * accuracy:.2f} % of the 130 synthetic test images")
    assert f"{bundle.folder}: variant edge on cpu" in result.stderr
    assert "NLL" in result.stdout
    assert "ECE" in result.stdout
    for label in ("plane", "car", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck"):
        assert f"\n  {label:<6} " in result.stdout
    with Image.open(picture) as image:
        assert image.format == "PNG"
        image.load()
        assert min(image.size) > 400
        assert len(image.convert("RGB").getcolors(1 << 20)) > 10  # not a blank canvas


def test_a_picture_that_cannot_be_written_costs_no_figures(edgecifar, own_bundle, tmp_path):
    result = edgecifar("evaluate", own_bundle, "--data", "synthetic", "--plot", tmp_path / "none" / "x.png")
    assert result.exit_code == 1
    assert " synthetic test images (" in result.stdout
    *_, sentence = result.stderr.splitlines()
    assert sentence.startswith("edgecifar: Could not write x.png: ")
    assert not (tmp_path / "none").exists()


class TestRefusals:
    def test_a_missing_model(self, refused, tmp_path):
        assert refused("evaluate", tmp_path / "none.onnx") == f"{tmp_path / 'none.onnx'} is not there: check the path."

    @pytest.mark.parametrize("name", ["m.onnx", "m.pt", "m.pt2"])
    def test_a_text_file_by_a_models_name(self, refused, tmp_path, name):
        (tmp_path / name).write_text("a text")
        assert refused("evaluate", tmp_path / name, "--data", "synthetic").startswith(
            f"{tmp_path / name} is not a model"
        )

    def test_a_folder_that_is_neither(self, refused, tmp_path):
        assert "neither a run folder nor a bundle" in refused("evaluate", tmp_path, "--data", "synthetic")

    def test_a_path_that_no_system_takes(self, refused):
        assert "check the path" in refused("evaluate", "x" * 5_000)

    def test_an_unknown_provider(self, refused, bundle):
        assert "no provider called abacus" in refused("evaluate", bundle.folder, "--provider", "abacus")

    def test_a_checkpoint_of_another_net(self, refused, run, tmp_path):
        import torch
        from safetensors.torch import save_file

        shutil.copy(run.folder / "run.json", tmp_path)
        save_file({"fc9.weight": torch.zeros(2)}, tmp_path / "weights.safetensors")
        assert "is the checkpoint of another net" in refused("evaluate", tmp_path, "--data", "synthetic")

    def test_no_data(self, refused, own_bundle, tmp_path, monkeypatch):
        from torchvision.datasets import CIFAR10

        def unreachable(self):
            raise OSError("no network")

        monkeypatch.setattr(CIFAR10, "download", unreachable)
        (tmp_path / "empty").mkdir()
        sentence = refused("evaluate", own_bundle, "--data", tmp_path / "empty")
        assert sentence.startswith(f"CIFAR-10 is not in {tmp_path / 'empty'} and could not be downloaded")
        assert "--data synthetic" in sentence

    def test_a_wrong_archive(self, refused, own_bundle, tmp_path):
        (tmp_path / "cifar-10-python.tar.gz").write_bytes(b"no archive")
        assert "is not the official CIFAR-10 archive" in refused("evaluate", own_bundle, "--data", tmp_path)

    def test_a_corrupt_batch_file(self, refused, own_bundle, tmp_path):
        (tmp_path / "cifar-10-batches-py").mkdir()
        (tmp_path / "cifar-10-batches-py" / "test_batch").write_bytes(b"no batch")
        sentence = refused("evaluate", own_bundle, "--data", tmp_path)
        assert sentence.startswith(f"Corrupt in {tmp_path / 'cifar-10-batches-py'}: test_batch; ")

    @pytest.mark.parametrize("option", ["--variant", "--provider"])
    def test_an_option_that_means_nothing_to_a_run(self, refused, run, option):
        assert f"({option})" in refused("evaluate", run.folder, option, "cuda")

    def test_drawn_data_is_remembered(self, edgecifar, own_bundle):
        assert " synthetic test images (" in edgecifar("evaluate", own_bundle).stdout
