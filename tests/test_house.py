"""Figures of the house that must stay: lengths of lines, modules and parameter lists, and no data set wired in."""

from __future__ import annotations

import ast
import os
import re
import tomllib
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
MAX_PROSE_LINE = 120
MAX_README_WORDS = 750
MAX_PARAMETERS = 7
MAX_MODULE_LINES = 400

CONTRACT = "runtime/contract.py"
READS_CIFAR10 = {
    *(CONTRACT, "train/cifar10.py", "train/data.py", "train/record.py"),
    *("train/net.py", "train/teacher.py", "export/graph.py"),
}
"""Files that may name CIFAR-10's labels, classes and size: its contract, its reader, nets for 32 pixels only, and what
reads the runs of before there were contracts."""

DATA_SET = re.compile(
    r"""\b(?:LABELS|SIDE|CLASSES)\b          # the constants before there was a contract
      | \bCIFAR10\b                          # a default to CIFAR-10's contract
      | \[N,\ 10\] | \[N,\ 32,\ 32,\ 3\]     # shapes
      | \b32\ ?(?:x|\u00d7|\*)\ ?32\b | \b32,\ 32\b
      | \b(?:ten|10)\ (?:classes|labels)\b
      | \b32\ pixels\b
      | ["'](?:plane|airplane|car|automobile|deer|frog|truck)["']
    """,
    re.VERBOSE,
)


@cache
def package_folders() -> dict[str, str]:
    """The folder of each package by its name."""
    return tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]["package-dir"]


def packages() -> list[str]:
    """The top-level folders of the packages."""
    return sorted({folder for folder in package_folders().values() if "/" not in folder})


def modules(*folders: str) -> list[Path]:
    return sorted(path for folder in folders for path in (ROOT / folder).rglob("*.py"))


def named(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


def documents() -> list[Path]:
    # The last two hold cards that exports wrote.
    skipped, found = {"data", "runs", "node_modules", "default_bundle", "fixtures"}, []
    for folder, within, files in os.walk(ROOT):  # not into .venv, nor into a run that another process is writing
        within[:] = [name for name in within if name not in skipped and not name.startswith(".")]
        found += [Path(folder, name) for name in files if name.endswith(".md") and not name.startswith(".")]
    return sorted(found)


def prose(path: Path) -> Iterator[tuple[int, str]]:
    """Yield (line number, line) of a Markdown file outside of code blocks and tables."""
    in_code = False
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1):
        if line.lstrip().startswith("```"):
            in_code = not in_code
        elif not in_code and not line.lstrip().startswith("|"):
            yield number, line


@cache
def parsed(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"))


def parameters(function: ast.FunctionDef | ast.AsyncFunctionDef) -> int:
    """How many a caller sees: `self` and `cls` are none."""
    given = function.args
    names = [argument.arg for argument in (*given.posonlyargs, *given.args, *given.kwonlyargs)]
    names += [argument.arg for argument in (given.vararg, given.kwarg) if argument]
    return len([name for name in names if name not in ("self", "cls")])


def is_command(function: ast.FunctionDef | ast.AsyncFunctionDef) -> bool:
    """Whether typer makes a command of it, whose parameters are options."""
    decorators = [d.func if isinstance(d, ast.Call) else d for d in function.decorator_list]
    names = [d.attr if isinstance(d, ast.Attribute) else getattr(d, "id", "") for d in decorators]
    return any(name in ("command", "callback") for name in names)


def listed(found: dict[str, str]) -> str:
    """What was found where, a line each."""
    return "\n".join(f"{name}: {reason}" for name, reason in found.items())


def test_prose_lines():
    found = {}
    for path in documents():
        number, line = max(prose(path), key=lambda entry: len(entry[1]), default=(0, ""))
        if len(line) > MAX_PROSE_LINE:
            found[named(path)] = f"line {number} has {len(line)} characters, {MAX_PROSE_LINE} are allowed"
    assert not found, listed(found)


def test_words_of_the_readme():
    in_code, words = False, 0
    for line in (ROOT / "README.md").read_text(encoding="utf-8").splitlines():
        if line.startswith("```"):
            in_code = not in_code
        elif not in_code:
            words += len(line.split())
    assert words <= MAX_README_WORDS


def test_parameters():
    found = {}
    for path in modules(*packages(), "benchmarks", "scripts"):
        for function in ast.walk(parsed(path)):
            if isinstance(function, ast.FunctionDef | ast.AsyncFunctionDef) and not is_command(function):
                count = parameters(function)
                if count > MAX_PARAMETERS:
                    found[f"{named(path)}:{function.name}"] = f"{count} parameters, {MAX_PARAMETERS} are allowed"
    assert not found, listed(found)


def test_modules():
    found = {}
    for path in modules(*packages(), "benchmarks", "tests/stress"):
        count = len(path.read_text(encoding="utf-8").splitlines())
        if count > MAX_MODULE_LINES:
            found[named(path)] = f"{count} lines, {MAX_MODULE_LINES} are allowed"
    assert not found, listed(found)


def test_no_data_set_is_wired_in():
    """A bundle of three classes at another size must go through everything: its contract says what it takes."""
    found = {}
    for path in modules(*packages(), "benchmarks"):
        if named(path) in READS_CIFAR10:
            continue
        for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1):
            if match := DATA_SET.search(line):
                found.setdefault(named(path), f"line {number} has '{match.group()}': take it from the contract")
    assert not found, listed(found)


@pytest.mark.parametrize(
    "line",
    [
        "from .contract import LABELS",
        "def load(path, contract=CIFAR10):",
        "images: uint8 [N, 32, 32, 3] RGB",
        "np.zeros((batch, 32, 32, 3))",
        "of the ten classes",
        'if label == "frog":',
    ],
)
def test_a_data_set_is_found(line):
    assert DATA_SET.search(line)


@pytest.mark.parametrize("line", ["float32 [N, classes]", "a 640x480 JPEG", "CIFAR-10 is downloaded", "int32, 32 bits"])
def test_what_is_none(line):
    assert not DATA_SET.search(line)


def test_pyright_finds_the_packages():
    """Each package's folder is linked to by its name, as an editable install maps names that pyright cannot follow."""
    for package, folder in package_folders().items():
        link = ROOT / "typings" / package.replace(".", "/")
        where = link / "__init__.py"
        assert where.is_file(), f"make typings/{package.replace('.', '/')} a link to {folder}"
        assert where.resolve() == (ROOT / folder / "__init__.py").resolve()


def test_parameters_are_counted():
    (function,) = ast.parse("def f(self, a, /, b, *rest, c=1, **more): pass").body
    assert isinstance(function, ast.FunctionDef)
    assert parameters(function) == 5


def test_results_name_no_path_of_a_machine():
    found = {}
    for path in sorted((ROOT / "benchmarks" / "results").glob("*.json")):
        if named_paths := re.findall(r'"(/[^"]+)"', path.read_text(encoding="utf-8")):
            found[named(path)] = ", ".join(named_paths)
    assert not found
