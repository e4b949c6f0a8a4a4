"""Connections whose clients are slow, greedy or gone, over real sockets to a server in this process."""

from __future__ import annotations

import asyncio
import contextlib
import json
import socket
import threading
import time

import pytest

HEAD = b"POST /v2/models/tiny-edge/infer HTTP/1.1\r\nHost: a\r\nContent-Length: %d\r\n%s\r\n"


class Live:
    """A server on a port of its own, on a thread."""

    def __init__(self, app) -> None:
        from edgecifar.serve.server import Address, make_server

        self.app, self.server = app, make_server(app)
        self._listener = Address(port=0).listen()
        self.port = self._listener.getsockname()[1]
        self._thread = threading.Thread(target=lambda: asyncio.run(self.server.serve(sockets=[self._listener])))
        self._thread.start()
        wait_until(lambda: self.server.started)

    @property
    def connections(self) -> list:
        return list(self.server.server_state.connections)

    def look(self, later: float) -> None:
        """Let the server look at its connections as it does when so many seconds have passed."""

        def sweep() -> None:
            for connection in self.connections:
                connection.sweep(time.monotonic() + later)

        self.server.servers[0].get_loop().call_soon_threadsafe(sweep)

    def connect(self) -> socket.socket:
        return socket.create_connection(("127.0.0.1", self.port), timeout=10)

    def close(self) -> None:
        self.server.should_exit = True
        self._thread.join(20)
        assert not self._thread.is_alive()


@pytest.fixture
def live(tiny, monkeypatch):
    """Serve the tiny bundle with settings: `live(queue=1)`; it looks for slow clients when it is told to."""
    from edgecifar.serve import App, Settings, connections, load_registry
    from edgecifar.serve.models import Source

    monkeypatch.setattr(connections, "SWEEP", 3600)
    servers = []

    def start(**settings) -> Live:
        registry = load_registry(Source({"tiny": tiny}, provider="cpu", threads=1, variants=("edge",)))
        servers.append(Live(App(registry, Settings(**settings))))
        return servers[-1]

    yield start
    for server in servers:
        server.close()


def wait_until(condition) -> None:
    deadline = time.monotonic() + 10
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.005)


def receive(connection: socket.socket) -> bytes:
    """Return what comes next; raises ConnectionError where the connection ends."""
    part = connection.recv(65536)
    if not part:
        raise ConnectionError("the server ended the connection")
    return part


def read_answer(connection: socket.socket) -> tuple[int, dict[str, str], bytes]:
    """Read one answer; raises ConnectionError where the connection ends before."""
    data = b""
    while b"\r\n\r\n" not in data:
        data += receive(connection)
    head, _, body = data.partition(b"\r\n\r\n")
    status, *lines = head.decode().split("\r\n")
    headers = {name.lower(): value for name, _, value in (line.partition(": ") for line in lines)}
    while len(body) < int(headers.get("content-length", 0)):
        body += receive(connection)
    return int(status.split()[1]), headers, body


def ended(connection: socket.socket) -> bool:
    try:
        return connection.recv(65536) == b""
    except ConnectionError:
        return True


def test_requests_in_a_row_and_in_a_pipeline(live, images, ask, classifier):
    server = live()
    with server.connect() as connection:
        bodies = [json.dumps(ask(images[n : n + 1], id=str(n))).encode() for n in range(4)]
        for body in bodies[:2]:
            connection.sendall(HEAD % (len(body), b"") + body)
            assert read_answer(connection)[0] == 200
        connection.sendall(b"".join(HEAD % (len(body), b"") + body for body in bodies[2:]))
        data = b""
        while data.count(b'"id"') < 2 or not data.endswith(b"}"):
            data += receive(connection)
        assert data.index(b'"id":"2"') < data.index(b'"id":"3"')


def test_whole_or_in_pieces_the_answer_is_the_same(live, images, ask_binary, classifier):
    server = live()
    made = ask_binary(images[3:4], parameters={"binary_data_output": True})
    body = made["content"]
    more = b"".join(b"%s: %s\r\n" % (name.encode(), value.encode()) for name, value in made["headers"].items())
    whole = HEAD % (len(body), more) + body
    chunked = whole.replace(b"Content-Length: %d" % len(body), b"Transfer-Encoding: chunked")[: -len(body)]
    chunked += b"%x\r\n%s\r\n%x\r\n%s\r\n0\r\n\r\n" % (100, body[:100], len(body) - 100, body[100:])
    expected = whole.replace(b"Host", b"Expect: 100-continue\r\nHost")
    elsewhere = whole.replace(b"/infer ", b"/infer?a=b ").replace(b"tiny-edge", b"tiny%2dedge")
    answers = []
    with server.connect() as connection:
        for request, last in ((whole, 0), (whole, 5), (chunked, 0), (chunked, 30), (expected, 0), (elsewhere, 0)):
            connection.sendall(request[: len(request) - last])
            time.sleep(0.02)
            connection.sendall(request[len(request) - last :])
            status, headers, content = read_answer(connection)
            answers.append((status, content))
        connection.sendall(expected[: -len(body)])
        assert read_answer(connection)[0] == 100
        connection.sendall(body)
        status, _, content = read_answer(connection)
        answers.append((status, content))
    assert {status for status, _ in answers} == {200}
    assert len({content for _, content in answers}) == 1
    length = int(headers["inference-header-content-length"])
    rows = content[length : length + 40]
    assert rows == classifier.probabilities(images[3:4]).tobytes()


def test_refusals_in_a_pipeline_and_what_ends_the_connection(live, images, ask):
    server = live(queue=1, keep_alive=30)
    gate = threading.Event()
    run = server.app.registry.default.batcher._run
    server.app.registry.default.batcher._run = lambda batch: (gate.wait(10), run(batch))[1]
    body = json.dumps(ask(images[:1])).encode()
    with server.connect() as first, server.connect() as second:
        first.sendall(HEAD % (len(body), b"") + body)
        wait_until(lambda: server.app.registry.default.batcher.requests == 1)
        second.sendall((HEAD % (len(body), b"") + body) * 3)
        data = b""
        while data.count(b"}") < 3:
            data += receive(second)
        assert data.count(b"HTTP/1.1 429") == data.count(b"retry-after") == 3
        gate.set()
        assert read_answer(first)[0] == 200
        old = (HEAD % (len(body), b"")).replace(b"HTTP/1.1", b"HTTP/1.0") + body
        second.sendall(old)
        status, headers, _ = read_answer(second)
        assert (status, headers["connection"]) == (200, "close")
        assert ended(second)
    assert server.app.metrics.requests.labels("infer", 429)._value.get() == 3
    assert server.app.metrics.requests.labels("infer", 200)._value.get() == 2


def test_who_sends_nothing_or_too_slowly_is_ended(live, monkeypatch):
    monkeypatch.setattr("edgecifar.serve.connections.SWEEP", 0.05)
    server = live(receive_timeout=0.2)
    with server.connect() as silent, server.connect() as header, server.connect() as body:
        header.sendall(b"GET /v2 HTTP/1.1\r\nHost: a\r\n")
        body.sendall(HEAD % (100, b"") + b"x")
        for connection in (silent, header, body):
            assert read_answer(connection)[0] == 408
            assert ended(connection)
    assert server.app.metrics.requests.labels("refused", 408)._value.get() == 3


def test_who_waits_behind_another_request_is_not_slow(live, images, ask):
    server = live()
    batcher, gate = server.app.registry.default.batcher, threading.Event()
    run = batcher._run
    batcher._run = lambda batch: (gate.wait(10), run(batch))[1]
    body = json.dumps(ask(images[:1])).encode()
    request = HEAD % (len(body), b"") + body
    with server.connect() as connection:
        connection.sendall(request + request[:-10])
        wait_until(lambda: any(one.pipeline for one in server.connections))
        server.look(later=100)
        gate.set()
        assert read_answer(connection)[0] == 200
        server.look(later=105)
        connection.sendall(request[-10:])
        assert read_answer(connection)[0] == 200
        connection.sendall(request[:-10])  # in its turn, it is
        wait_until(lambda: any(one._received for one in server.connections))
        server.look(later=100)
        assert read_answer(connection)[0] == 408


def test_who_is_idle_between_requests_is_not_slow(live):
    server = live(keep_alive=30)
    with server.connect() as connection:
        for _ in range(2):
            connection.sendall(b"GET /v2 HTTP/1.1\r\nHost: a\r\n\r\n")
            assert read_answer(connection)[0] == 200
            server.look(later=100)


LONG = b"y" * 40_000
CHUNKED = b"POST /classify HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n1\r\nx\r\n0\r\n"


def test_a_header_or_a_trailer_that_is_too_long(live):
    server = live()
    for data in (
        b"GET /v2 HTTP/1.1\r\nHost: a\r\nX: " + LONG,  # without end
        b"GET /v2 HTTP/1.1\r\nHost: a\r\nX: " + LONG + b"\r\n\r\n",
        b"GET /v2 HTTP/1.1\r\nHost: a\r\n" + b"X: y\r\n" * 7000 + b"\r\n",
        b"GET /v2?" + LONG + b" HTTP/1.1\r\nHost: a\r\n\r\n",
        HEAD % (1, b"X: " + LONG + b"\r\n") + b"x",
        CHUNKED + b"X: " + LONG * 10,  # more than is read at once
        CHUNKED + b"a:b\r\n" * 7000,
        CHUNKED + b"a:\r\n" * 9000 + b"\r\n",
    ):
        # It may be ended before all is sent.
        with server.connect() as whole, contextlib.suppress(ConnectionResetError, BrokenPipeError):
            whole.sendall(data)
            assert read_answer(whole)[0] == 431, data[:80]
            assert ended(whole)
        with server.connect() as pieces, contextlib.suppress(ConnectionResetError, BrokenPipeError):
            for start in range(0, len(data), 9000):
                pieces.sendall(data[start : start + 9000])
                time.sleep(0.001)
            assert read_answer(pieces)[0] == 431, data[:80]
            assert ended(pieces)
    refused = server.app.metrics.requests.labels("refused", 431)._value.get()
    assert refused == 16


def test_a_long_body_is_no_long_header(live):
    server = live()
    with server.connect() as connection:
        for size in (1, 100_000):
            chunks = b"%x\r\n%s\r\n" % (size, b"x" * size) * (100_000 // size)
            connection.sendall(CHUNKED[: CHUNKED.index(b"1\r\nx")] + chunks + b"0\r\n\r\n")
            assert read_answer(connection)[0] == 400  # no picture


def test_a_trailer_is_dropped(live):
    server = live()
    with server.connect() as connection:
        connection.sendall(CHUNKED + b"X-API-Key: late\r\n\r\n")
        assert read_answer(connection)[0] == 400  # no picture
        (one,) = server.server.server_state.connections
        assert one.cycle.scope["headers"] == [(b"host", b"a"), (b"transfer-encoding", b"chunked")]


@pytest.mark.parametrize("data", [b"\x16\x03\x01 no http \r\n\r\n", b"GET\r\n\r\n", b"\0" * 100])
def test_what_is_not_http(live, data):
    server = live()
    with server.connect() as connection:
        connection.sendall(data)
        status, _, body = read_answer(connection)
        assert status == 400
        assert "error" in json.loads(body)


def test_more_connections_than_allowed(live):
    server = live(max_connections=2)
    with server.connect() as one, server.connect() as two:
        for connection in (one, two):
            connection.sendall(b"GET /v2 HTTP/1.1\r\nHost: a\r\n\r\n")
            assert read_answer(connection)[0] == 200
        with server.connect() as three:
            assert read_answer(three)[0] == 503


def test_a_body_that_is_too_long_is_answered_and_drained(live):
    server = live(max_body=100_000)
    with server.connect() as connection:
        connection.sendall(b"POST /classify HTTP/1.1\r\nHost: a\r\nContent-Length: 150000\r\n\r\n" + b"x" * 150_000)
        assert read_answer(connection)[0] == 413
        connection.sendall(b"GET /v2 HTTP/1.1\r\nHost: a\r\n\r\n")
        assert read_answer(connection)[0] == 200
    with server.connect() as connection:
        connection.sendall(b"POST /classify HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n")
        with pytest.raises(ConnectionError):  # noqa: PT012
            for _ in range(1000):
                connection.sendall(b"2710\r\n" + b"x" * 10_000 + b"\r\n")
            read_answer(connection)
            read_answer(connection)


def test_who_does_not_take_answers_is_ended(live):
    server = live()
    with server.connect() as connection:
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        connection.sendall(b"GET /openapi.json HTTP/1.1\r\nHost: a\r\n\r\n" * 2000)  # 10 kB each
        wait_until(lambda: any(one._blocked_since for one in server.connections))
        server.look(later=100)
        wait_until(lambda: not server.connections)


def test_who_leaves_costs_nothing(live, images, ask):
    server = live()
    model = server.app.registry.default
    entered, gate = threading.Event(), threading.Event()
    run, ran = model.batcher._run, []

    def held(batch):
        ran.append(len(batch))
        entered.set()
        gate.wait(10)
        return run(batch)

    model.batcher._run = held
    body = json.dumps(ask(images[:1])).encode()
    with server.connect() as stays, server.connect() as leaves:
        stays.sendall(HEAD % (len(body), b"") + body)
        assert entered.wait(10)
        leaves.sendall(HEAD % (len(body), b"") + body)
        wait_until(lambda: model.batcher.requests == 2)
        leaves.close()
        wait_until(lambda: model.batcher.requests == 1)
        gate.set()
        assert read_answer(stays)[0] == 200
    assert ran == [1]
    assert server.app.metrics.left._value.get() == 1


@pytest.fixture
def held(monkeypatch):
    """Decoding waits until the event `held.gate` is set; `held.began` counts the pictures."""
    from types import SimpleNamespace

    from edgecifar.runtime import pictures

    found = SimpleNamespace(gate=threading.Event(), began=0)
    load = pictures.load_picture

    def call(*arguments, **options):
        found.began += 1
        found.gate.wait(20)
        return load(*arguments, **options)

    monkeypatch.setattr(pictures, "load_picture", call)
    yield found
    found.gate.set()


@pytest.mark.parametrize("more", [0, 400_000, 600_000])
def test_pictures_of_who_leaves_are_not_decoded(live, held, images, png, more):
    server = live(decoders=1)
    body = png(images[0]) + bytes(more)
    request = b"POST /classify HTTP/1.1\r\nHost: a\r\nContent-Length: %d\r\n\r\n%s" % (len(body), body)
    left = server.app.metrics.left._value
    with server.connect() as first:
        first.sendall(request)
        wait_until(lambda: held.began == 1)
    wait_until(lambda: left.get() == 1)
    assert server.app._decoder.buffered == len(body)  # the thread still holds it
    for count in (2, 3):
        with server.connect() as leaves:
            leaves.sendall(request)
            wait_until(lambda: server.app._decoder.buffered > len(body))
        wait_until(lambda count=count: left.get() == count)
    with server.connect() as stays:
        stays.sendall(request)
        wait_until(lambda: server.app._decoder.buffered == 2 * len(body))
        held.gate.set()
        assert read_answer(stays)[0] == 200
    assert held.began == 2
    assert server.app._decoder.buffered == 0


def test_the_end_does_not_wait_for_pictures_that_nobody_wants(live, held, images, png):
    server = live(decoders=1)
    body = png(images[0])
    with server.connect() as leaves:
        leaves.sendall(b"POST /classify HTTP/1.1\r\nHost: a\r\nContent-Length: %d\r\n\r\n%s" % (len(body), body))
        wait_until(lambda: held.began == 1)
    server.close()
    assert not held.gate.is_set()
    assert server.server.all_answered


def test_an_end_that_does_not_wait_for_all_says_so(live, caplog):
    server = live()
    server.server.config.timeout_graceful_shutdown = 0.1
    with server.connect() as slow:
        slow.sendall(b"POST /classify HTTP/1.1\r\nHost: a\r\nContent-Length: 100\r\n\r\nx")
        wait_until(lambda: server.server.server_state.tasks)
        server.app.draining = True
        server.close()
        assert read_answer(slow)[0] == 503
    assert not server.server.all_answered
    assert not any(record.exc_info for record in caplog.records)


def test_what_was_begun_is_answered_at_the_end(live, images, ask):
    server = live()
    body = json.dumps(ask(images)).encode()
    with server.connect() as begun, server.connect() as idle:
        idle.sendall(b"GET /v2 HTTP/1.1\r\nHost: a\r\n\r\n")
        assert read_answer(idle)[0] == 200
        begun.sendall((HEAD % (len(body), b""))[:40])
        time.sleep(0.1)
        server.app.draining = server.server.should_exit = True
        time.sleep(0.3)
        begun.sendall((HEAD % (len(body), b""))[40:] + body)
        status, headers, _ = read_answer(begun)
        assert (status, headers["connection"]) == (200, "close")
        assert ended(begun)
        assert ended(idle)


def test_a_request_that_stops_behind_another_in_the_same_data_is_ended(live, images, ask):
    server = live()
    body = json.dumps(ask(images[:1])).encode()
    with server.connect() as connection:
        connection.sendall(HEAD % (len(body), b"") + body + HEAD % (100, b"") + b"x")
        assert read_answer(connection)[0] == 200
        wait_until(lambda: any(one._received for one in server.connections))
        server.look(later=100)
        assert read_answer(connection)[0] == 408
        assert ended(connection)
    wait_until(lambda: not server.app.registry.default._leases)


def test_refusals_that_nobody_takes_do_not_pile_up(live):
    import uvicorn

    server = live()

    class Transport(asyncio.Transport):
        """A client that takes nothing after the first answer."""

        written, closing = 0, False

        def write(self, data):
            self.written += 1
            self.protocol.pause_writing()

        def get_extra_info(self, name, default=None):
            return default

        def is_closing(self):
            return self.closing

        def close(self):
            self.closing = True

        pause_reading = resume_reading = abort = lambda self: None

    async def ask_in_vain(requests: bytes) -> int:
        protocol: uvicorn.Config = server.server.config.http_protocol_class
        transport = Transport()
        transport.protocol = protocol(
            config=server.server.config, server_state=uvicorn.server.ServerState(), app_state={}
        )
        transport.protocol.connection_made(transport)
        transport.protocol.data_received(requests)
        for _ in range(20):
            await asyncio.sleep(0)
        transport.protocol.connection_lost(None)
        return transport.written

    refused = (HEAD % (0, b"")).replace(b"tiny-edge", b"nobody")
    assert asyncio.run(ask_in_vain(refused * 500)) == 1


def test_an_answered_request_keeps_no_pixels(live, images, ask_binary):
    server = live()
    made = ask_binary(images)
    more = b"".join(b"%s: %s\r\n" % (name.encode(), value.encode()) for name, value in made["headers"].items())
    with server.connect() as connection:
        connection.sendall(HEAD % (len(made["content"]), more) + made["content"])
        assert read_answer(connection)[0] == 200
        (one,) = server.server.server_state.connections
        assert not one.cycle.body


@pytest.mark.parametrize("place", [0, 5, -5])
def test_who_asks_for_another_protocol_is_answered_in_this_one(live, images, ask, place):
    server = live()
    body = json.dumps(ask(images[3:4], id="7")).encode()
    upgrade = b"Connection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\nHTTP2-Settings: AAMAAABk\r\n"  # Java's default
    request = HEAD % (len(body), upgrade) + body
    with server.connect() as connection:
        for data in (request, request.replace(b"/infer ", b"/infer?a=b ")):
            cut = data.index(body) + place % len(body)
            connection.sendall(data[:cut])
            time.sleep(0.02)
            connection.sendall(data[cut:] + b"GET /v2 HTTP/1.1\r\nHost: a\r\n%s\r\n" % upgrade)
            answers, part = b"", b" "
            while part and not (b'"extensions"' in answers and answers.endswith(b"]}")):
                part = connection.recv(65536)
                answers += part
            assert answers.count(b"HTTP/1.1 200") == 2
            assert b'"id":"7"' in answers
