"""A folder or a CSV of labelled pictures as a data set: decoded once, split by content, kept in a cache."""

from __future__ import annotations

import contextlib
import json
import logging
import os
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from hashlib import sha256
from pathlib import Path
from typing import Any

import numpy as np

from ..runtime import parallel
from ..runtime.contract import Contract, Preprocessing
from ..runtime.errors import DataError, OutputError
from ..runtime.files import make_folder, remove_leftovers, write_file
from ..runtime.labelled import Entry, Listing, some
from ..runtime.machine import usable_cpus
from ..runtime.splitting import assign_splits
from .net import INPUT_SIZE

log = logging.getLogger("edgecifar")

CACHE_VERSION = 2
"""Version of the cache's files. Raise it when `load_picture` gives other pixels: older caches are then not read."""


@dataclass(frozen=True)
class FolderOptions:
    """How a folder or a CSV becomes a data set.

    Attributes:
        fit: how a picture is made square, as `load_picture` takes it.
        val: share of the pictures that are held out for decisions, where no such split is given: of all pictures, or of
            those of the training split.
        test: share of the pictures that are tested on, where no split is given.
        strict: whether a picture that cannot be read is an error.
    """

    fit: str = "crop"
    val: float = 0.1
    test: float = 0.1
    strict: bool = False

    @classmethod
    def recorded(cls, origin: Mapping[str, Any]) -> FolderOptions | None:
        """Return the options that a run was trained with, of what `describe` returned; None where there was no folder.

        Raises:
            DataError: they are not options that this version knows.
        """
        if not origin:
            return None
        try:
            return cls(**origin["options"])
        except (LookupError, TypeError) as error:
            raise DataError(f"The run does not say how its pictures were split ({error}): train again.") from None


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


@dataclass(frozen=True)
class SplitPictures:
    """Decoded pictures and the split of each.

    Attributes:
        pictures: every picture of a listing.
        splits: of `labelled.SPLITS`, in the order of the rows; None where a picture cannot be read.
    """

    pictures: Pictures
    splits: tuple[str | None, ...]

    @property
    def tested(self) -> list[str]:
        """The files that are tested on, relative to the data, in the order of `Dataset.test_images`."""
        named = zip(self.pictures.entries, self.splits, strict=True)
        return [entry.path for entry, split in named if split == "test"]

    def would_hold(self, folder: Path) -> bool:
        """Return whether `folder`, to be made, lies among the classes, as one of them for the next training."""
        listing = self.pictures.listing
        return listing.layout != "csv" and folder.resolve().is_relative_to(listing.root.resolve())


def contract_of(labels: Sequence[str], fit: str) -> Contract:
    """Return the contract of a net for these classes.

    Raises:
        DataError: they cannot be a contract's labels.
    """
    try:
        return Contract(tuple(labels), INPUT_SIZE, Preprocessing(fit=fit))
    except ValueError as error:
        raise DataError(f"The classes cannot be used: {error}.") from None


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
    cache takes 3 kB a picture.

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
    before = os.path.join(listing.root, "")  # noqa: PTH118
    states = [_state(before + entry.path) for entry in listing.entries]
    known = _Known.read(folder, contract)
    rows = [known.row(entry.path, state) for entry, state in zip(listing.entries, states, strict=True)]
    missing = [place for place, row in enumerate(rows) if row is None]
    failed = sorted(known.errors)  # what could not be read may be readable now, though the file is the same
    if not missing and rows == list(range(len(known.paths))):
        paths = [before + listing.entries[place].path for place in failed]
        again = list(parallel.decode_many(paths, contract, jobs=jobs or usable_cpus())) if paths else []
        if all(decoded.picture is None for decoded in again):
            progress(len(rows), len(rows))
            errors = {place: str(decoded.error) for place, decoded in zip(failed, again, strict=True)}
            return Pictures(listing, known.images, tuple(known.digests), errors)
    rows = [None if row in known.errors else row for row in rows]
    missing = [place for place, row in enumerate(rows) if row is None]
    make_folder(folder)
    remove_leftovers(folder)
    fresh = parallel.decode_many(
        [before + listing.entries[place].path for place in missing],
        contract,
        jobs=jobs or usable_cpus(),
        with_digest=True,
    )
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
    paths = [entry.path for entry in listing.entries]
    index = {"images": name, "paths": paths, "states": states, "sha256": digests, "errors": errors}
    write_file(folder / "index.json", json.dumps(index).encode())
    known = _Known.read(folder, contract)
    for old in folder.glob("*.npy"):
        if old.name != name:
            with contextlib.suppress(PermissionError):  # on Windows, where another process reads it
                old.unlink(missing_ok=True)
    if known.paths != paths:
        raise OutputError(f"What was written to {folder} cannot be read back: check the disk.")
    return Pictures(listing, known.images, tuple(known.digests), known.errors)


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


def splits_of(pictures: Pictures, options: FolderOptions) -> list[str | None]:
    """Return the split of each picture; None where it cannot be read.

    What the data does not give is decided by content: the split of each picture, or, where only the validation split is
    missing, that of each picture of the training split.

    Raises:
        DataError: the shares leave nothing to train on.
    """
    given = [entry.split for entry in pictures.entries]
    test = 0.0 if pictures.listing.has_splits else options.test
    groups = [entry.group for entry in pictures.entries]
    named = zip(pictures.digests, pictures.entries, strict=True)
    digests = [digest or entry.name_digest for digest, entry in named]
    try:
        made = assign_splits(digests, groups, options.val, test)
    except ValueError as error:
        raise DataError(f"The pictures cannot be split: {error}.") from None
    if "val" in given:
        made = given
    elif pictures.listing.has_splits:
        made = _with_some_to_train_on(pictures, given, made)
    splits = [own if split in (None, "train") else split for split, own in zip(given, made, strict=True)]
    return [None if row in pictures.errors else split for row, split in enumerate(splits)]


def _with_some_to_train_on(pictures: Pictures, given: Sequence[str | None], made: Sequence[str]) -> list[str]:
    """Return `made` with the pictures of a class, and their groups and copies, in train where it would hold out all."""
    rows = [row for row, split in enumerate(given) if split == "train" and row not in pictures.errors]
    left = {pictures.entries[row].label for row in rows if made[row] == "train"}
    starved = [row for row in rows if pictures.entries[row].label not in left]
    joined = {pictures.digests[row] for row in starved}
    joined |= {group for row in starved if (group := pictures.entries[row].group) is not None}
    named = zip(pictures.digests, pictures.entries, made, strict=True)
    return ["train" if joined & {digest, entry.group} else split for digest, entry, split in named]


def check(pictures: Pictures, splits: Sequence[str | None], options: FolderOptions) -> None:
    """Log what is odd about a data set, and refuse one that cannot be trained on.

    Raises:
        DataError: `options.strict`, and a picture cannot be read; or a class has no pictures to train on.
    """
    for remark in pictures.listing.remarks:
        log.warning("%s", remark)
    if pictures.listing.left_out.reasons:
        log.warning("%s.", pictures.listing.left_out)
    unread = [pictures.entries[row].path for row in pictures.errors]
    if unread:
        sentence = f"{len(unread):,} of {len(pictures.entries):,} pictures cannot be read: {some(unread)}"
        if options.strict:
            raise DataError(f"{sentence}; mend or remove them.")
        log.warning("%s; they are left out.", sentence)
    counts = Counter((entry.label, split) for entry, split in zip(pictures.entries, splits, strict=True))
    for label in pictures.listing.labels():
        if not counts[label, "train"]:
            raise DataError(
                f"The class {label} has no pictures to train on: add some, or take the class out of the data."
            )
    untested = [label for label in pictures.listing.labels() if not counts[label, "test"]]
    if untested:
        log.warning("No test pictures of %s: nothing will be known of its accuracy.", some(untested))
    if len(untested) == len(pictures.listing.labels()):
        if pictures.listing.has_splits:
            raise DataError(f"{pictures.listing.source} has no pictures of the split test: add some, of each class.")
        raise DataError(f"{pictures.listing.source} leaves no test pictures: add pictures, or give more to --test.")


def not_trained_on(origin: Mapping[str, Any], held_out: float) -> float | None:
    """Return the share of the pictures that a run was not trained on, where it split them by content itself.

    Such a run was not trained on what another one tests on or holds out if that one's shares, added up, are no larger.
    None where a split was given, or the data set is no folder or CSV.

    Args:
        origin: what `describe` returned.
        held_out: of the recipe; 0 says that the validation split was trained on, too.
    """
    options = origin.get("options", {})
    if not {"val", "test"} <= {*options}:
        return None
    return options["test"] + (options["val"] if held_out else 0.0)


def describe(pictures: Pictures, splits: Sequence[str | None], options: FolderOptions) -> dict[str, Any]:
    """Return what a run records of the data, JSON values: how it was split, and how many pictures each split has."""
    given = {entry.split for entry in pictures.entries}
    made = {"val": "val" not in given, "test": not pictures.listing.has_splits}
    counts: dict[str, dict[str, int]] = {}
    for entry, split in zip(pictures.entries, splits, strict=True):
        if split is not None:
            counts.setdefault(split, {}).setdefault(entry.label, 0)
            counts[split][entry.label] += 1
    return {
        "layout": pictures.listing.layout,
        "options": {name: value for name, value in asdict(options).items() if made.get(name, True)},
        "unreadable": len(pictures.errors),
        "pictures": {split: dict(sorted(found.items())) for split, found in sorted(counts.items())},
    }
