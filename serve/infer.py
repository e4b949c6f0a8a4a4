"""A request of the protocol's `infer`: what it names, what it asks for, and its answer; and the short way to it.

Most requests come whole, in one piece of data. Those need no task, no ASGI messages and no wait for a body, which
together cost more than reading them does: `Whole` answers them by calls alone. `App` has the long way for all others.
"""

from __future__ import annotations

import asyncio
import time
from typing import TYPE_CHECKING, Any

import numpy as np

from . import protocol
from .batching import Answer, Ticket
from .errors import RequestError

if TYPE_CHECKING:
    from starlette.types import Scope

    from .app import App
    from .connections import Connection
    from .models import Model

Headers = list[tuple[bytes, bytes]]

Target = tuple[str, str | None]
"""A model's name and its version, if one is asked for."""


def path_of(scope: Scope) -> str:
    """Return the path of a request below the prefix at which a server, or another application, has put this one."""
    path, prefix = scope["path"], scope.get("root_path", "")
    return path[len(prefix) :] if path.startswith(f"{prefix}/") else path


def target_of(method: str, path: str) -> Target | None:
    """Return the model and the version that a request of `infer` names; None for any other request."""
    if method != "POST" or not path.startswith("/v2/models/") or not path.endswith("/infer"):
        return None
    parts = path.split("/")
    if len(parts) == 5:
        return parts[3], None
    return (parts[3], parts[5]) if len(parts) == 7 and parts[4] == "versions" else None


def check_head(headers: dict[bytes, bytes], limit: int) -> None:
    """Refuse a request by its headers.

    Raises:
        RequestError: its body is longer than `limit` bytes, or it is encoded.
    """
    if headers.get(b"content-encoding", b"identity").lower() != b"identity":
        raise RequestError(415, "The body is compressed: send it as it is, without Content-Encoding.")
    length = headers.get(b"content-length", b"0")
    if len(length) > 15 or int(length) > limit:
        raise too_long(limit)


def too_long(limit: int) -> RequestError:
    """Return the answer to a request whose body is longer than `limit` bytes."""
    return RequestError(413, f"The body is longer than {limit:,} bytes: send fewer or smaller ones at once.")


def answer(
    request: protocol.InferRequest, rows: list[np.ndarray], name: str, model: Model
) -> tuple[int, Headers, bytes]:
    """Return status, headers and body of the answer.

    Args:
        request: what is answered.
        rows: all outputs of the model, in the contract's order.
        name: by which the model was asked for.
        model: which it is.
    """
    parts, length = protocol.build_infer(request, rows, (name, model.version), model.contract)
    content = parts[0] if len(parts) == 1 else b"".join(parts)
    kind = protocol.JSON if length is None else protocol.OCTETS
    headers = [(b"content-type", kind), (b"content-length", b"%d" % len(content))]
    if length is not None:
        headers.append((protocol.BINARY_HEADER, b"%d" % length))
    return 200, headers, content


class Whole:
    """A request of `infer` that came whole, and how it stands.

    uvicorn's connection takes it for its own record of a request, `RequestResponseCycle`, and reads and sets the
    attributes that have no underscore.

    Attributes:
        body: what came of it.
    """

    __slots__ = ("_app", "_began", "_connection", "_model", "_request", "_scope", "_target", "_ticket",
                 "body", "disconnected", "keep_alive", "message_event", "more_body", "response_complete",
                 "response_started", "waiting_for_100_continue")  # fmt: skip

    def __init__(self, app: App, connection: Connection, target: Target, keep_alive: bool) -> None:
        """Begin an answer to the connection's present request, which asks for `target`."""
        self._app, self._connection, self._target = app, connection, target
        self._scope: Scope = connection.scope  # type: ignore[assignment]
        self._began = time.monotonic()
        self._model: Model | None = None
        self._request: protocol.InferRequest | None = None
        self._ticket: Ticket | None = None
        self.body = b""
        self.keep_alive = keep_alive
        self.message_event = _NOBODY_WAITS
        self.response_started = self.response_complete = self.disconnected = False
        self.more_body = self.waiting_for_100_continue = False

    def ask(self) -> None:
        """Let the model run on the request, or refuse it."""
        app, scope, body = self._app, self._scope, self.body
        try:
            headers = dict(scope["headers"])
            app.check_key(headers)
            model = app.registry.find(*self._target)
            model.batcher.check_room()  # before the body is looked at: under overload most requests end here
            limit = model.max_body
            check_head(headers, limit)
            if len(body) > limit:
                raise too_long(limit)
            length = headers.get(protocol.BINARY_HEADER)
            self._request = request = model.reader.read(body, length)
            self._ticket = model.batcher.ask(request.images, app.allowed(request.timeout), self._answered)
            self._model = model
            model.hold()
            self._connection.awaited = self
        except Exception as error:
            self._end(*app.refusal(scope, error))

    def cancel(self) -> None:
        """Want no answer any more: the client left."""
        if self._ticket and self._model:
            self._model.batcher.drop(self._ticket)
            self._model.release()
            self._app.metrics.left.inc()
            self._ticket = None
            self._forget()

    def _answered(self, rows: Answer) -> None:
        model, request = self._model, self._request
        assert model is not None and request is not None  # noqa: S101, PT018
        self._connection.awaited = self._ticket = None  # it refers to this: a circle that Python would have to find
        if isinstance(rows, RequestError):
            found = rows.answer()
        else:
            try:
                found = answer(request, rows, self._target[0], model)
            except Exception as error:
                found = self._app.refusal(self._scope, error)
        model.release()
        self._end(*found)

    def _forget(self) -> None:
        """Let go of what was sent: the connection keeps this until its next request."""
        self.body, self._request = b"", None

    def _end(self, status: int, headers: Headers, content: bytes) -> None:
        self._forget()
        self._connection.write(self, status, headers, content)
        self._app.count(self._scope, "infer", status, time.monotonic() - self._began)


_NOBODY_WAITS: Any = asyncio.Event()
"""uvicorn sets it when something happens to a request; nothing waits for it here."""
