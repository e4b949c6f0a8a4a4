"""Labelled pictures on the disk: which file has which label, and which split it belongs to. Decodes nothing.

Three layouts are recognised:

    FOLDER/CLASS/**                     each folder is a class; the split is made by `splitting.assign_splits`
    FOLDER/{train,val,test}/CLASS/**    the split is given; val may be missing
    FILE.csv                            columns path and label, optionally split and group; paths are relative to it

Nothing is ever written to the folder. Runs of training that lie in it are no class.
"""

from __future__ import annotations

import csv
import functools
import os
import unicodedata
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from hashlib import sha256
from pathlib import Path, PurePath, PurePosixPath

from .contract import MAX_CLASSES, MAX_LABEL_LENGTH, MIN_CLASSES
from .errors import DataError, shown
from .paths import RUN_RECORD
from .sources import LeftOut, walk

SPLITS = ("train", "val", "test")
"""Names of the splits, and of their folders. Pictures in val are held out of training for decisions."""

SPLIT_NAMES = {"train": "train", "training": "train", "val": "val", "valid": "val", "validation": "val", "test": "test"}
"""What folders and the CSV's column may call a split, in lower case, and the split that it means."""

COLUMNS = ("path", "label", "split", "group")
"""Columns of a CSV that are read; only the first two are required."""

WANTED = "a folder with a folder of pictures per class, or a CSV with the columns path and label"
"""What a data set is, in words."""

DATA_VARIABLE = "EDGECIFAR_DATA"
"""The environment variable that names the data where nothing else does."""

MAX_NAMED = 5
"""How many names a message lists; of the rest it gives the number."""


@dataclass(frozen=True, slots=True)
class Entry:
    """One labelled picture.

    Attributes:
        path: relative to the listing's root, with "/" between the parts.
        label: its class.
        split: one of `SPLITS`, or None where `splitting.assign_splits` decides.
        group: pictures of one group never stand in two splits; None where it stands for itself.
    """

    path: str
    label: str
    split: str | None = None
    group: str | None = None

    @property
    def name_digest(self) -> str:
        """The SHA-256 of its path: a file that cannot be read is split by it, not by its content."""
        return sha256(self.path.encode(errors="surrogatepass")).hexdigest()


@dataclass(frozen=True)
class Listing:
    """The labelled pictures of a folder or a CSV.

    Attributes:
        root: the folder that paths are relative to.
        source: the folder or the CSV that was named.
        layout: "folders", "splits" or "csv".
        entries: the pictures.
        left_out: what the folders hold besides, by reason.
        remarks: sentences on what looks odd and is no error, such as a class whose pictures lie in subfolders only.
    """

    root: Path
    source: Path
    layout: str
    entries: tuple[Entry, ...]
    left_out: LeftOut = field(default_factory=LeftOut)
    remarks: tuple[str, ...] = ()

    @property
    def has_splits(self) -> bool:
        """Whether the split is given."""
        return self.entries[0].split is not None

    def labels(self) -> tuple[str, ...]:
        """Return the classes to train on in sorted order: those of the training split where it is given, else all.

        Raises:
            DataError: a class is in another split only; there are fewer than 2 or more than 1,000 classes.
        """
        trained = {entry.label for entry in self.entries if entry.split in (None, "train")}
        if not trained:
            raise DataError(f"{self.source} has no pictures of the split train: there is nothing to train on.")
        for entry in self.entries:
            if entry.label not in trained:
                raise DataError(
                    f"The class {entry.label} has pictures in {entry.split} and none in train: add some to train, or "
                    f"take the class out of {entry.split}."
                )
        if len(trained) < MIN_CLASSES:
            (only,) = trained
            inside = _subfolders(self.root / only) if self.layout == "folders" else []
            hint = f", or name {self.root / only} if its folders are the classes" if len(inside) >= MIN_CLASSES else ""
            raise DataError(
                f"{self.source} has one class, {only}: there is nothing to tell apart; add pictures of another class"
                f"{hint}."
            )
        if len(trained) > MAX_CLASSES:
            raise DataError(f"{self.source} has {len(trained):,} classes: at most {MAX_CLASSES:,} can be trained.")
        return tuple(sorted(trained))

    def of_split(self, split: str) -> Listing:
        """Return the pictures of one of `SPLITS`, where the split is given."""
        return replace(self, entries=tuple(entry for entry in self.entries if entry.split == split))

    def indices(self, labels: Sequence[str]) -> list[int]:
        """Return each picture's label as an index into `labels`, the classes of a model.

        Raises:
            DataError: a class is not among `labels`.
        """
        index = {label: place for place, label in enumerate(labels)}
        if unknown := sorted({entry.label for entry in self.entries} - set(index)):
            raise DataError(
                f"{self.source} has classes that the model does not know: {some(unknown)}; it knows {some(labels)}: "
                "rename or remove them, or name a model of these classes."
            )
        return [index[entry.label] for entry in self.entries]


def named(data: str | Path | None) -> str | Path | None:
    """Return what names the data: `data`, else `$EDGECIFAR_DATA`; None where neither does.

    Raises:
        DataError: `data` is empty, as an unset variable of a shell is: what is meant is not known.
    """
    if data == "":
        raise DataError("The name of the data is empty, as an unset variable is: name them, or nothing.", option="data")
    return data or os.environ.get(DATA_VARIABLE) or None


def recognise(path: Path) -> str | None:
    """Return the layout of `path`, "folders", "splits" or "csv"; None where it is a file or folder of another kind.

    Only names are looked at, never a picture. CIFAR-10's own folder is one of "folders": ask for it first.

    Raises:
        DataError: there is no such file or folder, or it may not be read.
    """
    if os.path.isfile(path):  # noqa: PTH113 - pathlib raises on names that are too long
        return "csv" if path.suffix.lower() == ".csv" else None
    if not (names := _subfolders(path)):
        return None
    return "splits" if _split_folders(names) else "folders"


def read(path: str | Path) -> Listing:
    """Return the labelled pictures that `path`, a folder or a CSV, holds; a CSV's in its own order, else by folder.

    Labels are in Unicode's composed form, NFC. Whether there are enough classes to train on, `Listing.labels` says.

    Raises:
        DataError: it is neither; a class has no pictures, or a name that cannot be shown; two classes differ only in
            case or in unicode form; a CSV lacks a column or a file, or names one outside its folder.
    """
    path = Path(os.path.abspath(path))  # noqa: PTH100 - links are kept: paths are shown as they were given
    layout = recognise(path)
    if layout is None:
        raise DataError(f"{path} is not a data set ({_instead(path)}): name {WANTED}.")
    listing = _read_csv(path) if layout == "csv" else _read_folders(path, with_splits=layout == "splits")
    return _one_name_a_class(listing)


def _instead(path: Path) -> str:
    """Say what a path is that holds no labelled pictures."""
    if not path.is_dir():
        return "it is a file of another kind"
    left_out = LeftOut()
    if pictures := walk(str(path), left_out, recursive=False):
        return f"it has {_counted(pictures, 'picture')} in no class's folder, without a label"
    return f"it has no folders; {left_out}" if left_out.reasons else "it is empty"


def _subfolders(path: Path) -> list[str]:
    """Return the names of the folders in `path`, sorted, without hidden ones."""
    try:
        with os.scandir(path) as entries:
            return sorted(entry.name for entry in entries if entry.is_dir() and not entry.name.startswith("."))
    except FileNotFoundError:
        raise DataError(f"{path} is not there: check the path.") from None
    except NotADirectoryError:
        raise DataError(f"{path} is a file: name a folder or a CSV.") from None
    except OSError as error:
        raise DataError(f"{path} cannot be read ({error.strerror}): check its permissions.") from None


def _holds_runs(folder: Path) -> bool:
    """Whether a folder is one of a run, or of runs: what pictures are there are drawings."""
    return (folder / RUN_RECORD).is_file() or any(folder.glob(f"*/{RUN_RECORD}"))


def _split_folders(names: Iterable[str]) -> dict[str, str]:
    """Return the folder of each split, where `names` has a train and a test folder or a train and a val one."""
    found: dict[str, str] = {}
    for name in names:
        if split := SPLIT_NAMES.get(name.lower()):
            found.setdefault(split, name)
    return found if "train" in found and len(found) > 1 else {}


def _read_folders(root: Path, *, with_splits: bool) -> Listing:
    names = _subfolders(root)
    parts = list(_split_folders(names).items()) if with_splits else [(None, "")]
    entries: list[Entry] = []
    left_out = LeftOut()
    remarks: list[str] = []
    start = len(os.path.join(root, ""))  # noqa: PTH118 - what comes before a path relative to the root
    for split, part in parts:
        folder = root / part
        labels = _subfolders(folder)
        if runs := [label for label in labels if _holds_runs(folder / label)]:
            remarks.append(f"Left out, as runs of training and no classes: {some(runs)} in {folder}; move them away.")
        for label in labels:
            if label in runs:
                continue
            inside = LeftOut()
            pictures = [picture[start:].replace(os.sep, "/") for picture in walk(str(folder / label), inside)]
            left_out.update(inside)
            if pictures:
                entries += [Entry(picture, label, split) for picture in pictures]
                remarks += _nested(label, folder / label, pictures, depth=1 + (split is not None))
            elif split in (None, "train"):
                why = f" ({inside})" if inside.reasons else ""
                raise DataError(f"The class {shown(label)} has no pictures{why}: add some, or remove its folder.")
        if stray := walk(str(folder), LeftOut(), recursive=False):
            left_out.reasons["picture beside the class folders"] += len(stray)
            remarks.append(
                f"{_counted(stray, 'picture')} beside the class folders in {folder} without a label "
                f"({some(PurePath(picture).name for picture in stray)}): move each into a class."
            )
    if with_splits and (others := [name for name in names if name not in {part for _, part in parts}]):
        remarks.append(f"{some(others)} in {root} beside the folders of the splits: not read.")
    if not entries:
        raise DataError(f"There are no pictures in {root}: name a folder with a folder of pictures per class.")
    layout = "splits" if with_splits else "folders"
    return Listing(root, root, layout, tuple(entries), left_out, tuple(remarks))


def _nested(label: str, folder: Path, pictures: list[str], depth: int) -> list[str]:
    """Return a remark where all pictures of a class lie in two or more subfolders: these may be the classes.

    Args:
        label: the class.
        folder: its folder.
        pictures: paths relative to the root.
        depth: how many parts of each come before those inside the class's folder.
    """
    if any(picture.count("/") == depth for picture in pictures):
        return []
    inner = {picture.split("/", depth + 1)[depth] for picture in pictures}
    if len(inner) < 2:
        return []
    return [
        f"The class {shown(label)} has its pictures in subfolders only ({some(sorted(inner))}), which count as one "
        f"class: if they are several, name {folder} or put each beside the other classes."
    ]


def _read_csv(path: Path) -> Listing:
    root = path.parent
    entries: list[Entry] = []
    missing: list[str] = []
    line = 1
    try:
        with path.open(newline="", encoding="utf-8-sig") as file:
            mark = max(",;\t", key=file.readline().count)  # spreadsheets write a semicolon where decimals have commas
            file.seek(0)
            # Strict: else a quote that is never closed swallows the rows after it.
            reader = csv.DictReader(file, delimiter=mark, strict=True)
            columns = [name.strip().lower() for name in reader.fieldnames or ()]
            for column in COLUMNS[:2]:
                if column not in columns:
                    raise DataError(
                        f"{path} has no column {column!r} (it has {some(columns) or 'none'}): its first line must "
                        "name the columns path and label, and may name split and group."
                    )
            if twice := [column for column in COLUMNS if columns.count(column) > 1]:
                raise DataError(f"{path} has the column {twice[0]!r} twice: remove one.")
            reader.fieldnames = columns
            line = reader.line_num + 1
            for row in reader:
                line, entry = reader.line_num + 1, _row(row, path, reader.line_num)
                if not os.path.isfile(root / entry.path):  # noqa: PTH113 - as in recognise
                    missing.append(entry.path)
                entries.append(entry)
    except UnicodeDecodeError:
        raise DataError(f"{path} is not UTF-8 text: save it as CSV in UTF-8.") from None
    except csv.Error as error:
        raise DataError(
            f"{path}, line {line}, cannot be read as CSV ({error}): see that each quote in it is closed, and that one "
            "inside a field is doubled."
        ) from None
    except OSError as error:
        raise DataError(f"{path} cannot be read ({error.strerror}): check its permissions.") from None
    if missing:
        raise DataError(
            f"{path} names what is not there, {_counted(missing, 'file')}: {some(missing)}; correct the paths."
        )
    if not entries:
        raise DataError(f"{path} has no rows: it needs a line per picture below the names of the columns.")
    if len({entry.split is None for entry in entries}) > 1:
        raise DataError(f"{path} gives some rows a split and others none: fill the column split, or remove it.")
    _check_paths(path, entries)
    _check_groups(path, entries)
    return Listing(root, path, "csv", tuple(entries))


def _row(row: dict[str | None, str | None], path: Path, line: int) -> Entry:
    where = f"{path}, line {line}"
    name, label = (row.get("path") or "").strip(), (row.get("label") or "").strip()
    if None in row:
        raise DataError(f"{where} has more fields than there are columns: quote fields that hold the separator.")
    if not name or not label:
        raise DataError(f"{where} has no {'label' if name else 'path'}: fill it in, or remove the row.")
    plain = PurePosixPath(name.replace("\\", "/"))
    if plain.is_absolute() or ".." in plain.parts or (len(name) > 1 and name[1] == ":"):
        raise DataError(f"{where} names {name}: use paths that begin in the CSV's own folder and stay below it.")
    split = (row.get("split") or "").strip().lower()
    if split and split not in SPLIT_NAMES:
        raise DataError(f"{where} has the split {split!r}: use train, val or test.")
    return Entry(str(plain), label, SPLIT_NAMES[split] if split else None, (row.get("group") or "").strip() or None)


def _check_paths(path: Path, entries: list[Entry]) -> None:
    counts = Counter(entry.path for entry in entries)
    if len(counts) == len(entries):
        return
    labels: dict[str, set[str]] = defaultdict(set)
    for entry in entries:
        labels[entry.path].add(entry.label)
    if torn := [name for name, found in labels.items() if len(found) > 1]:
        raise DataError(
            f"{path} gives two labels to {_counted(torn, 'file')}: {some(torn)}; keep the row that is right."
        )
    twice = [name for name, count in counts.items() if count > 1]
    raise DataError(f"{path} names {_counted(twice, 'file')} more than once: {some(twice)}; keep one row of each.")


def _check_groups(path: Path, entries: list[Entry]) -> None:
    splits: dict[str, set[str | None]] = defaultdict(set)
    for entry in entries:
        if entry.group:
            splits[entry.group].add(entry.split)
    if torn := [group for group, found in splits.items() if len(found) > 1]:
        raise DataError(
            f"{path} puts {_counted(torn, 'group')} into two splits: {some(torn)}; give all pictures of a group one "
            "split."
        )


def _one_name_a_class(listing: Listing) -> Listing:
    """Return `listing` with its labels in Unicode's composed form, NFC, which file systems may have taken apart."""
    composed = functools.partial(unicodedata.normalize, "NFC")
    alike: dict[str, str] = {}
    for label in sorted({entry.label for entry in listing.entries}):
        if not label.isprintable() or len(label) > MAX_LABEL_LENGTH:
            raise DataError(
                f"The class {label[:40]!a} has a name that cannot be shown or is longer than {MAX_LABEL_LENGTH} "
                "characters: rename it."
            )
        other = alike.setdefault(composed(label).casefold(), label)
        if other != label:
            how = "case" if composed(label) != composed(other) else "unicode form"
            raise DataError(f"The classes {other!a} and {label!a} differ only in {how}: rename one, or join them.")
    if all(composed(label) == label for label in alike.values()):
        return listing
    return replace(listing, entries=tuple(replace(entry, label=composed(entry.label)) for entry in listing.entries))


def some(names: Iterable[str]) -> str:
    """Return the first of `names` as a phrase, and how many more there are."""
    listed = [shown(name) for name in names]
    rest = f" and {len(listed) - MAX_NAMED:,} more" if len(listed) > MAX_NAMED else ""
    return ", ".join(listed[:MAX_NAMED]) + rest


def _counted(names: Sequence[str], what: str) -> str:
    return f"{len(names):,} {what}{'s' * (len(names) != 1)}"
