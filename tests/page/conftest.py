"""What the page's tests share: the tools, where they are there."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

MODULES = Path(__file__).parents[2] / "serve" / "web" / "node_modules"


@pytest.fixture(scope="session")
def node() -> str:
    """Node's path, of a version that has DecompressionStream."""
    found = shutil.which("node")
    if not found:
        pytest.skip("needs Node")
    return found


@pytest.fixture(scope="session")
def modules() -> Path:
    """The npm packages that serve/web/package.json names."""
    if not (MODULES / "onnxruntime-web").is_dir():
        pytest.skip("needs npm packages: run scripts/web")
    return MODULES


@pytest.fixture(scope="session")
def chromium() -> str:
    """Chromium's path."""
    found = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    if not found:
        pytest.skip("needs Chromium")
    return found
