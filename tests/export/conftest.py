"""What the tests of `export` share."""

from __future__ import annotations

import shutil

import pytest


@pytest.fixture
def tmp_path(tmp_path):
    """pytest's own, emptied after each test: an exported net is 83 MB."""
    yield tmp_path
    shutil.rmtree(tmp_path, ignore_errors=True)


@pytest.fixture(scope="session")
def eager(net, small):
    """The net's own logits of the small test images, float32 [130, 10]."""
    from edgecifar.export.parity import in_batches
    from edgecifar.train.loop import logits_with

    return in_batches(logits_with(net), small.test_images)


@pytest.fixture(scope="session")
def deployed(net):
    """The graph that is exported; it is shared and must not be changed."""
    from edgecifar.export.graph import Deployed

    return Deployed(net, 1.7)


@pytest.fixture
def quick_onnx(bundle, monkeypatch):
    """Let the ONNX exporter, which takes seconds, copy what it wrote of the same net before."""
    from edgecifar.export import to_onnx

    def write(model, path, provenance):
        shutil.copy(bundle.folder / "model.onnx", path)

    monkeypatch.setattr(to_onnx, "write", write)
