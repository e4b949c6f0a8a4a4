"""What a run keeps of own pictures: a short report, a contact sheet, and what the net is most wrong about."""

from __future__ import annotations

import functools
import json
import logging
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ..runtime.files import write_file
from . import plots
from .data import Dataset
from .inspection import Report, draw_sheet, exact_pairs, remarks_on

log = logging.getLogger("edgecifar")

DATA, DATA_SHEET, MISTAKES, MISTAKES_SHEET = "data.json", "data.png", "mistakes.json", "mistakes.png"

SHEET_SIDE = 6
"""The sheet of mistakes has so many rows and columns."""

CAPTION = 14
"""Characters of a label in a caption; what is longer is cut."""


@dataclass(frozen=True)
class Mistake:
    """A test picture that the net takes for another class.

    Attributes:
        path: of the file, relative to the data.
        true: its label.
        predicted: the class that the net takes it for.
        margin: the probability of that class minus that of the true one, 0 to 1.
    """

    path: str
    true: str
    predicted: str
    margin: float


def keep_data(dataset: Dataset, folder: Path, held_out: float) -> None:
    """Write data.json and data.png into a run's folder, and log exact duplicates that stand where they should not.

    It says what is known without looking at the pictures once more; `inspect` says more. Data sets that are no own
    pictures have neither.

    Args:
        dataset: what is trained on.
        folder: the run's.
        held_out: of the recipe; 0 says that the validation split is trained on, too.

    Raises:
        OutputError: they cannot be written.
    """
    if dataset.pictures is None:
        return
    pictures = dataset.pictures.pictures
    duplicates = exact_pairs(pictures, [*dataset.pictures.splits])
    pairs = tuple(pair for pair in duplicates if pair.is_leak or pair.is_contradiction)
    unreadable = {pictures.entries[row].path: error for row, error in pictures.errors.items()}
    remarks, notes = remarks_on(pictures.listing)
    report = Report(
        source=str(pictures.listing.source),
        layout=pictures.listing.layout,
        labels=dataset.contract.labels,
        counts=dataset.origin["pictures"],
        unreadable=unreadable,
        pairs=pairs,
        small=(),
        long=(),
        remarks=remarks,
        notes=notes,
    )
    sums = {split: sum(found.values()) for split, found in report.counts.items()}
    train, val = sums.get("train", 0), sums.get("val", 0)
    log.info(
        "%s: %s classes; %s pictures to train on, %s held out, %s tested on. %s and %s show them; 'edgecifar inspect' "
        "looks for more that may be wrong.",
        dataset.name,
        f"{dataset.contract.classes:,}",
        f"{train if held_out else train + val:,}",
        f"{val if held_out else 0:,}",
        f"{sums.get('test', 0):,}",
        folder / DATA,
        DATA_SHEET,
    )
    for sentence in [*report.wrong_duplicates(), *report.too_few()]:
        log.warning("%s", sentence)
    document = {name: value for name, value in report.as_json().items() if name not in ("small", "long")}
    document["note"] = "Exact duplicates under two labels or in two splits only: 'edgecifar inspect' looks for more."
    write_file(folder / DATA, _as_json(document))
    draw_sheet(pictures, folder / DATA_SHEET)


def keep_mistakes(dataset: Dataset, probabilities: np.ndarray, folder: Path) -> list[Mistake]:
    """Write mistakes.json and, as a sheet, mistakes.png: the test pictures that the net is most wrong about.

    That is where wrong labels show. Data sets that are no own pictures, and nets without a mistake, have neither.

    Args:
        dataset: what was trained and tested on.
        probabilities: of the test images, float32 [N, classes].
        folder: the run's.

    Returns:
        The mistakes, the worst first.

    Raises:
        OutputError: they cannot be written.
    """
    if dataset.pictures is None:
        return []
    labels, names, paths = dataset.test_labels, dataset.contract.labels, dataset.pictures.tested
    rows = np.arange(len(labels))
    predicted = probabilities.argmax(1)
    margins = probabilities[rows, predicted] - probabilities[rows, labels]
    worst = [row for row in np.argsort(-margins, kind="stable")[: SHEET_SIDE**2] if predicted[row] != labels[row]]
    mistakes = [Mistake(paths[r], names[labels[r]], names[predicted[r]], round(float(margins[r]), 6)) for r in worst]
    if not mistakes:
        return []
    write_file(folder / MISTAKES, _as_json([asdict(mistake) for mistake in mistakes]))
    cut = functools.partial(plots.shorten, length=CAPTION)
    captions = [f"{cut(m.true)}\nas {cut(m.predicted)} {m.margin:.2f}" for m in mistakes]
    lines = [
        (captions[start : start + SHEET_SIDE], [dataset.test_images[row] for row in worst[start : start + SHEET_SIDE]])
        for start in range(0, len(worst), SHEET_SIDE)
    ]
    title = "Test pictures that the net is most wrong about: label, prediction, difference of their probabilities"
    plots.sheet(lines, folder / MISTAKES_SHEET, title, cell=1.3)
    return mistakes


def _as_json(document: Any) -> bytes:
    """Return a document as JSON; what is no text in a file's name is an escape, from which JSON gives the name back."""
    return (json.dumps(document, indent=2, ensure_ascii=False) + "\n").encode(errors="backslashreplace")
