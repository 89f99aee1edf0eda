"""Read a CSV into lines of cells: encoding, separator, header, and faults of single lines.

Variations that spreadsheets produce are accepted and reported as notes: a byte-order mark, semicolons or tabs, blank
lines.
"""

from __future__ import annotations

import csv
import difflib
import io
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from promise.runtime.errors import UserError, list_faults, unknown_name
from promise.runtime.reading import read_bytes

_SEPARATORS = {",": "commas", ";": "semicolons", "\t": "tabs"}


@dataclass(frozen=True)
class LineFault:
    """A fault in one line of a CSV."""

    line: int  # 1-based
    code: str  # as in UserError.code
    text: str  # without the line number

    @property
    def error(self) -> UserError:
        """The fault as an error."""
        return UserError(f"line {self.line}: {self.text}", code=self.code)


def list_line_faults(head: str, faults: Sequence[LineFault]) -> str:
    """``head``, followed by one line per fault; long lists are abbreviated."""
    return list_faults(head, [(fault.line, fault.text) for fault in faults])


@dataclass(frozen=True)
class Records:
    """The rows of a CSV that are not blank."""

    rows: tuple[tuple[int, list[str]], ...]  # (1-based line, cells), without the header; at least one
    positions: tuple[int, ...]  # index of each requested column in the cells
    notes: tuple[str, ...]  # variations that were accepted, one sentence each


def read_records(path: Path, columns: Sequence[str]) -> Records:
    """Read a CSV that contains ``columns``, in any order and case; other columns are ignored.

    Raises:
        MissingFileError: the CSV does not exist.
        UserError: the file is not a CSV in UTF-8 (``excel-workbook``, ``not-utf8``, ``not-text``, ``empty-csv``,
            ``invalid-csv``), has no rows (``no-rows``) or lacks columns (``missing-columns``).
    """
    text = _read_text(path, columns)
    separator = _separator(text)
    lines = _parse(text.removeprefix("\ufeff"), separator, path)
    records = [(line, cells) for line, cells in lines if any(cells)]
    positions = _positions(records[0][1], columns, path)
    if len(records) == 1:
        raise UserError(f"{path}: the CSV has a header but no rows.", code="no-rows")
    notes = ["the file starts with a byte-order mark, which is skipped"] if text.startswith("\ufeff") else []
    if separator != ",":
        notes.append(f"the columns are separated by {_SEPARATORS[separator]}")
    blank = [line for line, cells in lines if not any(cells)]
    if blank:
        notes.append(f"{len(blank)} blank line{'s are' if len(blank) != 1 else ' is'} skipped (line {blank[0]})")
    return Records(tuple(records[1:]), positions, tuple(notes))


def read_column(path: str | Path, column: str) -> dict[int, str]:
    """Read one column of a CSV: 1-based line → value; empty cells are omitted.

    Raises:
        MissingFileError: the CSV does not exist.
        UserError: as in :func:`read_records`; an unknown column is ``unknown-column``, and the text suggests the
            nearest name.
    """
    path = Path(path)
    text = _read_text(path, [column])
    header = next(cells for _, cells in _parse(text.removeprefix("\ufeff"), _separator(text), path) if any(cells))
    if column.lower() not in [name.lower() for name in header]:
        error = unknown_name("column", column, header)
        raise UserError(f"{path.name}: {error}", code=error.code)
    records = read_records(path, [column])
    (position,) = records.positions
    return {line: cells[position] for line, cells in records.rows if position < len(cells) and cells[position]}


def _read_text(path: Path, columns: Sequence[str]) -> str:
    data = read_bytes(path)
    if data.startswith((b"PK\x03\x04", b"\xd0\xcf\x11\xe0")):
        raise UserError(f"{path} is an Excel workbook. Save it as CSV (UTF-8).", code="excel-workbook")
    try:
        text = data.decode("utf-8")
    except UnicodeDecodeError as error:
        raise UserError(
            f"{path} is not UTF-8 text (byte {error.start}). Save it as CSV (UTF-8).", code="not-utf8"
        ) from error
    if "\0" in text:
        raise UserError(f"{path} is not a text file (it contains zero bytes). Save it as CSV (UTF-8).", code="not-text")
    if not text.removeprefix("\ufeff").strip():
        raise UserError(f"{path} is empty. Expected first line: {','.join(columns)}", code="empty-csv")
    return text


def _separator(text: str) -> str:
    first = next(line for line in text.removeprefix("\ufeff").splitlines() if line.strip())
    return max(_SEPARATORS, key=first.count)


def _parse(text: str, separator: str, path: Path) -> list[tuple[int, list[str]]]:
    """(line, cells) of every line."""
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=separator)
    try:
        return [(reader.line_num, [cell.strip() for cell in cells]) for cells in reader]
    except csv.Error as error:
        raise UserError(f"{path}, line {reader.line_num}: invalid CSV ({error}).", code="invalid-csv") from error


def _positions(header: list[str], columns: Sequence[str], path: Path) -> tuple[int, ...]:
    names = [name.lower() for name in header]
    required = [column.lower() for column in columns]
    missing = [column for column in required if column not in names]
    if missing:
        others = [name for name in names if name and name not in required]
        hints = []
        for column in missing:
            near = difflib.get_close_matches(column, others, n=1, cutoff=0.5)
            hints.append(f"{column!r} (nearest: {near[0]!r})" if near else repr(column))
        raise UserError(
            f"{path}: the header lacks {', '.join(hints)}. Found: {', '.join(header)}. Expected: {','.join(columns)}",
            code="missing-columns",
        )
    return tuple(names.index(column) for column in required)
