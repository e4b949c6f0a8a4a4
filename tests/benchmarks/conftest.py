"""The scripts in benchmarks/ find one another, as where a person runs them; a clock that only calls move."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from edgecifar.runtime.contract import Contract

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT / "benchmarks"))


class Clock:
    """Stands still but for calls; each call takes the seconds that it was made with, and is written down."""

    def __init__(self) -> None:
        self.now, self.calls = 100.0, []

    def __call__(self) -> float:
        return self.now

    def call(self, name: str, seconds: float):
        def function() -> None:
            self.calls.append(name)
            self.now += seconds

        return function


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def tiny() -> Path:
    """The committed bundle; nobody writes into it."""
    return ROOT / "tests" / "fixtures" / "tiny_bundle"


FIGURES = {
    "type": "object",
    "required": ["mean", "p50", "p90", "p99", "p99.9"],
    "additionalProperties": {"type": ["number", "null"]},
}
RATIO = {
    "type": "object",
    "required": ["median", "low", "high"],
    "additionalProperties": {"type": "number", "exclusiveMinimum": 0},
}
ROW = {
    "type": "object",
    "required": ["problem"],
    "properties": {
        "problem": {"type": ["string", "null"]},
        "share": {"enum": [1, None]},
        "n": {"type": "integer", "minimum": 1},
        "milliseconds": FIGURES,
        "images_per_second": {"type": "number", "exclusiveMinimum": 0},
        "ratios": {"type": "object", "additionalProperties": RATIO},
    },
    "dependentRequired": {"n": ["milliseconds", "images_per_second", "ratios"]},
    "anyOf": [{"required": ["n"]}, {"properties": {"problem": {"type": "string", "pattern": r".\.$"}}}],
}
MACHINE = {
    "type": "object",
    "required": ["cpu", "cpu_features", "usable_cpus", "cpu_quota", "versions", "gpus", "load_average", "python"],
    "properties": {"versions": {"type": "object", "required": ["numpy"]}, "cpu_features": {"type": "array"}},
}
SCHEMA = {
    "type": "object",
    "required": ["benchmark", "machine", "settings", "rows"],
    "properties": {
        "benchmark": {"type": "string"},
        "settings": {"type": "object"},
        "machine": MACHINE,
        "rows": {"type": "array", "items": {"type": "object"}, "minItems": 1},
    },
}
"""Of the line of JSON that every script ends with."""

ENTRIES = {"properties": {"rows": {"items": ROW}}}
"""Beside it, of rows that `Entry` makes."""


@pytest.fixture
def check_document() -> Callable[..., dict]:
    """Return the document in a line, after it was held against the schema; NaN is none of JSON's values."""
    jsonschema = pytest.importorskip("jsonschema")

    def refuse(constant: str):
        raise ValueError(constant)

    def check(line: str, entries: bool = True) -> dict:
        document = json.loads(line, parse_constant=refuse)
        try:
            for schema in (SCHEMA, ENTRIES) if entries else (SCHEMA,):
                jsonschema.Draft202012Validator(schema).validate(document)
        except jsonschema.ValidationError as error:
            raise ValueError(error.message) from None
        return document

    return check


@pytest.fixture
def contract() -> Contract:
    """Three classes at 12 pixels: nothing in a benchmark may take another."""
    return Contract(("red", "grün", "blue"), 12)
