"""The fuzz run finds nothing in a short slice, and whatever is planted: crash, hang, traceback, wrong answer."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

STRESS = Path(__file__).parent


def run(script: Path, folder: Path, *arguments: str) -> tuple[int, dict, str]:
    """Run `script`; return its exit code, the line of JSON, and everything that it says on stderr."""
    command = [sys.executable, str(script), "--keep", str(folder / "kept"), "--workers", "1", *arguments]
    environment = {**os.environ, "PYTHONPATH": str(STRESS)}
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=environment, cwd=folder)
    assert done.stdout, done.stderr
    return done.returncode, json.loads(done.stdout.splitlines()[-1]), done.stderr


def test_a_slice(tmp_path):
    code, report, said = run(STRESS / "robustness.py", tmp_path, "--cases", "150", "--seed", "7")
    assert (code, report["failures"]) == (0, 0), said
    kinds = {row["kind"]: row for row in report["rows"]}
    assert sum(row["cases"] for row in kinds.values()) == 150
    for kind in ("picture", "bomb", "unsealed bundle", "manifest", "model", "golden", "array"):
        assert kinds[kind]["refused"] > 0, kind
    assert kinds["picture"]["accepted"] > 0
    assert 2**25 < report["memory"]["peak_bytes"] < report["memory"]["peak_bytes_allowed"]
    assert not (tmp_path / "kept").exists()


PLANTED = """
import ctypes, time
import fuzz_world
import robustness
from edgecifar.runtime import Classifier
from edgecifar.runtime.errors import BundleError

def crash(world):
    ctypes.string_at(0)

def hang(world):
    time.sleep(1000)

def fail(world):
    raise KeyError("planted")

def believe(world):
    raise fuzz_world.WrongAnswer("planted")

def mumble(world):
    raise BundleError("two\\nlines")

def spoil(world):
    world.guard = Classifier(fuzz_world.TINY, "edge", "cpu", 1)

def fine(world):
    pass

DEEDS = [crash, hang, fail, believe, mumble, fine, spoil]  # what spoils the process comes last

def case(seed, index):
    deed = DEEDS[index]
    return "planted", fuzz_world.Case(deed, {"evidence": b"bytes"}, deed.__name__)

robustness.KINDS = {"planted": (1, case)}
robustness.case = case
robustness.SECONDS = 4
if __name__ == "__main__":
    robustness.formatter.main(robustness.main)
"""


@pytest.fixture(scope="module")
def planted(tmp_path_factory):
    folder = tmp_path_factory.mktemp("planted")
    (folder / "planted.py").write_text(PLANTED)
    return (folder / "kept", *run(folder / "planted.py", folder, "--cases", "7"))


def test_what_is_planted_is_counted(planted):
    _, code, report, _ = planted
    assert code == 1
    (row,) = report["rows"]
    assert row == {"kind": "planted", "cases": 7, "crash": 2, "traceback": 1, "wrong": 3, "accepted": 1}
    assert report["failures"] == 6


def test_what_is_planted_is_kept(planted):
    kept, _, _, said = planted
    reasons = {path.name: (path / "case.txt").read_text() for path in kept.iterdir()}
    failed = ("0-crash", "1-crash", "2-traceback", "3-wrong", "4-wrong", "6-wrong")
    assert sorted(reasons) == [f"0-{name}" for name in failed]
    assert "exit code -11" in reasons["0-0-crash"]
    assert "no answer in 4 seconds" in reasons["0-1-crash"]
    assert "KeyError: 'planted'" in reasons["0-2-traceback"]
    assert reasons["0-3-wrong"].startswith("planted: believe")
    assert "not in a sentence" in reasons["0-4-wrong"]
    assert "the intact bundle gives other answers after this" in reasons["0-6-wrong"]
    for place in kept.iterdir():
        assert (place / "evidence").read_bytes() == b"bytes"
        assert place.name.split("-")[1] in said


def test_a_case_is_a_function_of_seed_and_index(tmp_path):
    code = (
        "import robustness, json\n"
        "cases = [robustness.case(seed, index) for seed in (0, 1) for index in (0, 1, 2, 0, 1, 2)]\n"
        "print(json.dumps([[kind, case.note, {n: c.hex() for n, c in case.files.items()}] for kind, case in cases]))"
    )
    environment = {**os.environ, "PYTHONPATH": str(STRESS)}
    answers = [
        json.loads(
            subprocess.run([sys.executable, "-c", code], capture_output=True, check=True, env=environment).stdout
        )
        for _ in range(2)
    ]
    assert answers[0] == answers[1]
    assert answers[0][:3] == answers[0][3:6]
    assert answers[0][:6] != answers[0][6:]
