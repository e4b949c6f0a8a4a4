"""The page's benchmark visits a page that verifies itself, and its rows are of what was measured."""

from __future__ import annotations

import json
import shutil
import types

import page
import pytest

from edgecifar.runtime.errors import EdgecifarError


def test_rows_have_the_quartiles():
    row = page.row("what", [1.0, 2.0, 3.0, 4.0, 5.0])
    assert (row["n"], row["low"], row["median"], row["high"], row["longest"]) == (5, 1.5, 3, 4.5, 5)


def test_a_single_visit_is_its_own_median():
    row = page.row("what", [3.0])
    assert (row["n"], row["low"], row["median"], row["high"]) == (1, 3, 3, 3)


def test_without_the_npm_packages_it_says_so(monkeypatch, tmp_path):
    monkeypatch.setattr(page, "MODULES", tmp_path)
    with pytest.raises(EdgecifarError, match="scripts/web"):
        page.main([])


def test_a_server_that_starts_slowly_is_waited_for(monkeypatch, tmp_path):
    """After ten seconds the browser was sent to it all the same."""
    tried = []

    def connect(*_, **__):
        tried.append(0)
        if len(tried) < 500:
            raise ConnectionRefusedError
        return types.SimpleNamespace(close=lambda: None)

    monkeypatch.setattr(page.socket, "create_connection", connect)
    monkeypatch.setattr(page.time, "sleep", lambda _: None)
    with page.served(tmp_path):
        assert len(tried) == 500


@pytest.mark.browser
@pytest.mark.slow
def test_a_real_visit(tmp_path, capsys):
    if not (page.MODULES / "onnxruntime-web").is_dir() or not any(map(shutil.which, page.CHROMIUM)):
        pytest.skip("needs Chromium and npm packages: run scripts/web")
    page.main(["--visits", "2", "--images", "20", "--save", str(tmp_path / "page.json")])
    found = json.loads((tmp_path / "page.json").read_text())
    verified, answered, picture = found["rows"]
    assert (verified["n"], answered["n"], picture["n"]) == (2, 2, 20)
    assert 0 < picture["median"] < verified["median"] <= answered["median"]
