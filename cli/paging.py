"""The subcommand page."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import Annotated

import typer

from .app import command, examples, say


@examples(
    "npm install onnxruntime-web@1.30.0",
    "edgecifar page --wasm node_modules/onnxruntime-web",
    "edgecifar page BUNDLE --out kiosk --single-file --wasm node_modules/onnxruntime-web",
)
@command
def page(
    bundle: Annotated[
        Path | None, typer.Argument(help="A bundle. Default: the one that ships with the package.")
    ] = None,
    out: Annotated[Path, typer.Option(help="The folder to write.")] = Path("page"),
    wasm: Annotated[
        Path | None,
        typer.Option(
            help="The unpacked npm package onnxruntime-web, which runs the net in a browser. Default: $EDGECIFAR_WASM.",
            envvar="EDGECIFAR_WASM",
            show_envvar=False,
            show_default=False,
        ),
    ] = None,
    variant: Annotated[
        str | None,
        typer.Option(help="Variant of the bundle to run. Default: the bundle's default.", show_default=False),
    ] = None,
    single_file: Annotated[
        bool, typer.Option("--single-file", help="Write one file that opens from the disk and needs no server.")
    ] = False,
    force: Annotated[bool, typer.Option("--force", help="Replace the folder if it exists.")] = False,
) -> None:
    """Make a static web page that classifies pictures in the browser: dropped, pasted, or from the camera."""
    from ..runtime import Bundle
    from ..runtime.errors import ProviderError
    from ..serve.page import HOW_TO_GET, PACKAGE, VERSION, write_page

    if wasm is None:
        raise ProviderError(f"The page needs {PACKAGE} {VERSION}, which is not in this package: {HOW_TO_GET}.")
    files = write_page(Bundle.open(bundle), out, wasm=wasm, variant=variant, single=single_file, replace=force)
    size = sum(file.stat().st_size for file in files) / 1e6
    print(f"{out / 'index.html'}: {len(files)} file{'s' * (len(files) > 1)}, {size:.1f} MB")
    if single_file:
        say("Open it in a browser; it needs nothing else, and no network.")
    else:
        folder = shlex.quote(str(out))
        say(f"Put the folder on a web server, or try it: python -m http.server --bind 127.0.0.1 --directory {folder}")
