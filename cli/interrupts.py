"""Ctrl-C while many pictures are at work."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable, Generator
from contextlib import contextmanager
from types import FrameType


@contextmanager
def heeded() -> Generator[Callable[[], None]]:
    """Yield a function that raises `KeyboardInterrupt` if Ctrl-C was pressed within the block.

    Python raises it where the program happens to be; within a destructor or a callback it prints it and goes on.
    Whoever calls the function from time to time stops then, too.
    """
    if threading.current_thread() is not threading.main_thread():  # only there a handler can be set
        yield lambda: None
        return
    pressed = False
    before = signal.getsignal(signal.SIGINT)

    def note(number: int, frame: FrameType | None) -> None:
        nonlocal pressed
        pressed = True
        if callable(before):
            before(number, frame)

    def check() -> None:
        if pressed:
            raise KeyboardInterrupt

    if not callable(before):  # it is ignored, as of a command in the background
        yield check
        return
    signal.signal(signal.SIGINT, note)
    try:
        yield check
    finally:
        signal.signal(signal.SIGINT, before)
