"""The report on a folder or a CSV of labelled pictures: what is wrong with the data, before a net learns from it."""

from __future__ import annotations

import warnings
from collections import Counter, defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ..runtime import labelled
from ..runtime.labelled import Listing, some
from . import folders, plots
from .decoding import Pictures, decode
from .duplicates import near_duplicates
from .folders import FolderOptions

MAX_IMBALANCE = 3.0
"""The largest class may have this many times the pictures of the smallest before the report says so."""

MAX_ASPECT = 2.0
"""Long over short side beyond which a picture loses much by being made square."""

MIN_PER_CLASS = 20
"""Training pictures of a class below which little can be learnt of it."""

SHEET_COLUMNS, SHEET_ROWS = 12, 20
"""Pictures a class on the contact sheet, and classes on it."""


@dataclass(frozen=True)
class Pair:
    """Two pictures that are the same or nearly so.

    Attributes:
        first: path of one, relative to the data.
        second: path of the other.
        exact: whether the files are equal byte for byte.
        labels: the label of each.
        splits: the split of each.
    """

    first: str
    second: str
    exact: bool
    labels: tuple[str, str]
    splits: tuple[str, str]

    @property
    def is_leak(self) -> bool:
        """Whether they stand in two splits: the test then measures what was trained on."""
        return self.splits[0] != self.splits[1]

    @property
    def is_contradiction(self) -> bool:
        """Whether they have two labels."""
        return self.labels[0] != self.labels[1]


@dataclass(frozen=True)
class Report:
    """What `inspect` found.

    Attributes:
        source: the folder or CSV.
        layout: "folders", "splits" or "csv".
        labels: the classes.
        counts: readable pictures by split and label.
        unreadable: why a picture cannot be read, by its path.
        pairs: exact and near duplicates.
        small: pictures with a side shorter than the net's input.
        long: pictures that are far from square.
        remarks: sentences on what is wrong with the folder itself.
        notes: sentences on what is not wrong, such as other files that it holds.
    """

    source: str
    layout: str
    labels: tuple[str, ...]
    counts: Mapping[str, Mapping[str, int]]
    unreadable: Mapping[str, str]
    pairs: tuple[Pair, ...]
    small: tuple[str, ...]
    long: tuple[str, ...]
    remarks: tuple[str, ...]
    notes: tuple[str, ...] = ()

    def problems(self) -> list[str]:
        """Return a sentence for each thing that is wrong, with what to do."""
        found = list(self.remarks)
        if self.unreadable:
            found.append(f"{len(self.unreadable):,} cannot be read: mend or remove them. {some(self.unreadable)}")
        found += self.wrong_duplicates()
        per_class = self.counts.get("train", {})
        if per_class and max(per_class.values()) > MAX_IMBALANCE * min(per_class.values()):
            least, most = min(per_class, key=per_class.__getitem__), max(per_class, key=per_class.__getitem__)
            found.append(
                f"The classes are of unequal size: {most} has {per_class[most]:,} training pictures and {least} "
                f"{per_class[least]:,}. Add pictures of the smaller ones."
            )
        if untrained := [label for label in self.labels if not per_class.get(label)]:
            found.append(f"No training pictures of {some(untrained)}: add some, or take the class out of the data.")
        found += self.too_few()
        tested = self.counts.get("test", {})
        if untested := [label for label in self.labels if per_class.get(label) and not tested.get(label)]:
            found.append(f"No test pictures of {some(untested)}: nothing will be known of their accuracy.")
        if self.small:
            found.append(f"{len(self.small):,} are smaller than the net's input and are enlarged. {some(self.small)}")
        if self.long:
            found.append(
                f"{len(self.long):,} are more than {MAX_ASPECT:g} times as long as wide: 'crop' loses their ends; try "
                f"the fit 'pad'. {some(self.long)}"
            )
        return found

    def wrong_duplicates(self) -> list[str]:
        """Return a sentence on the duplicates under two labels, and one on those in two splits, if there are such."""
        found: list[str] = []
        for kind, chosen, remedy in (
            ("under two labels", [p for p in self.pairs if p.is_contradiction], "keep the one that is right"),
            ("in two splits", [p for p in self.pairs if p.is_leak], "keep one, or accuracy looks too good"),
        ):
            if chosen:
                shown = some(f"{pair.first} = {pair.second}" for pair in chosen)
                found.append(f"{len(chosen):,} pair{'s' * (len(chosen) > 1)} of duplicates {kind}: {remedy}. {shown}")
        return found

    def too_few(self) -> list[str]:
        """Return a sentence on the classes that have too few pictures to learn from, if there are such."""
        few = [label for label, count in self.counts.get("train", {}).items() if count < MIN_PER_CLASS]
        return [f"Fewer than {MIN_PER_CLASS} training pictures of {some(few)}: add some."] if few else []

    def as_json(self) -> dict[str, Any]:
        """Return everything as JSON values."""
        return {
            "source": self.source,
            "layout": self.layout,
            "counts": {split: dict(found) for split, found in self.counts.items()},
            "unreadable": dict(self.unreadable),
            "duplicates": [
                {
                    "first": pair.first,
                    "second": pair.second,
                    "exact": pair.exact,
                    "labels": list(pair.labels),
                    "splits": list(pair.splits),
                }
                for pair in self.pairs
            ],
            "small": list(self.small),
            "long": list(self.long),
            "problems": self.problems(),
            "notes": list(self.notes),
        }


def inspect(
    path: Path,
    options: FolderOptions,
    cache: Path,
    progress: Callable[[int, int], object] = lambda done, total: None,
) -> tuple[Report, Pictures]:
    """Look for what is wrong with a folder or a CSV of labelled pictures.

    Args:
        path: as `runtime.labelled.read` takes it.
        options: how the pictures would be split and made square.
        cache: where decoded pictures are kept.
        progress: called with the number of pictures that are decoded, and how many there are.

    Raises:
        DataError: it is no data set that can be trained on, such as one with a single class.
        OutputError: the cache cannot be written.
    """
    listing = labelled.read(path)
    contract = folders.contract_of(listing.labels(), options.fit)
    pictures = decode(listing, contract, cache, progress=progress)
    splits = folders.splits_of(pictures, options)
    remarks, notes = remarks_on(listing)
    small, long = _odd_shapes(pictures, contract.size)
    report = Report(
        source=str(listing.source),
        layout=listing.layout,
        labels=contract.labels,
        counts=folders.describe(pictures, splits, options)["pictures"],
        unreadable={pictures.entries[row].path: error for row, error in pictures.errors.items()},
        pairs=tuple(_pairs(pictures, splits)),
        small=tuple(small),
        long=tuple(long),
        remarks=remarks,
        notes=notes,
    )
    return report, pictures


def remarks_on(listing: Listing) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Return sentences on what is wrong with a folder or a CSV itself, and on what it holds besides pictures."""
    left_out = (f"{listing.left_out}.",) if listing.left_out.reasons else ()
    if listing.left_out.unread:  # some of it looks like pictures
        return (*listing.remarks, *left_out), ()
    return tuple(listing.remarks), left_out


def _pairs(pictures: Pictures, splits: Sequence[str | None]) -> list[Pair]:
    """Return all exact duplicates, each with the first of its kind, and all near ones."""
    exact = _exact_duplicates(pictures)
    known = {*pictures.errors, *(other for _, other in exact)}
    unique = [row for row in range(len(pictures.entries)) if row not in known]
    near = [(unique[one], unique[other]) for one, other in near_duplicates(np.asarray(pictures.images[unique]))]
    found = [(*rows, True) for rows in exact] + [(*rows, False) for rows in near]
    return [_pair(pictures, splits, *rows) for rows in found]


def exact_pairs(pictures: Pictures, splits: Sequence[str | None]) -> list[Pair]:
    """Return the pictures whose files are equal byte for byte, each with the first of its kind.

    Args:
        pictures: all pictures.
        splits: the split of each.
    """
    return [_pair(pictures, splits, one, other, True) for one, other in _exact_duplicates(pictures)]


def _exact_duplicates(pictures: Pictures) -> list[tuple[int, int]]:
    first: dict[str, int] = {}
    rows = [row for row in range(len(pictures.entries)) if row not in pictures.errors]
    pairs = [(first.setdefault(pictures.digests[row], row), row) for row in rows]
    return [(one, other) for one, other in pairs if one != other]


def _pair(pictures: Pictures, splits: Sequence[str | None], one: int, other: int, exact: bool) -> Pair:
    first, second = pictures.entries[one], pictures.entries[other]
    labels, where = (first.label, second.label), (str(splits[one]), str(splits[other]))
    return Pair(first.path, second.path, exact, labels, where)


def _odd_shapes(pictures: Pictures, size: int) -> tuple[list[str], list[str]]:
    """Return the pictures that are smaller than the input, and those far from square, by their headers."""
    from PIL import Image

    small, long = [], []
    for row, entry in enumerate(pictures.entries):
        if row in pictures.errors:
            continue
        try:
            with warnings.catch_warnings(), Image.open(pictures.listing.root / entry.path) as image:
                warnings.simplefilter("ignore")
                width, height = image.size
        except Exception:  # noqa: S112 - it was decoded by other means, such as HEIC: its shape is not known
            continue
        if min(width, height) < size:
            small.append(entry.path)
        if max(width, height) > MAX_ASPECT * min(width, height):
            long.append(entry.path)
    return small, long


def draw_sheet(pictures: Pictures, path: Path) -> None:
    """Draw some pictures of each class, as the net sees them, into a PNG.

    Raises:
        OutputError: the file cannot be written.
    """
    rows: dict[str, list[int]] = defaultdict(list)
    counts: Counter[str] = Counter()
    for row, entry in enumerate(pictures.entries):
        counts[entry.label] += 1
        if row not in pictures.errors and len(rows[entry.label]) < SHEET_COLUMNS:
            rows[entry.label].append(row)
    lines = [(f"{label} ({counts[label]:,})", [pictures.images[row] for row in found]) for label, found in rows.items()]
    size = pictures.images.shape[1]
    plots.sheet(lines[:SHEET_ROWS], path, title=f"As the net sees them, {size} by {size} pixels")
