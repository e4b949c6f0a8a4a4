"""Where the command's output goes when nobody takes it: a closed stream, a reader that has left, a full disk."""

from __future__ import annotations

import contextlib
import errno
import io
import os
import sys
from collections.abc import Generator
from pathlib import Path
from typing import Any

__all__ = ["close", "prepare", "results", "visible"]


class _Prose(io.TextIOWrapper):
    """Standard error that is silent once it cannot be written to: what is said of results must not cost them."""

    def write(self, text: str) -> int:
        try:
            return super().write(text)
        except OSError:
            _silence(2)
            return len(text)

    def flush(self) -> None:
        try:
            super().flush()
        except OSError:
            _silence(2)


def prepare() -> None:
    """Make both streams of the process usable, whatever they were opened as."""
    for name in ("stdout", "stderr"):
        if getattr(sys, name) is None:  # it was closed: what is opened next would take its number, and its text
            setattr(sys, name, Path(os.devnull).open("w"))  # noqa: SIM115 - for good
    # As stderr has it: a file's name or a sign that the terminal's encoding lacks must not end the command.
    stdout: Any = sys.stdout
    stderr: Any = sys.stderr
    if isinstance(sys.stdout, io.TextIOWrapper) and stdout.errors == "strict":
        stdout.reconfigure(errors="backslashreplace")
    if isinstance(sys.stderr, io.TextIOWrapper):
        encoding, errors = stderr.encoding, stderr.errors
        sys.stderr = _Prose(stderr.detach(), encoding, errors, line_buffering=True)


@contextlib.contextmanager
def results() -> Generator[None]:
    """Print results in this block: they are written out at its end.

    A reader that has left, such as `head`, has seen enough: the block ends there without an error.

    Raises:
        OutputError: the disk behind stdout is full.
    """
    try:
        yield
        sys.stdout.flush()
    except BrokenPipeError:
        _silence(1)
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT) or error.filename is not None:
            raise
        _silence(1)
        from ..runtime.errors import OutputError  # late: help needs nothing of the runtime

        raise OutputError(
            "the output cannot be written, the disk is full: free some space or write it elsewhere."
        ) from None


def visible(text: str) -> str:
    """Return `text` with escapes for what cannot be shown, so that names of strangers cannot steer the terminal."""
    if text.isprintable():
        return text
    return "".join(character if character.isprintable() else ascii(character)[1:-1] for character in text)


def close() -> None:
    """Write out what a failure left behind, if that is possible; else Python would exit with a code of its own."""
    try:
        sys.stdout.flush()
    except OSError:
        _silence(1)


def _silence(stream: int) -> None:
    """Let what is left for stdout (1) or stderr (2), and all that comes, vanish: else it fails once more at exit."""
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, stream)
    os.close(nowhere)
