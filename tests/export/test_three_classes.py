"""A net of three classes with labels in other scripts goes the whole way, and nothing takes it for CIFAR-10."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest
from narrow_net import NarrowNet

from edgecifar.export import build, models
from edgecifar.export.compress import search
from edgecifar.export.options import ExportOptions
from edgecifar.runtime.contract import Contract
from edgecifar.runtime.session import Session
from edgecifar.train.record import DatasetRecord
from edgecifar.train.run import Run

CONTRACT = Contract(("Fliegenpilz", "キノコ", "ничего"), 32).with_fit("pad")
SCORED = replace(CONTRACT, familiarity_name="familiarity")
FILES = ("model.onnx", "model.edge.onnx", "model.torchscript.pt", "")


@pytest.fixture(scope="module")
def mushrooms(small):
    labels = {"train_labels": small.train_labels % 3, "test_labels": small.test_labels % 3}
    return replace(small, contract=CONTRACT, name="mushrooms", digest="a" * 64, **labels)


@pytest.fixture(scope="module")
def bundle(net, record, mushrooms, tmp_path_factory):
    folder = tmp_path_factory.mktemp("mushrooms")
    three = NarrowNet(3, dropout=0.0)
    three.load_state_dict({**net.state_dict(), "fc3.weight": net.fc3.weight[:3], "fc3.bias": net.fc3.bias[:3]})
    dataset = DatasetRecord(mushrooms.name, mushrooms.digest, record.dataset.trained_on)
    run = Run(folder / "run")
    run.folder.mkdir()
    run.finish(three, replace(record, contract=CONTRACT, dataset=dataset), [])
    options = ExportOptions(formats=("onnx", "torchscript"), variants=("fp32", "edge"), budget=200)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(search, "CALIBRATORS", ("MinMax",))
        return build.export(run, folder / "bundle", mushrooms, options)[0]


def test_the_bundle_verifies_and_carries_the_contract(bundle):
    assert [check for check in bundle.verify() if not check.passed] == []
    assert bundle.contract == SCORED
    images, expected = bundle.golden()
    assert {rows.shape for rows in expected.values()} == {(len(images), 3)}
    assert {row.shape for picture in bundle.golden_pictures() for row in picture.probabilities.values()} == {(3,)}


@pytest.mark.parametrize("file", FILES)
def test_each_file_says_what_it_takes_and_gives(bundle, mushrooms, file):
    model = models.load(bundle.folder / file, provider="cpu")
    assert model.contract == (CONTRACT if file.endswith(".pt") else SCORED)
    probabilities = model.probabilities(mushrooms.test_images[:4])
    assert probabilities.shape == (4, 3)
    np.testing.assert_allclose(probabilities.sum(1), 1, atol=1e-5)


def test_the_onnx_file_alone_is_enough(bundle):
    session = Session((bundle.folder / "model.edge.onnx").read_bytes(), provider="cpu")
    assert session.contract == SCORED


def test_nothing_speaks_of_cifar10(bundle):
    for name in ("README.md", "manifest.json", "bom.cdx.json", "parity.json", "golden.json"):
        text = (bundle.folder / name).read_text(encoding="utf-8")
        assert "CIFAR" not in text
        assert "plane" not in text
    card = (bundle.folder / "README.md").read_text(encoding="utf-8")
    assert "one of Fliegenpilz, キノコ, ничего" in card
    assert "mushrooms" in json.loads((bundle.folder / "bom.cdx.json").read_text())["metadata"]["component"]["name"]
