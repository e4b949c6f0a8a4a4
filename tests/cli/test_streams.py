"""Streams that take nothing: a reader that has left, a full disk, a stream that was closed. Every test is a process."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

TINY = Path(__file__).parents[1] / "fixtures" / "tiny_bundle"

pytestmark = pytest.mark.skipif(not Path("/dev/full").exists(), reason="there is no /dev/full here")


@pytest.fixture(params=["", "1"], ids=["buffered", "unbuffered"])
def shell(request, tmp_path):
    """Run a shell's line with `edgecifar` in it; gives the exit code of its first command, stdout and stderr."""

    def run(line: str) -> tuple[int, str, str]:
        path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
        line = line.replace("edgecifar", f"'{sys.executable}' -m edgecifar.cli", 1)
        ended = subprocess.run(
            ["bash", "-c", f"{line}\nexit ${{PIPESTATUS[0]}}"],
            env={**os.environ, "PATH": path, "PYTHONUNBUFFERED": request.param},
            cwd=tmp_path,
            capture_output=True,
            text=True,
        )
        assert "Traceback" not in ended.stderr
        assert "Exception ignored" not in ended.stderr
        return ended.returncode, ended.stdout, ended.stderr

    return run


@pytest.fixture
def damaged(tiny_bundle):
    (tiny_bundle / "README.md").write_text("changed")
    return tiny_bundle


@pytest.mark.parametrize("end", ["| true", ">/dev/full", ">&-", "2>/dev/full", "2>&-", "2> >(exit)"])
def test_a_damaged_bundle_is_so_whoever_reads_it(shell, damaged, end):
    assert shell(f"edgecifar verify {damaged} {end}")[0] == 1


@pytest.mark.parametrize("end", ["| true", ">&-", "2>/dev/full", "2>&-", "2> >(exit)"])
def test_a_good_bundle_is_so_whoever_reads_it(shell, end):
    assert shell(f"edgecifar verify {TINY} {end}")[0] == 0


@pytest.mark.parametrize("force", ["1", ""])
def test_no_progress_bar_in_a_file(force):
    code = (
        "import time\n"
        "from edgecifar.cli.display import counting\n"
        "with counting('Working', 3, 'things') as done:\n"
        "    for number in range(4): done(number); time.sleep(0.05)\n"
    )
    environment = {**os.environ, "FORCE_COLOR": force}
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment, check=True)
    assert result.stderr == ""


def test_results_that_a_full_disk_loses_are_a_failure(shell):
    code, _, prose = shell(f"edgecifar verify {TINY} >/dev/full")
    assert code == 1
    assert "the output cannot be written, the disk is full" in prose


@pytest.mark.parametrize("end", ["2>/dev/full", "2>&-", "2> >(exit)"])
def test_prose_that_nobody_takes_costs_no_result(shell, pictures, end):
    good = " ".join(map(str, pictures))
    code, rows, _ = shell(f"edgecifar predict none.png {good} --csv --bundle {TINY} {end}")
    assert code == 1
    assert len(rows.splitlines()) == 2 + len(pictures)
    assert rows.splitlines()[1].startswith("none.png,Could not read none.png")


def test_a_bad_picture_counts_though_the_reader_left(shell, pictures):
    assert shell(f"edgecifar predict none.png {pictures[0]} --bundle {TINY} | true")[0] == 1


def test_head_ends_it_without_an_error(shell, pictures):
    code, first, prose = shell(f"edgecifar predict {pictures[0]} {pictures[1]} --bundle {TINY} | head -1")
    assert (code, first) == (0, f"{pictures[0]}\n")
    assert "edgecifar:" not in prose
