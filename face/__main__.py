"""So that `python -m edgecifar` is the command `edgecifar`."""

from .cli.main import run  # pyright: ignore[reportMissingImports]: another folder

run()
