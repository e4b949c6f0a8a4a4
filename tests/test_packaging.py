"""What a clone and a wheel hold: the files of the source, byte for byte."""

from __future__ import annotations

import shutil
import subprocess
import sys
import zipfile
from hashlib import sha256
from pathlib import Path

import pytest
from PIL import Image

from edgecifar.runtime.contract import Contract

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


@pytest.fixture(scope="module")
def wheel(tmp_path_factory) -> tuple[Path, Path]:
    """The source that a wheel was built from, and the wheel."""
    pytest.importorskip("setuptools", minversion="77")
    source = tmp_path_factory.mktemp("built") / "source"
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
    (built,) = (source / "wheels").glob("*.whl")
    return source, built


@pytest.mark.slow
def test_a_wheel_holds_nothing_that_the_source_lacks(wheel):
    source, built = wheel
    with zipfile.ZipFile(built) as archive:
        names = [name for name in archive.namelist() if not name.split("/")[0].endswith(".dist-info")]
    assert "edgecifar/cli/main.py" in names
    for name in names:
        inside = name.removeprefix("edgecifar/")
        assert (source / inside).exists() or (source / "face" / inside).exists(), name


@pytest.mark.slow
def test_a_wheel_predicts_with_an_own_bundle_where_there_is_no_torch(wheel, tmp_path):
    """Unpacked beside what a device has: numpy, Pillow, typer and onnxruntime."""
    with zipfile.ZipFile(wheel[1]) as archive:
        archive.extractall(tmp_path / "installed")
    sys.path.append(str(ROOT / "tests" / "fixtures"))
    try:
        from make_tiny_bundle import make  # pyright: ignore[reportMissingImports]
    finally:
        sys.path.remove(str(ROOT / "tests" / "fixtures"))
    colours = {"Fliegenpilz": (255, 0, 0), "Моховик": (0, 255, 0)}
    make(tmp_path / "bundle", Contract(tuple(colours), 32), colours, "mushrooms")
    Image.new("RGB", (50, 40), (250, 10, 0)).save(tmp_path / "red.png")
    absent = ("torch", "torchvision", "matplotlib", "onnx", "onnxscript", "scipy")
    code = (
        f"import sys; sys.modules.update(dict.fromkeys({absent}))\n"
        f"sys.path.insert(0, {str(tmp_path / 'installed')!r})\n"
        "from edgecifar.cli import main\n"
        f"assert main.__file__.startswith({str(tmp_path)!r}), main.__file__\n"
        "main.main()"
    )
    for command in (("verify", "bundle"), ("predict", "red.png", "--bundle", "bundle")):
        done = subprocess.run([sys.executable, "-c", code, *command], cwd=tmp_path, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[1].startswith("  Fliegenpilz")
