"""The whole way on the real test images: every one of the 10,000 arg-maxes of an exported net is the net's own."""

from __future__ import annotations

import json
import os

import pytest


@pytest.mark.cifar10
@pytest.mark.slow
def test_all_arg_maxes_on_cifar10(edgecifar, run, tmp_path, monkeypatch):
    from edgecifar.export import familiarity
    from edgecifar.train import data

    if not os.environ.get("EDGECIFAR_DATA"):
        pytest.skip("EDGECIFAR_DATA does not name the folder of the CIFAR-10 files")
    for name, fewer in (("STEPS", 60), ("OUTLIERS", 100), ("KNOWN_IMAGES", 100)):  # it changes no class, and takes long
        monkeypatch.setattr(familiarity, name, fewer)
    dataset = data.load(download=False)
    os.link(run.folder / "weights.safetensors", tmp_path / "weights.safetensors")
    record = run.record.as_json()
    record["dataset"] |= {"name": dataset.name, "sha256": dataset.digest}
    (tmp_path / "run.json").write_text(json.dumps(record))
    result = edgecifar("export", tmp_path, "--format", "onnx")
    assert result.exit_code == 0
    (line,) = (line for line in result.stderr.splitlines() if line.startswith("pass  fp32"))
    assert "10,000 / 10,000" in line
    (variant,) = json.loads(edgecifar("info", tmp_path / "bundle", "--json").stdout)["variants"]
    assert variant["parity"]["agree"] == variant["parity"]["images"] == 10_000
    assert variant["parity"]["data"] == "CIFAR-10 test"
    assert "CIFAR-10 classifier" in (tmp_path / "bundle" / "README.md").read_text()
