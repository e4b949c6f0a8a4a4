"""Threads that decode uploads: each job until its deadline, or until nobody wants its pictures any more."""

from __future__ import annotations

import asyncio
import contextlib
import time
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING

from ..runtime.errors import PictureError
from . import classify
from .errors import late, overloaded

if TYPE_CHECKING:
    import numpy as np

    from ..runtime.contract import Contract
    from .metrics import Metrics
    from .settings import Settings

Pictures = list[tuple[str, bytes]]
"""Name and content of each picture of an upload."""

Decoded = tuple[Pictures, "list[np.ndarray | PictureError]"]
"""The pictures of an upload, and each as uint8 [size, size, 3], or why it cannot be read."""


class Upload:
    """A body that a thread decodes.

    Attributes:
        body: of the request; empty once nobody wants it.
        content_type: of the request.
        fit: how a picture is made square; None: as in training.
        deadline: on `time.monotonic`'s clock.
        over: whether nobody wants it any more.
    """

    def __init__(self, body: bytes, content_type: str, fit: str | None, deadline: float) -> None:
        self.body, self.content_type, self.fit, self.deadline = body, content_type, fit, deadline
        self.over = False

    def drop(self) -> None:
        """Decode no more of it, and let go of it: the queue of the threads may keep this for a while."""
        self.over, self.body = True, b""

    def check(self) -> None:
        """Raise what ends the work on it.

        Raises:
            RequestError: 504, its time is over, or nobody wants it.
        """
        if self.over or time.monotonic() > self.deadline:
            raise late()


class Decoder:
    """Decodes uploads on threads. Its methods belong to the event loop's thread.

    Attributes:
        buffered: bytes of the bodies that wait or are being decoded.
    """

    def __init__(self, settings: Settings, metrics: Metrics) -> None:
        """Start threads when they are needed; `decoders`, `queue`, `max_images`, `max_pixels` are used."""
        self._settings, self._metrics = settings, metrics
        self._pool = ThreadPoolExecutor(settings.decoders, thread_name_prefix="decode")
        self._uploads, self.buffered = 0, 0

    @property
    def busy(self) -> bool:
        """Whether an upload waits or is being decoded."""
        return self._uploads > 0

    def check_room(self) -> None:
        """Raise what a request is answered that would exceed the queue."""
        if self._uploads >= self._settings.queue:
            raise overloaded("Too many pictures wait to be decoded")

    def submit(self, upload: Upload, contract: Contract) -> asyncio.Future[Decoded]:
        """Return the future pictures of `upload`; whoever cancels it wants none.

        A picture that is being decoded when it is cancelled is decoded to its end, and counts as long.
        """
        loop, size = asyncio.get_running_loop(), len(upload.body)

        def ended() -> None:
            self._uploads -= 1
            self.buffered -= size

        def tell(_: object) -> None:
            with contextlib.suppress(RuntimeError):  # the loop is closed: nobody counts any more
                loop.call_soon_threadsafe(ended)

        self._uploads += 1
        self.buffered += size
        work = self._pool.submit(self._decode, upload, contract)
        work.add_done_callback(tell)
        future = asyncio.wrap_future(work)
        future.add_done_callback(lambda _: upload.drop())
        return future

    def close(self) -> None:
        """End the threads, each after the picture that it decodes, which nobody wants."""
        self._pool.shutdown(wait=False, cancel_futures=True)

    def _decode(self, upload: Upload, contract: Contract) -> Decoded:
        upload.check()
        pictures = classify.split(upload.body, upload.content_type, self._settings)
        return pictures, [self._load(picture, upload, contract) for picture in pictures]

    def _load(self, picture: tuple[str, bytes], upload: Upload, contract: Contract) -> np.ndarray | PictureError:
        from ..runtime.pictures import load_picture

        upload.check()
        (name, content), began = picture, time.monotonic()
        try:
            return load_picture(content, contract, fit=upload.fit, name=name, max_pixels=self._settings.max_pixels)
        except PictureError as error:
            self._metrics.bad_pictures.inc()
            return error
        finally:
            self._metrics.decode_seconds.observe(time.monotonic() - began)
