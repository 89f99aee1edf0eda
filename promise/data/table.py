"""What a split CSV says, with its files found and every fault told at once; knows no torch and no model.

The CSV has the header ``image_name,train_type,mask_name``; ``data_format/README.md`` describes it.
"""

from __future__ import annotations

import csv
import difflib
import io
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

from promise.data.locate import SEGMENTATION_SUFFIX, Found, Locator, Parts, Written, stem
from promise.errors import MissingFileError, UserError, list_faults

COLUMNS = ("image_name", "train_type", "mask_name")
SPLITS = ("train", "val", "test")


@dataclass(frozen=True)
class Row:
    """One picture and its mask."""

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
        """The rows of one split, in the CSV's order; empty when it has none."""
        return tuple(row for row in self.rows if row.split == name)

    @property
    def counts(self) -> dict[str, int]:
        """Rows of each split that has any, in the order train, val, test."""
        counted = Counter(row.split for row in self.rows)
        return {name: counted[name] for name in SPLITS if counted[name]}


@dataclass(frozen=True)
class _Entry:
    """A row as written."""

    image: Written
    mask: Written
    split: str
    line: int


@dataclass
class _Faults:
    """What is wrong with a table, by kind: (line, words) in each."""

    missing: list[tuple[int, str]] = field(default_factory=list)
    rows: list[tuple[int, str]] = field(default_factory=list)


def read_table(csv_path: str | Path, *, data_root: str | Path | None = None) -> SplitTable:
    """Read a split CSV and find its files.

    Args:
        csv_path: the CSV.
        data_root: where the images lie; every path, absolute ones too, is re-rooted onto it by the longest
            end of the path that exists there. Without it, relative paths start at the CSV's folder.

    Raises:
        MissingFileError: no such CSV or data root.
        UserError: no table, missing columns, or faults in rows, all told at once with their lines.
    """
    path = Path(csv_path)
    root = None if data_root is None else Path(data_root)
    if root is not None and not root.is_dir():
        raise MissingFileError(f"--data-root {root} is not a folder.")
    faults = _Faults()
    entries = _read_entries(path, faults)
    locator = Locator(path.parent if root is None else root, reroot=root is not None)
    rows, notes = _locate(entries, locator, faults)
    if faults.rows or faults.missing:
        raise UserError(_describe(path, faults, len(entries), root))
    return SplitTable(path, tuple(rows), notes)


# --- the CSV itself -------------------------------------------------------------------------------


def _read_text(path: Path) -> str:
    if not path.is_file():
        raise MissingFileError(f"{path}: no such file. The split CSV is named with --split-csv.")
    data = path.read_bytes()
    if data.startswith((b"PK\x03\x04", b"\xd0\xcf\x11\xe0")):
        raise UserError(f"{path} is an Excel workbook. Save it as CSV (UTF-8).")
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise UserError(f"{path} is not UTF-8 text (byte {error.start}). Save it as CSV (UTF-8).") from error
    if "\0" in text:
        raise UserError(f"{path} is not a text file (it holds zero bytes). Save it as CSV (UTF-8).")
    if not text.strip():
        raise UserError(f"{path} is empty. Its first line should be: {','.join(COLUMNS)}")
    return text


def _records(text: str, path: Path) -> list[tuple[int, list[str]]]:
    """(line, cells) of every line that is not blank."""
    first = next(line for line in text.splitlines() if line.strip())
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=max(",;\t", key=first.count))
    try:
        records = [(reader.line_num, [cell.strip() for cell in cells]) for cells in reader]
    except csv.Error as error:
        raise UserError(f"{path}, line {reader.line_num}: not readable as CSV ({error}).") from error
    return [(line, cells) for line, cells in records if any(cells)]


def _columns(header: list[str], path: Path) -> list[int]:
    """Where the three columns stand."""
    names = [name.lower() for name in header]
    missing = [column for column in COLUMNS if column not in names]
    if missing:
        spare = [name for name in names if name and name not in COLUMNS]
        hints = []
        for column in missing:
            near = difflib.get_close_matches(column, spare, n=1, cutoff=0.5)
            hints.append(f"{column!r} (nearest: {near[0]!r})" if near else repr(column))
        raise UserError(
            f"{path}: the header lacks {', '.join(hints)}. Found: {', '.join(header)}. Expected: {','.join(COLUMNS)}"
        )
    return [names.index(column) for column in COLUMNS]


def _read_entries(path: Path, faults: _Faults) -> list[_Entry]:
    records = _records(_read_text(path), path)
    positions = _columns(records[0][1], path)
    if len(records) == 1:
        raise UserError(f"{path} has a header and no rows.")
    entries = []
    for line, cells in records[1:]:
        values = [cells[p] if p < len(cells) else "" for p in positions]
        empty = [column for column, value in zip(COLUMNS, values, strict=True) if not value]
        if empty:
            faults.rows.append((line, f"no {' and no '.join(empty)}"))
            continue
        entry = _Entry(Written(values[0]), Written(values[2]), values[1].lower(), line)
        entries.append(entry)
        _check_entry(entry, faults)
    return entries


def _check_entry(entry: _Entry, faults: _Faults) -> None:
    if entry.split not in SPLITS:
        near = difflib.get_close_matches(entry.split, SPLITS, n=1, cutoff=0.3)
        hint = f"; did you mean {near[0]!r}?" if near else ""
        faults.rows.append((entry.line, f"train_type {entry.split!r} is none of {', '.join(SPLITS)}{hint}"))
    if not _same_base(entry.image.plain, entry.mask.plain) and not _same_base(entry.image.parts, entry.mask.parts):
        words = f"image and mask have different base names: {entry.image.text} and {entry.mask.text}"
        faults.rows.append((entry.line, words))


def _same_base(image: Parts, mask: Parts) -> bool:
    base = stem(image)
    return stem(mask) in (base, base + SEGMENTATION_SUFFIX)


# --- its files ------------------------------------------------------------------------------------


def _names(entries: list[_Entry]) -> list[str]:
    """The shortest common number of trailing path parts that tells all rows apart, without extension.

    They come from the CSV's own words, so that seeds derived from them do not depend on the machine.
    """
    parts = [entry.image.parts for entry in entries]
    stems = [(*p[:-1], stem(p)) for p in parts]
    deepest = max((len(p) for p in parts), default=1)
    for choice in (stems, parts):
        for depth in range(1, deepest + 1):
            names = ["/".join(p[-depth:]) for p in choice]
            if len(set(names)) == len(names):
                return names
    return [entry.image.normal for entry in entries]  # only with duplicate rows, which are a fault


def _locate(entries: list[_Entry], locator: Locator, faults: _Faults) -> tuple[list[Row], tuple[str, ...]]:
    rows: list[Row] = []
    seen: dict[Path, tuple[_Entry, Written]] = {}
    told: Counter[tuple[str, str, str]] = Counter()
    for entry, name in zip(entries, _names(entries), strict=True):
        image = locator.find(entry.image, role="image")
        mask = locator.find(entry.mask, role="mask", exclude=image.path if image else None)
        for role, written, found in (("image", entry.image, image), ("mask", entry.mask, mask)):
            if found is None:
                faults.missing.append((entry.line, f"{role} {written.text}"))
            else:
                told.update((role, kind, example) for kind, example in found.tolerances)
        _check_duplicate(entry, image, mask, seen, faults)
        if image is not None and mask is not None:
            rows.append(Row(name, image.path, mask.path, entry.split, entry.line))
    return rows, _notes(told)


def _check_duplicate(
    entry: _Entry,
    image: Found | None,
    mask: Found | None,
    seen: dict[Path, tuple[_Entry, Written]],
    faults: _Faults,
) -> None:
    """A picture stands in one row; two different cells never mean one file."""
    for written, found in ((entry.image, image), (entry.mask, mask)):
        if found is None:
            continue
        first, first_written = seen.setdefault(found.path, (entry, written))
        if first is entry:
            continue
        if first_written.normal != written.normal:
            words = f"{written.text} and line {first.line}'s {first_written.text} are both {found.path}"
        elif written is entry.image:
            words = f"{written.text} stands on line {first.line} already ({first.split}, here {entry.split})"
        else:
            continue  # two pictures may share one mask
        faults.rows.append((entry.line, words))


def _notes(told: Counter[tuple[str, str, str]]) -> tuple[str, ...]:
    """One sentence for each role and tolerance, with its commonest example."""
    kinds: dict[tuple[str, str], Counter[str]] = {}
    for (role, kind, example), count in told.items():
        kinds.setdefault((role, kind), Counter())[example] += count
    notes = []
    for (role, kind), examples in kinds.items():
        count, example = sum(examples.values()), examples.most_common(1)[0][0]
        notes.append(f"{count} {role}{'s' * (count != 1)} found {kind} ({example})")
    return tuple(notes)


def _describe(path: Path, faults: _Faults, count: int, root: Path | None) -> str:
    texts = []
    if faults.rows:
        number = len({line for line, _ in faults.rows})
        head = f"{path.name}: {number} row{'s have' if number != 1 else ' has'} faults:"
        texts.append(list_faults(head, faults.rows))
    if faults.missing:
        number = len(faults.missing)
        verb = "are" if number != 1 else "is"
        head = f"{path.name}: {number} of {2 * count} files {verb} missing:"
        texts.append(list_faults(head, faults.missing))
        if root is None:
            texts.append(f"Paths are taken relative to the CSV's folder ({path.parent}); set --data-root?")
        else:
            texts.append(f"Paths are taken relative to --data-root ({root}); is it the right folder?")
    return "\n".join(texts)
