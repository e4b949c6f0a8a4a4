"""Labelled pictures on the disk: which file has which label, and which split it belongs to. Decodes nothing.

Three layouts are recognised:

    FOLDER/CLASS/**                     each folder is a class; the split is made by `assign_splits`
    FOLDER/{train,val,test}/CLASS/**    the split is given; val may be missing
    FILE.csv                            columns path and label, optionally split and group; paths are relative to it

Nothing is ever written to the folder.
"""

from __future__ import annotations

import csv
import os
import unicodedata
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from hashlib import sha256
from pathlib import Path, PurePosixPath

from .contract import MAX_CLASSES, MAX_LABEL_LENGTH, MIN_CLASSES
from .errors import DataError

SPLITS = ("train", "val", "test")
"""Names of the splits, and of their folders. Pictures in val are held out of training for decisions."""

SPLIT_NAMES = {"train": "train", "training": "train", "val": "val", "valid": "val", "validation": "val", "test": "test"}
"""What folders and the CSV's column may call a split, in lower case, and the split that it means."""

COLUMNS = ("path", "label", "split", "group")
"""Columns of a CSV that are read; only the first two are required."""

MAX_NAMED = 5
"""How many names a message lists; of the rest it gives the number."""


@dataclass(frozen=True)
class Entry:
    """One labelled picture.

    Attributes:
        path: relative to the listing's root, with "/" between the parts.
        label: its class.
        split: one of `SPLITS`, or None where `assign_splits` decides.
        group: pictures of one group never stand in two splits; None where it stands for itself.
    """

    path: str
    label: str
    split: str | None = None
    group: str | None = None


@dataclass(frozen=True)
class Listing:
    """The labelled pictures of a folder or a CSV, in the order of their paths.

    Attributes:
        root: the folder that paths are relative to.
        source: the folder or the CSV that was named.
        layout: "folders", "splits" or "csv".
        entries: the pictures.
        left_out: how many files were left out, by reason.
        remarks: sentences on what looks odd and is no error, such as a class whose pictures lie in subfolders only.
    """

    root: Path
    source: Path
    layout: str
    entries: tuple[Entry, ...]
    left_out: Counter[str] = field(default_factory=Counter)
    remarks: tuple[str, ...] = ()

    @property
    def has_splits(self) -> bool:
        """Whether the split is given."""
        return self.entries[0].split is not None

    def labels(self) -> tuple[str, ...]:
        """Return the classes in sorted order: those of the training split where the split is given, else all.

        Raises:
            DataError: a class is in another split only.
        """
        if not self.has_splits:
            return tuple(sorted({entry.label for entry in self.entries}))
        trained = {entry.label for entry in self.entries if entry.split == "train"}
        for entry in self.entries:
            if entry.label not in trained:
                raise DataError(
                    f"The class {entry.label} has pictures in {entry.split} and none in train: add some to train, or "
                    f"take the class out of {entry.split}."
                )
        return tuple(sorted(trained))


def recognise(path: Path) -> str | None:
    """Return the layout of `path`, "folders", "splits" or "csv"; None where it is a file or folder of another kind.

    Only folder names are looked at, never a picture.

    Raises:
        DataError: there is no such file or folder, or it may not be read.
    """
    if path.is_file():
        return "csv" if path.suffix.lower() == ".csv" else None
    names = [name for name in _subfolders(path) if not name.startswith(".")]
    if not names:
        return None
    return "splits" if _split_folders(names) else "folders"


def read(path: Path) -> Listing:
    """Return the labelled pictures that `path`, a folder or a CSV, holds.

    Raises:
        DataError: it is neither; it has fewer than 2 or more than 1,000 classes; a class has no pictures; two classes
            differ only in case or in unicode form; a CSV lacks a column or a file, or names one outside its folder.
    """
    path = Path(os.path.abspath(path))  # noqa: PTH100 - links are kept: paths are shown as they were given
    layout = recognise(path)
    if layout is None:
        raise DataError(
            f"{path} is not a data set: name a folder with a folder of pictures per class, or a CSV with the columns "
            "path and label."
        )
    listing = _read_csv(path) if layout == "csv" else _read_folders(path, with_splits=layout == "splits")
    _check_classes(listing)
    return listing


def assign_splits(
    digests: Sequence[str], groups: Sequence[str | None] | None = None, val: float = 0.1, test: float = 0.1
) -> list[str]:
    """Return the split of each picture, decided by its own content alone: "train", "val" or "test".

    The SHA-256 of a file, or of its group's name, read as a fraction u in [0, 1), decides: u < test is in test,
    u < test + val in val, the rest in train. So adding pictures moves none, two copies of a file never stand in two
    splits, and the shares hold in expectation. Groups that share a file count as one.

    Args:
        digests: SHA-256 of each file, hexadecimal.
        groups: each picture's group; None where it has none.
        val: share of the validation split, 0 to 1.
        test: share of the test split; the two together are less than 1.

    Raises:
        ValueError: the shares are not between 0 and 1.
    """
    if not (0 <= val < 1 and 0 <= test < 1 and val + test < 1):
        raise ValueError(f"the shares {val:g} for val and {test:g} for test leave nothing to train on")
    keys = [_fraction(digest) for digest in digests]
    if groups is not None:
        keys = _join_groups(keys, digests, groups)
    return ["test" if key < test else "val" if key < test + val else "train" for key in keys]


def _fraction(digest: str) -> float:
    return int(digest[:13], 16) / 16**13  # 52 bits: a float holds them exactly


def _join_groups(keys: list[float], digests: Sequence[str], groups: Sequence[str | None]) -> list[float]:
    """Give all pictures of a group one key, and all groups that share a file too."""
    parent: dict[str, str] = {}

    def find(name: str) -> str:
        while parent.setdefault(name, name) != name:
            parent[name] = name = parent[parent[name]]
        return name

    files = [f"file {digest}" for digest in digests]
    for file, group in zip(files, groups, strict=True):
        if group is not None:
            first, second = sorted((find(f"a group {group}"), find(file)))
            parent[second] = first  # so that what is joined is called by a group's name: "a group" comes before "file"
    fractions = {}
    for file, key in zip(files, keys, strict=True):
        root = find(file)
        fractions[file] = key if root == file else _fraction(sha256(root.encode()).hexdigest())
    return [fractions[file] for file in files]


def _subfolders(path: Path) -> list[str]:
    try:
        return sorted(entry.name for entry in os.scandir(path) if entry.is_dir())
    except FileNotFoundError:
        raise DataError(f"{path} is not there: check the path.") from None
    except NotADirectoryError:
        raise DataError(f"{path} is a file: name a folder or a CSV.") from None
    except OSError as error:
        raise DataError(f"{path} cannot be read ({error.strerror}): check its permissions.") from None


def _split_folders(names: Iterable[str]) -> dict[str, str]:
    """Return the folder of each split, where `names` has a train and a test folder or a train and a val one."""
    found: dict[str, str] = {}
    for name in names:
        if split := SPLIT_NAMES.get(name.lower()):
            found.setdefault(split, name)
    return found if "train" in found and len(found) > 1 else {}


def _read_folders(root: Path, *, with_splits: bool) -> Listing:
    from .sources import Walk, walk

    names = [name for name in _subfolders(root) if not name.startswith(".")]
    parts = list(_split_folders(names).items()) if with_splits else [(None, "")]
    entries: list[Entry] = []
    left_out: Counter[str] = Counter()
    remarks: list[str] = []
    for split, folder in parts:
        classes = [name for name in _subfolders(root / folder) if not name.startswith(".")]
        for label in classes:
            found: Walk = walk(root / folder / label)
            left_out.update(found.left_out)
            paths = [PurePosixPath(Path(picture).relative_to(root)).as_posix() for picture in found.pictures]
            if not paths and split in (None, "train"):
                raise DataError(
                    f"The class {label} has no pictures in {root / folder / label}: add some, or remove the folder."
                )
            entries += [Entry(path, label, split) for path in paths]
            remarks += _nested(root / folder / label, label, paths)
        stray = walk(root / folder, recursive=False)
        if stray.pictures:
            left_out["beside the class folders"] += len(stray.pictures)
            remarks.append(
                f"{len(stray.pictures)} pictures lie beside the class folders in {root / folder} and have no label: "
                f"{_some(Path(picture).name for picture in stray.pictures)}; move them into a class."
            )
    if with_splits:
        used = {folder for _, folder in parts}
        if others := [name for name in names if name not in used]:
            remarks.append(f"{_some(others)} in {root} beside the folders of the splits: not read.")
    if not entries:
        raise DataError(f"There are no pictures in {root}: name a folder with a folder of pictures per class.")
    layout = "splits" if with_splits else "folders"
    return Listing(root, root, layout, tuple(sorted(entries, key=lambda e: e.path)), left_out, tuple(remarks))


def _nested(folder: Path, label: str, paths: list[str]) -> list[str]:
    """Return a remark where all pictures of a class lie in two or more subfolders: these may be the classes."""
    depth = len(PurePosixPath(paths[0]).parts) if paths else 0
    inner = Counter(PurePosixPath(path).parent.name for path in paths)
    own = any(PurePosixPath(path).parent.name == label for path in paths)
    if depth == 0 or own or len(inner) < 2:
        return []
    return [
        f"The class {label} has its pictures in subfolders only ({_some(sorted(inner))}): they are one class; if they "
        f"are several, name {folder} or put each beside the other classes."
    ]


def _read_csv(path: Path) -> Listing:
    root = path.parent
    entries: list[Entry] = []
    missing: list[str] = []
    try:
        with path.open(newline="", encoding="utf-8-sig") as file:
            reader = csv.DictReader(file)
            columns = [name.strip().lower() for name in reader.fieldnames or ()]
            for column in COLUMNS[:2]:
                if column not in columns:
                    raise DataError(
                        f"{path} has no column {column!r} (it has {_some(columns) or 'none'}): its first line must "
                        "name the columns path and label, and may name split and group."
                    )
            reader.fieldnames = columns
            for row in reader:
                entry = _row(row, path, reader.line_num)
                if not (root / entry.path).is_file():
                    missing.append(entry.path)
                entries.append(entry)
    except UnicodeDecodeError:
        raise DataError(f"{path} is not UTF-8 text: save it as CSV in UTF-8.") from None
    except csv.Error as error:
        raise DataError(f"{path} is not a CSV that can be read ({error}): save it again.") from None
    except OSError as error:
        raise DataError(f"{path} cannot be read ({error.strerror}): check its permissions.") from None
    if missing:
        raise DataError(f"{path} names {len(missing)} files that are not there: {_some(missing)}; correct the paths.")
    if not entries:
        raise DataError(f"{path} has no rows: it needs a line per picture below the names of the columns.")
    if len({entry.split is None for entry in entries}) > 1:
        raise DataError(f"{path} gives some rows a split and others none: fill the column split, or remove it.")
    twice = [name for name, count in Counter(entry.path for entry in entries).items() if count > 1]
    if twice:
        raise DataError(f"{path} names {len(twice)} files more than once: {_some(twice)}; keep one row of each.")
    if entries[0].split is not None and not any(entry.split == "train" for entry in entries):
        raise DataError(f"{path} has no rows of the split train: there is nothing to train on.")
    _check_groups(path, entries)
    return Listing(root, path, "csv", tuple(sorted(entries, key=lambda e: e.path)))


def _row(row: dict[str, str | None], path: Path, line: int) -> Entry:
    where = f"{path}, line {line}"
    name, label = (row.get("path") or "").strip(), (row.get("label") or "").strip()
    if None in row:
        raise DataError(f"{where} has more fields than there are columns: quote fields that hold a comma.")
    if not name or not label:
        raise DataError(f"{where} has no {'label' if name else 'path'}: fill it in, or remove the row.")
    plain = PurePosixPath(name.replace("\\", "/"))
    if plain.is_absolute() or ".." in plain.parts or (len(name) > 1 and name[1] == ":"):
        raise DataError(f"{where} names {name}, which is not below the CSV's own folder: use paths relative to it.")
    split = (row.get("split") or "").strip().lower()
    if split and split not in SPLIT_NAMES:
        raise DataError(f"{where} has the split {split!r}: use train, val or test.")
    return Entry(str(plain), label, SPLIT_NAMES[split] if split else None, (row.get("group") or "").strip() or None)


def _check_groups(path: Path, entries: list[Entry]) -> None:
    splits: dict[str, set[str | None]] = defaultdict(set)
    for entry in entries:
        if entry.group:
            splits[entry.group].add(entry.split)
    if torn := [group for group, found in splits.items() if len(found) > 1]:
        raise DataError(
            f"{path} puts {len(torn)} groups into two splits: {_some(torn)}; give all pictures of a group one split."
        )


def _check_classes(listing: Listing) -> None:
    """Raise a `DataError` unless the labels can be a contract's."""
    labels = sorted({entry.label for entry in listing.entries})
    if len(labels) < MIN_CLASSES:
        hint = ""
        inner = _subfolders(listing.root / labels[0]) if listing.layout == "folders" else []
        if len(inner) >= MIN_CLASSES:
            hint = f", or name {listing.root / labels[0]} if its folders are the classes"
        raise DataError(
            f"{listing.source} has one class, {labels[0]}: there is nothing to tell apart; add pictures of another "
            f"class{hint}."
        )
    if len(labels) > MAX_CLASSES:
        raise DataError(f"{listing.source} has {len(labels):,} classes: at most {MAX_CLASSES:,} can be trained.")
    alike: dict[str, str] = {}
    for label in labels:
        if not label.isprintable() or len(label) > MAX_LABEL_LENGTH:
            raise DataError(f"The class {label[:40]!a} has a name that cannot be shown: rename it.")
        other = alike.setdefault(unicodedata.normalize("NFC", label).casefold(), label)
        if other != label:
            how = (
                "case" if unicodedata.normalize("NFC", label) != unicodedata.normalize("NFC", other) else "unicode form"
            )
            raise DataError(f"The classes {other!r} and {label!r} differ only in {how}: rename one, or join them.")


def _some(names: Iterable[str]) -> str:
    """Return the first of `names` as a phrase, and how many more there are."""
    shown = [name if name.isprintable() else ascii(name) for name in names]
    rest = f" and {len(shown) - MAX_NAMED:,} more" if len(shown) > MAX_NAMED else ""
    return ", ".join(shown[:MAX_NAMED]) + rest
