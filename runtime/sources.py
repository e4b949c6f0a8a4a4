"""Finds the pictures that the arguments of a command mean, and counts by reason what a folder holds besides."""

from __future__ import annotations

import codecs
import functools
import os
import re
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from .errors import PictureError, shown

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from io import BufferedReader

__all__ = ["LeftOut", "find_pictures", "read_list", "walk"]

_SUFFIXES = (
    *(
        ".apng",
        ".avif",
        ".bmp",
        ".gif",
        ".ico",
        ".j2c",
        ".j2k",
        ".jfif",
        ".jp2",
        ".jpc",
        ".jpe",
        ".jpeg",
        ".jpf",
        ".jpg",
    ),
    *(".jpx", ".mpo", ".pbm", ".pfm", ".pgm", ".png", ".pnm", ".ppm", ".tga", ".tif", ".tiff", ".webp"),
)

_HEIC_SUFFIXES = (".heic", ".heif", ".hif")
_HEIC_REMEDY = "pip install pillow-heif"

_UNREAD_SUFFIXES = {
    *(".3fr", ".arw", ".cr2", ".cr3", ".dng", ".nef", ".nrw", ".orf", ".pef", ".raf", ".raw", ".rw2", ".sr2", ".srw"),
    *(
        ".cur",
        ".dcm",
        ".dds",
        ".dib",
        ".djvu",
        ".emf",
        ".eps",
        ".exr",
        ".fits",
        ".hdr",
        ".icns",
        ".jls",
        ".jng",
        ".jxl",
    ),
    *(".jxr", ".mng", ".pam", ".pcx", ".psd", ".qoi", ".sgi", ".svg", ".svgz", ".wdp", ".wmf", ".xbm", ".xcf"),
    ".xpm",
}
"""Names of pictures that are not read: to leave one out makes the command fail."""

_PLURALS = {
    "hidden file": "hidden files",
    "hidden folder": "hidden folders",
    "linked folder that is here already": "linked folders that are here already",
    "picture beside the class folders": "pictures beside the class folders",
    "pipe or device": "pipes or devices",
    "unreadable folder": "unreadable folders",
}
"""Reasons to leave something out, and what several of them are called; all others are the same for any number."""


@dataclass
class LeftOut:
    """What folders hold that is not among the pictures.

    Attributes:
        reasons: how often each occurred, such as {".mov": 4, "unreadable folder": 1}.
        remedies: what to do about a reason, where there is something.
        unread: how many of them look like pictures, or may hold some.
    """

    reasons: Counter[str] = field(default_factory=Counter[str])
    remedies: dict[str, str] = field(default_factory=dict[str, str])
    unread: int = 0

    def add(self, reason: str, remedy: str = "", unread: bool = False) -> None:
        """Count one more."""
        self.reasons[reason] += 1
        self.unread += unread
        if remedy:
            self.remedies[reason] = remedy

    def update(self, other: LeftOut) -> None:
        """Count what `other` counted."""
        self.reasons.update(other.reasons)
        self.remedies |= other.remedies
        self.unread += other.unread

    def __str__(self) -> str:
        """Say it in one line, the most frequent first."""
        total = self.reasons.total()
        parts: list[str] = []
        for reason, count in sorted(self.reasons.items(), key=lambda item: (-item[1], item[0])):
            remedy = f" ({self.remedies[reason]})" if reason in self.remedies else ""
            parts.append(f"{count:,} {shown(_PLURALS.get(reason, reason) if count > 1 else reason)}{remedy}")
        return f"{total:,} file{'s' * (total != 1)} left out: {', '.join(parts)}"


def find_pictures(arguments: Sequence[str], left_out: LeftOut | None = None) -> list[str]:
    """Expand the arguments of a command to the pictures they mean, in order; the same one may come twice.

    A folder becomes the picture files (by suffix) in it and its subfolders, sorted, without hidden ones and without
    pipes and devices, which only those who name them are made to wait for. Linked folders are followed, each folder
    once. A pattern that the shell left alone (with `*`, `?` or `[`, and no file's name) becomes the files that match,
    sorted; `**` goes into subfolders. Anything else stays as it is, existing or not: `load_picture` says what is wrong
    with it.

    Args:
        arguments: paths, folders, patterns; "-" is standard input.
        left_out: is told of everything that a folder holds besides.

    Raises:
        PictureError: a folder has no pictures and nothing that looks like one, a pattern matches no file, or there is
            no picture in all.
    """
    left_out = LeftOut() if left_out is None else left_out
    pictures: list[str] = []
    nothing: PictureError | None = None
    for argument in arguments:
        inside: LeftOut | None = None
        # os.path answers False where pathlib raises: on names that are too long, or in folders that may not be read.
        if os.path.isdir(argument):  # noqa: PTH112
            inside = LeftOut()
            found = walk(argument, inside)
            left_out.update(inside)
            why = f"{inside}" if inside.reasons else "it is empty"
        elif re.search(r"[*?[]", argument) and not os.path.lexists(argument):
            import glob

            matches = sorted(glob.glob(argument, recursive=True))  # pathlib refuses absolute patterns
            found = [_no_stream(match) for match in matches if os.path.isfile(match)]  # noqa: PTH113
            why = "no file matches it"
        else:
            found, why = [argument], ""
        if not found:
            nothing = PictureError(f"There are no pictures in {argument}: {why}; check the path.")
            if not (inside and inside.unread):
                raise nothing
        pictures += found
    if nothing and not pictures:
        raise nothing
    return pictures


def read_list(file: BufferedReader) -> Iterator[str]:
    """Yield the names in a list, one a line, or each ended by a zero byte, as `find -print0` gives them.

    Which it is, what the file gives at the first reading decides. Empty lines are passed over, and so is the mark with
    which Windows begins a file in UTF-8. A "-" is a file of that name, and becomes "./-": standard input may be the
    list.

    Raises:
        PictureError: it is text in UTF-16.
    """
    block = file.read1(1 << 16).removeprefix(codecs.BOM_UTF8)
    if block.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):  # whose zero bytes would end names
        raise PictureError("The list is in UTF-16, as PowerShell's '>' writes it: save it in UTF-8.")
    mark = b"\0" if b"\0" in block else b"\n"
    ending = b"" if mark == b"\0" else b"\r"
    rest = b""
    while block:
        *names, rest = (rest + block).split(mark)
        for name in names:
            if name := name.removesuffix(ending):
                yield _no_stream(os.fsdecode(name))
        block = file.read1(1 << 16)
    if rest := rest.removesuffix(ending):
        yield _no_stream(os.fsdecode(rest))


def _no_stream(name: str) -> str:
    """Return the name of a file so that none of them means standard input."""
    return "./-" if name == "-" else name


def walk(folder: str, left_out: LeftOut, *, recursive: bool = True) -> list[str]:
    """Return the picture files of a folder: its own first, then those of each subfolder, sorted by name.

    Which files are pictures, and which folders are gone into, `find_pictures` says.

    Args:
        folder: where to look; the paths begin with it.
        left_out: is told of everything that the folder holds besides.
        recursive: whether subfolders are gone into.
    """
    found: list[str] = []
    seen = {_identity(folder)}
    pending = [str(Path(folder))]
    while pending:
        where = pending.pop()
        try:
            with os.scandir(where) as entries:
                listed = sorted(entries, key=lambda entry: entry.name)
        except OSError:
            left_out.add("unreadable folder", unread=True)
            continue
        shown: list[str] = []
        before = "" if where == "." else os.path.join(where, "")  # noqa: PTH118 - only once a folder
        for entry in listed:
            path = before + entry.name
            if not _is_folder(entry):
                if _is_picture(entry, path, left_out):
                    found.append(path)
            elif recursive:
                identity = _identity(path)
                if entry.name.startswith("."):
                    left_out.add("hidden folder")
                elif identity in seen:
                    left_out.add("linked folder that is here already")
                else:
                    seen.add(identity)
                    shown.append(path)
        pending += reversed(shown)
    return found


def _is_folder(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_dir()
    except OSError:  # a link that leads in a circle
        return False


def _identity(folder: str) -> tuple[int, int] | str:
    """Return what two paths of one folder share."""
    try:
        status = os.stat(folder)  # noqa: PTH116 - as above
    except OSError:
        return folder
    return (status.st_dev, status.st_ino) if status.st_ino else os.path.realpath(folder)


def _is_picture(entry: os.DirEntry[str], path: str, left_out: LeftOut) -> bool:
    """Whether a file is a picture by its name; if not, say why it is left out."""
    stem, _, ending = entry.name.rpartition(".")
    suffix = f".{ending.lower()}" if stem else ""
    if entry.name.startswith("."):
        left_out.add("hidden file")
    elif suffix in _SUFFIXES or (suffix in _HEIC_SUFFIXES and _reads_heic()):
        if not _endless(entry, path):
            return True
        left_out.add("pipe or device")
    elif suffix in _HEIC_SUFFIXES:
        left_out.add(suffix, _HEIC_REMEDY, unread=True)
    elif suffix in _UNREAD_SUFFIXES:
        left_out.add(suffix, "not read, convert to PNG", unread=True)
    else:
        left_out.add(suffix if suffix.strip(".") else "without suffix")
    return False


@functools.cache
def _reads_heic() -> bool:
    from importlib import util

    return util.find_spec("pillow_heif") is not None


def _endless(entry: os.DirEntry[str], path: str) -> bool:
    """Whether a file is a pipe, a device or a socket, which may never end; a broken link is none of them."""
    try:
        return not entry.is_file() and os.path.exists(path)  # noqa: PTH110 - as in find_pictures
    except OSError:
        return False
