"""Many pictures decoded by several processes: in order, in bounded memory, and no picture ends the others.

Processes, not threads: of a small picture most of the time goes by in Python, which runs one thread at a time, and a
picture that crashes a decoder must cost nothing but itself.
"""

from __future__ import annotations

import itertools
import time
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from .errors import EdgecifarError, PictureError, shown
from .pictures import MAX_BYTES, load_picture, read_file

if TYPE_CHECKING:
    from concurrent.futures import Future, ProcessPoolExecutor

    from .contract import Contract

# multiprocessing and concurrent.futures are imported where processes start: one picture needs neither.

FEW = 32
"""Up to as many pictures are decoded by this process: starting others would take longer."""

CHUNK_SECONDS = 0.04
"""How long a process decodes without answering: long enough that sending costs little, and short enough that at the end
none waits long for the last."""

FIRST_CHUNK, LARGEST_CHUNK = 8, 64
"""Pictures that a process is given at once: first, while it is not known how long one takes, and at most."""

LARGEST_ANSWER = 2**22
"""Bytes of the pictures of a chunk, at most: large inputs come in smaller chunks."""

PRELOADED = (__name__, "concurrent.futures.process", "PIL.JpegImagePlugin", "PIL.PngImagePlugin")
"""Modules that are imported once for all processes, where the system lets them begin as copies of one."""

CHUNKS_AHEAD = 3
"""Chunks a process that are decoded or wait to be: they bound the memory."""


@dataclass(frozen=True, slots=True)
class Decoded:
    """A picture file as the model sees it, or why it cannot be read.

    Attributes:
        picture: uint8 [size, size, 3]; None where it cannot be read.
        error: the reason; None where it was read.
        sha256: of the file's bytes, where digests were asked for and the file could be read; else "".
    """

    picture: np.ndarray | None
    error: PictureError | None
    sha256: str = ""


@dataclass(frozen=True)
class _Answer:
    """What a process makes of a chunk: as few objects as possible, since each is pickled.

    Attributes:
        pictures: uint8 [n, size, size, 3], those that could be read, in order.
        errors: by place in the chunk, for those that could not.
        digests: one a picture.
        seconds: how long it took.
    """

    pictures: np.ndarray
    errors: dict[int, PictureError]
    digests: list[str]
    seconds: float

    def unpack(self) -> Iterator[Decoded]:
        pictures = iter(self.pictures)
        for place, digest in enumerate(self.digests):
            error = self.errors.get(place)
            yield Decoded(None if error else next(pictures), error, digest)


@dataclass(frozen=True)
class _Decode:
    """The work of a process on one path; picklable."""

    contract: Contract
    fit: str | None
    with_digest: bool

    def __call__(self, path: str | Path) -> Decoded:
        source: str | Path | bytes = path
        name, digest = None, ""
        if self.with_digest:
            try:
                content = read_file(path)
                source, name = content, str(path)
                digest = sha256(content).hexdigest() if len(content) <= MAX_BYTES else ""
            except (OSError, ValueError):
                pass  # load_picture says why
        try:
            return Decoded(load_picture(source, self.contract, self.fit, name), None, digest)
        except PictureError as error:
            return Decoded(None, error, digest)

    def chunk(self, paths: Sequence[str | Path]) -> _Answer:
        """Decode several."""
        start = time.perf_counter()
        found = [self(path) for path in paths]
        pictures = [decoded.picture for decoded in found if decoded.picture is not None]
        return _Answer(
            np.stack(pictures) if pictures else np.empty((0, *self.contract.picture_shape), np.uint8),
            {place: decoded.error for place, decoded in enumerate(found) if decoded.error},
            [decoded.sha256 for decoded in found],
            time.perf_counter() - start,
        )

    def lost(self, path: str | Path) -> Decoded:
        """Return what stands for a picture whose decoding ended the process."""
        return Decoded(
            None,
            PictureError(
                f"Could not read {shown(str(path))}: the process that decoded it was killed, most often for lack of "
                "memory; leave it out, or scale it down first."
            ),
        )


def decode_many(
    paths: Iterable[str | Path],
    contract: Contract,
    *,
    fit: str | None = None,
    jobs: int = 1,
    with_digest: bool = False,
) -> Iterator[Decoded]:
    """Yield each picture of `paths` as `load_picture` gives it, in order.

    Args:
        paths: files; "-" is standard input. They are taken as they are needed, never all at once.
        contract: what the pictures are decoded for.
        fit: as `load_picture` takes it.
        jobs: processes; with 1, and for few pictures, this process decodes. Programs that ask for more need the guard
            `if __name__ == "__main__":`, as with all of Python's process pools that do not fork.
        with_digest: whether each file's SHA-256 is computed too.

    Raises:
        EdgecifarError: the processes do not start.
    """
    work = _Decode(contract, fit, with_digest)
    iterator = iter(paths)
    first = list(itertools.islice(iterator, FEW + 1)) if jobs > 1 else []
    everything = itertools.chain(first, iterator)
    if len(first) <= FEW:
        yield from map(work, everything)
    else:
        yield from _decode_in_order(work, everything, jobs)


def prepare() -> None:
    """Begin to start what processes are made from, and do not wait for it: for who knows that there are many pictures.

    `decode_many` does so itself; called earlier, it happens while the model loads.
    """
    context = _context()
    if context.get_start_method() == "forkserver":
        from multiprocessing import forkserver

        forkserver.ensure_running()


def _decode_in_order(work: _Decode, paths: Iterator[str | Path], jobs: int) -> Iterator[Decoded]:
    largest = max(1, min(LARGEST_CHUNK, LARGEST_ANSWER // int(np.prod(work.contract.picture_shape))))
    size = min(FIRST_CHUNK, largest)
    pending: deque[tuple[list[str | Path], Future[_Answer]]] = deque()
    pool = _Pool(work, jobs)
    try:
        while True:
            while len(pending) < CHUNKS_AHEAD * jobs and (chunk := list(itertools.islice(paths, size))):
                pending.append((chunk, pool.submit(chunk)))
            if not pending:
                return
            chunk, future = pending.popleft()
            answer = pool.result(future)
            if answer is None:  # a process died, of this chunk or of another, and with it all others
                pool.restart()
                yield from pool.one_by_one(chunk)
                pending = deque((chunk, pool.again(chunk, future)) for chunk, future in pending)
            else:
                yield from answer.unpack()
                each = max(answer.seconds / len(chunk), 1e-6)
                size = max(1, min(largest, int(CHUNK_SECONDS / each)))
    finally:
        pool.stop()


class _Pool:
    """Processes that decode, made anew where one dies."""

    def __init__(self, work: _Decode, jobs: int) -> None:
        self._work, self._jobs = work, jobs
        self._executor = self._start()

    def submit(self, chunk: Sequence[str | Path]) -> Future[_Answer]:
        from concurrent.futures import BrokenExecutor, Future

        future: Future[_Answer] = Future()
        if "-" in chunk:
            future.set_result(self._work.chunk(chunk))  # standard input is this process's
            return future
        try:
            return self._executor.submit(self._work.chunk, chunk)
        except (BrokenExecutor, OSError) as error:  # OSError: a process died while another was being started
            future.set_exception(BrokenExecutor(str(error)))
            return future

    def result(self, future: Future[_Answer]) -> _Answer | None:
        """Wait for an answer, None where a process died."""
        from concurrent.futures import BrokenExecutor

        try:
            return future.result()
        except BrokenExecutor:
            return None

    def again(self, chunk: Sequence[str | Path], future: Future[_Answer]) -> Future[_Answer]:
        """Return the future of a chunk after a restart: the same one if it was answered before."""
        answered = future.done() and not future.cancelled() and future.exception() is None
        return future if answered else self.submit(chunk)

    def one_by_one(self, chunk: Sequence[str | Path]) -> Iterator[Decoded]:
        """Decode pictures of which one may end a process, and report that one."""
        for path in chunk:
            answer = self.result(self.submit([path]))
            if answer is None:
                yield self._work.lost(path)
                self.restart()
            else:
                yield from answer.unpack()

    def restart(self) -> None:
        """Make the processes anew.

        Raises:
            EdgecifarError: they do not start, whatever the picture.
        """
        from concurrent.futures import BrokenExecutor

        self.stop()
        self._executor = self._start()
        try:
            self._executor.submit(int).result()
        except (BrokenExecutor, OSError):
            raise EdgecifarError(
                "The processes that decode pictures do not start: begin your program below 'if __name__ == "
                '"__main__":\', or decode with one job.',
                option="jobs",
            ) from None

    def stop(self) -> None:
        """End the processes: at once where one died, as `kill_workers` of Python 3.14 does, else when they are done.

        A pool of Python 3.11 in which one dies forgets the one that is being started at that moment, and waits for it
        at the program's end for ever. One that is whole must not be killed: it may be reading the half of an answer.
        """
        executor: Any = self._executor
        if executor._broken:
            processes: dict[int, Any] = executor._processes or {}
            for process in list(processes.values()):
                if process.is_alive():
                    process.kill()
        executor.shutdown(wait=False, cancel_futures=True)

    def _start(self) -> ProcessPoolExecutor:
        from concurrent.futures import ProcessPoolExecutor

        return ProcessPoolExecutor(self._jobs, mp_context=_context(), initializer=_begin)


def _context() -> Any:
    """Return how processes start: not forked, since onnxruntime's threads do not live on in a forked child."""
    import multiprocessing

    method = "forkserver" if "forkserver" in multiprocessing.get_all_start_methods() else "spawn"
    context = multiprocessing.get_context(method)
    if method == "forkserver":
        context.set_forkserver_preload([*PRELOADED])
    return context


def _begin() -> None:
    """Begin a process: it ends when its parent does, however that ends, and leaves Ctrl-C to it."""
    import multiprocessing
    import os
    import signal
    import threading

    signal.signal(signal.SIGINT, signal.SIG_IGN)
    parent = multiprocessing.parent_process()

    def follow() -> None:
        if parent is not None:
            parent.join()
            os._exit(1)  # the pool's queue would be waited on for ever

    threading.Thread(target=follow, daemon=True).start()
