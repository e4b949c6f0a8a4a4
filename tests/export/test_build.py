"""A bundle is complete and true, appears whole or not at all, and can be made again byte for byte."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import shutil
import subprocess
from dataclasses import asdict, replace

import numpy as np
import pytest
from cyclonedx.schema import SchemaVersion
from cyclonedx.validation.json import JsonStrictValidator
from small_net import SmallNet

from edgecifar.export import build, familiarity, models
from edgecifar.export.formats import onnx as onnx_format
from edgecifar.export.options import ExportOptions
from edgecifar.export.outliers import outliers
from edgecifar.runtime import signing
from edgecifar.runtime.bundle import Bundle
from edgecifar.runtime.errors import BundleError, DataError, OutputError, ParityError, RunError
from edgecifar.runtime.labelled import Listing
from edgecifar.runtime.metrics import evaluate
from edgecifar.runtime.session import Session
from edgecifar.train.decoding import Pictures
from edgecifar.train.folders import SplitPictures
from edgecifar.train.inference import in_batches, logits_with
from edgecifar.train.run import Run

MODELS = {
    "fp32": "model.onnx",
    "edge": "model.edge.onnx",
    "torchscript": "model.torchscript.pt",
    "pt2": "model.pt2",
}


@pytest.fixture
def failing(monkeypatch):
    """Let every export write a model that is not the net's."""

    def write(model, path, contract, provenance):
        path.write_bytes(b"no model")

    monkeypatch.setattr(onnx_format, "write", write)


@pytest.fixture
def fewer_drawn(monkeypatch):
    """Let 140 pictures be drawn where there is no data set, not 1,000."""
    draw = build.synthetic
    monkeypatch.setattr(build, "synthetic", lambda train, test: draw(train, min(test, 140)))


REPLACING = ExportOptions(replace=True)


def contents(folder):
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in folder.iterdir()}


class TestComplete:
    def test_files(self, bundle):
        beside = {"manifest.json", "golden.npz", "golden.json", "parity.json", "README.md", "bom.cdx.json"}
        beside |= {"SHA256SUMS"} | {picture.file for picture in bundle.golden_pictures()}
        assert {path.name for path in bundle.folder.iterdir()} == beside | set(MODELS.values())

    def test_verifies(self, bundle):
        checks = bundle.verify()
        assert [check for check in checks if not check.passed] == []
        assert {"golden vectors of fp32", "golden vectors of edge"} <= {check.name for check in checks}

    def test_the_bill_of_materials_is_as_its_schema_has_it(self, bundle):
        text = (bundle.folder / "bom.cdx.json").read_text()
        assert JsonStrictValidator(SchemaVersion.V1_6).validate_str(text) is None

    @pytest.mark.skipif(shutil.which("sha256sum") is None, reason="sha256sum is not installed")
    def test_sha256sum_agrees(self, bundle):
        result = subprocess.run(["sha256sum", "-c", "SHA256SUMS"], cwd=bundle.folder, capture_output=True, text=True)
        assert result.returncode == 0
        assert result.stdout.count(": OK") == len(list(bundle.folder.iterdir())) - 1
        assert result.stderr == ""

    def test_variants_and_default(self, bundle, small):
        manifest = bundle.manifest
        assert {variant.name: variant.file for variant in manifest.variants} == MODELS
        assert manifest.variants[0].name == "fp32"
        assert manifest.default_variant == "edge"
        assert manifest.contract == replace(small.contract, familiarity_name="familiarity")
        assert [variant.precision for variant in manifest.variants] == ["fp32", "int8", "fp32", "fp32"]

    @pytest.mark.parametrize("name", MODELS)
    def test_figures_of_a_variant_are_true(self, exported, small, net, name):
        bundle, results = exported
        variant = bundle.variant(name)
        path = bundle.folder / variant.file
        assert variant.bytes == path.stat().st_size
        assert variant.sha256 == hashlib.sha256(path.read_bytes()).hexdigest()
        loaded = models.load(path, provider="cpu")
        measured = evaluate(loaded.probabilities, small.test_images, small.test_labels, small.contract.labels)
        assert variant.accuracy == measured.accuracy
        compared = np.concatenate([small.test_images, small.train_images])  # fewer than 1,000 in all
        logits, eager = loaded.logits(compared), in_batches(logits_with(net), compared)
        assert variant.parity["agree"] == (logits.argmax(1) == eager.argmax(1)).sum()
        assert variant.parity["max_abs_difference"] == pytest.approx(np.abs(logits - eager).max(), rel=0.05, abs=1e-5)
        assert (variant.parity["images"], variant.parity["tested"]) == (430, 130)
        assert variant.parity["data"] == "synthetic test and training"
        assert variant.parity == json.loads((bundle.folder / "parity.json").read_text())[name]
        assert json.loads(json.dumps(results[name].as_json())) == variant.parity

    def test_fp32_agrees_on_every_image(self, bundle):
        assert {v.parity["agree"] for v in bundle.manifest.variants if v.precision == "fp32"} == {430}

    @pytest.mark.parametrize("name", MODELS)
    def test_golden_vectors(self, bundle, name):
        images, expected = bundle.golden()
        assert images.dtype == np.uint8
        assert images.shape == (32, 32, 32, 3)
        assert set(expected) == set(MODELS)
        loaded = models.load(bundle.folder / MODELS[name], provider="cpu")
        np.testing.assert_allclose(loaded.probabilities(images), expected[name], atol=1e-5)

    @pytest.mark.parametrize("name", ["fp32", "edge"])
    def test_familiarity(self, bundle, small, net, name):
        variant = bundle.variant(name)
        assert variant.familiarity is None  # 120 held-out pictures are too few for a threshold
        assert variant.parity["familiarity"]["correlation"] > 0.9
        session = bundle.load(variant, "cpu")
        scores = session.scores(small.train_images)[1]
        assert scores.shape == (300,)
        nothing = outliers(small.train_images, small.train_labels, 100, seed=5)
        assert familiarity.auroc(scores, session.scores(nothing)[1]) > 0.6
        images = bundle.golden()[0]
        np.testing.assert_allclose(bundle.golden_familiarity()[name], session.scores(images)[1], atol=1e-4)
        for picture in bundle.golden_pictures():
            found = session.scores(picture.array[None])[1]
            assert picture.familiarity[name] == pytest.approx(float(found[0]), abs=1e-4)

    def test_other_familiarities_do_not_verify(self, bundle, monkeypatch):
        scores = Session.scores
        monkeypatch.setattr(Session, "scores", lambda self, images: (scores(self, images)[0], np.zeros(len(images))))
        failed = {check.name for check in bundle.verify() if not check.passed}
        assert failed == {"golden vectors of fp32", "golden vectors of edge"}

    def test_a_file_of_torch_has_no_familiarity(self, bundle):
        for file in ("model.torchscript.pt", "model.pt2"):
            assert models.load(bundle.folder / file).familiarity is None

    def test_provenance(self, bundle, run, small):
        origin, record = bundle.manifest.provenance, run.record
        assert origin["checkpoint_sha256"] == record.weights_sha256
        assert origin["checkpoint_test_accuracy"] == record.test["accuracy"]
        assert origin["dataset"]["sha256"] == small.digest
        assert origin["training_images"] == 180
        assert origin["temperature"] == 1.7
        assert origin["recipe"] == asdict(record.recipe)
        assert (origin["started"], origin["finished"]) == (record.started, record.finished)

    def test_card(self, bundle):
        card = (bundle.folder / "README.md").read_text()
        for variant in bundle.manifest.variants:
            assert f"| `{variant.name}` | `{variant.file}` |" in card
            assert f"{100 * variant.accuracy:.2f} %" in card
            assert f"{variant.bytes:,}" in card
            assert f"`{variant.name}`: {variant.made_by}." in card
        assert "The default is `edge`" in card
        assert "Temperature 1.700 fitted on held-out images" in card

    def test_synthetic_data_are_named(self, bundle):
        assert bundle.manifest.dataset == "synthetic"
        card = (bundle.folder / "README.md").read_text()
        assert "a trial of the pipeline" in card
        assert "CIFAR-10" not in card

    def test_a_bundle_copied_elsewhere_works(self, own_bundle, small):
        session = Bundle.open(own_bundle).load(Bundle.open(own_bundle).variant())
        assert session.probabilities(small.test_images[:2]).shape == (2, 10)


@pytest.mark.usefixtures("quick_onnx")
class TestReplacing:
    def test_an_existing_bundle_is_refused_and_untouched(self, run, small, own_bundle):
        before = contents(own_bundle)
        with pytest.raises(OutputError, match="exists already"):
            build.export(run, own_bundle, small)
        assert contents(own_bundle) == before

    def test_with_force_it_is_replaced_whole(self, run, small, own_bundle):
        made, _ = build.export(run, own_bundle, small, REPLACING)
        assert [variant.name for variant in made.manifest.variants] == ["fp32"]
        assert not (own_bundle / "model.edge.onnx").exists()
        assert all(check.passed for check in made.verify())
        assert [path.name for path in own_bundle.parent.iterdir()] == [own_bundle.name]

    def test_an_existing_bundle_is_untouched_when_the_gate_fails(self, run, small, own_bundle, failing):
        before = contents(own_bundle)
        with pytest.raises(ParityError, match="fp32"):
            build.export(run, own_bundle, small, REPLACING)
        assert contents(own_bundle) == before
        assert [path.name for path in own_bundle.parent.iterdir()] == [own_bundle.name]

    def test_force_replaces_nothing_but_bundles(self, run, small, tmp_path):
        precious = tmp_path / "thesis"
        precious.mkdir()
        (precious / "chapter.txt").write_text("1")
        with pytest.raises(OutputError, match="only a bundle is replaced"):
            build.export(run, precious, small, REPLACING)
        assert (precious / "chapter.txt").read_text() == "1"

    def test_what_has_come_there_meanwhile_is_kept(self, run, small, own_bundle, monkeypatch):
        whole = build.describe

        def describe(folder, manifest):
            whole(folder, manifest)
            (own_bundle / "manifest.json").unlink()  # it is no bundle any more

        monkeypatch.setattr(build, "describe", describe)
        with pytest.raises(OutputError, match="only a bundle is replaced"):
            build.export(run, own_bundle, small, REPLACING)
        assert (own_bundle / "model.edge.onnx").exists()

    def test_one_that_cannot_be_opened_replaces_nothing(self, run, small, own_bundle, monkeypatch):
        before = contents(own_bundle)
        monkeypatch.setattr(build, "describe", lambda folder, manifest: (folder / "manifest.json").write_text("{}"))
        with pytest.raises(BundleError):
            build.export(run, own_bundle, small, REPLACING)
        assert contents(own_bundle) == before

    def test_the_working_folder(self, edgecifar, run, own_bundle, monkeypatch, synthetic_is_small):
        monkeypatch.chdir(own_bundle)
        result = edgecifar("export", run.folder, "--data", "synthetic", "--out", ".", "--force")
        monkeypatch.chdir(own_bundle.parent)
        assert result.exit_code == 0
        assert f"--bundle {own_bundle}" in result.stderr
        assert [variant.name for variant in Bundle.open(own_bundle).manifest.variants] == ["fp32"]

    @pytest.mark.parametrize("replace", [True, False])
    def test_a_file_in_the_way(self, run, small, tmp_path, replace):
        (tmp_path / "file").write_text("1")
        with pytest.raises(OutputError):
            build.export(run, tmp_path / "file", small, ExportOptions(replace=replace))
        assert (tmp_path / "file").read_text() == "1"
        assert len(list(tmp_path.iterdir())) == 1


class TestDisk:
    def test_a_full_disk_leaves_nothing(self, run, small, tmp_path, quick_onnx, monkeypatch):
        def full(path, arrays):
            path.write_bytes(b"half")
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

        monkeypatch.setattr(build, "_save_npz", full)
        with pytest.raises(OutputError, match=r"golden\.npz: the disk that holds .* is full"):
            build.export(run, tmp_path / "out" / "new", small)
        assert list((tmp_path / "out").iterdir()) == []

    @pytest.mark.parametrize("format_", ["torchscript", "pt2"])
    def test_a_file_that_the_system_cuts_off_leaves_nothing(self, run, small, tmp_path, format_):
        resource = pytest.importorskip("resource")
        before = resource.getrlimit(resource.RLIMIT_FSIZE)
        resource.setrlimit(resource.RLIMIT_FSIZE, (1_000_000, before[1]))  # stands for a disk that fills up
        try:
            with pytest.raises(OutputError, match="Could not write new: "):
                build.export(run, tmp_path / "out" / "new", small, ExportOptions(formats=(format_,)))
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, before)
        assert list((tmp_path / "out").iterdir()) == []

    def test_a_parent_that_is_a_file(self, run, small, tmp_path):
        (tmp_path / "file").write_text("")
        with pytest.raises(OutputError, match="choose another place"):
            build.export(run, tmp_path / "file" / "new", small)


@pytest.mark.usefixtures("quick_onnx")
class TestSigned:
    @pytest.fixture
    def key(self, tmp_path):
        pytest.importorskip("model_signing")
        from cryptography.hazmat.primitives import serialization
        from cryptography.hazmat.primitives.asymmetric import ec

        key, pem = ec.generate_private_key(ec.SECP256R1()), serialization.Encoding.PEM
        unlocked = serialization.NoEncryption()
        path = tmp_path / "my.key"
        path.write_bytes(key.private_bytes(pem, serialization.PrivateFormat.PKCS8, unlocked))
        spki = serialization.PublicFormat.SubjectPublicKeyInfo
        path.with_suffix(".pub").write_bytes(key.public_key().public_bytes(pem, spki))
        return path

    def test_an_export_is_signed_as_a_whole(self, edgecifar, run, key, tmp_path, synthetic_is_small):
        out = tmp_path / "out" / "new"
        result = edgecifar("export", run.folder, "--data", "synthetic", "--out", out, "--sign", key)
        assert result.exit_code == 0
        checks = {check.name: check for check in Bundle.open(out).verify(key.with_suffix(".pub"))}
        assert all(check.passed for check in checks.values())
        assert {"model.sig", "bom.cdx.json", "SHA256SUMS"} <= {path.name for path in out.iterdir()}
        assert checks["model.sig"].detail.endswith(f"over {len(list(out.iterdir())) - 1} files")

    def test_where_the_signature_cannot_be_written_there_is_no_bundle(self, run, small, key, tmp_path, monkeypatch):
        def full(path, content):
            raise OutputError("full")

        monkeypatch.setattr(signing, "write_file", full)
        with pytest.raises(OutputError, match="full"):
            build.export(run, tmp_path / "out" / "new", small, ExportOptions(signer=signing.Signer(key)))
        assert list((tmp_path / "out").iterdir()) == []


def test_renamed_classes_are_refused(run, small, tmp_path):
    renamed = replace(small.contract, labels=("jet", *small.contract.labels[1:]))
    with pytest.raises(DataError, match=f"{small.contract.labels[0]}, now jet"):
        build.export(run, tmp_path / "new", replace(small, contract=renamed))
    assert not (tmp_path / "new").exists()


@pytest.mark.parametrize(("layout", "out"), [("folders", "new"), ("csv", "new"), ("folders", "other-run/bundle")])
def test_a_bundle_does_not_become_a_class(linked, small, tmp_path, monkeypatch, layout, out):
    pictures = Pictures(Listing(tmp_path, tmp_path, layout, ()), small.test_images, (), {})
    dataset = replace(small, pictures=SplitPictures(pictures, ()))
    monkeypatch.setattr(build, "targets", lambda source: (_ for _ in ()).throw(RunError("enough.")))
    refused = (layout, out) == ("folders", "new")
    with pytest.raises(OutputError if refused else RunError, match="among the pictures" if refused else "enough"):
        build.export(linked(), tmp_path / out, dataset)
    assert not (tmp_path / out).exists()


@pytest.mark.usefixtures("quick_onnx")
class TestRuns:
    def test_one_that_is_trained_on_meanwhile_is_refused(self, linked, small, tmp_path, monkeypatch):
        reference, unfinished = build._reference, linked(finished=None, status="running", epochs_done=1)

        def trained_on(source):
            linked(epochs_done=2)
            return reference(source)

        monkeypatch.setattr(build, "_reference", trained_on)
        with pytest.raises(RunError, match="export it again"):
            build.export(unfinished, tmp_path / "new", small)
        assert not (tmp_path / "new").exists()

    def test_another_data_set_is_refused(self, linked, small, tmp_path):
        other = linked(dataset={**small_record(small), "name": "CIFAR-10", "sha256": "0" * 64})
        with pytest.raises(DataError, match=r"was trained on other data \(CIFAR-10\)"):
            build.export(other, tmp_path / "new", small)
        assert not (tmp_path / "new").exists()

    def test_without_the_data_set_parity_is_proved_and_accuracy_unknown(self, linked, small, tmp_path, fewer_drawn):
        elsewhere = linked(dataset={**small_record(small), "name": "CIFAR-10", "sha256": "0" * 64})
        bundle, results = build.export(elsewhere, tmp_path / "new", options=ExportOptions(without_data=True))
        assert (results["fp32"].images, results["fp32"].agree) == (140, 140)
        assert results["fp32"].data == "drawn pictures"
        assert bundle.variant("fp32").accuracy is None
        card = (bundle.folder / "README.md").read_text()
        assert "| not measured |" in card
        assert "Trained on" not in card.split("## Use")[0]

    def test_without_the_data_set_there_is_no_edge_variant(self, linked, small, tmp_path, fewer_drawn):
        elsewhere = linked(dataset={**small_record(small), "name": "CIFAR-10", "sha256": "0" * 64})
        with pytest.raises(DataError, match="name the data set"):
            build.export(elsewhere, tmp_path / "new", options=ExportOptions(variants=("edge",), without_data=True))
        assert not (tmp_path / "new").exists()


@pytest.mark.parametrize(("count", "said"), [(99, True), (100, False)])
def test_few_test_pictures_are_said(small, lines, count, said):
    images, labels = small.test_images[:count], small.test_labels[:count]
    build._warn_of_few(build.Reference(images, "few", np.zeros((count, 10), np.float32), labels))
    assert any(f"{count} labelled test pictures are too few" in line for line in lines()) == said


def test_an_unfinished_run_exports(linked, small, tmp_path):
    unfinished = linked(temperature=None, test=None, finished=None, status="running")
    bundle, results = build.export(unfinished, tmp_path / "new", small)
    origin = bundle.manifest.provenance
    assert origin["temperature"] == 1.0
    assert origin["checkpoint_test_accuracy"] is None
    assert origin["finished"] is None
    assert results["fp32"].passed
    assert "Temperature 1.000" in (bundle.folder / "README.md").read_text()


def test_another_net_than_net_is_not_exported(small, record, tmp_path):
    run = Run(tmp_path)
    run.finish(SmallNet(10), replace(record, recipe=replace(record.recipe, net="small")), [])
    with pytest.raises(RunError, match="holds a small"):
        build.export(run, tmp_path / "new", small)
    assert not (tmp_path / "new").exists()


def small_record(small) -> dict:
    return {"name": small.name, "sha256": small.digest, "trained_on": 180}


def test_without_an_onnx_variant_the_first_is_the_default(run, small, tmp_path):
    bundle, _ = build.export(run, tmp_path / "new", small, ExportOptions(formats=("pt2",)))
    assert bundle.manifest.default_variant == "pt2"
    assert {path.suffix for path in bundle.folder.glob("model*")} == {".pt2"}
    assert all(check.passed for check in bundle.verify())


@pytest.mark.slow
def test_exporting_again_gives_the_same_bytes(exported, export_everything, tmp_path):
    again, _ = export_everything(tmp_path / "new")
    first, second = contents(exported[0].folder), contents(again.folder)
    assert first.keys() == second.keys()
    # TorchScript differs in one process, where torch numbers the types that it makes, and with it the manifest; that
    # two processes write the same is tested with the format.
    assert {name for name in first if first[name] != second[name]} <= {
        "model.torchscript.pt",
        "manifest.json",
        "SHA256SUMS",
        "README.md",
        "bom.cdx.json",
    }
    parts = [replace(bundle.manifest, variants=()) for bundle in (exported[0], again)]
    assert parts[0] == parts[1]
    for before, after in zip(exported[0].manifest.variants, again.manifest.variants, strict=True):
        if before.name != "torchscript":
            assert before == after
