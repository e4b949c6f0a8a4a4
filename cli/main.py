"""The `edgecifar` command: each module here holds the subcommands of one subject, and calls the library for them."""

from __future__ import annotations

import sys

from . import streams
from .app import app, register
from .bundles import benchmark, info, verify
from .exporting import export
from .inspecting import inspect
from .paging import page
from .predicting import predict
from .serving import serve
from .training import evaluate, train

__all__ = ["app", "main"]

register(train, inspect, evaluate, export, predict, serve, page, verify, benchmark, info)


def main() -> None:
    """Run the command line."""
    vars(sys.modules["__main__"]).pop("__file__", None)  # else processes that decode pictures would import the command
    streams.prepare()
    try:
        app(prog_name="edgecifar")
    finally:
        streams.close()
