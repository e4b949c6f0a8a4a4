"""The `edgecifar` command: a module here holds the subcommands of one subject, and calls the library for them."""

from __future__ import annotations

import sys

from . import streams
from .app import app

__all__ = ["app", "main"]


def main() -> None:
    """Run the command line."""
    vars(sys.modules["__main__"]).pop("__file__", None)  # else processes that decode pictures would import the command
    streams.prepare()
    try:
        app(prog_name="edgecifar")
    finally:
        streams.close()
