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
import io
import json
import random
import socket
import struct
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import numpy as np
from PIL import Image

TINY = Path(__file__).parents[1] / "fixtures" / "tiny_bundle"

LONGEST = 30.0
"""Seconds after which a request that is neither answered nor ended counts as hanging."""

ALLOWED_GROWTH = 40.0
"""MiB by which memory may grow after the first tenth of the requests."""

INFER, CLASSIFY = "/v2/models/tiny-edge/infer", "/classify"


def picture(rng: random.Random) -> bytes:
    """Return a small picture in one of several formats, at times damaged."""
    array = np.frombuffer(rng.randbytes(20 * 30 * 3), np.uint8).reshape(20, 30, 3)
    file = io.BytesIO()
    Image.fromarray(array).save(file, rng.choice(["PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF"]))
    return mutate(file.getvalue(), rng) if rng.random() < 0.8 else file.getvalue()


def mutate(data: bytes, rng: random.Random) -> bytes:
    """Return `data` with some bytes changed, cut, doubled or put in."""
    changed = bytearray(data)
    for _ in range(rng.choice([1, 1, 2, 5, 30])):
        at = rng.randrange(len(changed) + 1)
        what = rng.randrange(5)
        if what == 0 and at < len(changed):
            changed[at] = rng.randrange(256)
        elif what == 1:
            changed[at:at] = rng.choice(
                [b"\0", b"\r\n", b"\xff", b'"', b"[", b"{", b"}", rng.randbytes(rng.randrange(40))]
            )
        elif what == 2:
            del changed[at : at + rng.choice([1, 4, 100, 5000])]
        elif what == 3:
            changed[at:at] = changed[at : at + 60]
        elif what == 4:
            del changed[at:]
    return bytes(changed)


def post(path: str, body: bytes, *headers: str, length: int | None = None) -> bytes:
    """Return a POST request, whose Content-Length may lie."""
    lines = [f"POST {path} HTTP/1.1", "Host: a", f"Content-Length: {len(body) if length is None else length}", *headers]
    return "\r\n".join([*lines, "", ""]).encode("latin-1") + body


def infer_json(rng: random.Random) -> dict:
    """Return a good request of one picture."""
    data = list(rng.randbytes(3072))
    return {"inputs": [{"name": "images", "shape": [1, 32, 32, 3], "datatype": "UINT8", "data": data}]}


ODD = [
    None,
    True,
    -1,
    0,
    1.5,
    2**63,
    10**30,
    "",
    "x" * 1000,
    [],
    {},
    [[]],
    [{}],
    {"a": {}},
    ["images"],
    "UINT8",
    [1, 2, 3, 4],
]
"""Values that stand where others are expected."""


def odd_values(rng: random.Random) -> bytes:
    """JSON of the right form with values of other kinds in it."""
    request = infer_json(rng)
    tensor = request["inputs"][0]
    for _ in range(rng.randrange(1, 4)):
        target = rng.choice([request, tensor])
        names = ["inputs", "outputs", "id", "parameters", "name", "shape", "datatype", "data", "x"]
        target[rng.choice(names)] = rng.choice(ODD)
    if rng.random() < 0.3:
        tensor["data"] = rng.choice([[0] * 3071, [300] * 3072, [0.5] * 3072, [[0]] * 3072, [True] * 3072])
    if rng.random() < 0.3:
        request["parameters"] = {rng.choice(["timeout", "binary_data_output", "shared_memory_region"]): rng.choice(ODD)}
    return post(INFER, json.dumps(request).encode())


def odd_json(rng: random.Random) -> bytes:
    """Bodies that are no JSON, or JSON that parsers choke on."""
    kind = rng.randrange(6)
    depth = rng.choice([10, 1000, 100_000])
    bodies = [
        b"[" * depth,
        b'{"inputs":' * depth,
        b'{"inputs": NaN, "id": Infinity}',
        b"\xff\xfe\x00" + rng.randbytes(100),
        b'{"a": "' + b"\\u0000" * 1000 + b'"}',
    ]
    body = bodies[kind] if kind < 5 else mutate(json.dumps(infer_json(rng)).encode(), rng)
    return post(INFER, body)


def lying_sizes(rng: random.Random) -> bytes:
    """Binary tensors whose sizes, shapes or JSON length are not true."""
    size = rng.choice([3072, 3071, 0, -1, 2**31, 2**63, 10**30, "3072", None])
    count = rng.choice([1, 1, 1, 0, 2, 10**9, -1])
    tensor = {
        "name": "images",
        "shape": [count, 32, 32, 3],
        "datatype": "UINT8",
        "parameters": {"binary_data_size": size},
    }
    head = json.dumps({"inputs": [tensor] * rng.choice([1, 1, 1, 2])}).encode()
    length = rng.choice([len(head), len(head), len(head) - 1, len(head) + 1, 0, -5, 10**18, "x", "0x10", " 5"])
    data = rng.randbytes(rng.choice([3072, 3072, 3071, 3073, 0, 10_000]))
    return post(INFER, head + data, f"Inference-Header-Content-Length: {length}")


def forms(rng: random.Random) -> bytes:
    """Uploads by forms that are damaged, or whose parts are."""
    boundary = rng.choice([b"x", b"----b" * 10, b"\xc3\xa4"])
    parts = b""
    for number in range(rng.choice([0, 1, 3])):
        name = rng.choice([b"a.png", b"../../etc/passwd", b"\x1b[31m", b"a" * 5000, b'"', b"%00", b"\xff"])
        head = b'Content-Disposition: form-data; name="%d"; filename="%s"' % (number, name)
        extra = rng.choice([b"", b"\r\nContent-Type: image/png", b"\r\nX: " + b"y" * 20_000])
        parts += b"--" + boundary + b"\r\n" + head + extra + b"\r\n\r\n" + picture(rng) + b"\r\n"
    body = parts + b"--" + boundary + b"--\r\n"
    if rng.random() < 0.6:
        body = mutate(body, rng)
    given = rng.choice([boundary, boundary, b"other", b"", b"z" * 300]).decode("latin-1")
    return post(
        f"{CLASSIFY}?top_k={rng.choice(['1', '3', '0', 'x', '9' * 30])}",
        body,
        f"Content-Type: multipart/form-data; boundary={given}",
    )


def raw_pictures(rng: random.Random) -> bytes:
    """Pictures as bodies, most of them damaged, with odd queries."""
    query = rng.choice(
        ["", "?fit=pad", "?fit=x", "?model=tiny-fp32", "?model=../x", "?top_k=2&top_k=3", "?%00=%ff", "?&&==&"]
    )
    kind = rng.choice(["image/png", "", "text/html", "application/json", "\x80", "multipart/form-data"])
    return post(CLASSIFY + query, picture(rng), f"Content-Type: {kind}")


def odd_headers(rng: random.Random) -> bytes:
    """Requests whose first line or headers are odd, or that are not HTTP."""
    paths = [
        "/",
        "/v2/models/%2e%2e/infer",
        "/v2/models//infer",
        "//",
        "*",
        "/" + "a" * 9000,
        "/v2/models/tiny/versions//infer",
        "/\xff",
        "/%ff%00",
        "http://b/v2",
        "/v2/models/tiny-edge/infer/",
    ]
    method = rng.choice(["GET", "POST", "PUT", "HEAD", "OPTIONS", "TRACE", "CONNECT", "PRI", "get", "A" * 300, "\0"])
    version = rng.choice(["HTTP/1.1", "HTTP/1.1", "HTTP/1.0", "HTTP/2.0", "HTTP/9", ""])
    headers = rng.sample(
        [
            *(
                "Host: a",
                "Host: b",
                "Content-Length: 5",
                "Content-Length: 6",
                "Content-Length: -1",
                "Content-Length: 9e9",
            ),
            *("Transfer-Encoding: chunked", "Transfer-Encoding: gzip", "Expect: 100-continue", "Expect: 5"),
            *("Upgrade: websocket", "Connection: upgrade", "Connection: close, keep-alive", "Upgrade: h2c"),
            *(
                "X: " + "y" * 30_000,
                ": empty",
                "A" * 5000,
                "Authorization: Bearer " + "z" * 5000,
                "Content-Encoding: gzip",
            ),
            *("Range: bytes=0-", "Origin: null", "X\0: a", "X: \r", "Inference-Header-Content-Length: 1"),
        ],
        rng.randrange(8),
    )
    if rng.random() < 0.1:
        headers += [f"X-{number}: {number}" for number in range(rng.choice([100, 5000]))]
    data = "\r\n".join([f"{method} {rng.choice(paths)} {version}", *headers, "", ""]).encode("latin-1")
    body = rng.choice(
        [b"", b"hello", b"5\r\nhello\r\n0\r\n\r\n", b"ffffffffffffffff\r\n", b"-1\r\n", rng.randbytes(300)]
    )
    return mutate(data + body, rng) if rng.random() < 0.3 else data + body


def mutated(rng: random.Random) -> bytes:
    """A good request with its bytes changed anywhere."""
    return mutate(post(INFER, json.dumps(infer_json(rng)).encode(), "Content-Type: application/json"), rng)


def lying_lengths(rng: random.Random) -> bytes:
    """Bodies shorter or longer than their Content-Length says."""
    return post(rng.choice([INFER, CLASSIFY]), rng.randbytes(50), length=rng.choice([0, 10, 51, 1000, 10**9, 10**18]))


KINDS: dict[str, Callable[[random.Random], bytes]] = {
    function.__name__: function
    for function in (odd_values, odd_json, lying_sizes, forms, raw_pictures, odd_headers, mutated, lying_lengths)
}

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
        for line in process.stderr:
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
