"""What the tests of the command line share."""

from __future__ import annotations

import shutil

import pytest


@pytest.fixture
def tmp_path(tmp_path):
    """pytest's own, emptied after each test: a run or a bundle is 83 MB and more."""
    yield tmp_path
    shutil.rmtree(tmp_path, ignore_errors=True)
