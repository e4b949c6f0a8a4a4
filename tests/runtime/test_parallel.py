"""Several processes decode what one does, in order; a picture that kills its process is reported."""

from __future__ import annotations

import io
import itertools
import os
import signal
import subprocess
import sys
import time
from concurrent.futures import ProcessPoolExecutor
from hashlib import sha256
from multiprocessing.process import BaseProcess
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from edgecifar.runtime import parallel
from edgecifar.runtime.contract import CIFAR10, Contract
from edgecifar.runtime.errors import EdgecifarError, PictureError
from edgecifar.runtime.parallel import FEW, decode_many
from edgecifar.runtime.pictures import load_picture


@pytest.fixture(scope="module")
def album(tmp_path_factory) -> list[Path]:
    """150 pictures, no two alike and of several sizes, and among them a text, an empty file and a missing one."""
    folder = tmp_path_factory.mktemp("album")
    paths = [folder / f"{number:03}.png" for number in range(150)]
    for number, path in enumerate(paths):
        Image.new("RGB", (20 + number % 7, 30), (number, 255 - number, number % 16)).save(path)
    paths[5].write_text("a text")
    paths[70].write_bytes(b"")
    paths[140].unlink()
    return paths


def same(one: parallel.Decoded, other: parallel.Decoded) -> bool:
    if one.picture is None or other.picture is None:
        return one.picture is other.picture is None and str(one.error) == str(other.error)
    return np.array_equal(one.picture, other.picture) and one.sha256 == other.sha256


@pytest.mark.parametrize("fit", [None, "pad"])
def test_several_processes_decode_what_one_does(album, fit):
    one = list(decode_many(album, CIFAR10, fit=fit, with_digest=True))
    several = list(decode_many(iter(album), CIFAR10, fit=fit, jobs=2, with_digest=True))
    assert len(one) == len(several) == len(album)
    assert all(map(same, one, several))
    assert [index for index, decoded in enumerate(several) if decoded.error] == [5, 70, 140]
    assert "no such file" in str(several[140].error)
    assert isinstance(several[5].error, PictureError)
    for path, decoded in zip(album, several, strict=True):
        assert decoded.sha256 == (sha256(path.read_bytes()).hexdigest() if path.exists() else "")
        if decoded.error is None:
            assert np.array_equal(decoded.picture, load_picture(path, CIFAR10, fit))


def test_without_digests_there_are_none(album):
    assert {decoded.sha256 for decoded in decode_many(album[:3], CIFAR10)} == {""}


def test_few_pictures_start_no_process(album, monkeypatch):
    monkeypatch.setattr(parallel, "_Pool", None)
    assert len(list(decode_many(album[:FEW], CIFAR10, jobs=8))) == FEW
    assert list(decode_many([], CIFAR10, jobs=8)) == []


def test_one_picture_imports_neither_multiprocessing_nor_futures(album):
    code = (
        "import sys; from edgecifar.runtime.parallel import decode_many\n"
        "from edgecifar.runtime.contract import CIFAR10\n"
        f"assert next(decode_many([{str(album[0])!r}], CIFAR10, jobs=2)).error is None\n"
        "print([name for name in ('multiprocessing', 'concurrent.futures') if name in sys.modules])"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "[]"


def test_paths_are_taken_as_they_are_needed(album):
    taken = itertools.count()
    stream = decode_many((album[next(taken) % 5] for _ in itertools.repeat(0)), CIFAR10, jobs=2)
    for _ in range(100):
        next(stream)
    stream.close()
    # What waits or is decoded, and the chunk that is being taken.
    assert next(taken) <= 100 + parallel.LARGEST_CHUNK * (2 * parallel.CHUNKS_AHEAD + 2)


def test_a_large_input_comes_in_smaller_chunks(album):
    large = Contract(("a", "b"), 1024)
    assert sum(decoded.error is None for decoded in decode_many(album[:40], large, jobs=2)) == 39


def test_standard_input_is_read_by_this_process(album, monkeypatch):
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(album[3].read_bytes())))
    found = list(decode_many([*album[:40], "-", *album[40:80]], CIFAR10, jobs=2))
    assert np.array_equal(found[40].picture, found[3].picture)
    assert len(found) == 81


@pytest.mark.skipif(not hasattr(signal, "SIGKILL"), reason="there is no SIGKILL here")
class TestKilled:
    @pytest.fixture
    def deadly(self, monkeypatch):
        from deadly import Deadly

        monkeypatch.setattr(parallel, "_Decode", Deadly)

    @pytest.mark.usefixtures("deadly")
    def test_a_picture_that_kills_its_process_is_reported_and_the_others_are_decoded(self, album, tmp_path):
        kills = [tmp_path / "kill1.png", tmp_path / "kill2.png", tmp_path / "kill3.png"]
        for path in kills:
            Image.new("RGB", (32, 32), (9, 9, 9)).save(path)
        paths = [*album[:60], kills[0], *album[60:90], kills[2], *album[90:], kills[1]]
        found = list(decode_many(paths, CIFAR10, jobs=2))
        assert len(found) == len(paths)
        bad = {paths[index].name: str(decoded.error) for index, decoded in enumerate(found) if decoded.error}
        assert set(bad) == {"005.png", "070.png", "140.png", "kill1.png", "kill2.png", "kill3.png"}
        assert all("was killed" in bad[path.name] for path in kills)
        for path, decoded in zip(paths, found, strict=True):
            if decoded.error is None:
                assert np.array_equal(decoded.picture, load_picture(path, CIFAR10))

    def test_a_process_that_dies_while_another_is_started_costs_nothing(self, album, monkeypatch):
        submit, calls = ProcessPoolExecutor.submit, []

        def refuse_the_second(self, *arguments):
            calls.append(arguments)
            if len(calls) == 2:
                raise OSError(9, "Bad file descriptor")  # as when the pool closes what the new one would be sent
            return submit(self, *arguments)

        monkeypatch.setattr(ProcessPoolExecutor, "submit", refuse_the_second)
        found = [str(decoded.error) for decoded in decode_many(album, CIFAR10, jobs=2)]
        assert found == [str(decoded.error) for decoded in decode_many(album, CIFAR10)]

    def test_one_that_is_being_started_while_another_dies_ends_too(self, album, monkeypatch):
        """Python 3.11 forgets it, and waited for it at the program's end for ever."""
        start, started = BaseProcess.start, []

        def slowly(process):
            start(process)
            started.append(process)
            if len(started) == 2:
                os.kill(started[0].pid, signal.SIGKILL)
                time.sleep(1)  # until the pool has ended those processes that it knows

        monkeypatch.setattr(BaseProcess, "start", slowly)
        found = list(decode_many(album, CIFAR10, jobs=2))
        assert [place for place, decoded in enumerate(found) if decoded.error] == [5, 70, 140]
        started[1].join(20)
        try:
            assert not started[1].is_alive()
        finally:
            started[1].kill()

    # The thread of Python 3.11's pool trips over a process that is started while it counts them.
    @pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
    def test_processes_that_never_start_are_an_error_and_no_bad_picture(self, album, monkeypatch):
        monkeypatch.setattr(parallel, "_begin", os.abort)
        with pytest.raises(EdgecifarError, match="__main__") as caught:
            list(decode_many(album, CIFAR10, jobs=2))
        assert caught.value.option == "jobs"
        assert not isinstance(caught.value, PictureError)

    def test_processes_end_with_a_killed_parent(self, album, tmp_path):
        script = tmp_path / "script.py"
        script.write_text(
            "import itertools\n"
            "from edgecifar.runtime.contract import CIFAR10\n"
            "from edgecifar.runtime.parallel import decode_many\n"
            "if __name__ == '__main__':\n"
            f"    for decoded in decode_many(itertools.repeat({str(album[0])!r}), CIFAR10, jobs=2):\n"
            "        print('.', flush=True)\n"
        )
        process = subprocess.Popen([sys.executable, script], stdout=subprocess.PIPE, start_new_session=True)
        assert process.stdout is not None
        process.stdout.readline()
        process.kill()
        try:
            process.communicate(timeout=300)  # until nobody has its output any more: whatever it started
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            process.communicate()
            pytest.fail("processes live on after their parent")
