"""The command's frame: the typer application, what every subcommand shares, and how failures are reported."""

from __future__ import annotations

import functools
import math
import sys
from collections.abc import Callable, Sequence
from enum import StrEnum
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from typer.core import TyperCommand, TyperGroup

from . import streams

if TYPE_CHECKING:
    from ..runtime.errors import EdgecifarError

FRAME: dict[str, Any] = {
    "add_completion": False,
    "rich_markup_mode": None,  # help without boxes: importing rich takes longer than all else that help does
    "pretty_exceptions_show_locals": False,
    "context_settings": {"help_option_names": ["-h", "--help"]},
}
"""What the command and its subcommands have in common."""

SUBCOMMANDS = {
    "train": ("training", "Train a net and write a run folder"),
    "inspect": ("inspecting", "Report on labelled pictures before training"),
    "evaluate": ("training", "Measure a model on labelled pictures"),
    "export": ("exporting", "Export a run into a bundle"),
    "predict": ("predicting", "Classify pictures"),
    "serve": ("serving", "Serve bundles over HTTP"),
    "page": ("paging", "Make a static web page that classifies pictures"),
    "verify": ("bundles", "Check a bundle"),
    "benchmark": ("bundles", "Measure latency and throughput"),
    "info": ("bundles", "Describe a run, a bundle or an ONNX file"),
}
"""The module here that holds each subcommand, and its line in the list, in the list's order."""

EXTRAS = {
    "train": "train",
    "inspect": "train",
    "evaluate": "train",
    "export": "export",
    "info": "train",
    "serve": "serve",
}
"""Which extra of the package a command needs beyond the base install; `info` for a run folder only."""


FLAGS = {"replace": "--force"}
"""Flags of library options by another name than the option's own."""

_EPILOGS: dict[str, str] = {}
"""The end of each subcommand's help by its name."""


class Fit(StrEnum):
    """How a picture is made square."""

    crop = "crop"
    squash = "squash"
    pad = "pad"


def command(function: Callable[..., None]) -> Callable[..., None]:
    """Return the subcommand `function`, whose known failures become one sentence and exit code 1, no traceback."""

    @functools.wraps(function)
    def reported(*args: Any, **kwargs: Any) -> None:
        from ..runtime.errors import EdgecifarError

        name = function.__name__
        _show_log()
        try:
            with streams.results():
                function(*args, **kwargs)
        except EdgecifarError as error:
            fail(_with_flag(error))
        except ModuleNotFoundError as error:
            if error.name is None or error.name.startswith("edgecifar"):
                raise
            extra = EXTRAS.get(name)
            needed, where = (f"extra {extra}", f".[{extra}]") if extra else ("package's own requirements", ".")
            fail(
                f"edgecifar {name} needs the {needed}, of which {error.name} is not installed: {sys.executable} -m pip "
                f"install '{where}' in the folder of edgecifar's source."
            )
        except (MemoryError, ImportError) as error:
            if isinstance(error, ImportError) and "failed to map segment" not in str(error):
                raise
            fail("there is too little memory for this, free some or raise the limit (ulimit -v).")
        except OSError as error:  # what no library function foresaw: a path that may not be read, or is too long
            if error.filename is None:
                raise
            fail(f"{error.filename} cannot be used ({error.strerror}): check the path and its permissions.")
        except KeyboardInterrupt:
            print("Stopped.", file=sys.stderr)
            raise typer.Exit(130) from None

    return reported


class Subcommands(TyperGroup):
    """The list of subcommands. A start imports and builds the one that is called: all ten take longer than `--help`."""

    def __init__(self, **settings: Any) -> None:
        super().__init__(**settings)
        for name, (_, short_help) in SUBCOMMANDS.items():
            self.add_command(Subcommand(name, short_help=short_help))


class Subcommand(TyperCommand):
    """A subcommand's name and its line in the list; the whole of it is made when it is called."""

    def make_context(self, info_name: str | None, args: list[str], *more: Any, **kwargs: Any) -> Any:
        """Parse the subcommand's arguments, by its own options."""
        _refuse_empty(args)
        name = str(self.name)
        function = getattr(import_module(f".{SUBCOMMANDS[name][0]}", __package__), name)
        whole = typer.Typer(**FRAME)
        whole.command(name, short_help=self.short_help, epilog=_EPILOGS.get(name))(function)
        return typer.main.get_command(whole).make_context(info_name, args, *more, **kwargs)


def _refuse_empty(arguments: Sequence[str]) -> None:
    """End the command where an argument is empty, as an unset variable of a shell is: as a path, "" is this folder."""
    before = ""
    for argument in arguments:
        flag, equals, value = argument.partition("=") if argument.startswith("--") else (before, "", argument)
        if not value and (equals or not argument):
            where = f" ({flag})" if flag.startswith("-") else ""
            fail(f"an argument is empty, as an unset variable is: give it a value, or leave it out{where}.")
        before = argument


def fail(sentence: str) -> None:
    """Print a failure and end the command with exit code 1."""
    print(f"edgecifar: {sentence}", file=sys.stderr)
    raise typer.Exit(1)


def _with_flag(error: EdgecifarError) -> str:
    """Return an error's sentence, which is in the library's terms, with the flag of the option that mends it."""
    if error.option is None:
        return str(error)
    flag = FLAGS.get(error.option, "--" + error.option.replace("_", "-"))
    return f"{str(error).removesuffix('.')} ({flag})."


def say(line: str) -> None:
    """Print a line of prose on stderr."""
    print(line, file=sys.stderr)


@functools.cache
def _show_log() -> None:
    """Let what the library logs from now on appear on stderr, a bare line a message."""
    import logging  # late: help needs none

    class Bare(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            say(record.getMessage())

    logger = logging.getLogger("edgecifar")
    logger.addHandler(Bare())
    logger.setLevel(logging.INFO)


def examples(*lines: str) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """End the help of a subcommand with a few ways to call it: a decorator above `command`."""

    def mark(function: Callable[..., None]) -> Callable[..., None]:
        _EPILOGS[function.__name__] = "\b\nExamples:\n" + "\n".join(f"  {line}" for line in lines)
        return function

    return mark


def _version(wanted: bool) -> None:
    if wanted:
        from importlib.metadata import version

        print(f"edgecifar {version('edgecifar')}")
        raise typer.Exit


def finite(value: float | None) -> float | None:
    """Refuse nan and infinity as the value of an option."""
    if value is not None and not math.isfinite(value):
        raise typer.BadParameter(f"{value} is not a finite number.")
    return value


app = typer.Typer(
    cls=Subcommands,
    help="Train a small image classifier, export it, prove that the exports agree with it, and run them without torch.",
    no_args_is_help=True,
    **FRAME,
)


@app.callback()
def _root(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version and exit.")
    ] = False,
) -> None:
    pass


Data = Annotated[
    str | None,
    typer.Option(
        help="A folder with a folder of pictures per class, a CSV with the columns path and label, CIFAR-10's folder, "
        "or 'synthetic'. Default: CIFAR-10 in $EDGECIFAR_DATA, else in ~/.cache/edgecifar, where it is downloaded to.",
        show_default=False,
    ),
]
BundleFolder = Annotated[
    Path | None,
    typer.Option("--bundle", help="A bundle made by 'edgecifar export'. Default: the one that ships with the package."),
]
Provider = Annotated[
    str,
    typer.Option(help="cpu, cuda, tensorrt, openvino, directml, coreml, xnnpack; auto: cuda if it runs, else cpu."),
]
Threads = Annotated[
    int | None,
    typer.Option(min=1, help="Threads of one call. Default: the usable cores; 1 where several processes decode."),
]
Json = Annotated[bool, typer.Option("--json", help="Print one JSON document instead.")]
