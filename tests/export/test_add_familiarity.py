"""`scripts/add_familiarity.py`: a bundle from before gets the score, and says all else as it did."""

from __future__ import annotations

import importlib.util
import json
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from edgecifar.export.formats import onnx as onnx_format
from edgecifar.runtime import golden
from edgecifar.runtime.bundle import Bundle
from edgecifar.runtime.errors import EdgecifarError
from edgecifar.runtime.files import sha256
from edgecifar.runtime.folder import write_sums
from edgecifar.runtime.manifest import Familiarity
from edgecifar.runtime.session import Session

SCRIPT = Path(__file__).parents[2] / "scripts" / "add_familiarity.py"


@pytest.fixture(scope="module")
def script():
    sys.path.insert(0, str(SCRIPT.parent))  # as where it is run
    spec = importlib.util.spec_from_file_location("add_familiarity", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    sys.path.remove(str(SCRIPT.parent))
    return module


@pytest.fixture
def before(bundle, plain_onnx, small, tmp_path) -> Path:
    """The bundle's edge variant without the score, as a bundle of its own."""
    folder = tmp_path / "bundle"
    folder.mkdir()
    for name in ("parity.json", "README.md", "bom.cdx.json"):
        (folder / name).write_bytes(bundle.file(name))
    path = folder / "model.edge.onnx"
    onnx_format.save(plain_onnx(path.name), path, small.contract, {"seed": 7})
    variant = replace(bundle.variant("edge"), bytes=path.stat().st_size, sha256=sha256(path))
    manifest = replace(bundle.manifest, contract=small.contract, variants=(variant,))
    (folder / "manifest.json").write_text(manifest.as_json())
    images, vectors = bundle.golden()
    np.savez(folder / "golden.npz", images=images, edge=vectors["edge"])
    golden.write(folder, small.contract, {"edge": Session(path.read_bytes(), provider="cpu").probabilities})
    write_sums(folder)
    return folder


def test_the_score_is_added_and_all_else_stays(script, before, small, monkeypatch, tmp_path):
    monkeypatch.setattr(script.datasets, "load", lambda data, options: small)
    old = Bundle.open(before)
    images = small.test_images[:20]
    was = old.load(old.variant(), "cpu").outputs(images)
    made = script.rewrite(before, before, None, None)
    assert [check for check in made.verify() if not check.passed] == []
    session = made.load(made.variant(), "cpu")
    probabilities, logits, familiarity = session.outputs(images)
    assert (probabilities == was[0]).all()
    assert (logits == was[1]).all()
    assert familiarity.shape == (20,)
    assert session.metadata()["provenance"] == {"seed": 7}
    assert made.variant().familiarity is None  # too few held-out pictures
    assert made.variant().bytes - old.variant().bytes < 8_192
    assert "## None of these" in made.file("README.md").decode()
    row = {"model": "edge", "images": 5, "auroc": 0.9, "passed": 0.2, "known": {"images": 9, "passed": 0.9}}
    found = tmp_path / "found.json"
    found.write_text(json.dumps({"settings": {"kinds": "reported"}, "rows": [row]}))
    assert script.rewrite(before, tmp_path / "other", None, found).manifest == made.manifest
    found.write_text(json.dumps({"settings": {"kinds": "tuning"}, "rows": [row]}))
    with pytest.raises(EdgecifarError, match="reported"):
        script.rewrite(before, tmp_path / "third", None, found)


def test_figures_of_another_score_are_refused(script, bundle):
    score = Familiarity(-1.0, 0.95, 500, {})
    variant = replace(bundle.variant("edge"), familiarity=score)
    row = {"images": 5, "auroc": 0.9, "passed": 0.2, "known": {"images": 9, "passed": 0.9}, "threshold": -1.0}
    assert script.with_figures(variant, {"edge": row}).familiarity.measured["other"]["passed"] == 0.2
    with pytest.raises(EdgecifarError, match="another edge"):
        script.with_figures(variant, {"edge": {**row, "threshold": -2.0}})
    with pytest.raises(EdgecifarError, match="no figures of edge"):
        script.with_figures(variant, {"tiny": row})


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (None, "No such file"),
        ("{", "is no file of"),
        ("[]", "is no file of"),
        ('{"settings": {"kinds": "reported"}, "rows": [{}]}', "is no file of"),
    ],
)
def test_what_are_no_figures_is_said(script, tmp_path, content, says):
    if content is not None:
        (tmp_path / "found.json").write_text(content)
    with pytest.raises(EdgecifarError, match=says):
        script.figures(tmp_path / "found.json")


def test_pictures_are_read_as_they_were_for_the_training(script, bundle, small, monkeypatch):
    asked = []
    monkeypatch.setattr(script.datasets, "load", lambda data, options: asked.append(options) or small)
    origin = {"options": {"fit": "pad", "val": 0.2, "test": 0.3}}
    dataset = {**bundle.manifest.provenance["dataset"], "origin": origin}
    manifest = replace(bundle.manifest, provenance={**bundle.manifest.provenance, "dataset": dataset})
    script.examples_of(replace(bundle, manifest=manifest), None)
    assert (asked[0].fit, asked[0].val, asked[0].test) == ("pad", 0.2, 0.3)


def test_another_data_set_is_refused(script, before, small, monkeypatch):
    monkeypatch.setattr(script.datasets, "load", lambda data, options: replace(small, digest="0" * 64))
    with pytest.raises(EdgecifarError, match="trained on synthetic"):
        script.rewrite(before, before, None, None)
    assert Bundle.open(before).contract.familiarity_name is None
