"""A classifier and the process around it: forks, Ctrl-C, and no processor time while nothing is asked."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import ctrl_c
import pytest
from PIL import Image

TINY = Path(__file__).parents[1] / "fixtures" / "tiny_bundle"

FORK = """
import os, sys, time
import numpy as np
from edgecifar.runtime import Classifier, EdgecifarError

bundle, threads, end = sys.argv[1], int(sys.argv[2]), sys.argv[3]
images = np.zeros((64, 32, 32, 3), np.uint8)
classifier = Classifier(bundle, threads=threads, provider="cpu")
expected = classifier.probabilities(images)
time.sleep(0.2)  # until the threads sleep: they are then waited for in vain every time
child = os.fork()
if child == 0:
    if end == "predict":
        try:
            classifier.probabilities(images)
        except EdgecifarError as error:
            print(error, flush=True)
    elif end == "own":
        own = Classifier(bundle, threads=threads, provider="cpu")
        print((own.probabilities(images) == expected).all(), flush=True)
    elif end == "free":
        del classifier
    sys.exit(7)  # frees everything, as any program's end does
_, status = os.waitpid(child, 0)
print(os.waitstatus_to_exitcode(status), (classifier.probabilities(images) == expected).all())
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="there is no fork here")
@pytest.mark.parametrize("threads", [1, 2])
class TestFork:
    """After a load; without care, onnxruntime waits for threads that the child does not have, and never ends."""

    def run(self, threads: int, end: str) -> list[str]:
        command = [sys.executable, "-c", FORK, str(TINY), str(threads), end]
        done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=300)  # a hang is a failure
        return done.stdout.splitlines()

    def test_a_prediction_says_what_to_do(self, threads):
        sentence, parent = self.run(threads, "predict")
        assert sentence == (
            f"{TINY / 'model.onnx'} was loaded before this process was forked, and onnxruntime's threads do not live "
            "on in the child: make a Classifier after the fork, or start the process with 'spawn'."
        )
        assert parent == "7 True"

    def test_a_classifier_of_the_childs_own_works(self, threads):
        assert self.run(threads, "own") == ["True", "7 True"]

    @pytest.mark.parametrize("end", ["free", "exit"])
    def test_the_child_ends(self, threads, end):
        assert self.run(threads, end) == ["7 True"]


@pytest.fixture
def pictures(tmp_path) -> Path:
    """A folder of 5,000 pictures, all of them one file."""
    folder = tmp_path / "pictures"
    folder.mkdir()
    Image.new("RGB", (400, 300), (0, 250, 5)).save(folder / "0.png")
    for index in range(1, 5000):
        (folder / f"{index}.png").hardlink_to(folder / "0.png")
    return folder


def test_ctrl_c_ends_predict(pictures):
    """While thousands of pictures are classified: at once, with exit code 130 and without a traceback."""
    command = [sys.executable, "-m", "edgecifar.cli", "predict", str(pictures), "--bundle", str(TINY), "--csv"]
    process = start(command, subprocess.PIPE)
    first = process.stdout.read(1)
    assert first, process.stderr.read()
    assert interrupt(process) == "Stopped.\n"


def test_ctrl_c_ends_benchmark():
    command = [sys.executable, "-m", "edgecifar.cli", "benchmark", "--bundle", str(TINY), "--seconds", "60"]
    process = start(command, subprocess.DEVNULL)
    line = "-"
    while line and not line.startswith("Measuring each for 60 s"):
        line = process.stderr.readline()
    assert line, "it ended before it measured"
    assert interrupt(process) == "Stopped.\n"


def start(command: list[str], stdout: int) -> subprocess.Popen:
    return subprocess.Popen(command, stdout=stdout, stderr=subprocess.PIPE, text=True, preexec_fn=ctrl_c.heed)


def interrupt(process: subprocess.Popen) -> str:
    """Send the signal of Ctrl-C, see that the process ends by itself, and return what it says."""
    process.send_signal(signal.SIGINT)
    try:
        _, said = process.communicate(timeout=300)  # a hang is a failure
    finally:
        process.kill()
    assert process.returncode == 130, said
    return said


IDLE = """
import sys, time
import numpy as np
from edgecifar.runtime import Classifier

classifier = Classifier(sys.argv[1], threads=2, provider="cpu")
images = np.zeros((64, 32, 32, 3), np.uint8)
spent = 0
for _ in range(30):
    classifier.probabilities(images)
    begin = time.process_time()
    time.sleep(0.03)
    spent += time.process_time() - begin
print(spent)
"""


def test_no_processor_time_between_calls():
    """Threads that wait for the next call sleep: a spinning one would take most of the 0.9 seconds."""
    command = [sys.executable, "-c", IDLE, str(TINY)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert float(done.stdout) < 0.2
