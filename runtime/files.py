"""Files and folders that appear whole or not at all, and their digests."""

from __future__ import annotations

import contextlib
import ctypes
import errno
import hashlib
import os
import re
import shutil
from collections.abc import Callable, Generator
from pathlib import Path

from .errors import OutputError

STAGING = ".edgecifar-partial-"
"""What the names of unfinished files and folders begin with; leftovers of a killed process carry it."""

REPLACED = ".replaced-"
"""What the name of a folder begins with while its successor takes its place, where the two cannot be swapped."""

WINDOWS = os.name == "nt"


_in_use: set[Path] = set()  # files that this process is writing, which are nobody's leftovers


def sha256(path: Path) -> str:
    """Return the SHA-256 of a file as 64 hexadecimal digits."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def _sync(path: Path) -> None:
    """Flush a file or a folder to the disk, so that a rename after it cannot be reordered before it.

    Windows flushes files alone, and only through a descriptor that may write; it has no descriptors of folders.
    """
    if WINDOWS and path.is_dir():
        return
    descriptor = os.open(path, os.O_RDWR if WINDOWS else os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _explain(error: OSError, path: Path) -> OutputError:
    """Say in one sentence why `path` could not be written and what to do."""
    where = path if os.path.isdir(path) else path.parent  # noqa: PTH112 - pathlib raises where it may not look
    reasons = {
        errno.ENOSPC: f"the disk that holds {where} is full: free some space or choose another place",
        errno.EDQUOT: f"the disk quota for {where} is used up: free some space or choose another place",
        errno.EROFS: f"{where} is on a read-only file system: choose another place",
        errno.EACCES: f"{where} may not be written to: change its permissions or choose another place",
        errno.EPERM: f"{where} may not be written to: change its permissions or choose another place",
        errno.ENOENT: f"{where} is not there: make it or choose another place",
        errno.EISDIR: f"{path} is a folder: choose another place",
        errno.ENOTDIR: f"{where} is not a folder: choose another place",
        errno.EEXIST: f"{path} is in the way: move it or choose another place",
    }
    reason = reasons.get(
        error.errno or 0, f"{where} cannot be written to ({error.strerror or error}): choose another place"
    )
    return OutputError(f"Could not write {path.name}: {reason}.")


@contextlib.contextmanager
def explained(path: Path, inside: Path | None = None) -> Generator[None]:
    """Turn an `OSError` of writing `path` into an `OutputError` that says what to do.

    With `inside`, where `path` is made, one that names a file elsewhere is passed on: it is of other work meanwhile.
    """
    try:
        yield
    except OSError as error:
        if inside and error.filename is not None and not Path(str(error.filename)).is_relative_to(inside):
            raise
        raise _explain(error, path) from error


def make_folder(path: Path) -> None:
    """Create `path` and its parents; an `OutputError` says why where that cannot be."""
    with explained(path):
        path.mkdir(parents=True, exist_ok=True)


def write_file(path: Path, content: bytes | Callable[[Path], object]) -> None:
    """Put `content` at `path` in one step, replacing what was there.

    Args:
        path: the file to write; its folder must exist.
        content: the bytes, or a function that writes the file it is given the path of.

    Raises:
        OutputError: the disk is full, the folder is read-only, and so on; `path` is as it was before.
    """
    path = Path(os.path.realpath(path))  # a link stays one, and the file that it leads to is replaced
    staged = _beside(path)
    with explained(path), contextlib.ExitStack() as locked:
        _in_use.add(staged)
        try:
            staged.touch()
            locked.callback(lock(staged))
            if isinstance(content, bytes):
                staged.write_bytes(content)
            else:
                content(staged)
            _sync(staged)
            staged.replace(path)
            _sync(path.parent)
        finally:
            staged.unlink(missing_ok=True)
            _in_use.discard(staged)


def _beside(path: Path) -> Path:
    """Return where `path` is made; in another container a process may have our number, so that this is not enough."""
    return path.with_name(f"{STAGING}{os.getpid()}-{os.urandom(4).hex()}-{path.name}")


@contextlib.contextmanager
def temporary_folder() -> Generator[Path]:
    """Yield an empty folder that is deleted when the block ends; an `OutputError` says where its disk is full."""
    import tempfile  # slow, and seldom needed

    with explained(Path(tempfile.gettempdir())), tempfile.TemporaryDirectory(prefix="edgecifar-") as folder:
        yield Path(folder)


def lock(path: Path, wait: bool = False) -> Callable[[], None]:
    """Keep other processes from taking `path`, a file or a folder, until the function that is returned is called.

    The lock ends with the process. On Windows, and on file systems without locks, nothing is kept from anybody.

    Args:
        path: is there.
        wait: whether to wait for another process that has it.

    Raises:
        BlockingIOError: another process has it, and is not waited for.
        OSError: it cannot be opened.
    """
    if WINDOWS:
        return lambda: None
    import fcntl

    descriptor = os.open(path, os.O_RDONLY if path.is_dir() else os.O_RDWR)  # NFS locks what may be written
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
    except (BlockingIOError, KeyboardInterrupt):
        os.close(descriptor)
        raise
    except OSError:
        pass  # a file system without locks
    return lambda: os.close(descriptor)


def remove_leftovers(folder: Path) -> None:
    """Delete what processes that were killed while writing into `folder` left unfinished.

    A folder that was moved away for its successor, and whose successor did not make it, is put back. What may not be
    deleted stays: none of this keeps anybody from writing there.
    """
    for path in list(folder.iterdir()):
        found = re.fullmatch(f"({re.escape(STAGING)}|{re.escape(REPLACED)})([0-9]+)-(.+)", path.name)
        if not found or _runs(int(found[2])) or path in _in_use or _is_taken(path):
            continue
        with contextlib.suppress(OSError):  # gone meanwhile, or another user's in a folder of all: it stays
            if found[1] == REPLACED and not os.path.lexists(folder / found[3]):
                path.rename(folder / found[3])
            elif path.is_dir() and not path.is_symlink():
                shutil.rmtree(path)
            else:
                path.unlink()


def _is_taken(path: Path) -> bool:
    """Return whether a process holds a path's lock, be it in another container, whose numbers mean nothing here."""
    if path.is_symlink():
        return False
    try:
        lock(path)()
    except OSError:  # a lock, or what only another user may open
        return True
    return False


def _runs(pid: int) -> bool:
    """Return whether another process has this number; our own says nothing, in a container every run may have it."""
    if pid == os.getpid():
        return False
    if WINDOWS:
        return True  # os.kill would end it there
    try:
        os.kill(pid, 0)
    except (ProcessLookupError, OverflowError):
        return False
    except PermissionError:
        return True  # another user's
    return True


def _exchange(one: Path, other: Path) -> bool:
    """Swap what two paths lead to in one step, and return whether that was done.

    Linux alone has the call, and not every file system of it takes it; where it is refused, nothing has changed.
    See renameat2(2).
    """
    ignored, exchange = -100, 2  # AT_FDCWD: both paths are absolute; RENAME_EXCHANGE
    try:
        renameat2 = ctypes.CDLL(None).renameat2
    except (OSError, AttributeError, TypeError):  # not Linux, or a C library that does not know it yet
        return False
    return renameat2(ignored, os.fsencode(one), ignored, os.fsencode(other), exchange) == 0


def remove_folder(path: Path) -> None:
    """Delete a folder, which goes in one step; what is left of it after a kill, `remove_leftovers` deletes.

    Raises:
        OutputError: it may not be deleted.
    """
    gone = _beside(path)
    with explained(path):
        path.rename(gone)
    shutil.rmtree(gone, ignore_errors=True)


def refuse_existing(path: Path, replace: bool, check: Callable[[Path], object] | None = None) -> None:
    """Raise an OutputError where `new_folder`, with the same arguments, would not make or replace what is at `path`."""
    # os.path, as pathlib raises where it may not look; writing says so then.
    if os.path.islink(os.path.realpath(path)):  # noqa: PTH114
        raise OutputError(f"{path} is a link that leads in a circle: choose another place.")
    if not os.path.exists(path):  # noqa: PTH110
        return
    if not replace:
        raise OutputError(f"{path} exists already: choose another folder, or replace it.", option="replace")
    if not path.is_dir():
        raise OutputError(f"{path} is a file: choose another place for the folder.")
    if check:
        check(path)


@contextlib.contextmanager
def new_folder(path: Path, replace: bool = False, check: Callable[[Path], object] | None = None) -> Generator[Path]:
    """Yield an empty folder that becomes `path` when the block ends, and vanishes if the block fails.

    Args:
        path: the folder to make.
        replace: whether an existing `path` may be replaced. It stays until the new one is complete, and where the
            system can swap two folders there is no moment without one of them; elsewhere a process that is killed
            between two renames leaves the old one under another name, and `remove_leftovers` puts it back.
        check: called with a folder that would be replaced, before the block and after it; it raises an OutputError
            where the folder is none that may be.

    Raises:
        OutputError: `path` exists, before the block or after it, and may not be replaced; or it cannot be written.
    """
    given, path = path, Path(os.path.realpath(path))  # a link stays one, and what it leads to is replaced
    make_folder(path.parent)
    staged, old = _beside(path), path.with_name(f"{REPLACED}{os.getpid()}-{path.name}")
    with explained(path):
        remove_leftovers(path.parent)
        refuse_existing(given, replace, check)
        staged.mkdir()
        let_go = lock(staged)
    try:
        with explained(path, inside=staged):
            yield staged
        with explained(path):
            for file in sorted(staged.rglob("*")):
                _sync(file)
            _sync(staged)
            refuse_existing(path, replace, check)  # it may have come meanwhile
            if not path.exists():
                staged.rename(path)
            elif not _exchange(staged, path):
                path.rename(old)  # a folder that is not empty cannot be replaced in one rename
                staged.rename(path)
            _sync(path.parent)
    except BaseException:
        if old.exists() and not path.exists():
            old.rename(path)
        raise
    finally:
        let_go()
        shutil.rmtree(staged, ignore_errors=True)
        shutil.rmtree(old, ignore_errors=True)
