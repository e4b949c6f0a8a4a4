"""What a clone and a wheel hold: the files of the source, byte for byte."""

from __future__ import annotations

import shutil
import subprocess
import sys
import zipfile
from hashlib import sha256
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
GIT = shutil.which("git")

needs_clone = pytest.mark.skipif(GIT is None or not (ROOT / ".git").exists(), reason="this is no clone")


def git(*arguments: str, cwd: Path = ROOT) -> str:
    return subprocess.run(["git", *arguments], cwd=cwd, capture_output=True, text=True, check=True).stdout


@needs_clone
def test_a_clone_with_windows_line_ends_is_the_same(tmp_path):
    git(
        "-c",
        "core.autocrlf=true",
        "-c",
        "core.eol=crlf",
        "clone",
        "-q",
        "--depth",
        "1",
        f"file://{ROOT}",
        "clone",
        cwd=tmp_path,
    )
    clone = tmp_path / "clone"
    for line in (clone / "runtime/default_bundle/SHA256SUMS").read_text().splitlines():
        digest, name = line.split()
        assert sha256((clone / "runtime/default_bundle" / name).read_bytes()).hexdigest() == digest
    for name in git("ls-files", cwd=clone).splitlines():
        if (clone / name).is_symlink():
            continue
        content = (clone / name).read_bytes()
        if b"\0" not in content:
            assert b"\r\n" not in content, name


def test_no_text_of_the_source_has_windows_line_ends():
    for path in [*ROOT.glob("scripts/*"), *ROOT.glob("*/*.py"), *ROOT.glob("*.toml")]:
        assert path.is_dir() or b"\r\n" not in path.read_bytes(), path


@pytest.mark.slow
def test_a_wheel_holds_nothing_that_the_source_lacks(tmp_path):
    pytest.importorskip("setuptools", minversion="77")
    source = tmp_path / "source"
    ignored = shutil.ignore_patterns(
        ".*", "data", "runs", "build", "dist", "tests", "benchmarks", "__pycache__", "*.egg-info"
    )
    shutil.copytree(ROOT, source, ignore=ignored)
    for name in ("runtime/default_bundle/model.old.onnx", "cli/old.py"):
        path = source / "build" / "lib" / "edgecifar" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("left by an earlier version")
    build = "import setuptools.build_meta as b; b.build_wheel('wheels')"
    (source / "wheels").mkdir()
    subprocess.run([sys.executable, "-c", build], cwd=source, check=True, capture_output=True)
    (wheel,) = (source / "wheels").glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        names = [name for name in archive.namelist() if not name.split("/")[0].endswith(".dist-info")]
    assert "edgecifar/cli/main.py" in names
    for name in names:
        inside = name.removeprefix("edgecifar/")
        assert (source / inside).exists() or (source / "face" / inside).exists(), name
