"""The load generator sees what a server does: right and wrong answers, refusals, connections that end."""

from __future__ import annotations

import json
import os
import socket
import sys
import threading

import numpy as np
import pytest

from edgecifar.runtime.errors import EdgecifarError

serving, serving_load = pytest.importorskip("serving"), pytest.importorskip("serving_load")

ROW = np.array([0.25, 0.75], np.float32)


def answer(status: int = 200, row=ROW, close: bool = False) -> bytes:
    body = json.dumps({"outputs": [{"name": "probabilities", "data": [float(value) for value in row]}]}).encode()
    end = b"Connection: close\r\n" if close else b""
    return b"HTTP/1.1 %d X\r\nContent-Length: %d\r\n%s\r\n" % (status, len(body), end) + body


@pytest.fixture
def server():
    """Answer the nth request of all connections with what `replies` has for it, the last for ever: its port."""
    listener = socket.create_server(("127.0.0.1", 0))
    replies: list[bytes] = []
    lock, threads = threading.Lock(), []

    def talk(connection: socket.socket) -> None:
        with connection:
            while connection.recv(65536):
                with lock:
                    reply = replies.pop(0) if len(replies) > 1 else replies[0]
                if not reply:
                    return
                connection.sendall(reply)
                if b"close" in reply:
                    return

    def accept() -> None:
        while True:
            try:
                connection, _ = listener.accept()
            except OSError:
                return
            threads.append(threading.Thread(target=talk, args=(connection,)))
            threads[-1].start()

    accepting = threading.Thread(target=accept)
    accepting.start()
    yield listener.getsockname()[1], replies
    listener.shutdown(socket.SHUT_RDWR)
    listener.close()
    for thread in [accepting, *threads]:
        thread.join(10)


def drive(server, *replies: bytes, seconds: float = 0.5, pause: float = 0.0):
    port, given = server
    given += replies
    request = serving_load.Request(serving_load.post("/", b"{}"), ROW)
    return serving_load.drive(port, [request], seconds, 2, pause=pause)


def test_right_answers(server):
    outcome = drive(server, answer())
    assert outcome.figures()["requests"] > 2
    assert (outcome.wrong, outcome.broken, outcome.statuses, outcome.rejections) == (0, 0, {}, [])
    assert outcome.figures()["milliseconds"]["p50"] > 0


def test_wrong_answers_refusals_and_failures(server):
    wrong = [answer(row=[0.75, 0.25]), answer(row=[0.25]), answer(row=[0.25, float("nan")])]
    outcome = drive(server, *wrong, answer(429), answer(503), answer(500), b"", answer(close=True), answer())
    assert outcome.wrong == 3
    assert len(outcome.rejections) == 2
    assert outcome.statuses == {500: 1}
    assert outcome.broken == 1
    assert len(outcome.latencies) > 5


def test_connections_that_end_in_a_pause_are_made_anew(server):
    """Nothing was asked on them, so nothing is lost; it ended the long run with a traceback."""
    outcome = drive(server, answer().replace(b"\r\n\r\n", b"\r\nThen: close\r\n\r\n"), pause=0.3)
    assert len(outcome.latencies) > 2
    assert (outcome.wrong, outcome.broken, outcome.statuses) == (0, 0, {})


def test_a_server_that_is_gone_is_seen_by_the_answer():
    here, there = socket.socketpair()
    there.close()
    connection = object.__new__(serving_load._Connection)
    connection.socket = here
    with here:
        connection.ask(serving_load.Request(b"x", ROW))
        with pytest.raises(ConnectionError):
            connection.answer()


@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="processes are not kept on cores here")
class TestPinned:
    def test_this_process_is_free_again_after_it(self):
        before = os.sched_getaffinity(0)
        core = max(before)
        with serving.pinned(core, core):
            assert os.sched_getaffinity(0) == {core}
        assert os.sched_getaffinity(0) == before

    @pytest.mark.parametrize("absent", [-1, 100_000, 10**20])
    def test_a_core_that_there_is_not(self, absent):
        core = max(os.sched_getaffinity(0))
        for pair in ((absent, core), (core, absent)):
            with pytest.raises(EdgecifarError, match=f"^Core {absent} is none"), serving.pinned(*pair):
                pass

    def test_without_taskset(self, monkeypatch):
        monkeypatch.setenv("PATH", "")
        with pytest.raises(EdgecifarError, match="taskset"), serving.pinned(0, 0):
            pass


def test_binary_answers():
    head = json.dumps({"outputs": [{"shape": [1, 2]}]}).encode()
    headers = b"HTTP/1.1 200 OK\r\nInference-Header-Content-Length: %d" % len(head)
    assert np.array_equal(serving_load.probabilities(headers, head + ROW.tobytes()), ROW)


def test_the_series_of_a_load():
    import serving_limits

    outcome = serving_load.Outcome(seconds=4.0, latencies=[0.001, 0.003, 0.002], ends=[0.5, 0.9, 3.99])
    row = serving_limits.row("x", outcome, [5.0, 7.0, 6.0])
    assert row["series"]["answers_per_second"] == [2.0, 0.0, 0.0, 1.0]
    assert row["series"]["p50"] == pytest.approx([2.0, 0.0, 0.0, 2.0])
    assert row["memory_mb"] == {"first": 5.0, "last": 6.0, "most": 7.0}


class TestTurns:
    def test_each_in_each_round_in_another_order(self):
        called = []
        calls = {name: (lambda name=name: called.append(name) or len(called)) for name in "abcd"}
        found = serving.in_turns(calls, 4)
        rounds = [called[start : start + 4] for start in range(0, 16, 4)]
        assert [sorted(one) for one in rounds] == [["a", "b", "c", "d"]] * 4
        assert len({tuple(one) for one in rounds}) > 1
        assert found["a"] == [1 + at for at, name in enumerate(called) if name == "a"]

    def test_only_what_is_optional_may_fail(self):
        answers = iter([1])

        def fail():
            if one := next(answers, None):
                return one
            raise EdgecifarError("It does not answer.")

        assert serving.in_turns({"ours": lambda: 0, "other": fail}, 3, optional=["other"]) == {"ours": [0, 0, 0]}
        with pytest.raises(EdgecifarError, match="not answer"):
            serving.in_turns({"ours": fail}, 3)

    def test_a_machine_that_slows_down_does_so_for_all_alike(self):
        """Ten times slower in the last of three rounds: the ratio stays 2."""

        def row(name: str, requests: int) -> dict:
            outcomes = [
                serving_load.Outcome(seconds=1.0, latencies=[1 / count] * count)
                for count in (requests, requests, requests // 10)
            ]
            return serving.row_of(name, "JSON", [serving.Load(one, 0.5, 80.0, 1.0) for one in outcomes])

        ours, other = row("ours", 2_000), row("other", 1_000)
        assert ours["requests"] == 4_200
        assert ours["requests_per_second"] == pytest.approx(1_400)
        assert serving.ratio(ours, other, "requests_per_second") == pytest.approx({"median": 2, "low": 2, "high": 2})
        assert serving.ratio(ours, other, "p99")["median"] == pytest.approx(0.5)


def test_the_code_of_the_peers_is_python():
    import serving_peers

    peers = (serving_peers.COMMON, serving_peers.MLSERVER, serving_peers.LITSERVE, serving_peers.BENTOML)
    for code in (*peers, *serving_peers.FLOORS.values(), serving_peers.ANSWERS):
        compile(code, "peer", "exec")


def test_servers_without_a_model_give_each_picture_its_answer(tmp_path):
    pytest.importorskip("uvicorn")
    import serving_peers

    images = np.arange(2 * 12, dtype=np.uint8).reshape(2, 2, 2, 3)
    expected = np.array([[0.25, 0.75], [1.0, 0.0]], np.float32)
    ours = serving_peers.Contender("ours", [], "/v2/models/bench/infer", {}, binary=True)
    made = serving.requests_of(ours, images, expected)
    bodies = [request.data.partition(b"\r\n\r\n")[2] for kind in made.values() for request in kind]
    core = min(os.sched_getaffinity(0))
    names = []
    for floor in serving_peers.floors(tmp_path, ours.path, bodies, expected):
        names.append(floor.name)
        with serving.started(floor, core, tmp_path / "log", made["JSON"][0]) as (port, _, _):
            for requests in made.values():
                outcome = serving_load.drive(port, requests, 0.2, 2)
                assert outcome.latencies
                assert (outcome.wrong, outcome.broken, outcome.statuses) == (0, 0, {})
    assert names == ["uvicorn, no model", "Starlette, no model"]


@pytest.mark.skipif(sys.platform != "linux", reason="needs /proc")
def test_memory_is_counted_in_the_pages_of_the_machine(monkeypatch):  # a Raspberry Pi 5 has larger ones
    once = serving_load.used(os.getpid())[1]
    sysconf = os.sysconf
    monkeypatch.setattr(os, "sysconf", lambda name: sysconf(name) * (4 if name == "SC_PAGESIZE" else 1))
    assert serving_load.used(os.getpid())[1] == pytest.approx(4 * once, rel=0.2)
