"""How good a model is on labelled pictures that lie on the disk: without torch, so on the device itself too."""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

import numpy as np

from . import choice, files, labelled
from .bundle import Bundle
from .contract import Contract
from .errors import DataError, ModelError, VariantError
from .labelled import SPLITS, Entry, Listing
from .machine import usable_cpus
from .metrics import Evaluation, score
from .parallel import decode_many
from .paths import kind_of
from .session import AUTO, Session
from .splitting import assign_splits

ALL = "all"
"""Says that the pictures of every split are measured."""

BATCH = 250
"""Pictures that are classified at once."""


@dataclass(frozen=True)
class Model:
    """What is measured.

    Attributes:
        kind: "onnx" or "bundle"; the command line has more.
        classify: maps uint8 [N, size, size, 3] to probabilities, float32 [N, classes].
        contract: its labels, and how pictures are read for it.
        provider: what it runs on.
        variant: of a bundle, the name of the one that is loaded; else None.
        dataset: what it was trained on, as its provenance says: name, and of own pictures origin, how they were split.
            Empty where the file does not say.
        trained_on_val: whether the pictures of the validation split were trained on, too.
    """

    kind: str
    classify: Callable[[np.ndarray], np.ndarray]
    contract: Contract
    provider: str
    variant: str | None = None
    dataset: Mapping[str, Any] = field(default_factory=dict[str, Any])
    trained_on_val: bool = False


@dataclass(frozen=True)
class Measured:
    """What `evaluate` measured.

    Attributes:
        name: what the folder or the CSV is called.
        pictures: which of its pictures were measured, one of `SPLITS` or "all".
        reason: why these, a sentence.
        result: the figures, over the pictures that could be read.
        unread: why each of the others could not be read, by its path.
    """

    name: str
    pictures: str
    reason: str
    result: Evaluation
    unread: Mapping[str, str]


def load(path: Path, variant: str | None = None, provider: str = AUTO) -> Model:
    """Load an ONNX file or a bundle.

    Args:
        path: the file or the folder.
        variant: of a bundle; by default the one that suits the provider and this processor.
        provider: as `Session` takes it.

    Raises:
        ModelError: it is missing, damaged, or needs torch.
        VariantError: a variant is named, and it is no bundle; or as the bundle's loader says.
        BundleError, ProviderError: as their loaders say.
    """
    kind = kind_of(path)
    if kind == "bundle":
        bundle = Bundle.open(path)
        chosen, _, session = choice.load(bundle, variant, provider)
        provenance: Any = bundle.manifest.provenance
        name = chosen.name
    elif kind == "onnx":
        if variant:
            raise VariantError(f"{path} is not a bundle and has no variants: leave the variant out.", option="variant")
        session = Session(path.read_bytes(), provider=provider, name=str(path))
        provenance = session.metadata().get("provenance")
        name = None
    else:
        raise ModelError(f"{path} needs torch: name an .onnx file or a bundle.")
    dataset, recipe = (_object(_object(provenance).get(part)) for part in ("dataset", "recipe"))
    on_val = recipe.get("held_out") == 0
    return Model(kind, session.probabilities, session.contract, session.provider, name, dataset, on_val)


def _object(value: Any) -> dict[str, Any]:
    """Return a JSON object, or an empty one where it is something else."""
    return cast("dict[str, Any]", value) if isinstance(value, dict) else {}


def evaluate(
    model: Model,
    data: Path,
    *,
    split: str | None = None,
    jobs: int | None = None,
    progress: Callable[[int], object] = lambda done: None,
) -> Measured:
    """Measure a model on labelled pictures, read as `predict` reads them.

    Args:
        model: what is measured; its labels are those that the pictures must have.
        data: a folder or a CSV, as `labelled.read` takes it. One class is enough.
        split: one of `SPLITS`, or "all"; by default "test" where the data gives a split, or the model was trained on a
            folder of this name and split it itself, else "all". The split of such a model is made by content, so that
            it is the same under any name.
        jobs: processes that decode; by default one a usable core.
        progress: is told how many pictures are done.

    Raises:
        DataError: the data cannot be read, has a class that the model does not know, or has no such pictures.
    """
    listing = labelled.read(data)
    listing.indices(model.contract.labels)  # that a class is unknown must be known first
    chosen, reason, shares = _choose(model, listing, split)
    entries = _of_split(listing, chosen, shares)
    paths = (listing.root / entry.path for entry in entries)
    decoded = decode_many(paths, model.contract, jobs=jobs or usable_cpus())
    found = zip(entries, decoded, strict=True)
    places = {label: place for place, label in enumerate(model.contract.labels)}
    truth: list[int] = []
    rows: list[np.ndarray] = []
    unread: dict[str, str] = {}
    seconds, done = 0.0, 0
    while batch := list(itertools.islice(found, BATCH)):
        good = [(entry, one.picture) for entry, one in batch if one.picture is not None]
        unread |= {entry.path: str(one.error) for entry, one in batch if one.picture is None}
        if good:
            images = np.stack([picture for _, picture in good])
            if not rows:
                model.classify(images[:1])  # the first call of a session allocates and is slower
            begin = time.perf_counter()
            rows.append(model.classify(images))
            seconds += time.perf_counter() - begin
            truth += [places[entry.label] for entry, _ in good]
        done += len(batch)
        progress(done)
    if not rows:
        why = f" ({next(iter(unread.values()))})" if unread else ""
        raise DataError(
            f"{listing.source} has no {_named(chosen)} that can be read{why}: name other data or another split."
        )
    result = score(np.concatenate(rows), np.array(truth), model.contract.labels, seconds)
    return Measured(listing.source.name, chosen, reason, result, unread)


def _named(split: str) -> str:
    return "pictures" if split == ALL else f"pictures of the split {split}"


def _choose(model: Model, listing: Listing, split: str | None) -> tuple[str, str, dict[str, float] | None]:
    """Return which pictures are measured, why, and the shares of a split that is yet to be made."""
    if split not in (None, ALL, *SPLITS):
        raise DataError(f"There is no split {split}: choose one of {', '.join(SPLITS)}, {ALL}.")
    shares = None if listing.has_splits else _shares(model)
    if split is None:
        if listing.has_splits:
            return "test", "The data says which pictures are for testing.", None
        if not model.dataset:
            doubt = "the file does not say what it was trained on, which may be among them"
            return ALL, f"The data has no split: all of its pictures are measured; {doubt}.", None
        if shares is None:
            return ALL, "The data has no split: all of its pictures are measured.", None
        name = listing.source.name
        if model.dataset.get("name") not in (name, f"{name} (own)"):  # as training calls folders of known names
            doubt = "if they are those that the model was trained on under another name, measure the split test"
            return ALL, f"The data has no split: all of its pictures are measured; {doubt}.", None
        return (
            "test",
            f"The model was trained on {listing.source.name}: only what it was tested on is measured.",
            shares,
        )
    if split == ALL:
        return ALL, "All pictures were asked for.", None
    if not listing.has_splits and shares is None:
        raise DataError(
            f"{listing.source} has no split, and the model's training made none by content: measure all its pictures.",
            option="split",
        )
    too = ", on which the model was trained, too" if split == "val" and model.trained_on_val else ""
    return split, f"The split {split} was asked for{too}.", shares


def _shares(model: Model) -> dict[str, float] | None:
    """Return the shares by which the model's training split its pictures by content; None where it did not."""
    options = _object(_object(model.dataset.get("origin")).get("options"))
    if not {"val", "test"} <= {*options}:
        return None
    shares = {name: options[name] for name in ("val", "test")}
    sound = all(isinstance(share, int | float) and share >= 0 for share in shares.values())
    return {name: float(share) for name, share in shares.items()} if sound and sum(shares.values()) < 1 else None


def _of_split(listing: Listing, split: str, shares: dict[str, float] | None) -> Sequence[Entry]:
    """Return the pictures of a split: the one that is given, or that the training made by content."""
    if split == ALL:
        return listing.entries
    if shares is None:
        return listing.of_split(split).entries
    digests = [_digest(listing.root / entry.path, entry) for entry in listing.entries]
    splits = assign_splits(digests, [entry.group for entry in listing.entries], **shares)
    return [entry for entry, own in zip(listing.entries, splits, strict=True) if own == split]


def _digest(path: Path, entry: Entry) -> str:
    try:
        return files.sha256(path)
    except OSError:
        return entry.name_digest  # it is reported when it is decoded
