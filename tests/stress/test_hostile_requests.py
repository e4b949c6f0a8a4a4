"""The hostile requests find nothing in a short slice."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("starlette", reason="the server's extra is not installed: pip install '.[serve]'")

SCRIPT = Path(__file__).with_name("hostile_requests.py")


def test_a_slice():
    command = [sys.executable, str(SCRIPT), "--requests", "200", "--seed", "3"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    report = json.loads(done.stdout.splitlines()[-1])
    assert report["problems"] == 0
    assert sum(report["statuses"].values()) == 200
    assert report["statuses"]["400"] > 20
    assert len(report["kinds"]) == 8
