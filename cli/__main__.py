"""So that `python -m edgecifar.cli` is `edgecifar`."""

from .main import main

main()
