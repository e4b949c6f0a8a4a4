"""The pictures of a folder or a CSV, decoded once and kept in a cache."""

from __future__ import annotations

import contextlib
import json
import logging
import os
from collections.abc import Callable, Generator, Iterable
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path

import numpy as np

from ..runtime import parallel
from ..runtime.contract import Contract
from ..runtime.errors import OutputError
from ..runtime.files import explained, lock, make_folder, remove_leftovers, write_file
from ..runtime.labelled import Entry, Listing
from ..runtime.machine import usable_cpus

log = logging.getLogger("edgecifar")

CACHE_VERSION = 2
"""Version of the cache's files. Raise it when `load_picture` gives other pixels: older caches are then not read."""


@dataclass(frozen=True)
class Pictures:
    """Every picture of a listing, decoded.

    Attributes:
        listing: the files, in the order of the rows.
        images: uint8 [N, size, size, 3]; on the disk, read as it is needed. A row of a picture that cannot be read is
            undefined.
        digests: SHA-256 of each file; "" where it cannot be read.
        errors: why a picture cannot be read, by its row.
    """

    listing: Listing
    images: np.ndarray
    digests: tuple[str, ...]
    errors: dict[int, str]

    @property
    def entries(self) -> tuple[Entry, ...]:
        """The files."""
        return self.listing.entries


def decode(
    listing: Listing,
    contract: Contract,
    cache: Path,
    *,
    jobs: int | None = None,
    progress: Callable[[int, int], object] = lambda done, total: None,
) -> Pictures:
    """Decode every picture of `listing` by `load_picture`, those of before from the cache.

    A file is decoded again when its size or its modification time is another, or when it could not be read before. The
    cache takes 3 kB a picture. One process writes it at a time; another waits, and decodes what is then left.

    Args:
        listing: the files.
        contract: what they are decoded for.
        cache: the folder for caches.
        jobs: processes; by default as many as there are usable cores.
        progress: called with the number of pictures that are done, and how many there are.

    Raises:
        OutputError: the cache cannot be written.
    """
    steps = json.dumps(contract.as_json()["preprocessing"], sort_keys=True)
    kept_for = f"{CACHE_VERSION}\n{listing.source}\n{contract.picture_shape}\n{steps}"
    key = sha256(kept_for.encode(errors="surrogatepass")).hexdigest()[:16]
    folder = cache / "pictures" / key
    states = [_state(path) for path in _paths(listing, range(len(listing.entries)))]
    jobs = jobs or usable_cpus()
    found = _kept(listing, states, contract, folder, jobs)
    if found is not None:
        progress(len(states), len(states))
        return found
    make_folder(folder)
    with _only_writer(folder):  # what another wrote meanwhile is not decoded again
        return _kept(listing, states, contract, folder, jobs) or _keep(
            listing, states, contract, folder, jobs=jobs, progress=progress
        )


def _paths(listing: Listing, rows: Iterable[int]) -> list[str]:
    """Return where the pictures of these rows are."""
    before = os.path.join(listing.root, "")  # noqa: PTH118
    return [before + listing.entries[row].path for row in rows]


@contextlib.contextmanager
def _only_writer(folder: Path) -> Generator[None]:
    """Keep other processes from writing the cache in `folder`, and wait for one that does."""
    gate = folder / "lock"  # a file, as NFS locks no folders
    with explained(gate):
        gate.touch()
        try:
            let_go = lock(gate)
        except BlockingIOError:
            log.info("Another process decodes these pictures: waiting for it.")
            let_go = lock(gate, wait=True)
    try:
        yield
    finally:
        let_go()


def _kept(listing: Listing, states: list[str], contract: Contract, folder: Path, jobs: int) -> Pictures | None:
    """Return all pictures from the cache in `folder`; None where some must be decoded, or others are there, too."""
    known = _Known.read(folder, contract)
    if [known.row(entry.path, state) for entry, state in zip(listing.entries, states, strict=True)] != list(
        range(len(known.paths))
    ):
        return None
    failed = sorted(known.errors)  # what could not be read may be readable now, though the file is the same
    again = list(parallel.decode_many(_paths(listing, failed), contract, jobs=jobs)) if failed else []
    if any(decoded.picture is not None for decoded in again):
        return None
    errors = {place: str(decoded.error) for place, decoded in zip(failed, again, strict=True)}
    return Pictures(listing, known.images, tuple(known.digests), errors)


def _keep(
    listing: Listing,
    states: list[str],
    contract: Contract,
    folder: Path,
    *,
    jobs: int,
    progress: Callable[[int, int], object],
) -> Pictures:
    """Decode what the cache in `folder` lacks, and replace it by one of exactly these pictures; as `decode` says."""
    known = _Known.read(folder, contract)
    rows = [known.row(entry.path, state) for entry, state in zip(listing.entries, states, strict=True)]
    rows = [None if row in known.errors else row for row in rows]
    missing = [place for place, row in enumerate(rows) if row is None]
    remove_leftovers(folder)
    fresh = parallel.decode_many(_paths(listing, missing), contract, jobs=jobs, with_digest=True)
    digests: list[str] = []
    errors: dict[int, str] = {}

    def fill(path: Path) -> None:
        earlier, unread = known.images.view(np.ndarray), np.zeros(contract.picture_shape, np.uint8)
        header = np.lib.format.header_data_from_array_1_0(unread) | {"shape": (len(rows), *unread.shape)}
        with path.open("wb") as file:  # not through a map of it: where the disk is full, that kills the process
            np.lib.format.write_array_header_1_0(file, header)
            for place, row in enumerate(rows):
                if row is not None:
                    picture = earlier[row]
                    digests.append(known.digests[row])
                else:
                    decoded = next(fresh)
                    picture = unread if decoded.picture is None else decoded.picture
                    digests.append(decoded.sha256)
                    errors.update({} if decoded.error is None else {place: str(decoded.error)})
                file.write(picture.tobytes())
                progress(place + 1, len(rows))

    name = f"{_key(listing, states, missing)}.npy"  # a reader of the old index still finds the old file, which is open
    write_file(folder / name, fill)
    try:  # before the index names it: where nothing can be locked, another process may already write the next one
        images = np.load(folder / name, mmap_mode="r", allow_pickle=False)
    except (OSError, ValueError):
        raise OutputError(f"What was written to {folder} cannot be read back: check the disk.") from None
    paths = [entry.path for entry in listing.entries]
    index = {"images": name, "paths": paths, "states": states, "sha256": digests, "errors": errors}
    write_file(folder / "index.json", json.dumps(index).encode())
    for old in folder.glob("*.npy"):
        if old.name != name:
            with contextlib.suppress(PermissionError):  # on Windows, where another process reads it
                old.unlink(missing_ok=True)
    return Pictures(listing, images, tuple(digests), errors)


@dataclass(frozen=True)
class _Known:
    """What a cache holds: a row of `images` for each of `paths`, and in the same order state and digest of the file.

    Lists of plain values, as a dict for each file would take five times as long to read.

    Attributes:
        paths: relative to the data.
        states: what `_state` said.
        digests: SHA-256, hexadecimal.
        errors: why a picture could not be read, by its row.
        images: uint8 [N, size, size, 3], on the disk.
        rows: of each path.
    """

    paths: list[str]
    states: list[str]
    digests: list[str]
    errors: dict[int, str]
    images: np.ndarray
    rows: dict[str, int]

    @classmethod
    def read(cls, folder: Path, contract: Contract) -> _Known:
        """Return the cache in `folder`; one that is missing or damaged is empty."""
        try:
            index = json.loads((folder / "index.json").read_bytes())
            paths, states, digests = index["paths"], index["states"], index["sha256"]
            errors = {int(row): str(error) for row, error in index["errors"].items()}
            images = np.load(folder / Path(index["images"]).name, mmap_mode="r", allow_pickle=False)
            rows = {path: row for row, path in enumerate(paths)}
            sound = len(rows) == len(paths) == len(states) == len(digests)
            if sound and images.dtype == np.uint8 and images.shape == (len(paths), *contract.picture_shape):
                return cls(paths, states, digests, errors, images, rows)
        except (OSError, ValueError, LookupError, TypeError, AttributeError):
            pass
        return cls([], [], [], {}, np.empty((0, *contract.picture_shape), np.uint8), {})

    def row(self, path: str, state: str) -> int | None:
        """Return the row of a file that has not changed since; None where it must be decoded."""
        row = self.rows.get(path)
        return row if row is not None and state and self.states[row] == state else None


def _state(path: str) -> str:
    """Return size and modification time of a file in a word; "" where it is not there."""
    try:
        found = os.stat(path)  # noqa: PTH116 - a million of these
    except OSError:
        return ""
    return f"{found.st_size} {found.st_mtime_ns}"


def _key(listing: Listing, states: list[str], decoded: list[int]) -> str:
    """Return a name for the pictures: of the files in these states, of which those in the rows `decoded` are new."""
    named = [(entry.path, state) for entry, state in zip(listing.entries, states, strict=True)]
    return sha256(json.dumps([named, decoded]).encode()).hexdigest()[:16]
