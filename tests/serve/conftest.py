"""What the tests of the server share: the tiny bundle behind the application, in this process, and requests to it."""

from __future__ import annotations

import io
import json
import shutil
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("starlette", reason="the server's extra is not installed: pip install '.[serve]'")

TINY = Path(__file__).parents[1] / "fixtures" / "tiny_bundle"

COLOURS = {
    "plane": (255, 255, 255),
    "car": (255, 0, 0),
    "bird": (0, 255, 255),
    "cat": (255, 128, 0),
    "deer": (0, 0, 0),
    "dog": (128, 128, 128),
    "frog": (0, 255, 0),
    "horse": (255, 0, 255),
    "ship": (0, 0, 255),
    "truck": (255, 255, 0),
}
"""The colour that the models of the tiny bundle take for each label, in label order."""


@pytest.fixture(scope="session")
def images() -> np.ndarray:
    """uint8 [10, 32, 32, 3]: one picture a label, in label order, each of that label's colour."""
    return np.broadcast_to(np.array(list(COLOURS.values()), np.uint8)[:, None, None], (10, 32, 32, 3)).copy()


@pytest.fixture(scope="session")
def labels() -> list[str]:
    """The labels of the tiny bundle, in order."""
    return list(COLOURS)


@pytest.fixture
def tiny() -> Path:
    """The committed bundle; nobody writes into it."""
    return TINY


@pytest.fixture
def own_tiny(tmp_path) -> Path:
    """A copy of the tiny bundle, to break at will."""
    return Path(shutil.copytree(TINY, tmp_path / "tiny"))


@pytest.fixture
def open_client():
    """Serve bundles in this process: `open_client(settings=..., keys=..., bundles={...})` is a client of httpx."""
    from contextlib import ExitStack

    from starlette.testclient import TestClient

    from edgecifar.serve import App, Settings, load_registry
    from edgecifar.serve.models import Source

    with ExitStack() as stack:

        def call(settings=None, keys=None, bundles=None, prefix="", **source) -> TestClient:
            registry = load_registry(Source(bundles or {"tiny": TINY}, provider="cpu", threads=1, **source))
            app = App(registry, settings or Settings(), keys)
            client = stack.enter_context(TestClient(app, raise_server_exceptions=True, root_path=prefix))
            client.app = app
            return client

        yield call


@pytest.fixture
def client(open_client):
    """A client of a server of the tiny bundle with the default settings."""
    return open_client()


@pytest.fixture(scope="session")
def classifier():
    """The tiny bundle's edge variant without a server: what every answer is held against."""
    from edgecifar.runtime import Classifier

    return Classifier(TINY, variant="edge", provider="cpu", threads=1)


@pytest.fixture(scope="session")
def png():
    """Encode a picture, uint8 [H, W, 3], as PNG: `png(array)`."""
    from PIL import Image

    def encode(array: np.ndarray) -> bytes:
        file = io.BytesIO()
        Image.fromarray(array).save(file, "PNG")
        return file.getvalue()

    return encode


@pytest.fixture(scope="session")
def ask():
    """Make the JSON of a request: `ask(images, id="1")`; `nested` as lists of lists."""

    def make(images: np.ndarray, nested: bool = False, **more) -> dict:
        data = images.tolist() if nested else images.ravel().tolist()
        tensor = {"name": "images", "shape": list(images.shape), "datatype": "UINT8", "data": data}
        return {"inputs": [tensor], **more}

    return make


@pytest.fixture(scope="session")
def ask_binary():
    """Make the body and the headers of a binary request: `ask_binary(images, parameters={...})`."""

    def make(images: np.ndarray, **more) -> dict:
        tensor = {"name": "images", "shape": list(images.shape), "datatype": "UINT8"}
        tensor["parameters"] = {"binary_data_size": images.size}
        head = json.dumps({"inputs": [tensor], **more}).encode()
        headers = {"Inference-Header-Content-Length": str(len(head)), "Content-Type": "application/octet-stream"}
        return {"content": head + images.tobytes(), "headers": headers}

    return make
