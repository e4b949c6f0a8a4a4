"""So that `python -m edgecifar` is the command `edgecifar`."""

from .cli.main import main  # pyright: ignore[reportMissingImports]: another folder

main()
