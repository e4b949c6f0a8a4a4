"""Files of predictions that grow: JSON lines, CSV, or a folder of Parquet parts, each picture in them exactly once.

Whatever ends the process, what is there can be gone on with: a line that was cut short is cut off, a part appears whole
or not at all. Beside the rows stands a file of settings, so that nobody goes on with another model.
"""

from __future__ import annotations

import io
import json
import os
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self, cast

from .errors import OutputError
from .files import explained, lock, make_folder, remove_leftovers, write_file
from .rows import Result, csv_cells, csv_columns, csv_lines, json_line, pyarrow_or_refuse, read_csv_row, table_of

if TYPE_CHECKING:
    import pyarrow

SETTINGS = "settings.json"
"""What the file of settings is called: in a folder with "_" before it, beside FILE as FILE.settings.json."""

PART_ROWS = 50_000
"""Rows of a Parquet part, at most."""

PART_SECONDS = 60.0
"""A part is written out after so long, so that no more is lost where the process is killed."""


def open_output(
    path: str | Path, settings: dict[str, Any], *, resume: bool = False, retry_errors: bool = False
) -> Lines | Parts:
    """Open the output `path`, FILE.jsonl, FILE.csv or a folder of Parquet parts.

    Args:
        path: where the rows go.
        settings: JSON values that must be the same whenever it is gone on with; "top_k" among them.
        resume: whether what is there is gone on with.
        retry_errors: whether rows with errors are taken out of what is there, to be done again.

    Raises:
        OutputError: it is there and `resume` is false, was begun with other settings, is damaged, is written by another
            process, or cannot be written.
    """
    path = Path(path).absolute()
    if os.path.isdir(path) or path.suffix.lower() in ("", ".parquet"):  # noqa: PTH112 - as in files
        output: Lines | Parts = Parts(path)
    elif path.suffix.lower() == ".jsonl":
        output = JsonLines(path)
    elif path.suffix.lower() == ".csv":
        output = Csv(path, settings["top_k"])
    else:
        raise OutputError(f"{path.name} is no kind of output: name FILE.jsonl, FILE.csv or a folder for Parquet parts.")
    try:
        with explained(path):
            output.begin(settings, resume, retry_errors)
    except BaseException:
        output.close()
        raise
    return output


class _Output:
    """What files and folders share.

    Attributes:
        path: where the rows are.
        done: how often each picture has a row that `remaining` has not come by.
        passed_over: pictures that `remaining` has left out so far.
    """

    def __init__(self, path: Path, settings_path: Path) -> None:
        self.path = path
        self.done: Counter[str] = Counter()
        self.passed_over = 0
        self._settings_path = settings_path
        self._let_go: Callable[[], None] | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def remaining(self, sources: str | Path | Iterable[str | Path]) -> Iterator[str]:
        """Yield those of `sources` that have no row; of one that is named several times, as many as are missing."""
        several = [sources] if isinstance(sources, str | Path) else sources
        for source in map(os.fsdecode, several):  # a Path, too, counts by its name
            key = self.key(source)
            if self.done[key] > 0:
                self.done[key] -= 1
                self.passed_over += 1
            else:
                yield source

    def key(self, source: str) -> str:
        """Return the name of a picture as its row has it."""
        return source

    def begin(self, settings: dict[str, Any], resume: bool, retry_errors: bool) -> None:
        """Open it, as `open_output` says."""
        make_folder(self.path.parent)
        if not self._is_there():
            self._make()
            self._settings_path.touch()  # what is locked stays that file: another process may begin at this moment, too
            self._take()
            if not self._is_there():
                self._settings_path.write_text(json.dumps(settings, indent=2) + "\n")
                self._start()
                return
            self.close()
        if not resume:
            raise OutputError(f"{self.path} exists already: choose another output, or resume it.", option="resume")
        self._compare(settings)
        self._take()
        self._read(retry_errors)

    def _is_there(self) -> bool:
        raise NotImplementedError

    def _make(self) -> None:
        """Make the place for rows and settings."""

    def _start(self) -> None:
        """Begin without rows."""

    def _read(self, retry_errors: bool) -> None:
        """Read which rows are there, and make ready for more."""
        raise NotImplementedError

    def write(self, results: Sequence[Result]) -> None:
        """Add a row for each result."""
        raise NotImplementedError

    def close(self) -> None:
        """Write out what is left, and let other processes go on with it."""
        if self._let_go:
            self._let_go()
            self._let_go = None

    def _compare(self, settings: dict[str, Any]) -> None:
        try:
            read = json.loads(self._settings_path.read_bytes())
            if not isinstance(read, dict):
                raise ValueError
            before = cast("dict[str, Any]", read)
        except FileNotFoundError:
            raise OutputError(
                f"{self.path} cannot be resumed: its settings file, {self._settings_path.name}, is missing; choose "
                "another output."
            ) from None
        except ValueError:
            raise OutputError(f"{self._settings_path} is damaged: choose another output.") from None
        names = sorted(name for name in before | settings if before.get(name) != settings.get(name))
        if names:
            changed = (f"{name} {_short(before.get(name))}, not {_short(settings.get(name))}" for name in names)
            raise OutputError(
                f"{self.path} was written with other settings ({'; '.join(changed)}): use those settings, or choose "
                "another place."
            )

    def _take(self) -> None:
        """Keep other processes from writing too, where the system can; the lock ends with the process."""
        try:
            self._let_go = lock(self._settings_path)
        except BlockingIOError:
            raise OutputError(f"{self.path} is being written by another process: wait for it, or end it.") from None


def _short(value: Any) -> str:
    return str(value)[:12]  # of a digest, enough to tell two apart


class Lines(_Output):
    """A file of lines, each batch of them written at once."""

    def __init__(self, path: Path) -> None:
        super().__init__(path, path.with_name(f"{path.name}.{SETTINGS}"))
        self._file: io.FileIO | None = None
        self._end = 0

    def _records(self, file: io.BufferedReader) -> Iterator[tuple[bytes, str, bool]]:
        """Yield each whole row: its bytes, its picture's name, and whether it is an error."""
        raise NotImplementedError

    def _head(self) -> bytes:
        """Return what the file begins with."""
        return b""

    def _lines(self, results: Sequence[Result]) -> bytes:
        """Return rows as they stand in the file."""
        raise NotImplementedError

    def _is_there(self) -> bool:
        return os.path.lexists(self.path)

    def _start(self) -> None:
        self._file = io.FileIO(self.path, "x")
        self._append(self._head())

    def _read(self, retry_errors: bool) -> None:
        errors = 0
        end = 0
        with self.path.open("rb") as file:
            head = file.read(len(self._head()))
            if head == self._head():
                end = len(head)
                for line, name, failed in self._records(file):
                    end += len(line)
                    if failed and retry_errors:
                        errors += 1
                    else:
                        self.done[name] += 1
            elif not self._head().startswith(head):
                raise OutputError(f"{self.path} does not have the columns of its settings: choose another output.")
        if errors:
            write_file(self.path, self._write_good)
            end = self.path.stat().st_size
        self._file = io.FileIO(self.path, "r+")
        self._file.truncate(end)  # what is after it is a row that was cut short
        self._file.seek(end)
        self._end = end
        if end == 0:
            self._append(self._head())

    def write(self, results: Sequence[Result]) -> None:
        """Add a row for each result; they are in the file when this returns."""
        with explained(self.path):
            self._append(self._lines(results))

    def close(self) -> None:
        """Leave whole rows on the disk, and let other processes go on with them."""
        try:
            if self._file:
                with explained(self.path):
                    self._file.truncate(self._end)  # an interrupted write may have left a part of a row
                    os.fsync(self._file.fileno())
        finally:
            if self._file:
                self._file.close()
                self._file = None
            super().close()

    def _append(self, data: bytes) -> None:
        if self._file is None:
            raise ValueError("the output is closed")
        rest = memoryview(data)
        while rest:
            rest = rest[self._file.write(rest) :]
        self._end += len(data)

    def _write_good(self, staged: Path) -> None:
        """Copy the file without the rows of errors."""
        with self.path.open("rb") as file, staged.open("wb") as copy:
            copy.write(file.read(len(self._head())))
            for line, _, failed in self._records(file):
                if not failed:
                    copy.write(line)

    def _damaged(self, number: int) -> OutputError:
        return OutputError(f"{self.path}, line {number:,}, is damaged: remove that line, or choose another output.")


class JsonLines(Lines):
    """A JSON object a line, as `row_of` makes it."""

    def _records(self, file: io.BufferedReader) -> Iterator[tuple[bytes, str, bool]]:
        for number, line in enumerate(file, 1):
            if not line.endswith(b"\n"):
                return
            try:
                row = json.loads(line)
                name, failed = row["source"], "error" in row
                if not isinstance(name, str):
                    raise ValueError
            except (ValueError, LookupError, TypeError, RecursionError):
                raise self._damaged(number) from None
            yield line, name, failed

    def _lines(self, results: Sequence[Result]) -> bytes:
        return b"".join(json_line(*result) for result in results)


class Csv(Lines):
    """A row a picture, as `csv_cells` makes it, below the names of the columns."""

    def __init__(self, path: Path, top_k: int) -> None:
        super().__init__(path)
        self._top_k = top_k

    def _head(self) -> bytes:
        return csv_lines([csv_columns(self._top_k)])

    def _records(self, file: io.BufferedReader) -> Iterator[tuple[bytes, str, bool]]:
        number, quotes = 2, 0
        lines: list[bytes] = []
        for line in file:
            lines.append(line)
            quotes += line.count(b'"')
            if quotes % 2 or not line.endswith(b"\n"):  # an end in quotes is none of a row: it belongs to a name
                continue
            row = b"".join(lines)
            if not (cells := read_csv_row(row, self._top_k)):
                raise self._damaged(number)
            yield row, cells[0], bool(cells[1])
            number += len(lines)
            lines = []
        if any(read_csv_row(line, self._top_k) for line in lines[1:]):  # none that was cut short: a stray quote
            raise self._damaged(number)

    def _lines(self, results: Sequence[Result]) -> bytes:
        return csv_lines(csv_cells(name, result, self._top_k) for name, result in results)


class Parts(_Output):
    """A folder of Parquet files, part-00000.parquet and so on, each written whole."""

    def __init__(self, path: Path) -> None:
        super().__init__(path, path / f"_{SETTINGS}")  # readers of Parquet folders pass over names that begin so
        self._tables: list[pyarrow.Table] = []
        self._rows, self._since, self._next = 0, time.monotonic(), 0
        pyarrow_or_refuse()  # that it is missing must be known first

    def key(self, source: str) -> str:
        """Return the name with bytes that are no text as escapes: Parquet's strings are UTF-8."""
        return source.encode("utf-8", "backslashreplace").decode()

    def _is_there(self) -> bool:
        """Return whether there is more than settings, which are written before the first part."""
        entries = self.path.iterdir() if self.path.is_dir() else ()
        return any(not path.name.startswith(".") and path != self._settings_path for path in entries)

    def _make(self) -> None:
        make_folder(self.path)

    def _read(self, retry_errors: bool) -> None:
        import pyarrow.parquet as parquet

        remove_leftovers(self.path)
        for part in sorted(self.path.glob("part-*.parquet")):
            try:
                self._next = max(self._next, int(part.stem.removeprefix("part-")) + 1)
                names = parquet.read_table(part, columns=["source", "error"])
            except (ValueError, OSError) as error:  # pyarrow's errors are ValueErrors
                raise OutputError(
                    f"{part} is damaged ({_first_line(error)}): remove it, or choose another output."
                ) from None
            good = names["error"].is_null()
            if retry_errors and names["error"].null_count < len(names):
                names = names.filter(good)
                if len(names):
                    table = parquet.read_table(part).filter(good)
                    write_file(part, lambda staged, table=table: parquet.write_table(table, staged))
                else:
                    part.unlink()
            self.done.update(names["source"].to_pylist())

    def write(self, results: Sequence[Result]) -> None:
        """Add a row for each result; they are in a file when a part is full, or on `close`."""
        import pyarrow

        if not results:
            return
        names = pyarrow.array([self.key(name) for name, _ in results], pyarrow.string())
        self._tables.append(table_of(result for _, result in results).add_column(0, "source", names))
        self._rows += len(results)
        if self._rows >= PART_ROWS or time.monotonic() - self._since >= PART_SECONDS:
            self._write_part()

    def close(self) -> None:
        """Write the last part, and let other processes go on."""
        try:
            self._write_part()
        finally:
            super().close()

    def _write_part(self) -> None:
        import pyarrow
        import pyarrow.parquet as parquet

        if self._tables:
            table = pyarrow.concat_tables(self._tables).combine_chunks()
            part = self.path / f"part-{self._next:05}.parquet"
            write_file(part, lambda staged: parquet.write_table(table, staged))
            self._tables, self._rows, self._next = [], 0, self._next + 1
        self._since = time.monotonic()


def _first_line(error: Exception) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0].rstrip(".")[:200]
