"""One connection over HTTP/1.1: uvicorn's protocol with limits on time, on size, and on what a slow client may hold."""

from __future__ import annotations

import asyncio
import re
import time
from typing import TYPE_CHECKING, Any, cast

import httptools
import orjson
from uvicorn.protocols.http.httptools_impl import STATUS_LINE, HttpToolsProtocol, RequestResponseCycle

from .app import CONNECTION
from .infer import Headers, Whole

if TYPE_CHECKING:
    from starlette.types import Scope

    from .app import App

_INFER = re.compile(rb"/v2/models/([\w.+-]+)(?:/versions/([\w.+-]+))?/infer")
"""The URL of a request of `infer` as clients write it; in any other way, such as with a query, it goes the long way."""

CYCLE = "edgecifar.cycle"
"""Key of a request's scope under which uvicorn's state of it is found; `self.cycle` may be of a later one."""

MAX_HEADER = 32768
"""Bytes of a request's header, its URL and the trailer that may follow its body taken together."""

MIN_RATE = 16384
"""Bytes a second that a body must come with, on average, beyond the time that any request has."""

LAST_CHANCE = 1.0
"""Seconds for which a new connection may still send its request when the server ends."""

SWEEP = 1.0
"""Seconds between two looks for connections whose time is over."""


class _TooLong(Exception):  # noqa: N818 - it ends the parsing, and nobody sees it
    """The header or the trailer has more than `MAX_HEADER` bytes."""


class Connection(HttpToolsProtocol):
    """A connection whose client may be slow, greedy or gone.

    Attributes:
        awaited: what the present request waits for; it is cancelled when the client leaves.
        lost: whether the client left.
    """

    limits: App  # set by `limited`

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self.awaited: asyncio.Future[Any] | Whole | None = None
        self._whole: Whole | None = None  # the present request, as long as it may turn out to come whole
        self.lost = self._upgrading = False
        self._fields, self._in_body = 0, False  # bytes of URL, header and trailer; whether the header is complete
        self._silent = 0  # bytes that came since a header, a part of a body or a message ended: the parser keeps them
        self._received = 0
        self._receiving_since: float | None = time.monotonic()  # what opens a connection and says nothing is slow too
        self._blocked_since: float | None = None
        self._ending_since: float | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Refuse the connection where too many are open."""
        super().connection_made(transport)
        if len(self.connections) > self.limits.settings.max_connections:
            self._refuse(503, "Too many connections are open: try again later.")

    def connection_lost(self, exc: Exception | None) -> None:
        """Let nothing be computed for a client that left."""
        self.lost = True
        super().connection_lost(exc)
        if self.awaited:
            self.awaited.cancel()
            self.awaited = None

    def data_received(self, data: bytes) -> None:
        """Take data, of which the parser may keep only so much to itself."""
        if self.transport.is_closing():
            return
        if self._receiving_since is None:
            self._receiving_since, self._received = time.monotonic(), 0
        self._received += len(data)
        self._silent += len(data)
        self._unset_keepalive_if_required()
        left: list[Any] = [memoryview(data)]
        try:
            while left:
                part = left.pop()
                try:
                    self.parser.feed_data(part)
                except httptools.HttpParserUpgrade as stopped:
                    if self._upgrading:
                        left += [part[stopped.args[0] :], self._without_upgrade()]
        except httptools.HttpParserError:
            self.send_400_response("Invalid HTTP request received.")
        if self._whole:
            self._go_the_long_way(self._whole)
        if self._silent > MAX_HEADER and not self.transport.is_closing():  # a field without end
            self._refuse_field()

    def _without_upgrade(self) -> bytes:
        """Return the header of a request that asks for another protocol as if it did not, for a parser of its own.

        HTTP allows that, and Java's client asks so by default. The parser would take the body for that protocol's.
        """
        parser: Any = self.parser
        lines = [b"%s %s HTTP/%s" % (parser.get_method(), self.url, parser.get_http_version().encode())]
        lines += [b"%s: %s" % field for field in self.headers if field[0] != b"upgrade"]
        self._upgrading, self.parser = False, httptools.HttpRequestParser(self)
        self.parser.set_dangerous_leniencies(lenient_data_after_close=True)  # as uvicorn does
        return b"\r\n".join((*lines, b"", b""))

    def on_message_begin(self) -> None:
        """Begin a request."""
        super().on_message_begin()
        if self._receiving_since is None:  # behind another request in the same data, of which it has some
            self._receiving_since, self._received = time.monotonic(), 1
        self._unset_keepalive_if_required()  # of an answer in the same data
        self.scope[CONNECTION] = self  # type: ignore[literal-required]
        self._fields, self._in_body = 0, False

    def on_url(self, url: bytes) -> None:
        """Take a part of its URL."""
        self._count(len(url))
        super().on_url(url)

    def on_header(self, name: bytes, value: bytes) -> None:
        """Take a field of its header. Those of a trailer are dropped: nothing here reads one."""
        self._count(len(name) + len(value) + 4)  # and a colon, a space, and the end of the line
        if not self._in_body:
            super().on_header(name, value)

    def _count(self, size: int) -> None:
        self._fields += size
        if self._fields > MAX_HEADER:
            raise _TooLong  # uvicorn calls `send_400_response`

    def on_headers_complete(self) -> None:
        """Begin its body."""
        self._in_body, self._silent = True, 0
        self._upgrading = self.parser.should_upgrade() and any(name == b"upgrade" for name, _ in self.headers)
        if self._upgrading:  # it begins again, see `data_received`
            return
        found = _INFER.fullmatch(self.url)
        if found and self._may_come_whole():
            parser: Any = self.parser
            self.scope["method"], self.scope["path"] = "POST", self.url.decode()
            target = found[1].decode(), found[2].decode() if found[2] else None
            keep_alive = parser.get_http_version() != "1.0" and parser.should_keep_alive()
            self._whole = Whole(self.limits, self, target, keep_alive)
        else:
            self._begin_the_long_way()

    def _may_come_whole(self) -> bool:
        cycle, parser = self.cycle, cast(Any, self.parser)
        return (
            parser.get_method() == b"POST"
            and (cycle is None or cycle.response_complete)
            and not self.flow.write_paused  # by a client that takes no answers: the long way waits for it
            and not self.transport.is_closing()
            and not self.limits.settings.allow_origins  # CORS adds headers to what is sent the long way
        )

    def _begin_the_long_way(self) -> None:
        scope = self.scope
        super().on_headers_complete()
        scope[CYCLE] = self.cycle  # type: ignore[literal-required]

    def _go_the_long_way(self, whole: Whole) -> None:
        """Hand a request to ASGI after all: more of it is still to come."""
        self._whole = None
        if self.transport.is_closing():  # what came is not HTTP
            return
        self._begin_the_long_way()
        if whole.body:
            super().on_body(whole.body)

    async def respond(self, scope: Scope, status: int, headers: Headers, body: bytes) -> None:
        """Answer a request in one piece: ASGI's two messages cost more than reading the request does.

        Args:
            scope: of the request.
            status: of the answer.
            headers: of the answer, besides the date.
            body: of the answer.
        """
        cycle = scope[CYCLE]
        if self.flow.write_paused and not cycle.disconnected:
            await self.flow.drain()
        if not cycle.disconnected:
            cycle.waiting_for_100_continue = False
            self.write(cycle, status, headers, body)
            cycle.message_event.set()

    def write(self, cycle: RequestResponseCycle | Whole, status: int, headers: Headers, body: bytes) -> None:
        """Write the answer to the request of `cycle`, and begin the next one that waits."""
        lines = [STATUS_LINE[status]]
        for name, value in (*self.server_state.default_headers, *headers):
            lines += (name, b": ", value, b"\r\n")
        if self.limits.draining or not cycle.keep_alive:
            cycle.keep_alive = False
            lines.append(b"connection: close\r\n")
        cycle.response_started = cycle.response_complete = True
        self.transport.write(b"".join((*lines, b"\r\n", body)))
        if not cycle.keep_alive:
            self.transport.close()
        self.on_response_complete()

    def on_body(self, body: bytes) -> None:
        """Take a part of its body."""
        self._silent = 0
        if self._whole:
            self._whole.body += body
            return
        super().on_body(body)
        if self.cycle.response_complete and self._received > 2 * self.limits.settings.max_body:
            self.transport.abort()  # it was answered, and does not stop sending

    def on_message_complete(self) -> None:
        """End it: from now on the client waits, not the server."""
        if self._upgrading:
            return
        self._silent = 0
        whole, self._whole = self._whole, None
        if whole:
            self.cycle = whole  # type: ignore[assignment]
            whole.ask()
        else:
            super().on_message_complete()
            if not self.pipeline and not self.transport.is_closing():
                self.flow.resume_reading()  # uvicorn paused it within a long body: whether the client leaves is read
        self._receiving_since, self._received = None, 0

    def pause_writing(self) -> None:
        """Note since when the client takes nothing."""
        super().pause_writing()
        self._blocked_since = time.monotonic()

    def resume_writing(self) -> None:
        """Note that it takes what is written again."""
        super().resume_writing()
        self._blocked_since = None

    def send_400_response(self, msg: str) -> None:
        """Answer what is not HTTP as the protocol answers errors; called by uvicorn, also where a limit was passed."""
        if self._fields > MAX_HEADER:
            self._refuse_field()
        else:
            self._refuse(400, msg)

    def _refuse_field(self) -> None:
        self._refuse(431, f"The header, or the trailer behind the body, is longer than {MAX_HEADER:,} bytes.")

    def shutdown(self) -> None:
        """End the connection once what it has begun to send is answered; called by uvicorn at its end."""
        idle = self.cycle is None or self.cycle.response_complete
        if idle and self._receiving_since is not None:  # new, or within a request: the answer will close it
            self._ending_since = time.monotonic()
        else:
            super().shutdown()

    def sweep(self, now: float) -> None:
        """End the connection if its client takes too long."""
        allowed = self.limits.settings.receive_timeout
        if self.pipeline and self._receiving_since is not None:  # it is behind others, and is read on after them
            self._receiving_since = now
        if self.transport.is_closing():  # what was written is not taken
            self._blocked_since = self._blocked_since or now
        if self._blocked_since is not None and now - self._blocked_since > allowed:
            self.transport.abort()
        elif self._ending_since is not None and not self._received and now - self._ending_since > LAST_CHANCE:
            self.transport.close()
        elif self._receiving_since is not None and not self.transport.is_closing():
            busy = self.cycle is not None and not self.cycle.response_complete and not self.cycle.more_body
            if not busy and now - self._receiving_since > allowed + self._received / MIN_RATE:
                self._refuse(408, "The request took too long to arrive.")

    def _refuse(self, status: int, message: str) -> None:
        """Answer with an error, unless an answer has begun, and close."""
        if self.cycle is None or self.cycle.response_complete or not self.cycle.response_started:
            body = orjson.dumps({"error": message})
            head = b"content-type: application/json\r\ncontent-length: %d\r\nconnection: close\r\n\r\n" % len(body)
            self.transport.write(STATUS_LINE[status] + head + body)
        self.limits.metrics.requests.labels("refused", status).inc()
        self.transport.close()


def limited(app: App) -> type[Connection]:
    """Return the class of connections to `app`."""
    return type("LimitedConnection", (Connection,), {"limits": app})


async def sweep(connections: set[Any]) -> None:
    """Look for connections whose time is over, for ever."""
    while True:
        await asyncio.sleep(SWEEP)
        now = time.monotonic()
        for connection in list(connections):
            connection.sweep(now)
