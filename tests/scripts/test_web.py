"""`scripts/web` on a fresh machine."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


@pytest.mark.skipif(os.name == "nt", reason="it is a script for bash")
def test_the_environment_is_made_where_there_is_none(tmp_path):
    folder = tmp_path / "with a space"
    (folder / "scripts").mkdir(parents=True)
    (folder / "serve" / "web" / "node_modules" / "onnxruntime-web").mkdir(parents=True)
    shutil.copy(ROOT / "scripts" / "web", folder / "scripts")
    setup = folder / "scripts" / "setup"
    setup.write_text("#!/bin/sh\nmkdir -p .venv/bin\nln -s /bin/echo .venv/bin/python\n")  # says what it is asked for
    setup.chmod(0o755)
    ran = subprocess.run([folder / "scripts" / "web", "-x"], capture_output=True, text=True, check=False)
    assert ran.returncode == 0, ran.stderr
    assert ran.stdout.startswith("-m pytest")
    assert ran.stdout.rstrip().endswith("tests/page tests/examples -x")
