"""`scripts/upgrade_bundle.py`: a bundle of schema 1 becomes one of schema 2 around the same models."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from edgecifar.runtime import Bundle

ROOT = Path(__file__).parents[2]
FIRST = ROOT / "tests" / "fixtures" / "schema_1_bundle"


def upgrade(*arguments: object) -> subprocess.CompletedProcess:
    command = [sys.executable, ROOT / "scripts" / "upgrade_bundle.py", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, check=False)


def models(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.glob("*.onnx")}


@pytest.fixture
def old(tmp_path) -> Path:
    return Path(shutil.copytree(FIRST, tmp_path / "old"))


@pytest.mark.parametrize("elsewhere", [True, False])
def test_an_old_bundle(old, tmp_path, elsewhere):
    (old / "model.sig").write_text("signed")
    out = tmp_path / "new" if elsewhere else old
    done = upgrade(old, *(["--out", out] if elsewhere else []))
    assert done.returncode == 0, done.stderr
    bundle = Bundle.open(out)
    assert bundle.manifest.schema == 2
    assert bundle.contract == Bundle.open(FIRST).contract
    checks = bundle.verify()
    assert [check for check in checks if not check.passed] == []
    assert "preprocessing of golden.large.png" in {check.name for check in checks}
    assert models(out) == models(FIRST)
    assert not (out / "model.sig").exists()


def test_one_with_a_familiarity_keeps_its_golden_values(tmp_path):
    shipped = ROOT / "runtime" / "default_bundle"
    assert upgrade(shipped, "--out", tmp_path / "new").returncode == 0
    before, after = (json.loads((folder / "golden.json").read_text()) for folder in (shipped, tmp_path / "new"))
    assert after == before
    assert "familiarity" in json.dumps(after)


def test_a_damaged_one_is_left_alone(old):
    (old / "README.md").write_text("changed")
    done = upgrade(old)
    assert done.returncode == 1
    assert "README.md" in done.stderr
    assert Bundle.open(old).manifest.schema == 1


def test_another_folder_is_not_replaced(old, tmp_path):
    (tmp_path / "mine").mkdir()
    done = upgrade(old, "--out", tmp_path / "mine")
    assert done.returncode == 1
    assert list((tmp_path / "mine").iterdir()) == []
