"""Hostile requests: bodies, headers, binary sizes that lie, pictures, clients that are slow or leave.

    python tests/stress/hostile_requests.py --requests 20000 --seed 1

A server of the tiny bundle must answer each with a status below 500 (503 when it has too many connections, 504 for a
deadline that the request itself sets), or end the connection; never hang, never write a traceback. From time to time a
good request is asked among them, and must get its answer. At the end the server must be ready, with nothing in its
queue, and little more memory than after the first tenth. The exit code is 1 if any of that fails; the last line of the
output is one document of JSON.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import random
import socket
import struct
import subprocess
import sys
import threading
import time
from collections import Counter
from pathlib import Path

import numpy as np
from hostile_kinds import INFER, KINDS, infer_json, post

TINY = Path(__file__).parents[1] / "fixtures" / "tiny_bundle"

LONGEST = 30.0
"""Seconds after which a request that is neither answered nor ended counts as hanging."""

ALLOWED_GROWTH = 40.0
"""MiB by which memory may grow after the first tenth of the requests."""

ENDINGS = ("reads", "reads", "reads", "leaves", "resets", "half", "closes for writing")
"""What a client does: read the answer, leave or reset without reading, send half and leave, end its own side."""


class Trial:
    """One run: what was sent, what came of it, and what must not have."""

    def __init__(self, port: int, seed: int, requests: int) -> None:
        self.port, self.seed, self.requests = port, seed, requests
        self.statuses: Counter[str] = Counter()
        self.kinds: Counter[str] = Counter()
        self.problems: list[str] = []
        self._next, self._lock = 0, threading.Lock()

    def work(self) -> None:
        """Send requests until all are sent; one of several threads."""
        while True:
            with self._lock:
                number, self._next = self._next, self._next + 1
            if number >= self.requests:
                return
            rng = random.Random(f"{self.seed}-{number}")  # noqa: S311
            kind = rng.choice(list(KINDS))
            self.kinds[kind] += 1
            data, ending = KINDS[kind](rng), rng.choice(ENDINGS)
            self._send(data, ending, f"request {number}, {kind}, {ending}")
            if number % 50 == 0:
                self.good(f"the good request beside request {number}")

    def good(self, name: str) -> None:
        """Ask a good request, whose answer must come and be right."""
        white = {"name": "images", "shape": [1, 32, 32, 3], "datatype": "UINT8", "data": [255] * 3072}
        status, body = self.ask(post(INFER, json.dumps({"inputs": [white]}).encode(), "Connection: close"), name)
        right = status == 200 and int(np.argmax(json.loads(body)["outputs"][0]["data"])) == 0
        if not right and status not in (429, 503):
            self.problems.append(f"{name}: status {status}, {body[:200]!r}")

    def ask(self, data: bytes, name: str) -> tuple[int, bytes]:
        """Send `data`, read until the server ends the connection, and return status and body; 0: it ended without."""
        with socket.create_connection(("127.0.0.1", self.port), timeout=LONGEST) as connection:
            answer = b""
            try:
                connection.sendall(data)
                while part := connection.recv(65536):
                    answer += part
            except TimeoutError:
                self.problems.append(f"{name}: no answer and no end within {LONGEST} s")
            except OSError:
                pass
        head, _, body = answer.partition(b"\r\n\r\n")
        return (int(head[9:12]) if head.startswith(b"HTTP/1.1 ") else 0), body

    def _send(self, data: bytes, ending: str, name: str) -> None:
        connection = socket.create_connection(("127.0.0.1", self.port), timeout=LONGEST)
        answer = b""
        with contextlib.suppress(ConnectionError, BrokenPipeError), connection:
            try:
                connection.sendall(data[: len(data) // 2] if ending == "half" else data)
                if ending == "resets":
                    connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
                if ending == "closes for writing":
                    connection.shutdown(socket.SHUT_WR)
                if ending in ("reads", "closes for writing"):
                    connection.settimeout(1.0 if ending == "reads" else LONGEST)  # it may wait for more of a body
                    answer = connection.recv(1 << 20)
            except TimeoutError:
                if ending != "reads":
                    self.problems.append(f"{name}: no answer and no end within {LONGEST} s")
        status = answer[9:12].decode("latin-1") if answer.startswith(b"HTTP/1.1 ") else "none"
        with self._lock:
            self.statuses[status] += 1
        if status >= "500" and status not in ("503", "504", "none"):
            self.problems.append(f"{name}: status {status}, {answer[-300:]!r}")

    def dribble(self, stop: threading.Event) -> None:
        """Be a client that sends a byte a second, over and over."""
        data = post(INFER, json.dumps(infer_json(random.Random(0))).encode())  # noqa: S311
        while not stop.is_set():
            with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", self.port), 5) as connection:
                for byte in data:
                    connection.sendall(bytes([byte]))
                    if stop.wait(1.0):
                        return


def metrics(trial: Trial) -> dict[str, float]:
    """Return the server's metrics that have no labels, and the queues'."""
    _, body = trial.ask(b"GET /metrics HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n", "metrics")
    lines = [line.rpartition(" ") for line in body.decode().splitlines() if not line.startswith("#")]
    return {name: float(value) for name, _, value in lines}


def start(*arguments: str) -> tuple[subprocess.Popen[str], list[dict], int]:
    """Start a server of the tiny bundle; return its process, the lines of its log as they come, and its port."""
    command = [sys.executable, "-m", "edgecifar.cli", "serve", "--bundle", f"tiny={TINY}", "--port", "0"]
    command += ["--provider", "cpu", "--threads", "1", "--log-format", "json", "--drain", "0", *arguments]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    events: list[dict] = []
    ready = threading.Event()

    def read() -> None:
        assert process.stderr
        with process.stderr as lines:
            for line in lines:
                try:
                    events.append(json.loads(line))
                except ValueError:
                    events.append({"event": "not JSON", "message": line})
                ready.set()

    threading.Thread(target=read, daemon=True).start()
    if not ready.wait(60):
        process.kill()
        raise SystemExit("The server does not start.")
    while not any(event.get("event") == "ready" for event in events):
        if process.poll() is not None:
            raise SystemExit(f"The server does not start: {events[0].get('message')}")
        time.sleep(0.01)
    return process, events, next(event["port"] for event in events if event.get("event") == "ready")


def main() -> int:
    """Run the trial; return the exit code."""
    parser = argparse.ArgumentParser(description="Hostile requests to edgecifar serve.")
    parser.add_argument("--requests", type=int, default=20_000)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--threads", type=int, default=8)
    options = parser.parse_args()
    process, events, port = start("--max-connections", "200")
    trial = Trial(port, options.seed, max(1, options.requests // 10))
    stop = threading.Event()
    slow = [threading.Thread(target=trial.dribble, args=(stop,), daemon=True) for _ in range(4)]
    for thread in slow:
        thread.start()
    run(trial, options.threads)
    before = metrics(trial).get("process_resident_memory_bytes", 0.0)
    trial.requests = options.requests
    began = time.monotonic()
    run(trial, options.threads)
    stop.set()
    for thread in slow:
        thread.join(15)
    trial.good("the good request at the end")
    found = ended(trial)
    growth = (found.get("process_resident_memory_bytes", 0.0) - before) / 2**20
    if growth > ALLOWED_GROWTH:
        trial.problems.append(f"memory grew by {growth:.1f} MiB")
    if process.poll() is not None:
        trial.problems.append(f"the server ended with exit code {process.returncode}")
    process.terminate()
    if process.wait(30):
        trial.problems.append(f"SIGTERM: exit code {process.returncode}")
    for event in events:
        if "traceback" in event or event.get("event") in ("failure", "not JSON") or event.get("level") == "error":
            trial.problems.append(f"the log: {json.dumps(event)[:1000]}")
    for problem in trial.problems[:20]:
        print(problem, file=sys.stderr)
    report = {"requests": options.requests, "seed": options.seed, "problems": len(trial.problems)}
    report |= {"kinds": dict(trial.kinds), "statuses": dict(trial.statuses), "growth_mib": round(growth, 1)}
    print(json.dumps(report | {"seconds": round(time.monotonic() - began, 1)}))
    return bool(trial.problems)


def run(trial: Trial, threads: int) -> None:
    """Send all requests of `trial` from several threads."""
    workers = [threading.Thread(target=trial.work) for _ in range(threads)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    trial._next = trial.requests


def ended(trial: Trial) -> dict[str, float]:
    """Wait until nothing is left of the requests, and return the metrics; what is left after a while is a problem."""
    deadline = time.monotonic() + 30
    while True:
        found = metrics(trial)
        left = {name: value for name, value in found.items() if "queue_" in name or "buffered" in name}
        if not any(left.values()):
            return found
        if time.monotonic() > deadline:
            trial.problems.append(f"something is left: {left}")
            return found
        time.sleep(0.2)


if __name__ == "__main__":
    sys.exit(main())
