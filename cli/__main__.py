"""So that `python -m edgecifar.cli` is `edgecifar`."""

from .main import run

run()
