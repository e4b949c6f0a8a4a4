"""64-bit Arm, emulated: what `verify` promises holds on four boards, and every logit is the one of this processor.

EDGECIFAR_ARM names the folder that scripts/arm keeps its things in, which it makes if need be. Without it the test is
skipped: it takes minutes and the network.
"""

from __future__ import annotations

import os
import platform
import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

SCRIPTS = Path(__file__).parents[1] / "scripts"
BOARDS = ("a53", "a72", "a76", "sve")


@pytest.mark.arm
@pytest.mark.slow
def test_four_boards():
    folder = os.environ.get("EDGECIFAR_ARM")
    if not folder:
        pytest.skip("EDGECIFAR_ARM names no folder for scripts/arm")
    if platform.machine() != "x86_64" or not shutil.which("apt-get"):
        pytest.skip("scripts/arm needs an x86-64 Debian")
    ran = subprocess.run([SCRIPTS / "arm", folder], capture_output=True, text=True, check=False, timeout=1200)
    assert ran.returncode == 0, ran.stdout + ran.stderr
    verdicts = re.findall(r"^(\w+), (\w+): ([\d,]+) of ([\d,]+) logits bit for bit", ran.stdout, re.MULTILINE)
    assert {board for board, *_ in verdicts} == set(BOARDS)
    assert all(same == of for _, _, same, of in verdicts)
    assert "Raspberry Pi 3" in ran.stdout


class TestCompare:
    """The judge itself, without Arm."""

    def compare(self, *paths):
        command = [sys.executable, SCRIPTS / "arm_logits.py", "compare", *paths]
        return subprocess.run(command, capture_output=True, text=True, check=False)

    @pytest.fixture
    def logits(self):
        return np.linspace(-3, 3, 40, dtype=np.float32).reshape(4, 10)

    def test_the_same_bits(self, tmp_path, logits):
        for name in ("x86.npz", "a72.npz"):
            np.savez(tmp_path / name, edge=logits)
        ran = self.compare(tmp_path / "x86.npz", tmp_path / "a72.npz")
        assert ran.returncode == 0
        assert "40 of 40" in ran.stdout

    @pytest.mark.parametrize("change", [np.spacing(np.float32(3)), np.float32(np.nan)])
    def test_one_other_logit(self, tmp_path, logits, change):
        np.savez(tmp_path / "x86.npz", edge=logits)
        logits[2, 3] += change
        np.savez(tmp_path / "a72.npz", edge=logits)
        ran = self.compare(tmp_path / "x86.npz", tmp_path / "a72.npz")
        assert ran.returncode == 1
        assert "39 of 40" in ran.stdout
