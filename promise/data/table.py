"""What a split CSV says, with its files found and every fault told at once; knows no torch and no model.

The CSV has the header ``image_name,train_type,mask_name``; ``data_format/README.md`` describes it.
"""

from __future__ import annotations

import difflib
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

from promise.data.locate import SEGMENTATION_SUFFIX, Found, Locator, Parts, Written, shortest_names, stem
from promise.data.records import read_records
from promise.runtime.errors import MissingFileError, UserError, list_faults

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


def tell_sizes(row: Row, image: tuple[int, ...], mask: tuple[int, ...]) -> str:
    """The fault of a row whose image and mask, (height, width) each, differ in size."""
    return f"image {row.image} is {image[1]}×{image[0]} pixels but mask {row.mask} is {mask[1]}×{mask[0]}."


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
    table, faults, count = _read(path, root)
    if faults.rows or faults.missing:
        raise UserError(_describe(path, faults, count, root))
    return table


def examine_table(
    csv_path: str | Path, *, data_root: str | Path | None = None
) -> tuple[SplitTable, list[tuple[int, str]]]:
    """Like :func:`read_table`, but faults in rows are returned, with the rows whose files were found.

    Returns:
        The table, and (line, words) of every fault. A row may stand in the table and have a fault.

    Raises:
        MissingFileError: no such CSV or data root.
        UserError: no table, missing columns.
    """
    table, faults, _ = _read(Path(csv_path), None if data_root is None else Path(data_root))
    missing = [(line, f"no such file: {words}") for line, words in faults.missing]
    return table, sorted([*faults.rows, *missing])


def _read(path: Path, root: Path | None) -> tuple[SplitTable, _Faults, int]:
    if root is not None and not root.is_dir():
        raise MissingFileError(f"--data-root {root} is not a folder.")
    faults = _Faults()
    entries, told = _read_entries(path, faults)
    locator = Locator(path.parent if root is None else root, reroot=root is not None)
    rows, notes = _locate(entries, locator, faults)
    return SplitTable(path, tuple(rows), (*told, *notes)), faults, len(entries)


# --- its rows --------------------------------------------------------------------------------------


def _read_entries(path: Path, faults: _Faults) -> tuple[list[_Entry], tuple[str, ...]]:
    records = read_records(path, COLUMNS)
    entries = []
    for line, cells in records.rows:
        values = [cells[p] if p < len(cells) else "" for p in records.positions]
        empty = [column for column, value in zip(COLUMNS, values, strict=True) if not value]
        if empty:
            faults.rows.append((line, f"no {' and no '.join(empty)}"))
            continue
        entry = _Entry(Written(values[0]), Written(values[2]), values[1].lower(), line)
        entries.append(entry)
        _check_entry(entry, faults)
    foreign = [text for e in entries for text in (e.image.text, e.mask.text) if "\\" in text]
    if not foreign:
        return entries, records.notes
    number = f"{len(foreign)} path{'s have' if len(foreign) != 1 else ' has'}"
    return entries, (*records.notes, f"{number} backslashes, read as slashes ({foreign[0]})")


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
    names = shortest_names([entry.image.parts for entry in entries])
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
