"""manifest.json: what a bundle says of itself, read strictly and written in the newest form."""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Iterator
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any, cast

from .contract import Contract
from .errors import BundleError

SCHEMA = 2
"""Version of the manifest's layout that is written; 1 is read too, and no other."""

MANIFEST, GOLDEN, PARITY, CARD, SUMS = "manifest.json", "golden.npz", "parity.json", "README.md", "SHA256SUMS"
BOM = "bom.cdx.json"
"""The bill of materials. A bundle may lack it: the runtime reads it for its digest alone."""

GOLDEN_PICTURES = "golden.json"
"""The arrays that the golden pictures must become, and their probabilities. Bundles of schema 1 lack it."""

ONNX = "onnx"
"""The format that the runtime runs; the others need torch."""

MODELS = {ONNX: ".onnx", "torchscript": ".torchscript.pt", "pt2": ".pt2"}
"""Formats that a variant can have, and how its file's name ends."""

SYNTHETIC = "synthetic"
"""The data set's name where the training pictures were drawn by a program, to try the pipeline."""

MAX_DEPTH = 32
"""How deeply a manifest may be nested: whatever walks through it must not run out of stack."""

MAX_NUMBER = sys.float_info.max
"""Numbers in a manifest are at most as large: JSON's have no bound, and what is computed of them is a float."""

PLAIN_NAME = "[A-Za-z0-9][A-Za-z0-9_.+-]{0,99}"
"""Regular expression of the names that files and variants may have: safe on every disk, terminal and command line."""


@dataclass(frozen=True)
class Familiarity:
    """How a variant's familiarity score tells known pictures from others.

    Attributes:
        threshold: pictures whose score is at least this are known.
        accepted: share of the held-out pictures that the threshold accepts, 0 to 1.
        images: how many held-out pictures it was set on.
        measured: how well it tells other pictures apart, JSON values by what they showed.
    """

    threshold: float
    accepted: float
    images: int
    measured: dict[str, Any]


@dataclass(frozen=True)
class Variant:
    """One model file of a bundle.

    Attributes:
        name: what it is asked for by, such as "fp32".
        file: its name in the bundle's folder.
        format: "onnx", "torchscript" or "pt2".
        precision: of its weights and arithmetic, such as "fp32" or "int8".
        bytes: the file's size.
        sha256: the file's digest.
        accuracy: share of the test images classified correctly, 0 to 1; None where they were not at hand.
        parity: how it agrees with the net it was made from: arg-maxes, largest differences, on what.
        made_by: how it was made, in a sentence.
        golden_tolerance: largest difference of a golden probability that `verify` accepts.
        familiarity: the threshold of its familiarity score; None where it has no score, or too few pictures set one.
    """

    name: str
    file: str
    format: str
    precision: str
    bytes: int
    sha256: str
    accuracy: float | None
    parity: dict[str, Any]
    made_by: str
    golden_tolerance: float = 1e-4
    familiarity: Familiarity | None = None

    @property
    def is_onnx(self) -> bool:
        """Whether the runtime runs it; the other formats need torch."""
        return self.format == ONNX

    def as_json(self) -> dict[str, Any]:
        """Return the variant as JSON values, without what it has not."""
        values = asdict(self)
        if self.familiarity is None:
            del values["familiarity"]
        return values


@dataclass(frozen=True)
class Manifest:
    """The contents of manifest.json.

    Attributes:
        contract: labels, input, outputs, and how a picture becomes the input.
        variants: the models, the most exact first.
        default_variant: the name of the one to use unless told otherwise.
        dataset: the name of what the net was trained on.
        provenance: recipe, seed, versions, the checkpoint's digest, dates.
        schema: version of the layout that it was read from; written is always the newest.
    """

    contract: Contract
    variants: tuple[Variant, ...]
    default_variant: str
    dataset: str
    provenance: dict[str, Any]
    schema: int = SCHEMA

    @property
    def labels(self) -> tuple[str, ...]:
        """The classes in the order of the outputs."""
        return self.contract.labels

    def as_json(self) -> str:
        """Return the text of manifest.json, of schema `SCHEMA`."""
        values = {
            "schema": SCHEMA,
            "contract": self.contract.as_json(),
            "variants": [variant.as_json() for variant in self.variants],
            "default_variant": self.default_variant,
            "dataset": self.dataset,
            "provenance": self.provenance,
        }
        return json.dumps(values, indent=2, ensure_ascii=False) + "\n"

    @classmethod
    def parse(cls, text: str, source: Path) -> Manifest:
        """Read manifest.json's text, strictly, of schema 1 or 2.

        Raises:
            BundleError: it is not JSON, of an unknown schema, or a field is missing, unknown or of another type.
        """
        try:
            values = _object(json.loads(text, object_pairs_hook=unique_names, parse_constant=refuse_constant))
            if values is None or type(values.get("schema")) is not int:
                raise ValueError("it names no schema")
            if values["schema"] not in (1, SCHEMA):
                raise BundleError(
                    f"{source} has schema {values['schema']}, this version of edgecifar reads 1 and {SCHEMA}: export "
                    "the bundle again, or install the version of edgecifar that made it."
                )
            if _depth(values) > MAX_DEPTH:
                raise ValueError(f"it is nested more than {MAX_DEPTH} deep")
            for leaf in _leaves(values):
                if isinstance(leaf, str) and not leaf.isprintable():  # what is printed must not steer a terminal
                    raise ValueError("it holds characters that cannot be shown")
                if isinstance(leaf, int | float) and not -MAX_NUMBER <= leaf <= MAX_NUMBER:  # nor end in an overflow
                    raise ValueError("it holds a number that is too large")
            manifest = _build(cls, _from_schema_1(values) if values["schema"] == 1 else _from_schema_2(values))
            _check(manifest)
        except (ValueError, RecursionError) as error:
            raise BundleError(f"{source} is damaged ({error}): copy the bundle again.") from None
        return manifest


def _from_schema_2(values: dict[str, Any]) -> dict[str, Any]:
    """Return the fields of `Manifest` that are its own classes, read; the others as they are."""
    found = dict(values)
    if "contract" in values:
        found["contract"] = Contract.parse(values["contract"])
    found["variants"] = tuple(_variant(entry) for entry in _variants(values))
    return found


def _from_schema_1(values: dict[str, Any]) -> dict[str, Any]:
    """Return the fields of `Manifest`: labels stood beside the contract, which knew no preprocessing."""
    found = {name: value for name, value in values.items() if name != "labels"}
    found["contract"] = Contract.parse_first(values.get("labels"), values.get("contract"))
    found["variants"] = tuple(_variant(_without_needs(entry)) for entry in _variants(values))
    return found


def _variants(values: dict[str, Any]) -> list[Any]:
    if not isinstance(values.get("variants"), list):
        raise ValueError("'variants' is missing or not a list")
    return values["variants"]


def _variant(entry: Any) -> Variant:
    values = _object(entry)
    if values is not None and "familiarity" in values:
        entry = {**values, "familiarity": _build(Familiarity, values["familiarity"])}
    return _build(Variant, entry)


def _without_needs(entry: Any) -> Any:
    """Drop the processor's features that a variant of schema 1 could name; no bundle ever named any."""
    values = _object(entry)
    if values is None:
        return entry
    if not isinstance(values.get("needs"), str):
        raise ValueError("'needs' is missing or not a text")
    return {name: value for name, value in values.items() if name != "needs"}


def _object(value: Any) -> dict[str, Any] | None:
    """Return a JSON value if it is an object."""
    return cast("dict[str, Any]", value) if isinstance(value, dict) else None


def _depth(value: Any) -> int:
    """Return how deeply lists and objects are nested in a JSON value."""
    if not isinstance(value, dict | list):
        return 0
    inner = cast("Any", value)
    return 1 + max(map(_depth, inner.values() if isinstance(value, dict) else inner), default=0)


def _leaves(value: Any) -> Iterator[Any]:
    """Yield all in a JSON value that holds no other, names included."""
    if isinstance(value, dict | list):
        for part in cast("Any", value):
            yield from _leaves(part)
            if isinstance(value, dict):
                yield from _leaves(value[part])
    else:
        yield value


def unique_names(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """Make the dictionary of a JSON object in which no name comes twice: readers differ in which one they take.

    Raises:
        ValueError: a name comes twice.
    """
    values = dict(pairs)
    if len(values) != len(pairs):
        raise ValueError("a name comes twice in an object")
    return values


def refuse_constant(constant: str) -> None:
    """Refuse NaN and infinity, which Python's reader takes and JSON does not have.

    Raises:
        ValueError: always.
    """
    raise ValueError(f"{constant} is not JSON")


_TYPES: dict[str, tuple[type, ...]] = {
    "str": (str,),
    "int": (int,),
    "float": (int, float),
    "float | None": (int, float, type(None)),
    "dict[str, Any]": (dict,),
    "Contract": (Contract,),
    "Familiarity | None": (Familiarity,),
    "tuple[Variant, ...]": (tuple,),
}


def _build(kind: Any, values: Any) -> Any:
    """Make the dataclass `kind` of a JSON object that has its fields, each of its type; those that may be None only."""
    given = _object(values)
    if given is None:
        raise ValueError(f"an object was expected for {kind.__name__.lower()}")
    known = {entry.name: entry for entry in fields(kind)}
    optional = {entry.name for entry in fields(kind) if entry.default is None}
    if unknown := given.keys() - known.keys():
        raise ValueError(f"{min(unknown)!r} is unknown")
    if missing := known.keys() - given.keys() - optional:
        raise ValueError(f"{min(missing)!r} is missing")
    for name, value in given.items():
        if not isinstance(value, _TYPES[str(known[name].type)]) or isinstance(value, bool):
            raise ValueError(f"{name!r} is a {type(value).__name__}")
    return kind(**given)


def _check(manifest: Manifest) -> None:
    """Raise a ValueError where the parts of a manifest do not agree."""
    names = [variant.name for variant in manifest.variants]
    models = {variant.file for variant in manifest.variants}
    if not len(set(names)) == len(models) == len(names) or manifest.default_variant not in names:
        raise ValueError("its variants' names or files are not unique, or the default is not among them")
    if manifest.contract.input_name in names:
        raise ValueError(f"a variant is called {manifest.contract.input_name!r}, as the input is in {GOLDEN}")
    for variant in manifest.variants:
        for name in (variant.name, variant.file):
            if not re.fullmatch(PLAIN_NAME, name):
                raise ValueError(f"{name!r} is not a plain name")
        if variant.format not in MODELS or not variant.file.endswith(MODELS[variant.format]):
            raise ValueError(f"variant {variant.name!r} has an unknown format")
        if not 0 <= (variant.accuracy or 0) <= 1 or not 0 < variant.golden_tolerance < 1:  # also fails for nan
            raise ValueError(f"variant {variant.name!r} has an accuracy or a tolerance that is not between 0 and 1")
        if (found := variant.familiarity) is None:
            continue
        if manifest.contract.familiarity_name is None:
            raise ValueError(f"variant {variant.name!r} has a threshold, and the contract has no familiarity score")
        if not abs(found.threshold) < float("inf") or not 0 <= found.accepted <= 1 or found.images < 0:
            raise ValueError(f"the familiarity of variant {variant.name!r} is out of range")
