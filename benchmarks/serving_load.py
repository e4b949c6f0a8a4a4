"""A load generator for HTTP servers: connections that ask in a closed loop, each request with a picture of its own.

Every answer is held against what was computed beforehand. It runs in one thread on raw sockets, so that the client
costs little beside the server.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import selectors
import socket
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from edgecifar.runtime.benchmark import percentile

_LENGTH = re.compile(rb"\r\ncontent-length: *(\d+)", re.IGNORECASE)
_JSON_LENGTH = re.compile(rb"\r\ninference-header-content-length: *(\d+)", re.IGNORECASE)

TOLERANCE = 1e-3
"""Largest difference of a probability from the one computed in process: int8 models round differently in batches."""


@dataclass(frozen=True)
class Request:
    """A request and the answer that it must get.

    Attributes:
        data: all bytes of it.
        expected: probabilities, float32 [N, classes].
    """

    data: bytes
    expected: np.ndarray


@dataclass
class Outcome:
    """What a load saw.

    Attributes:
        seconds: how long it took.
        latencies: seconds of each answer of status 200.
        ends: when each of them came, in seconds from the start.
        rejections: seconds of each answer of status 429 or 503.
        wrong: answers of status 200 that were not those expected.
        statuses: how often each other status came.
        broken: connections that ended without the answer to what was asked.
    """

    seconds: float = 0.0
    latencies: list[float] = field(default_factory=list)
    ends: list[float] = field(default_factory=list)
    rejections: list[float] = field(default_factory=list)
    wrong: int = 0
    statuses: dict[int, int] = field(default_factory=dict)
    broken: int = 0

    def figures(self) -> dict[str, Any]:
        """Return requests/s, percentiles in ms, without those that `percentile` does not know, and what went wrong."""

        def percentiles(values: list[float]) -> dict[str, float]:
            known = {p: percentile(1000 * np.array(values), p) for p in (50, 90, 99)} if values else {}
            return {f"p{p}": value for p, value in known.items() if value is not None}

        return {
            "requests": len(self.latencies),
            "requests_per_second": len(self.latencies) / self.seconds,
            "milliseconds": percentiles(self.latencies),
            "rejected": len(self.rejections),
            "rejection_milliseconds": percentiles(self.rejections),
            "wrong": self.wrong,
            "other_statuses": self.statuses,
            "broken": self.broken,
        }


def merged(outcomes: Sequence[Outcome]) -> Outcome:
    """Return the outcomes of loads that followed one another as one."""
    whole = Outcome()
    for outcome in outcomes:
        whole.latencies += outcome.latencies
        whole.ends += [whole.seconds + end for end in outcome.ends]
        whole.rejections += outcome.rejections
        whole.wrong += outcome.wrong
        whole.broken += outcome.broken
        for status, count in outcome.statuses.items():
            whole.statuses[status] = whole.statuses.get(status, 0) + count
        whole.seconds += outcome.seconds
    return whole


def probabilities(head: bytes, body: bytes) -> np.ndarray:
    """Return the probabilities of an answer of the protocol, in JSON or binary: float32 [N * classes]."""
    length = _JSON_LENGTH.search(head)
    if not length:
        return np.array(json.loads(body)["outputs"][0]["data"], np.float32).ravel()
    offset = int(length[1])
    first = json.loads(body[:offset])["outputs"][0]
    return np.frombuffer(body, "<f4", int(np.prod(first["shape"])), offset)


def post(path: str, body: bytes, *headers: str) -> bytes:
    """Return the bytes of a POST request."""
    lines = [f"POST {path} HTTP/1.1", "Host: localhost", f"Content-Length: {len(body)}", *headers]
    return "\r\n".join([*lines, "", ""]).encode() + body


def ask_json(path: str, images: np.ndarray) -> bytes:
    """Return a request of the protocol for `images`, uint8 [N, size, size, 3], in JSON."""
    tensor = {"name": "images", "shape": list(images.shape), "datatype": "UINT8", "data": images.ravel().tolist()}
    wanted = [{"name": "probabilities"}]
    return post(path, json.dumps({"inputs": [tensor], "outputs": wanted}).encode(), "Content-Type: application/json")


def ask_binary(path: str, images: np.ndarray) -> bytes:
    """Return the same with binary tensors both ways."""
    tensor = {"name": "images", "shape": list(images.shape), "datatype": "UINT8"}
    tensor["parameters"] = {"binary_data_size": images.size}
    wanted = [{"name": "probabilities", "parameters": {"binary_data": True}}]
    head = json.dumps({"inputs": [tensor], "outputs": wanted}).encode()
    length = f"Inference-Header-Content-Length: {len(head)}"
    return post(path, head + images.tobytes(), length, "Content-Type: application/octet-stream")


class _Connection:
    def __init__(self, port: int, selector: selectors.BaseSelector) -> None:
        self.socket = socket.create_connection(("127.0.0.1", port), timeout=30)
        self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.data, self.request, self.sent = b"", Request(b"", np.empty(0)), 0.0
        selector.register(self.socket, selectors.EVENT_READ, self)

    def ask(self, request: Request) -> None:
        self.data, self.request, self.sent = b"", request, time.perf_counter()
        with contextlib.suppress(OSError):  # the server is gone: the answer, which ends before it began, says so
            self.socket.sendall(request.data)

    def answer(self) -> tuple[int, bytes, bytes] | None:
        """Return status, head and body once all is there; raises ConnectionError where it ends before."""
        part = self.socket.recv(1 << 20)
        if not part:
            raise ConnectionError
        self.data += part
        head, found, body = self.data.partition(b"\r\n\r\n")
        if not found:
            return None
        length = _LENGTH.search(head)
        if not length or len(body) < int(length[1]):
            return None
        return int(head[9:12]), head, body


def drive(
    port: int,
    requests: Sequence[Request],
    seconds: float,
    connections: int,
    read: Callable[[bytes, bytes], np.ndarray] = probabilities,
    pause: float = 0.0,
) -> Outcome:
    """Ask in a closed loop on `connections` connections for `seconds`, then wait for the last answers.

    Args:
        port: of a server on this machine.
        requests: asked in turns.
        seconds: for how long new ones are asked.
        connections: how many requests are under way at once.
        read: from head and body of an answer to its probabilities.
        pause: seconds between an answer and the next request on its connection.
    """
    selector, outcome, asked = selectors.DefaultSelector(), Outcome(), 0
    resting: deque[tuple[float, _Connection]] = deque()  # until when, in order
    began = time.perf_counter()
    for _ in range(connections):
        _Connection(port, selector).ask(requests[asked % len(requests)])
        asked += 1
    while selector.get_map():
        while resting and resting[0][0] <= time.perf_counter():
            resting.popleft()[1].ask(requests[asked % len(requests)])
            asked += 1
        patience = resting[0][0] - time.perf_counter() if resting else 30
        for key, _ in selector.select(patience) or ([] if resting else _given_up(selector, outcome)):
            connection: _Connection = key.data
            rest = next((one for one in resting if one[1] is connection), None)
            try:
                answer = connection.answer()
            except OSError:
                outcome.broken += rest is None  # where nothing was asked, a server may end a connection
                answer = (0, b"", b"")
            if answer is None:
                continue
            if rest:
                resting.remove(rest)
            now = time.perf_counter()
            if answer[0]:
                _note(outcome, connection, answer, now - began, read)
            ended = not answer[0] or b"connection: close" in answer[1].lower()
            if ended or now - began > seconds:
                selector.unregister(connection.socket)
                connection.socket.close()
                if now - began > seconds:
                    continue
                try:
                    connection = _Connection(port, selector)
                except OSError:  # the server takes no more: it is gone
                    continue
            if pause:
                resting.append((now + pause, connection))
            else:
                connection.ask(requests[asked % len(requests)])
                asked += 1
    outcome.seconds = time.perf_counter() - began
    return outcome


def _note(
    outcome: Outcome,
    connection: _Connection,
    answer: tuple[int, bytes, bytes],
    now: float,
    read: Callable[[bytes, bytes], np.ndarray],
) -> None:
    status, head, body = answer
    took = time.perf_counter() - connection.sent
    if status == 200:
        outcome.latencies.append(took)
        outcome.ends.append(now)
        rows = read(head, body)
        expected = connection.request.expected.ravel()
        outcome.wrong += rows.shape != expected.shape or not bool(np.abs(rows - expected).max() < TOLERANCE)
    elif status in (429, 503):
        outcome.rejections.append(took)
    else:
        outcome.statuses[status] = outcome.statuses.get(status, 0) + 1


def _given_up(selector: selectors.BaseSelector, outcome: Outcome) -> list[Any]:
    """Count every connection that has had no answer for 30 s as broken, and end it."""
    for key in list(selector.get_map().values()):
        outcome.broken += 1
        selector.unregister(key.fileobj)
        key.data.socket.close()
    return []


def used(pid: int) -> tuple[float, float]:
    """Return processor seconds and resident MB of a process and its children, of /proc."""
    page, ticks = os.sysconf("SC_PAGESIZE"), os.sysconf("SC_CLK_TCK")
    seconds = memory = 0.0
    for process in [pid, *_children(pid)]:
        try:
            fields = Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()
        except OSError:
            continue
        seconds += (int(fields[11]) + int(fields[12])) / ticks
        memory += int(fields[21]) * page / 1e6
    return seconds, memory


def _children(pid: int) -> list[int]:
    found = []
    for file in Path(f"/proc/{pid}/task").glob("*/children"):
        with contextlib.suppress(OSError):  # a thread that ended meanwhile
            for child in map(int, file.read_text().split()):
                found += [child, *_children(child)]
    return found
