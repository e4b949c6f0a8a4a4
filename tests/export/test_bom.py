"""The bill of materials is CycloneDX, true, and the same bytes whenever it is made of the same."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import replace

import pytest
from cyclonedx.schema import SchemaVersion
from cyclonedx.validation.json import JsonStrictValidator
from onnx import TensorProto, helper
from packageurl import PackageURL

from edgecifar.export import bom
from edgecifar.export.formats import onnx as onnx_format
from edgecifar.runtime import machine
from edgecifar.runtime.contract import CIFAR10, Contract
from edgecifar.runtime.errors import BundleError, RunError
from edgecifar.runtime.files import sha256
from edgecifar.runtime.manifest import Manifest, Variant

VERSIONS = {"edgecifar": "1.2.3", "numpy": "2.4.6", "onnx": "1.23.2", "torch": "2.15.0+cpu"}


def variant(name: str, accuracy: float | None) -> Variant:
    return Variant(
        name=name,
        file=f"model.{name}.onnx",
        format="onnx",
        precision="int8",
        bytes=10,
        sha256=name[0] * 64,
        accuracy=accuracy,
        parity={"images": 10_000, "data": "CIFAR-10 test"},
        made_by="by hand",
    )


PROVENANCE = {
    "recipe": {"name": "fast"},
    "seed": 7,
    "epochs_done": 3,
    "dataset": {"name": "CIFAR-10", "sha256": "d" * 64, "trained_on": 45_000},
    "checkpoint_sha256": "c" * 64,
    "checkpoint_test_accuracy": 0.8222,
    "edgecifar": "1.2.2",
    "temperature": 1.1,
    "training_images": 45_000,
    "started": "2026-01-02T03:04:05+00:00",
    "finished": "2026-01-02T04:04:05+00:00",
    "trained_with": {"hardware": "a processor", "device": "cuda", "numpy": "2.4.6", "torch": "2.15.0+cu126"},
}
MANIFEST = Manifest(CIFAR10, (variant("edge", 0.8222), variant("all", None)), "edge", "CIFAR-10", PROVENANCE)


def made(versions: dict[str, str] = VERSIONS, dataset: str = "CIFAR-10", **changes) -> dict:
    provenance = {**PROVENANCE, **changes}
    return valid(bom.text(replace(MANIFEST, dataset=dataset, provenance=provenance), versions))


def valid(text: str) -> dict:
    """Hold a bill against the schema, and return it."""
    assert JsonStrictValidator(SchemaVersion.V1_6).validate_str(text) is None
    return json.loads(text)


def named(components: list[dict], name: str) -> dict:
    (component,) = (component for component in components if component["name"] == name)
    return component


def test_is_valid_and_says_what_it_is():
    document = made()
    assert (document["bomFormat"], document["specVersion"]) == ("CycloneDX", "1.6")
    assert document["metadata"]["component"]["type"] == "machine-learning-model"
    assert document["metadata"]["component"]["licenses"] == [{"license": {"id": "MIT"}}]
    assert document["metadata"]["timestamp"] == PROVENANCE["finished"]
    assert named(document["metadata"]["tools"]["components"], "edgecifar")["version"] == "1.2.3"


def test_models_and_the_checkpoint_have_their_digests():
    model = made()["metadata"]["component"]
    files = model["components"]
    assert {file["name"]: file["hashes"] for file in files} == {
        "model.edge.onnx": [{"alg": "SHA-256", "content": "e" * 64}],
        "model.all.onnx": [{"alg": "SHA-256", "content": "a" * 64}],
    }
    assert {file["type"] for file in files} == {"machine-learning-model"}
    (ancestor,) = model["pedigree"]["ancestors"]
    assert ancestor["hashes"] == [{"alg": "SHA-256", "content": "c" * 64}]
    assert model["version"] == "c" * 12


def test_the_data_set():
    document = made()
    data = named(document["components"], "CIFAR-10")
    assert data["type"] == "data"
    assert data["hashes"] == [{"alg": "SHA-256", "content": "d" * 64}]
    assert data["description"].startswith("45,000 of its training images")
    (source,) = data["externalReferences"]
    assert source["url"].endswith("cifar.html")
    parameters = document["metadata"]["component"]["modelCard"]["modelParameters"]
    assert parameters["datasets"] == [{"ref": data["bom-ref"]}]
    assert "externalReferences" not in named(made(dataset="synthetic")["components"], "synthetic")


def test_the_model_card_has_the_accuracy_that_was_measured():
    card = made()["metadata"]["component"]["modelCard"]
    assert card["quantitativeAnalysis"]["performanceMetrics"] == [
        {
            "type": "accuracy",
            "value": "0.8222",
            "slice": "model.edge.onnx on 10,000 images (CIFAR-10 test)",
            "confidenceInterval": {"lowerBound": "0.8146", "upperBound": "0.8296"},
        }
    ]
    assert card["modelParameters"]["inputs"] == [{"format": "images: uint8 [batch, 32, 32, 3] RGB"}]
    assert {output["format"] for output in card["modelParameters"]["outputs"]} == {
        "probabilities: float32 [batch, 10]",
        "logits: float32 [batch, 10]",
    }


def test_packages_of_training_and_of_export():
    document = made()
    libraries = [component for component in document["components"] if component["type"] == "library"]
    found = {(library["name"], library["version"]): library["properties"][0]["value"] for library in libraries}
    assert found == {
        ("numpy", "2.4.6"): "training, export",
        ("onnx", "1.23.2"): "export",
        ("torch", "2.15.0+cu126"): "training",
        ("torch", "2.15.0+cpu"): "export",
    }
    for library in libraries:
        purl = PackageURL.from_string(library["purl"])
        assert (purl.type, purl.name, purl.version) == ("pypi", library["name"], library["version"])
    (dependency,) = (entry for entry in document["dependencies"] if entry["ref"] == "model")
    assert sorted(dependency["dependsOn"]) == sorted(component["bom-ref"] for component in document["components"])


def test_a_training_that_went_on_elsewhere_names_both_versions_of_torch():
    document = made(resumed=[{"after_epochs": 1, "torch": "2.16.0"}, {"after_epochs": 2}, {"torch": "2.15.0+cu126"}])
    torches = [component for component in document["components"] if component["name"] == "torch"]
    assert {torch["version"]: torch["properties"][0]["value"] for torch in torches} == {
        "2.15.0+cu126": "training",
        "2.16.0": "training",
        "2.15.0+cpu": "export",
    }


def test_any_number_of_labels_in_any_language():
    for labels, said in ((("Pilz", "キノコ", "other"), "キノコ"), (tuple(map(str, range(1_000))), "1,000 classes")):
        manifest = replace(MANIFEST, contract=Contract(labels, 32), dataset="mushrooms")
        model = json.loads(bom.text(manifest, VERSIONS))["metadata"]["component"]
        assert said in model["description"]
        assert "CIFAR" not in json.dumps([model["name"], model["description"]])
        outputs = model["modelCard"]["modelParameters"]["outputs"]
        assert {output["format"].split(": ")[1] for output in outputs} == {f"float32 [batch, {len(labels)}]"}


def test_a_manifest_that_lacks_something():
    manifest = replace(MANIFEST, provenance={name: value for name, value in PROVENANCE.items() if name != "seed"})
    with pytest.raises(BundleError, match="lacks seed"):
        bom.text(manifest, VERSIONS)


def test_an_unfinished_run_has_the_time_it_began():
    assert made(finished=None)["metadata"]["timestamp"] == PROVENANCE["started"]


@pytest.mark.parametrize("time", ["yesterday", 5])
def test_no_time_at_all(time):
    with pytest.raises(RunError, match=r"is no time\): restore it or train again\."):
        made(finished=time)


@pytest.mark.parametrize("name", ["", " ", "a/b?c#d", "日本語", "x" * 200, 'quotes " and \\', "https://example.org/"])
def test_names_of_own_data_and_classes_are_put_in_as_they_are(name):
    manifest = replace(MANIFEST, dataset=name, contract=Contract((name or "a", "b"), 32))
    document = valid(bom.text(manifest, {**VERSIONS, "onnx": name}))
    assert name in {component["name"] for component in document["components"]}


def test_its_number_is_that_of_its_content():
    numbers = [made(), made(), made({**VERSIONS, "onnx": "1.23.3"}), made(seed=8)]
    assert len({document["serialNumber"] for document in numbers}) == 3


@pytest.mark.slow
def test_another_process_writes_the_same_bytes(tmp_path):
    (tmp_path / "manifest.json").write_text(MANIFEST.as_json())
    code = f"""
import sys
from pathlib import Path
from edgecifar.export import bom
from edgecifar.runtime.manifest import Manifest
path = Path("manifest.json")
sys.stdout.write(bom.text(Manifest.parse(path.read_text(), path), {VERSIONS!r}))
"""
    command, environment = [sys.executable, "-c", code], {**os.environ, "PYTHONHASHSEED": "12345"}
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=True)
    assert done.stdout == bom.text(MANIFEST, VERSIONS)


def test_of_an_exported_bundle(bundle):
    document = json.loads((bundle.folder / "bom.cdx.json").read_text())
    model = document["metadata"]["component"]
    assert {file["name"]: file["hashes"][0]["content"] for file in model["components"]} == {
        variant.file: sha256(bundle.folder / variant.file) for variant in bundle.manifest.variants
    }
    assert (bundle.folder / "bom.cdx.json").read_text() == bom.text(bundle.manifest, machine.versions())
    assert "bom.cdx.json" in bundle.sums
    (reference,) = model["externalReferences"]
    assert (reference["type"], (bundle.folder / reference["url"]).is_file()) == ("model-card", True)


@pytest.mark.parametrize("origin", [{}, {"layout": "folders"}])
def test_a_net_of_own_pictures_is_under_nobody_s_licence(tmp_path, origin):
    provenance = {**PROVENANCE, "dataset": {"name": "mine", "sha256": "d" * 64, "trained_on": 45_000, "origin": origin}}
    document = bom.text(replace(MANIFEST, dataset="mine", provenance=provenance), VERSIONS)
    assert ("MIT" in document) == (not origin)
    valid(document)
    tensors = [helper.make_tensor_value_info(name, TensorProto.FLOAT, [1]) for name in "ab"]
    graph = helper.make_graph([helper.make_node("Relu", ["a"], ["b"])], "graph", tensors[:1], tensors[1:])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)
    onnx_format.save(model, tmp_path / "model.onnx", CIFAR10, provenance)
    described = {entry.key for entry in model.metadata_props}
    assert ({"model_author", "model_license"} & described == set()) == bool(origin)
