"""The `edgecifar` command: each module here holds the subcommands of one subject, and calls the library for them."""

from __future__ import annotations

from . import streams
from .app import app, register
from .bundles import benchmark, info, verify
from .exporting import export
from .paging import page
from .predicting import predict
from .training import evaluate, train

__all__ = ["app", "main"]

register(train, evaluate, export, predict, verify, benchmark, info, page)


def main() -> None:
    """Run the command line."""
    streams.prepare()
    try:
        app(prog_name="edgecifar")
    finally:
        streams.close()
