"""Which pictures are trained on, held out and tested on, decided by the content of each file alone."""

from __future__ import annotations

from collections.abc import Sequence
from hashlib import sha256


def assign_splits(
    digests: Sequence[str], groups: Sequence[str | None] | None = None, val: float = 0.1, test: float = 0.1
) -> list[str]:
    """Return the split of each picture, decided by its own content alone: "train", "val" or "test".

    The SHA-256 of a file, or of its group's name, read as a fraction u in [0, 1), decides: u < test is in test,
    u < test + val in val, the rest in train. So adding pictures moves none, two copies of a file never stand in two
    splits, and the shares hold in expectation. Groups that share a file count as one: a copy that joins two of them
    may move one.

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
