"""An export that is killed, or whose disk fills up or turns read-only, leaves one whole bundle: the old or the new one.

Training on such disks is tried along with it; where both are killed at random is tests/stress/crashes.py.
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[1] / "train" / "kill_and_resume.py"


def crashes(kind: str, folder: Path) -> int:
    """Return how often the small net's training or export crashed without losing anything; see the script."""
    result = subprocess.run([sys.executable, SCRIPT, kind, folder], capture_output=True, text=True, check=False)
    if "only root on Linux can mount" in result.stderr:
        pytest.skip("only root on Linux can mount a small disk")
    assert result.returncode == 0, result.stderr
    return int(result.stdout.removesuffix(" kills\n"))


@pytest.mark.slow
def test_sigkill_at_every_step(tmp_path):
    # at least: a folder made, six files put in their places, the folder put in the old one's place, the old one removed
    assert crashes("exports", tmp_path) >= 10


@pytest.mark.slow
def test_a_disk_that_is_full_and_then_read_only(tmp_path):
    assert crashes("disks", tmp_path) == 6
