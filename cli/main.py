"""The `edgecifar` command: a module here holds the subcommands of one subject, and calls the library for them."""

from __future__ import annotations

import os
import sys
import threading

__all__ = ["main", "run"]

NEED_THEIR_END = ("multiprocessing", "torch")
"""Packages that have something to put in order when the process ends."""


def run() -> None:
    """Run the command line as a process of its own, and end it."""
    try:
        main()
    except SystemExit as end:
        if isinstance(end.code, int | None) and not _others_are_at_work():
            # Python would take numpy and onnxruntime apart first: a quarter of the time that `predict` takes.
            sys.stderr.flush()
            os._exit(end.code or 0)
        raise


def _others_are_at_work() -> bool:
    """Whether something in this process waits for its end: a thread, a package, a profiler."""
    watched = sys.getprofile() is not None or sys.gettrace() is not None
    return watched or threading.active_count() > 1 or any(name in sys.modules for name in NEED_THEIR_END)


def main() -> None:
    """Run the command line."""
    vars(sys.modules["__main__"]).pop("__file__", None)  # else processes that decode pictures would import the command
    try:
        from . import streams  # here, as all that takes a while: Ctrl-C may come before typer is there to take it

        streams.prepare()
        try:
            from .app import app

            app(prog_name="edgecifar")
        finally:
            streams.close()
    except KeyboardInterrupt:
        print("Stopped.", file=sys.stderr)
        raise SystemExit(130) from None
