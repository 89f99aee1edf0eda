"""Read a split CSV and find its files; the faults of all rows are reported together. Needs no torch.

The CSV has the header ``image_name,train_type,mask_name``; ``data_format/README.md`` describes it.
"""

from __future__ import annotations

import difflib
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

from promise.data.locate import (
    SEGMENTATION_SUFFIX,
    ListedPath,
    LocatedFile,
    Locator,
    Parts,
    composed,
    shortest_names,
    stem,
)
from promise.data.records import LineFault, list_line_faults, read_records
from promise.runtime.errors import MissingFileError, UserError
from promise.runtime.reading import is_folder
from promise.runtime.settings import SPLITS

COLUMNS = ("image_name", "train_type", "mask_name")


@dataclass(frozen=True)
class Row:
    """One image and its mask."""

    name: str  # unique in the table; forward slashes, no extension; the same on every machine
    image: Path
    mask: Path
    split: str  # train, val or test
    line: int  # 1-based line of the CSV


@dataclass(frozen=True)
class SplitTable:
    """A split CSV whose files were found."""

    path: Path
    rows: tuple[Row, ...]
    notes: tuple[str, ...]  # tolerances that were needed, one sentence each

    def split(self, name: str) -> tuple[Row, ...]:
        """The rows of one split, in the order of the CSV; empty if the split has no rows."""
        return tuple(row for row in self.rows if row.split == name)

    @property
    def counts(self) -> dict[str, int]:
        """Number of rows of each split that has rows, in the order train, val, test."""
        counted = Counter(row.split for row in self.rows)
        return {name: counted[name] for name in SPLITS if counted[name]}


@dataclass(frozen=True)
class _Entry:
    """A row as written in the CSV."""

    image: ListedPath
    mask: ListedPath
    split: str
    line: int


@dataclass
class _Faults:
    """The faults of a table, by kind."""

    missing: list[LineFault] = field(default_factory=list)  # the text is the role and the path
    rows: list[LineFault] = field(default_factory=list)

    def add(self, line: int, code: str, text: str) -> None:
        self.rows.append(LineFault(line, code, text))


def read_table(csv_path: str | Path, *, data_root: str | Path | None = None) -> SplitTable:
    """Read a split CSV and find its files.

    Args:
        csv_path: the CSV.
        data_root: folder of the images. All paths, including absolute ones, are re-rooted: the longest suffix of a
            path that exists below this folder is used. By default, relative paths are relative to the folder of the
            CSV.

    Raises:
        MissingFileError: the CSV or the data root does not exist.
        UserError: the file is not a CSV with these columns (see :func:`promise.data.records.read_records`), or rows
            have faults (``faulty-table``, with the errors of all rows).
    """
    path = Path(csv_path)
    root = None if data_root is None else Path(data_root)
    table, faults, count = _read(path, root)
    if faults.rows or faults.missing:
        raise UserError(
            _describe(path, faults, count, root),
            code="faulty-table",
            errors=[fault.error for fault in (*faults.rows, *faults.missing)],
        )
    return table


def examine_table(csv_path: str | Path, *, data_root: str | Path | None = None) -> tuple[SplitTable, list[LineFault]]:
    """Like :func:`read_table`, but faults of rows are returned instead of raised.

    Returns:
        The table with the rows whose files were found, and all faults, sorted by line. A row with a fault may be
        part of the table.

    Raises:
        MissingFileError: the CSV or the data root does not exist.
        UserError: the file is not a CSV with these columns.
    """
    table, faults, _ = _read(Path(csv_path), None if data_root is None else Path(data_root))
    missing = [LineFault(fault.line, fault.code, f"no such file: {fault.text}") for fault in faults.missing]
    return table, sorted([*faults.rows, *missing], key=lambda fault: (fault.line, fault.text))


def require_data_root(root: Path | None) -> None:
    """Check that the data root, if any, is a folder.

    Raises:
        MissingFileError: ``missing-data-root``.
    """
    if root is not None and not is_folder(root):
        raise MissingFileError(f"--data-root {root}: no such folder.", code="missing-data-root")


def _read(path: Path, root: Path | None) -> tuple[SplitTable, _Faults, int]:
    require_data_root(root)
    faults = _Faults()
    entries, notes = _read_entries(path, faults)
    locator = Locator(path.parent if root is None else root, reroot=root is not None)
    rows, tolerances = _locate(entries, locator, faults)
    return SplitTable(path, tuple(rows), (*notes, *tolerances)), faults, len(entries)


# --- rows -----------------------------------------------------------------------------------------


def _read_entries(path: Path, faults: _Faults) -> tuple[list[_Entry], tuple[str, ...]]:
    records = read_records(path, COLUMNS)
    entries = []
    for line, cells in records.rows:
        values = [cells[p] if p < len(cells) else "" for p in records.positions]
        empty = [column for column, value in zip(COLUMNS, values, strict=True) if not value]
        if empty:
            faults.add(line, "empty-cell", f"no {' and no '.join(empty)}")
            continue
        entry = _Entry(ListedPath(values[0]), ListedPath(values[2]), values[1].lower(), line)
        entries.append(entry)
        _check_entry(entry, faults)
    backslashed = [text for e in entries for text in (e.image.text, e.mask.text) if "\\" in text]
    if not backslashed:
        return entries, records.notes
    number = f"{len(backslashed)} path{'s have' if len(backslashed) != 1 else ' has'}"
    return entries, (*records.notes, f"{number} backslashes, read as slashes ({backslashed[0]})")


def _check_entry(entry: _Entry, faults: _Faults) -> None:
    if entry.split not in SPLITS:
        near = difflib.get_close_matches(entry.split, SPLITS, n=1, cutoff=0.3)
        hint = f"; did you mean {near[0]!r}?" if near else ""
        faults.add(
            entry.line, "unknown-split", f"unknown train_type {entry.split!r}; expected {', '.join(SPLITS)}{hint}"
        )
    if not _same_base(entry.image.plain, entry.mask.plain) and not _same_base(entry.image.parts, entry.mask.parts):
        text = f"image and mask have different base names: {entry.image.text} and {entry.mask.text}"
        faults.add(entry.line, "base-name-mismatch", text)


def _same_base(image: Parts, mask: Parts) -> bool:
    base = composed(stem(image))
    return composed(stem(mask)) in (base, base + SEGMENTATION_SUFFIX)


# --- files ----------------------------------------------------------------------------------------


def _names(entries: list[_Entry]) -> list[str]:
    """A unique name for each row; see :func:`promise.data.locate.shortest_names`.

    Names are derived from the paths as written, so that seeds derived from the names do not depend on the machine.
    """
    names = shortest_names([entry.image.parts for entry in entries])
    if len(set(names)) == len(names):
        return names
    return [entry.image.normal for entry in entries]  # duplicate rows, which are a fault


def _locate(entries: list[_Entry], locator: Locator, faults: _Faults) -> tuple[list[Row], tuple[str, ...]]:
    rows: list[Row] = []
    seen: dict[Path, tuple[_Entry, ListedPath]] = {}
    tolerances: Counter[tuple[str, str, str]] = Counter()
    for entry, name in zip(entries, _names(entries), strict=True):
        image = locator.find(entry.image, role="image")
        mask = locator.find(entry.mask, role="mask", exclude=image.path if image else None)
        for role, listed, located in (("image", entry.image, image), ("mask", entry.mask, mask)):
            if located is None:
                faults.missing.append(LineFault(entry.line, "missing-file", f"{role} {listed.text}"))
            else:
                tolerances.update((role, kind, example) for kind, example in located.tolerances)
        _check_duplicate(entry, image, mask, seen, faults)
        if image is not None and mask is not None:
            rows.append(Row(name, image.path, mask.path, entry.split, entry.line))
    return rows, _notes(tolerances)


def _check_duplicate(
    entry: _Entry,
    image: LocatedFile | None,
    mask: LocatedFile | None,
    seen: dict[Path, tuple[_Entry, ListedPath]],
    faults: _Faults,
) -> None:
    """Report an image that is listed twice, and two different paths that are the same file."""
    for listed, located in ((entry.image, image), (entry.mask, mask)):
        if located is None:
            continue
        first, first_listed = seen.setdefault(located.path, (entry, listed))
        if first is entry:
            continue
        if first_listed.normal != listed.normal:
            text = f"{listed.text} is the same file as {first_listed.text} on line {first.line} ({located.path})"
            faults.add(entry.line, "same-file", text)
        elif listed is entry.image:  # two images may share one mask
            text = f"{listed.text} is already listed on line {first.line} ({first.split}; here {entry.split})"
            faults.add(entry.line, "duplicate-image", text)


def _notes(tolerances: Counter[tuple[str, str, str]]) -> tuple[str, ...]:
    """One sentence for each role and kind of tolerance, with the most common example."""
    kinds: dict[tuple[str, str], Counter[str]] = {}
    for (role, kind, example), count in tolerances.items():
        kinds.setdefault((role, kind), Counter())[example] += count
    notes = []
    for (role, kind), examples in kinds.items():
        count, example = sum(examples.values()), examples.most_common(1)[0][0]
        notes.append(f"{count} {role}{'s' * (count != 1)} found {kind} ({example})")
    return tuple(notes)


def _describe(path: Path, faults: _Faults, count: int, root: Path | None) -> str:
    texts = []
    if faults.rows:
        number = len({fault.line for fault in faults.rows})
        head = f"{path.name}: {number} row{'s have' if number != 1 else ' has'} faults:"
        texts.append(list_line_faults(head, faults.rows))
    if faults.missing:
        number = len(faults.missing)
        verb = "are" if number != 1 else "is"
        head = f"{path.name}: {number} of {2 * count} files {verb} missing:"
        texts.append(list_line_faults(head, faults.missing))
        if root is None:
            texts.append(f"Paths are relative to the folder of the CSV ({path.parent}). Is --data-root missing?")
        else:
            texts.append(f"Paths are relative to --data-root ({root}). Is it the right folder?")
    return "\n".join(texts)
