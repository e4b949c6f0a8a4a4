"""A folder or a CSV of labelled pictures as a data set: split by content, and refused where it cannot be trained on."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from ..runtime.contract import Contract, Preprocessing
from ..runtime.errors import DataError
from ..runtime.labelled import some
from ..runtime.splitting import assign_splits
from .decoding import Pictures
from .net import INPUT_SIZE

log = logging.getLogger("edgecifar")


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
