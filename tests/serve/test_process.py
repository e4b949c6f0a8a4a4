"""The command as an operator runs it: ready, SIGHUP, SIGTERM, refusals; and clients that are not ours."""

from __future__ import annotations

import contextlib
import http.client
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pytest

from edgecifar.serve.server import _refuse_new

pytestmark = pytest.mark.skipif(os.name == "nt", reason="Windows has neither SIGHUP nor SIGTERM")


class Process:
    """`edgecifar serve` with a log that is read; `events` are its lines."""

    def __init__(self, *arguments: object) -> None:
        command = [sys.executable, "-m", "edgecifar.cli", "serve", "--port", "0", "--log-format", "json"]
        command += ["--provider", "cpu", "--threads", "1", *map(str, arguments)]
        self.process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
        assert self.process.stderr
        self._log = self.process.stderr
        self.events: list[dict] = []
        self._changed = threading.Condition()
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()
        self.port = self.wait_for("ready")["port"]

    def _read(self) -> None:
        for line in self._log:
            with self._changed:
                self.events.append(json.loads(line))
                self._changed.notify_all()

    def wait_for(self, event: str, count: int = 1) -> dict:
        """Return the line of the log that is the `count`th of its kind."""

        def found() -> list[dict]:
            return [line for line in self.events if line.get("event") == event][count - 1 :]

        with self._changed:
            assert self._changed.wait_for(found, 60), self.events
            return found()[0]

    def ask(self, connection: http.client.HTTPConnection, images: np.ndarray) -> dict:
        tensor = {"name": "images", "shape": list(images.shape), "datatype": "UINT8", "data": images.ravel().tolist()}
        connection.request("POST", "/v2/models/tiny-edge/infer", json.dumps({"inputs": [tensor]}))
        response = connection.getresponse()
        assert response.status == 200
        return json.loads(response.read())

    def connect(self) -> http.client.HTTPConnection:
        return http.client.HTTPConnection("127.0.0.1", self.port, timeout=30)

    def end(self, name: str = "SIGTERM") -> int:
        self.process.send_signal(getattr(signal, name))
        return self.process.wait(60)

    def close(self) -> None:
        if self.process.poll() is None:
            self.process.kill()
        self.process.wait(30)
        self._reader.join(30)
        self._log.close()


@pytest.fixture
def serve():
    """Start the command: `serve("--bundle", ...)`; it is killed after the test."""
    started = []

    def start(*arguments: object) -> Process:
        started.append(Process(*arguments))
        return started[-1]

    yield start
    for process in started:
        process.close()


@pytest.fixture(scope="module")
def running():
    """One server of the tiny bundle, for tests that leave it as it is."""
    process = Process("--bundle", f"tiny={Path(__file__).parents[1] / 'fixtures' / 'tiny_bundle'}")
    yield process
    assert process.end() == 0
    process.close()


def another_version(folder: Path, note: str) -> None:
    """Put another bundle in the place of `folder`, in one step."""
    from edgecifar.runtime.files import new_folder, sha256

    with new_folder(folder, replace=True) as staged:
        for path in folder.iterdir():
            shutil.copy(path, staged)
        values = json.loads((staged / "manifest.json").read_text())
        values["provenance"]["note"] = note
        (staged / "manifest.json").write_text(json.dumps(values))
        files = sorted(path for path in staged.iterdir() if path.name != "SHA256SUMS")
        (staged / "SHA256SUMS").write_bytes("".join(f"{sha256(path)}  {path.name}\n" for path in files).encode())


class Load:
    """Threads that ask in turns, each request with a picture of its own, until told to stop."""

    def __init__(self, server: Process, classifier, threads: int = 4) -> None:
        self.answers, self.wrong, self.lost, self.versions = 0, 0, [], set()
        self._server, self._classifier, self._stop = server, classifier, threading.Event()
        self._threads = [threading.Thread(target=self._ask, args=(seed,)) for seed in range(threads)]
        for thread in self._threads:
            thread.start()

    def _ask(self, seed: int) -> None:
        rng = np.random.default_rng(seed)
        with contextlib.closing(self._server.connect()) as connection:
            self._ask_on(connection, rng)

    def _ask_on(self, connection: http.client.HTTPConnection, rng: np.random.Generator) -> None:
        while not self._stop.is_set():
            images = np.broadcast_to(rng.integers(0, 256, (1, 1, 1, 3), np.uint8), (1, 32, 32, 3)).copy()
            try:
                answer = self._server.ask(connection, images)
            except ConnectionRefusedError:
                return  # the server is gone, and has taken nothing
            except (OSError, http.client.HTTPException) as error:
                self.lost.append(repr(error))
                return
            rows = np.array(answer["outputs"][0]["data"], np.float32)
            self.wrong += not np.allclose(rows, self._classifier.probabilities(images)[0], atol=1e-5)
            self.versions.add(answer["model_version"])
            self.answers += 1

    def stop(self) -> None:
        self._stop.set()
        for thread in self._threads:
            thread.join(30)


def test_a_new_bundle_is_taken_up_under_load_and_a_bad_one_is_not(serve, own_tiny, classifier):
    server = serve("--bundle", f"tiny={own_tiny}")
    load = Load(server, classifier)
    for count in (1, 2, 3):
        another_version(own_tiny, f"version {count}")
        server.process.send_signal(signal.SIGHUP)
        server.wait_for("updated", count)
    (own_tiny / "model.edge.onnx").write_bytes(b"damaged")
    server.process.send_signal(signal.SIGHUP)
    failed = server.wait_for("update_failed")
    assert "model.edge.onnx" in failed["message"]
    time.sleep(0.3)
    load.stop()
    assert load.answers > 20
    assert (load.wrong, load.lost) == (0, [])
    assert len(load.versions) > 1
    connection = server.connect()
    connection.request("GET", "/metrics")
    text = connection.getresponse().read().decode()
    connection.close()
    assert 'edgecifar_bundle_updates_total{result="done"} 3.0' in text
    assert 'edgecifar_bundle_updates_total{result="failed"} 1.0' in text
    assert server.end() == 0


def test_sigterm_under_load_loses_nothing(serve, tiny, classifier):
    server = serve("--bundle", f"tiny={tiny}", "--drain", "2")
    load = Load(server, classifier)
    time.sleep(0.5)
    server.process.send_signal(signal.SIGTERM)
    server.wait_for("ending")
    connection = server.connect()
    connection.request("GET", "/v2/health/ready")
    assert connection.getresponse().status == 503
    connection.close()
    assert server.process.wait(30) == 0
    load.stop()
    assert load.answers > 10
    assert (load.wrong, load.lost) == (0, [])
    assert server.wait_for("stopped") is server.events[-1]


def test_systemd_is_told_others_are_warned_of_and_ctrl_c_ends_it(tiny, monkeypatch, serve, tmp_path):
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
        manager.bind(str(tmp_path / "notify"))
        manager.settimeout(30)
        monkeypatch.setenv("NOTIFY_SOCKET", str(tmp_path / "notify"))
        server = serve("--bundle", f"tiny={tiny}", "--host", "0.0.0.0")  # noqa: S104
        assert manager.recv(100) == b"READY=1"
        assert "--api-key-file" in server.wait_for("no_key")["message"]
        assert server.end("SIGINT") == 0
        assert manager.recv(100) == b"STOPPING=1"


def test_a_second_ctrl_c_ends_it_at_once(serve, tiny):
    server = serve("--bundle", f"tiny={tiny}")
    with socket.create_connection(("127.0.0.1", server.port), timeout=30) as slow:
        slow.sendall(b"POST /classify HTTP/1.1\r\nHost: a\r\nContent-Length: 10\r\n\r\n")
        server.process.send_signal(signal.SIGINT)
        server.wait_for("ending")
        assert server.end("SIGINT") == 1
    server.wait_for("forced")
    assert not any(line.get("event") == "stopped" or "traceback" in line for line in server.events)


@pytest.mark.parametrize(
    ("early", "loads", "said"), [("SIGTERM", 1, "before the bundles"), ("SIGHUP", 2, "New bundles")]
)
def test_signals_while_bundles_load(tiny, early, loads, said):
    code = (
        "import os, signal, sys\nfrom edgecifar.cli.app import app\nimport edgecifar.cli.main\n"
        "from edgecifar.serve import server\nload, count = server.load_registry, 0\n"
        "def loading(source):\n"
        "    global count\n"
        "    count += 1\n"
        "    print(count, flush=True)\n"
        "    found = load(source)\n"
        "    os.kill(os.getpid(), getattr(signal, sys.argv[1] if count == 1 else 'SIGTERM'))\n"
        "    return found\n"
        "server.load_registry = loading\n"
        "app(['serve', '--port', '0', '--provider', 'cpu', '--bundle', sys.argv[2], '--drain', '5'])"
    )
    command = [sys.executable, "-c", code, early, str(tiny)]
    ran = subprocess.run(command, capture_output=True, text=True, check=False, timeout=300)
    assert ran.returncode == 0, ran.stderr
    assert ran.stdout.split() == [*map(str, range(1, loads + 1))]
    assert said in ran.stderr
    assert "Traceback" not in ran.stderr


@pytest.mark.parametrize(
    ("arguments", "word"),
    [
        (["--bundle", "missing"], "not a bundle"),
        (["--bundle", "tiny={tiny}", "--variant", "nano"], "variant"),
        (["--bundle", "tiny={tiny}", "--api-key-file", "missing"], "API key file"),
        (["--bundle", "tiny={tiny}", "--host", "192.0.2.1"], "listen"),
        (["--bundle", "a b={tiny}"], "NAME=FOLDER"),
        (["--bundle", "tiny={tiny}", "--threads", "1000"], "256"),
    ],
)
def test_what_cannot_be_served_is_said_at_once(refused, tiny, arguments, word):
    assert word in refused("serve", *[argument.format(tiny=tiny) for argument in arguments])


def test_a_port_that_is_taken(running, refused, tiny):
    assert str(running.port) in refused("serve", "--bundle", f"tiny={tiny}", "--port", running.port)


def test_tritonclient_in_binary_and_in_json(running, images, classifier):
    clients = pytest.importorskip("tritonclient.http", reason="tritonclient is not installed")
    client = clients.InferenceServerClient(f"127.0.0.1:{running.port}")
    assert client.is_server_live()
    assert client.is_server_ready()
    assert client.is_model_ready("tiny-edge")
    version = client.get_model_metadata("tiny-edge")["versions"][0]
    assert {entry["name"] for entry in client.get_model_repository_index()} == {"tiny", "tiny-edge", "tiny-fp32"}
    expected = classifier.probabilities(images)
    for binary in (True, False):
        tensor = clients.InferInput("images", list(images.shape), "UINT8")
        tensor.set_data_from_numpy(images, binary_data=binary)
        wanted = [clients.InferRequestedOutput("probabilities", binary_data=binary)]
        result = client.infer("tiny-edge", [tensor], model_version=version, outputs=wanted, request_id="7")
        assert np.array_equal(result.as_numpy("probabilities"), expected)
        assert result.get_response()["id"] == "7"
        assert result.as_numpy("logits") is None
        everything = client.infer("tiny-edge", [tensor])
        assert everything.as_numpy("logits").argmax(1).tolist() == list(range(10))
        named = [clients.InferRequestedOutput("probabilities", binary_data=binary, class_count=1)]
        texts = client.infer("tiny-edge", [tensor], outputs=named).as_numpy("probabilities").ravel()
        found = [text.decode() if isinstance(text, bytes) else text for text in texts]
        assert [text.split(":")[2] for text in found[:4]] == ["plane", "car", "bird", "cat"]
    wrong = clients.InferInput("images", [1, 3, 32, 32], "UINT8")
    wrong.set_data_from_numpy(np.zeros((1, 3, 32, 32), np.uint8))
    with pytest.raises(clients.InferenceServerException, match="shape"):
        client.infer("tiny-edge", [wrong])
    client.close()


@pytest.mark.skipif(sys.platform != "linux", reason="packet filters are Linux's")
def test_at_the_end_new_connections_are_refused_and_those_that_were_asked_for_come_about():
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        # A handshake then ends with the client's first data, so that it can be held in the middle.
        listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_DEFER_ACCEPT, 10)
        listener.listen()
        listener.settimeout(5)
        with socket.create_connection(listener.getsockname(), timeout=5) as half, socket.socket() as late:
            _refuse_new(listener)
            half.sendall(b"hello")
            accepted, _ = listener.accept()
            with accepted:
                assert accepted.recv(5) == b"hello"
            late.settimeout(0.3)
            with pytest.raises(TimeoutError):
                late.connect(listener.getsockname())
