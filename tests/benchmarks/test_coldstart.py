"""Pairs change places, ratios are the pairs', phases are in order, and real processes are measured as they are."""

from __future__ import annotations

import json
import sys
import time

import coldstart
import pytest
from coldstart import Launcher, Sample

from edgecifar.runtime.errors import EdgecifarError


def sample(seconds: float, cpu: float = 1.0, mib: float = 1.0, begin: float = 0.0, output: str = "") -> Sample:
    return Sample(begin, begin + seconds, cpu, mib, output)


@pytest.fixture(scope="module")
def launcher(tmp_path_factory):
    made = Launcher(tmp_path_factory.mktemp("bytecode"))
    yield made
    made.close()


class TestInPairs:
    def run(self, pairs: int):
        ran = []

        def run(command):
            ran.append(command[0])
            return sample(len(ran))

        return ran, coldstart.in_pairs(run, ["one"], ["other"], pairs)

    def test_they_change_places(self):
        ran, _ = self.run(3)
        assert ran == ["other", "one", "one", "other", "other", "one", "one", "other"]

    def test_the_first_pair_is_not_counted(self):
        _, (one, other) = self.run(3)
        assert [found.seconds for found in one] == [3, 6, 7]
        assert [found.seconds for found in other] == [4, 5, 8]


class TestRow:
    def test_medians(self):
        found = coldstart.row("x", [sample(3, 0.1, 10), sample(1, 0.3, 30), sample(2, 0.2, 20)])
        assert found["what"] == "x"
        assert found["n"] == 3
        assert found["milliseconds"]["p50"] == 2000
        assert found["cpu_milliseconds"] == pytest.approx(200)
        assert found["peak_mib"] == 20
        assert found["ratios"] == {}

    def test_ratios_are_of_pairs(self):
        """Where the machine was slow for one pair, the ratio of the medians would be 3."""
        ours = [sample(2, 6, 3), sample(30, 6, 3), sample(6, 6, 3)]
        base = [sample(1, 2, 2), sample(10, 2, 2), sample(2, 2, 2)]
        found = coldstart.row("x", ours, base)["ratios"]
        assert found["time"] == {"median": 3.0, "low": 2.5, "high": 3.0}
        assert found["cpu"]["median"] == 3
        assert found["memory"] == {"median": 1.5, "low": 1.5, "high": 1.5}


def test_phases_in_their_order():
    """From the start of the process to its end, nothing between them lost."""
    first = sample(7, output=json.dumps([0.0, [["interpreter", 1.0], ["work", 4.0]]]))
    second = sample(9, begin=10, output="words\n" + json.dumps([10.0, [["interpreter", 13.0], ["work", 14.0]]]))
    found = coldstart.phases([first, second])
    assert [(part["what"], part["n"], part["milliseconds"]["p50"]) for part in found] == [
        ("interpreter", 2, 2000),
        ("work", 2, 2000),
        ("exit", 2, 4000),
    ]


def test_different_answers_are_not_compared():
    coldstart.same_answer("cat.png\n  cat   98.3 %  ███\n  dog 0.1 %\n", "cat 98.1 %\nfrog 1.0 %\n")
    coldstart.same_answer("cat.png\n  [cat]   98.3 %  unlike the training pictures\n", "cat 98.1 %\nfrog 1.0 %\n")
    with pytest.raises(EdgecifarError, match=r"dog.*cat"):
        coldstart.same_answer("cat.png\n  dog   98.3 %\n", "cat 98.1 %\n")


class TestLauncher:
    def test_time_and_words(self, launcher):
        before = time.perf_counter()
        found = launcher([sys.executable, "-S", "-c", "import time; time.sleep(0.05); print('said')"])
        assert before < found.begin < found.begin + 0.05 <= found.end < time.perf_counter()
        assert found.output == "said\n"

    def test_the_start_is_handed_on(self, launcher):
        found = launcher([sys.executable, "-S", "-c", "import sys; print(sys.argv[1])", "{begin}"])
        assert float(found.output) == found.begin

    def test_memory_is_the_childs_own(self, launcher):
        """Not of whoever starts it, and this process is large."""
        held = bytearray(b"x") * (150 << 20)
        small = launcher([sys.executable, "-S", "-c", "pass"])
        large = launcher([sys.executable, "-S", "-c", "held = bytearray(b'x') * (60 << 20)"])
        assert small.mib < 40
        assert 50 < large.mib - small.mib < 70
        del held

    def test_bytecode_is_kept(self, launcher, monkeypatch, tmp_path):
        monkeypatch.setenv("PYTHONDONTWRITEBYTECODE", "1")
        own = Launcher(tmp_path)
        own([sys.executable, "-c", "import colorsys"])
        own.close()
        assert list(tmp_path.rglob("colorsys*.pyc"))

    def test_a_failure_is_said(self, launcher):
        with pytest.raises(EdgecifarError, match=r"ends with the exit code 1 \(no\): run it by hand\.$"):
            launcher([sys.executable, "-S", "-c", "import sys; sys.exit('no')"])


def test_the_shortest_script_is_of_the_contract(contract):
    script = coldstart.shortest_script(contract)
    compile(script, "shortest.py", "exec")
    assert "('red', 'grün', 'blue')" in script
    assert "resize((12, 12))" in script


def test_it_runs(tiny, pictures, check_document, monkeypatch, capsys):
    """Two pairs; `edgecifar` and the shortest script give the same class."""
    options = ["--bundle", str(tiny), "--variant", "fp32", "--pairs", "2"]
    monkeypatch.setattr(sys, "argv", ["coldstart.py", str(pictures[0]), *options])
    coldstart.main()
    *lines, last = capsys.readouterr().out.splitlines()
    document = check_document(last, entries=False)
    names = [found["what"] for found in document["rows"]]
    assert names == ["edgecifar predict", "shortest script", "edgecifar --help", "import typer"]
    for found in document["rows"]:
        assert found["n"] == 2
        assert found["milliseconds"]["p50"] > 0
        assert 1 < found["peak_mib"] < 4000
    assert [sorted(found["ratios"]) for found in document["rows"]] == [["cpu", "memory", "time"], []] * 2
    assert [part["what"] for part in document["phases"]][-3:] == ["first inference", "second inference", "exit"]
    assert document["settings"]["variant"] == "fp32"
    assert "typer" in document["machine"]["versions"]
    for name in names:
        assert any(line.startswith(name) for line in lines)
