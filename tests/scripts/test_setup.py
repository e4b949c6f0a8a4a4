"""`scripts/setup`, `scripts/quickstart` and what calls them, by interpreters that only note what they are asked."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]

pytestmark = pytest.mark.skipif(os.name == "nt", reason="they are scripts for bash")

PYTHON = """#!/bin/sh
echo "{name} $*" >>"$LOG"
case "$*" in
  *"sys.exit(sys.version_info"*) {new} ;;
  *"print(sys.version_info"*) echo {name} ;;
  "-m venv "*) mkdir -p .venv/bin && cp "$0" .venv/bin/python ;;
  *"-m pip "*) exit "$PIP" ;;
esac
"""


@pytest.fixture
def clone(tmp_path):
    """A clone with its scripts, in a path with a space."""
    folder = tmp_path / "a clone"
    shutil.copytree(ROOT / "scripts", folder / "scripts")
    for name, new in {"old": "false", "one": "true", "two": "true"}.items():
        (folder / name).write_text(PYTHON.format(name=name, new=new))
        (folder / name).chmod(0o755)
    return folder


@pytest.fixture
def run(clone, tmp_path):
    """Run a script from elsewhere; returns its exit code and what the interpreters were asked."""

    def call(script, python=None, pip=0):
        log = tmp_path / "log"
        log.write_text("")
        given = {key: value for key, value in os.environ.items() if key != "PYTHON"}
        given |= {"PATH": f"{clone}:{os.environ['PATH']}", "LOG": str(log), "PIP": str(pip)}
        given |= {"PYTHON": python} if python else {}
        ran = subprocess.run([clone / "scripts" / script], cwd=tmp_path, env=given, capture_output=True, text=True)
        return ran, log.read_text()

    return call


@pytest.mark.parametrize("script", ["setup", "quickstart"])
@pytest.mark.parametrize("python", ["old", "missing"])
def test_an_interpreter_that_is_too_old_is_named_before_anything_is_made(run, clone, script, python):
    for name in ("runtime", "serve", "cli", "face"):
        (clone / name).mkdir()
    ran, asked = run(script, python)
    assert ran.returncode == 1
    assert f"{python} is not Python 3.11 or later" in ran.stderr
    assert "-m" not in asked
    assert not list(clone.glob(".venv*"))


def test_another_version_makes_the_environment_anew(run, clone):
    assert "one -m venv --clear .venv" in run("setup", "one")[1]
    assert "-m venv" not in run("setup", "one")[1]
    assert "-m venv" not in run("setup")[1]  # it keeps the one that it has
    ran, asked = run("setup", "two")
    assert ran.returncode == 0
    assert "two -m venv --clear .venv" in asked
    assert "two -m pip install" in asked  # by the environment's own interpreter, which venv alone would have left


def test_an_old_interpreter_in_the_environment_is_replaced(run, clone):
    (clone / ".venv" / "bin").mkdir(parents=True)
    shutil.copy(clone / "old", clone / ".venv" / "bin" / "python")
    assert "one -m venv --clear .venv" in run("setup", "one")[1]


@pytest.mark.parametrize("script", ["test", "web", "check"])
def test_an_installation_that_was_stopped_is_gone_on_with(run, clone, script):
    assert run("setup", "one", pip=1)[0].returncode == 1
    (clone / ".venv" / "bin" / "ruff").symlink_to("/bin/true")
    assert "-m pip install" in run(script)[1]
    assert "-m pip install" not in run(script)[1]
