"""64-bit Arm, emulated: what `verify` promises holds on four boards, and the logits are those of this processor.

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
    assert "Raspberry Pi 3" in ran.stdout


@pytest.mark.skipif(not shutil.which("dpkg-deb"), reason="dpkg-deb is not here")
@pytest.mark.skipif(bool(shutil.which("qemu-aarch64-static")), reason="this machine's own qemu is taken")
class TestQemu:
    """How scripts/arm gets qemu, from an apt that serves the packages made here and nothing else."""

    @pytest.fixture
    def arm(self, tmp_path):
        fake = tmp_path / "bin" / "apt-get"
        fake.parent.mkdir()
        # What asks to download a package comes to `download NAME`, in the folder where it is to be.
        fake.write_text(
            '#!/bin/bash\nset -- "${@: -2}"\n[ "${2:-}" = update ] && exit\n'
            f'[ "$1" = download ] && cp {tmp_path}/"$2"_*.deb . && exit\necho "no such package" >&2\nexit 100\n'
        )
        fake.chmod(0o755)

        def call():
            environment = os.environ | {"PATH": f"{fake.parent}:{os.environ['PATH']}", "PYTHON": "true"}  # not used
            command = [SCRIPTS / "arm", tmp_path / "home"]
            return subprocess.run(command, capture_output=True, text=True, check=False, timeout=60, env=environment)

        return call

    @pytest.fixture
    def package(self, tmp_path):
        def make(name: str, files: dict[str, str]) -> None:
            folder = tmp_path / name
            (folder / "DEBIAN").mkdir(parents=True)
            control = f"Package: {name}\nVersion: 1\nArchitecture: all\nMaintainer: a <a@b.c>\nDescription: d\n"
            (folder / "DEBIAN" / "control").write_text(control)
            (folder / "usr" / "bin").mkdir(parents=True)
            for file, text in files.items():
                (folder / "usr" / "bin" / file).write_text(text)
                (folder / "usr" / "bin" / file).chmod(0o755)
            command = ["dpkg-deb", "-Znone", "--root-owner-group", "-b", folder, tmp_path / f"{name}_1_all.deb"]
            subprocess.run(command, capture_output=True, check=True)

        return make

    def test_none(self, arm, tmp_path):
        ran = arm()
        assert ran.returncode == 1
        assert "no such package" in ran.stderr  # what apt said
        assert "install qemu-user-static" in ran.stderr
        assert not (tmp_path / "home" / "qemu").exists()

    @pytest.mark.parametrize("content", ["", "#!/bin/sh\nexit 1\n"], ids=["empty", "does not run"])
    def test_one_that_is_no_good(self, arm, package, tmp_path, content):
        package("qemu-user-static", {"qemu-aarch64-static": content})
        ran = arm()
        assert ran.returncode == 1
        assert "install qemu-user-static" in ran.stderr
        assert not (tmp_path / "home" / "qemu").exists()

    @pytest.mark.parametrize(
        "packages",
        [
            {"qemu-user-static": {"qemu-aarch64-static": "#!/bin/sh\necho qemu-aarch64 version 9\n"}},
            {"qemu-user-static": {}, "qemu-user": {"qemu-aarch64": "#!/bin/sh\necho qemu-aarch64 version 9\n"}},
        ],
        ids=["Debian 12", "Debian 13"],
    )
    def test_found(self, arm, package, tmp_path, packages):
        for name, files in packages.items():
            package(name, files)
        ran = arm()
        assert "version 9" in (tmp_path / "home" / "qemu").read_text()
        assert ran.returncode == 1  # there is no Python for Arm, and it says so
        assert "arm64" in ran.stderr


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

    def test_rounding_is_told_and_passes(self, tmp_path, logits):
        np.savez(tmp_path / "x86.npz", edge=logits)
        logits[2, 3] += np.spacing(logits[2, 3])
        np.savez(tmp_path / "a72.npz", edge=logits)
        ran = self.compare(tmp_path / "x86.npz", tmp_path / "a72.npz")
        assert ran.returncode == 0
        assert "39 of 40" in ran.stdout

    @pytest.mark.parametrize("change", [np.float32(1e-3), np.float32(np.nan)])
    def test_one_other_logit(self, tmp_path, logits, change):
        np.savez(tmp_path / "x86.npz", edge=logits)
        logits[2, 3] += change
        np.savez(tmp_path / "a72.npz", edge=logits)
        ran = self.compare(tmp_path / "x86.npz", tmp_path / "a72.npz")
        assert ran.returncode == 1
        assert "39 of 40" in ran.stdout
