"""Many pictures decoded by several processes: in order, in bounded memory, and no picture ends the others."""

from __future__ import annotations

import itertools
import signal
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from . import files
from .contract import Contract
from .errors import PictureError
from .pictures import load_picture

CHUNK = 32
"""Pictures that a process is given at once: sending them one by one takes longer than decoding small ones."""

CHUNKS_AHEAD = 3
"""Chunks a process that are decoded or wait to be, beyond the one that is taken: they bound the memory."""


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
class _Decode:
    """The work of a process on one path; picklable."""

    contract: Contract
    fit: str | None
    with_digest: bool

    def __call__(self, path: str | Path) -> Decoded:
        digest = ""
        try:
            if self.with_digest and Path(path).is_file():
                digest = files.sha256(Path(path))
            return Decoded(load_picture(path, self.contract, self.fit), None, digest)
        except PictureError as error:
            return Decoded(None, error, digest)
        except OSError as error:
            return Decoded(None, PictureError(f"Could not read {path}: {error.strerror or error}."), digest)

    def lost(self, path: str | Path) -> Decoded:
        """Return what stands for a picture whose decoding killed the process."""
        shown = str(path) if str(path).isprintable() else ascii(str(path))
        return Decoded(
            None,
            PictureError(
                f"Could not read {shown}: the process that decoded it was killed, most often for want of memory; "
                "leave it out, or scale it down first."
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
        paths: files; taken as they are needed, never all at once.
        contract: what the pictures are decoded for.
        fit: as `load_picture` takes it.
        jobs: processes; with 1 this process decodes. Programs that ask for more need the guard
            `if __name__ == "__main__":`, as with all of Python's process pools that do not fork.
        with_digest: whether each file's SHA-256 is computed too.
    """
    work = _Decode(contract, fit, with_digest)
    if jobs <= 1:
        yield from map(work, paths)
        return
    iterator = iter(paths)
    if len(first := list(itertools.islice(iterator, CHUNK))) < CHUNK:  # starting processes would take longer
        yield from map(work, first)
        return
    chunks = iter(lambda: list(itertools.islice(iterator, CHUNK)), [])
    yield from _map_in_order(work, itertools.chain([first], chunks), jobs)


def _map_in_order(work: _Decode, chunks: Iterator[list[Any]], jobs: int) -> Iterator[Decoded]:
    pending: deque[tuple[list[Any], Future[list[Decoded]]]] = deque()
    pool = _start(jobs)
    try:
        while True:
            while len(pending) <= CHUNKS_AHEAD * jobs and (chunk := next(chunks, None)):
                pending.append((chunk, pool.submit(_run, work, chunk)))
            if not pending:
                return
            chunk, future = pending.popleft()
            try:
                yield from future.result()
            except BrokenProcessPool:  # a process died: of this chunk or of another, all of them are lost
                pool.shutdown(wait=False)
                pool = _start(jobs)
                for path in chunk:
                    try:
                        yield from pool.submit(_run, work, [path]).result()
                    except BrokenProcessPool:
                        yield work.lost(path)
                        pool.shutdown(wait=False)
                        pool = _start(jobs)
                pending = deque((waiting, pool.submit(_run, work, waiting)) for waiting, _ in pending)
    finally:
        pool.shutdown(wait=False, cancel_futures=True)


def _run(work: Callable[[Any], Decoded], items: list[Any]) -> list[Decoded]:
    return [work(item) for item in items]


def _start(jobs: int) -> ProcessPoolExecutor:
    import multiprocessing

    # Not forked: onnxruntime's threads, which the parent may have, do not live on in a forked child.
    methods = multiprocessing.get_all_start_methods()
    context = multiprocessing.get_context("forkserver" if "forkserver" in methods else "spawn")
    if context.get_start_method() == "forkserver":
        context.set_forkserver_preload([__name__])
    return ProcessPoolExecutor(jobs, mp_context=context, initializer=_ignore_interrupts)


def _ignore_interrupts() -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the whole group: the parent ends the others
