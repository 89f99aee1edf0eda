"""The text of a CSV as lines of cells: encoding, separator, header; knows no pictures and no splits.

What spreadsheets do to a file is bridged, and told: a byte-order mark, semicolons or tabs, blank lines.
"""

from __future__ import annotations

import csv
import difflib
import io
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from promise.runtime.errors import MissingFileError, UserError, unknown_name

_SEPARATORS = {",": "commas", ";": "semicolons", "\t": "tabs"}


@dataclass(frozen=True)
class Records:
    """The rows of a CSV that are not blank."""

    rows: tuple[tuple[int, list[str]], ...]  # (1-based line, cells), without the header; at least one
    positions: tuple[int, ...]  # where the wanted columns stand
    notes: tuple[str, ...]  # what was bridged, one sentence each


def read_records(path: Path, columns: Sequence[str]) -> Records:
    """Read a CSV that has ``columns``, in any order and case, among others.

    Raises:
        MissingFileError: no such CSV.
        UserError: no text, no table, no rows, or missing columns.
    """
    text = _read_text(path, columns)
    separator = _separator(text)
    lines = _parse(text.removeprefix("\ufeff"), separator, path)
    records = [(line, cells) for line, cells in lines if any(cells)]
    positions = _positions(records[0][1], columns, path)
    if len(records) == 1:
        raise UserError(f"{path} has a header and no rows.")
    notes = ["the file starts with a byte-order mark, which is skipped"] if text.startswith("\ufeff") else []
    if separator != ",":
        notes.append(f"the columns are separated by {_SEPARATORS[separator]}")
    blank = [line for line, cells in lines if not any(cells)]
    if blank:
        notes.append(f"{len(blank)} blank line{'s are' if len(blank) != 1 else ' is'} skipped (line {blank[0]})")
    return Records(tuple(records[1:]), positions, tuple(notes))


def read_column(path: str | Path, column: str) -> dict[int, str]:
    """One column of a CSV: 1-based line → value; empty cells are left out.

    Raises:
        MissingFileError: no such CSV.
        UserError: no table, or no such column; the text names the nearest.
    """
    path = Path(path)
    text = _read_text(path, [column])
    header = next(cells for _, cells in _parse(text.removeprefix("\ufeff"), _separator(text), path) if any(cells))
    if column.lower() not in [name.lower() for name in header]:
        raise unknown_name(f"column in {path.name}:", column, header)
    records = read_records(path, [column])
    (at,) = records.positions
    return {line: cells[at] for line, cells in records.rows if at < len(cells) and cells[at]}


def _read_text(path: Path, columns: Sequence[str]) -> str:
    if not path.is_file():
        raise MissingFileError(f"{path}: no such file. Is the path right?")
    data = path.read_bytes()
    if data.startswith((b"PK\x03\x04", b"\xd0\xcf\x11\xe0")):
        raise UserError(f"{path} is an Excel workbook. Save it as CSV (UTF-8).")
    try:
        text = data.decode("utf-8")
    except UnicodeDecodeError as error:
        raise UserError(f"{path} is not UTF-8 text (byte {error.start}). Save it as CSV (UTF-8).") from error
    if "\0" in text:
        raise UserError(f"{path} is not a text file (it holds zero bytes). Save it as CSV (UTF-8).")
    if not text.removeprefix("\ufeff").strip():
        raise UserError(f"{path} is empty. Its first line should be: {','.join(columns)}")
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
        raise UserError(f"{path}, line {reader.line_num}: not readable as CSV ({error}).") from error


def _positions(header: list[str], columns: Sequence[str], path: Path) -> tuple[int, ...]:
    names = [name.lower() for name in header]
    wanted = [column.lower() for column in columns]
    missing = [column for column in wanted if column not in names]
    if missing:
        spare = [name for name in names if name and name not in wanted]
        hints = []
        for column in missing:
            near = difflib.get_close_matches(column, spare, n=1, cutoff=0.5)
            hints.append(f"{column!r} (nearest: {near[0]!r})" if near else repr(column))
        raise UserError(
            f"{path}: the header lacks {', '.join(hints)}. Found: {', '.join(header)}. Expected: {','.join(columns)}"
        )
    return tuple(names.index(column) for column in wanted)
