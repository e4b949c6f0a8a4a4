"""A short soak; memory that grows and answers that change are seen."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import soak

TINY = Path(__file__).parents[1] / "fixtures" / "tiny_bundle"
ARGUMENTS = ["--bundle", str(TINY), "--calls", "400"]

pytestmark = pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="memory is read from /proc")


@pytest.fixture
def run(capsys):
    def call() -> tuple[int, dict]:
        code = soak.main(ARGUMENTS)
        return code, json.loads(capsys.readouterr().out.splitlines()[-1])

    return call


def test_a_short_one():
    """In a process of its own: this one's memory changes by what earlier tests left."""
    done = subprocess.run([sys.executable, soak.__file__, *ARGUMENTS], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    (row,) = json.loads(done.stdout.splitlines()[-1])["rows"]
    assert (row["calls"], row["samples"], row["pictures_from_disk"]) == (400, 90, 14)
    assert row["wrong_answers"] == row["eight_threads"]["wrong_answers"] == 0
    assert row["eight_threads"]["calls"] == 8 * 32
    assert row["memory_mib"]["least"] > 20


def test_memory_that_grows_is_seen(run, monkeypatch):
    used = iter(range(10**9, 2 * 10**9, 2**20))
    monkeypatch.setattr(soak, "memory", lambda: next(used))
    code, document = run()
    assert code == 1
    assert document["rows"][0]["growth_mib"] == pytest.approx(90, abs=1)


def test_answers_that_change_are_seen(run, monkeypatch):
    real, calls = soak.Classifier.probabilities, []

    def changing(self, images):
        calls.append(0)
        return real(self, images) + np.float32(len(calls) % 50 == 0)

    monkeypatch.setattr(soak.Classifier, "probabilities", changing)
    code, document = run()
    assert code == 1
    assert document["rows"][0]["wrong_answers"] > 0
