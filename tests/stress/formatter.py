"""The formatter of the benchmarks, for the stress tests: a table for people and one line of JSON."""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.append(str(Path(__file__).parents[2] / "benchmarks"))

from harness import main, say
from report import document, finish, table

__all__ = ["document", "finish", "main", "say", "table"]
