"""The hostile requests find nothing in a short slice."""

from __future__ import annotations

import json
import subprocess
import sys

import hostile_requests
import pytest

pytest.importorskip("starlette", reason="the server's extra is not installed: pip install '.[serve]'")


def test_a_slice():
    command = [sys.executable, hostile_requests.__file__, "--requests", "200", "--seed", "3"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    report = json.loads(done.stdout.splitlines()[-1])
    assert report["problems"] == 0
    assert sum(report["statuses"].values()) == 200
    assert report["statuses"]["400"] > 20
    assert len(report["kinds"]) == 8


def test_a_server_that_does_not_start_is_said():
    """It was waited for without an end."""
    with pytest.raises(SystemExit, match=r"does not start: .*'nothing'"):
        hostile_requests.start("--variant", "nothing")
