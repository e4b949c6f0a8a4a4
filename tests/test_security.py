"""Every test that SECURITY.md names as proof is there."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
NAMED = re.findall(r"`(tests/[\w/]+\.py)::([\w:]+)`", (ROOT / "SECURITY.md").read_text())


def test_there_is_a_test_in_every_row_of_the_table():
    rows = [line for line in (ROOT / "SECURITY.md").read_text().splitlines() if line.startswith("| ")][1:]
    assert len(rows) > 15
    assert [row for row in rows if not re.search(r"`tests/[\w/]+\.py::[\w:]+`", row)] == []


@pytest.mark.parametrize(("file", "name"), NAMED)
def test_a_named_test_exists(file, name):
    body = ast.parse((ROOT / file).read_text()).body
    *classes, function = name.split("::")
    for wanted in classes:
        (found,) = [node for node in body if isinstance(node, ast.ClassDef) and node.name == wanted]
        body = found.body
    assert function.startswith("test_")
    assert function in [node.name for node in body if isinstance(node, ast.FunctionDef)]
