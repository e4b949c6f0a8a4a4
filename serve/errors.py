"""Failures that have a status of HTTP."""

from __future__ import annotations

import orjson


class RequestError(Exception):
    """A request cannot be answered as it is.

    Attributes:
        status: of HTTP.
        message: what is wrong and what to do; the body says it as `{"error": message}`, as the protocol asks.
        headers: of the response, besides the usual ones.
    """

    def __init__(self, status: int, message: str, headers: tuple[tuple[bytes, bytes], ...] = ()) -> None:
        super().__init__(message)
        self.status, self.message, self.headers = status, message, headers

    def answer(self) -> tuple[int, list[tuple[bytes, bytes]], bytes]:
        """Return status, headers and body of the answer."""
        body = orjson.dumps({"error": self.message})
        own = [(b"content-type", b"application/json"), (b"content-length", b"%d" % len(body))]
        return self.status, [*own, *self.headers], body


class ClientLeft(Exception):  # noqa: N818 - nothing went wrong
    """The client closed the connection: there is nobody to answer."""


def overloaded(what: str) -> RequestError:
    """Return the answer to a request for which there is no room."""
    return RequestError(429, f"{what}: try again later.", headers=((b"retry-after", b"1"),))


def late() -> RequestError:
    """Return the answer to a request whose time is over."""
    return RequestError(504, "The time for this request is over: send fewer at once, or allow it more time.")
