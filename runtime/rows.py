"""Predictions as rows: JSON lines, CSV, Arrow tables; the same columns wherever predictions are written."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any, TypeAlias

from .classifier import Prediction
from .errors import OutputError, PictureError

if TYPE_CHECKING:
    import pyarrow

Result: TypeAlias = "tuple[str, Prediction | PictureError]"
"""A picture's name, and what it shows or why it cannot be read."""


def row_of(name: str, result: Prediction | PictureError) -> dict[str, Any]:
    """Return a result as JSON values: those of the prediction, or source and error."""
    return {"source": name, "error": str(result)} if isinstance(result, PictureError) else result.as_json()


def json_line(name: str, result: Prediction | PictureError) -> bytes:
    """Return a result as one line of JSON in UTF-8; a name that is no text is escaped."""
    row = row_of(name, result)
    try:
        return (json.dumps(row, ensure_ascii=False) + "\n").encode()
    except UnicodeEncodeError:
        return (json.dumps(row) + "\n").encode()


def csv_columns(top_k: int) -> list[str]:
    """Return the names of the columns of `csv_cells`."""
    numbered = [f"{name}_{rank}" for rank in range(1, top_k + 1) for name in ("label", "probability")]
    return ["source", "error", *numbered, "known", "familiarity"]


def csv_cells(name: str, result: Prediction | PictureError, top_k: int) -> list[str]:
    """Return a result as the cells of a row; what there is not is empty."""
    if isinstance(result, PictureError):
        return [name, str(result), *[""] * (2 * top_k + 2)]
    top = [cell for label, probability in result.top for cell in (label, f"{probability:.6f}")]
    known = "" if result.known is None else "true" if result.known else "false"
    familiarity = "" if result.familiarity is None else f"{result.familiarity:.6f}"
    return [name, "", *top, *[""] * (2 * top_k - len(top)), known, familiarity]


def csv_text(rows: Iterable[Sequence[str]]) -> str:
    """Return rows as CSV."""
    text = io.StringIO()
    plain, quoted = (csv.writer(text, lineterminator="\n", quoting=how) for how in (csv.QUOTE_MINIMAL, csv.QUOTE_ALL))
    for row in rows:  # csv leaves a carriage return without quotes, and takes it for the end of a line
        (quoted if any("\r" in cell for cell in row) else plain).writerow(row)
    return text.getvalue()


def csv_lines(rows: Iterable[Sequence[str]]) -> bytes:
    """Return rows as CSV in UTF-8; the bytes of a name that is no text stay as they are."""
    return csv_text(rows).encode("utf-8", "surrogateescape")


def read_csv_row(row: bytes, top_k: int) -> list[str]:
    """Return the cells of a row that `csv_lines` wrote of `csv_cells`; none of what is not one whole row."""
    text = row.decode("utf-8", "surrogateescape")
    try:
        (cells,) = csv.reader(io.StringIO(text, newline=""), strict=True)
    except (csv.Error, ValueError):  # ValueError: no row, or several
        return []
    whole = text.endswith("\n") and text.count('"') % 2 == 0
    return cells if whole and len(cells) == len(csv_columns(top_k)) else []


def schema() -> pyarrow.Schema:
    """Return the columns of a prediction in Parquet, without the picture's name.

    Raises:
        OutputError: pyarrow is not installed.
    """
    arrow = pyarrow_or_refuse()
    top = arrow.list_(arrow.struct([("label", arrow.string()), ("probability", arrow.float32())]))
    return arrow.schema(
        [
            ("error", arrow.string()),
            ("label", arrow.string()),
            ("probability", arrow.float32()),
            ("top", top),
            ("known", arrow.bool_()),
            ("familiarity", arrow.float32()),
        ]
    )


def table_of(results: Iterable[Prediction | PictureError]) -> pyarrow.Table:
    """Return predictions as a table of the columns of `schema`; where there is an error, all else is null.

    Raises:
        OutputError: pyarrow is not installed.
    """
    rows = [row_of("", result) for result in results]
    return pyarrow_or_refuse().Table.from_pylist(rows, schema=schema())


def pyarrow_or_refuse() -> Any:
    """Return the module pyarrow.

    Raises:
        OutputError: it is not installed.
    """
    try:
        import pyarrow
    except ModuleNotFoundError:
        raise OutputError(
            "Parquet needs pyarrow, which is not installed: pip install '.[parquet]' in the folder of edgecifar's "
            "source, or write .jsonl or .csv."
        ) from None
    return pyarrow
