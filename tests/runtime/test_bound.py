"""CUDA's calls by bound buffers: on the CPU's provider, whose answers are known and which knows no graphs."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable

import numpy as np
import pytest

from edgecifar.runtime import bound as bounds
from edgecifar.runtime.bound import CALLS_BEFORE, GRAPH_ID, MAX_GRAPHS, NO_GRAPH, Bound, Graphs, gpu_lock
from edgecifar.runtime.errors import ModelError
from edgecifar.runtime.session import Session, import_onnxruntime

CPU, CUDA = "CPUExecutionProvider", "CUDAExecutionProvider"


def in_threads(count: int, work: Callable[[], None]) -> None:
    """Call `work` in so many threads at once, and wait for them."""
    threads = [threading.Thread(target=work) for _ in range(count)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()


@pytest.fixture
def session(tiny) -> Session:
    return Session((tiny / "model.onnx").read_bytes(), provider="cpu", threads=1)


@pytest.fixture
def graphs(session) -> Graphs:
    return Graphs(session.inference_session, session.contract, "model.onnx", "cpu")


@pytest.fixture
def recorded(monkeypatch) -> list[tuple[int, int]]:
    """The batch size and the graph of each binding that is made."""
    found, init = [], Bound.__init__

    def count(self, session, contract, batch, device="cuda", graph=NO_GRAPH):
        found.append((batch, graph))
        init(self, session, contract, batch, device, graph)

    monkeypatch.setattr(Bound, "__init__", count)
    return found


class TestBound:
    def test_every_output(self, session, images):
        made = Bound(session.inference_session, session.contract, len(images), "cpu")
        names = session.contract.output_names
        for given in (images, 255 - images, images[::-1], np.asfortranarray(images)):
            found, wanted = made.outputs(given, names), session.outputs(given)
            assert [array.tolist() for array in found] == [array.tolist() for array in wanted]

    def test_answers_are_the_callers(self, session, images):
        made = Bound(session.inference_session, session.contract, len(images), "cpu")
        (first,) = made.outputs(images, ["probabilities"])
        kept = first.copy()
        made.outputs(255 - images, ["probabilities"])
        made.resident()
        assert first.tolist() == kept.tolist()
        first[:] = 0  # may be written to

    def test_a_familiarity_score(self, three_classes, three_colours):
        session = Session((three_classes / "model.onnx").read_bytes(), provider="cpu")
        names, size = session.contract.output_names, session.contract.size
        given = np.array(list(three_colours.values()), np.uint8)[:, None, None].repeat(size, 1).repeat(size, 2)
        made = Bound(session.inference_session, session.contract, len(given), "cpu")
        assert [a.tolist() for a in made.outputs(given, names)] == [a.tolist() for a in session.outputs(given)]


class TestGraphs:
    def test_a_size_that_is_called_often_has_one(self, session, graphs, recorded, images):
        for _ in range(CALLS_BEFORE + 3):
            for size in (1, 4):
                (found,) = graphs.run(images[:size], ["logits"])
                assert found.tolist() == session.logits(images[:size]).tolist()
        graphs.run(images[:7], ["logits"])
        assert recorded == [(1, 1), (4, 4)]

    def test_no_more_than_so_many(self, graphs, recorded, images):
        for size in range(1, MAX_GRAPHS + 2):
            for _ in range(CALLS_BEFORE + 1):
                graphs.run(np.zeros((size, *images.shape[1:]), np.uint8), ["logits"])
        assert len(recorded) == MAX_GRAPHS

    def test_each_thread_has_its_own(self, session, graphs, recorded, images):
        wanted = {size: session.logits(images[:size]).tolist() for size in (2, 3)}
        wrong = []

        def work() -> None:
            for turn in range(40):
                size = 2 + turn % 2
                if graphs.run(images[:size], ["logits"])[0].tolist() != wanted[size]:
                    wrong.append(size)

        in_threads(4, work)
        assert not wrong
        assert sorted(recorded) == 4 * [(2, 2)] + 4 * [(3, 3)]

    def test_one_thing_at_a_time(self, graphs, images):
        """What another session does on the GPU meanwhile would disturb a recording."""
        done = threading.Event()

        def work() -> None:
            graphs.run(images, ["logits"])
            done.set()

        with gpu_lock:
            thread = threading.Thread(target=work)
            thread.start()
            assert not done.wait(0.05)
        thread.join()
        assert done.is_set()

    def test_where_recording_fails_it_goes_on_without(self, session, graphs, monkeypatch, images, caplog):
        def fail(*_):
            raise RuntimeError("[ONNXRuntimeError] : 1 : FAIL : CUDA failure 900: operation not permitted\nmore")

        monkeypatch.setattr(bounds.Bound, "outputs", fail)
        with caplog.at_level(logging.WARNING):
            for _ in range(CALLS_BEFORE + 3):
                assert graphs.run(images, ["logits"])[0].tolist() == session.logits(images).tolist()
        (line,) = caplog.messages
        assert "without graphs" in line
        assert "(CUDA failure 900: operation not permitted)" in line


class TestSession:
    def test_cuda_has_graphs_and_says_which(self, fake, images):
        ort = fake([CUDA, CPU])
        session = Session(b"", provider="cuda")
        assert session.probabilities(images).shape == (10, 10)
        assert ort.runs == [{GRAPH_ID: str(NO_GRAPH)}]  # the first calls record none

    @pytest.mark.parametrize(
        ("provider", "settings"), [("cpu", None), ("cuda", {"enable_cuda_graph": "0"}), ("tensorrt", None)]
    )
    def test_the_others_have_none(self, fake, images, provider, settings):
        ort = fake([CUDA, CPU, "TensorrtExecutionProvider"])
        Session(b"", provider=provider, settings=settings).logits(images)
        assert ort.runs == [None]

    def test_what_fails_is_one_sentence(self, fake, images, monkeypatch):
        ort = fake([CUDA, CPU])
        session = Session(b"", provider="cuda")

        def fail(*_):
            raise RuntimeError("CUDA failure 2: out of memory")

        monkeypatch.setattr(ort.InferenceSession, "run", fail)
        with pytest.raises(ModelError, match="out of memory"):
            session.probabilities(images)


@pytest.mark.gpu
@pytest.mark.skipif(CUDA not in import_onnxruntime().get_available_providers(), reason="needs onnxruntime-gpu")
def test_on_a_gpu(session, tiny, images, recorded, caplog):
    """In every call, recorded or not, by two threads: what the CPU says, but for TF32."""
    cuda = Session((tiny / "model.onnx").read_bytes(), provider="cuda")
    names, wrong = session.contract.output_names, []

    def work() -> None:
        for turn in range(4 * (CALLS_BEFORE + 3)):
            given = np.roll(images[: 2 + turn % 3], turn, axis=0)
            found, wanted = cuda.outputs(given), session.outputs(given)
            wrong.extend(n for n, a, b in zip(names, found, wanted, strict=True) if not np.allclose(a, b, atol=0.05))

    in_threads(2, work)
    assert not wrong
    assert sorted(recorded) == 2 * [(2, 2)] + 2 * [(3, 3)] + 2 * [(4, 4)]
    assert "without graphs" not in caplog.text
