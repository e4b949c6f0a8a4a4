"""What an operator may choose: sizes, limits and times, each with a default that suits one small machine."""

from __future__ import annotations

import hashlib
import hmac
import os
import stat
from dataclasses import dataclass
from pathlib import Path

from ..runtime.errors import InputError

MIN_KEY_LENGTH = 16
"""Characters of an API key: fewer can be guessed over a network."""

MOST_DECODERS = 4
"""Threads that decode unless an operator asks for more: each takes as much memory as the largest picture, so that a
machine of many cores would need tens of gigabytes."""


def default_decoders(cpus: int) -> int:
    """Return how many threads decode on a machine of `cpus` cores: one is left to HTTP."""
    return max(1, min(MOST_DECODERS, cpus - 1))


@dataclass(frozen=True)
class Settings:
    """Limits of the server. Times are in seconds.

    Attributes:
        max_batch: images that are run at once.
        max_delay: how long an image waits for others to be run with it; 0: never, a batch is what waits already.
        queue: requests of a model that may wait or run; what comes beyond is answered 429. A batch takes half of them
            at most.
        queue_images: images of a model that may wait or run. Where fewer are there, a request of any size is taken.
        max_images: images or pictures of one request.
        max_body: bytes of a request's body.
        max_buffered: bytes of all bodies that are being received or decoded.
        max_pixels: width times height of a picture that is decoded.
        decoders: threads that decode pictures; docs/deploy.md says how much memory each takes.
        timeout: within which an answer is given once a request is complete; a request may ask for less.
        receive_timeout: within which a request's header must be complete; a body gets a second more for each
            `MIN_RATE` bytes that came.
        keep_alive: how long a connection may be idle between two requests.
        max_connections: connections that are open at once.
        drain: for how long after SIGTERM new requests are still answered, so that balancers can notice.
        unsure_below: an answer whose probability is lower is counted as unsure.
        open_metrics: whether /metrics needs no key.
        log_requests: whether each request is logged.
        allow_origins: origins of web pages that may ask, for CORS; "*" is any.
    """

    max_batch: int = 64
    max_delay: float = 0.0
    queue: int = 32
    queue_images: int = 1024
    max_images: int = 256
    max_body: int = 32 << 20
    max_buffered: int = 256 << 20
    max_pixels: int = 25_000_000
    decoders: int = 2
    timeout: float = 10.0
    receive_timeout: float = 10.0
    keep_alive: float = 60.0
    max_connections: int = 512
    drain: float = 1.0
    unsure_below: float = 0.5
    open_metrics: bool = False
    log_requests: bool = False
    allow_origins: tuple[str, ...] = ()


class ApiKeys:
    """The keys of a file, one a line; empty lines and those that begin with # are none.

    Only their digests are kept, and all are compared in constant time.
    """

    def __init__(self, path: str | Path) -> None:
        """Read the keys.

        Raises:
            InputError: the file cannot be read, holds no key, or one that is too short or is not printable ASCII.
        """
        self.path = Path(path)
        try:
            lines = self.path.read_text("ascii").splitlines()
            self.exposed = os.name == "posix" and bool(self.path.stat().st_mode & (stat.S_IROTH | stat.S_IWOTH))
        except (OSError, UnicodeDecodeError) as error:
            reason, remedy = "it is not ASCII", "write one key a line"
            if isinstance(error, OSError):
                reason, remedy = f"{error.strerror}", "check the path and its permissions"
            raise InputError(f"The API key file {path} cannot be read ({reason}): {remedy}.") from None
        keys = [line.strip() for line in lines if line.strip() and not line.lstrip().startswith("#")]
        if not keys or any(len(key) < MIN_KEY_LENGTH or not key.isprintable() or " " in key for key in keys):
            raise InputError(
                f"The API key file {path} needs keys of at least {MIN_KEY_LENGTH} printable characters, one a line: "
                "make one with 'openssl rand -hex 32'."
            )
        self._digests = [hashlib.sha256(key.encode()).digest() for key in keys]

    def allow(self, headers: dict[bytes, bytes]) -> bool:
        """Whether `headers` carry one of the keys: `Authorization: Bearer KEY` or `X-API-Key: KEY`."""
        scheme, _, bearer = headers.get(b"authorization", b"").partition(b" ")
        given = [bearer.strip() if scheme.lower() == b"bearer" else b"", headers.get(b"x-api-key", b"")]
        digests = [hashlib.sha256(key).digest() for key in given]
        pairs = [(digest, known) for digest in digests for known in self._digests]
        return sum(hmac.compare_digest(*pair) for pair in pairs) > 0  # unlike any, it compares all
