"""Whether data can be trusted: every fault, doubt and leak of one or several split CSVs; no torch, prints nothing.

A fault makes results wrong or a command stop, a warning wants a look, a note is a tolerance that was needed.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from promise.data.records import read_column
from promise.data.splits import SPLITS, Grouping
from promise.data.table import Row, examine_table
from promise.data.validate.inspection import FRAMED, SPECK, Inspection, MaskFacts, inspect_row
from promise.data.validate.likeness import COPY, Match, nearest
from promise.runtime.errors import MissingFileError, UserError
from promise.runtime.progress import progress_bar
from promise.runtime.workers import default_workers, ordered_map

LEVELS = ("fault", "warning", "note")


@dataclass(frozen=True)
class Finding:
    """One line of a validation."""

    level: str  # fault, warning or note
    kind: str  # csv, row, file, size, empty, full, inverted, values, mask, copy, alike, group, specks, jpeg, tolerance
    csv: str
    line: int  # of the CSV; 0: all of it
    text: str

    def __str__(self) -> str:
        place = f"{self.csv} line {self.line}" if self.line else self.csv
        return f"{place}: {self.text}"


@dataclass(frozen=True)
class Entry:
    """A row of one of the CSVs and what its files are like."""

    csv: str
    row: Row
    seen: Inspection

    @property
    def place(self) -> str:
        """Where it stands, for messages about another row."""
        return f"{self.csv} line {self.row.line} ({self.row.split}, {self.row.image.name})"


@dataclass
class Validation:
    """Everything found, and the rows it was found in."""

    csvs: tuple[str, ...]
    findings: list[Finding] = field(default_factory=list)
    entries: list[Entry] = field(default_factory=list)

    def count(self, level: str) -> int:
        """Findings of a level."""
        return sum(finding.level == level for finding in self.findings)

    def add(self, level: str, kind: str, csv: str, line: int, text: str) -> None:
        """One more finding."""
        self.findings.append(Finding(level, kind, csv, line, text))


def validate(
    csv_paths: Sequence[Path],
    *,
    data_root: Path | None = None,
    grouping: Grouping | None = None,
    workers: int | None = None,
    progress: bool = True,
) -> Validation:
    """Read the CSVs, decode every file and compare all rows with each other.

    Args:
        csv_paths: with their rows taken together; train against each test set.
        data_root: where their paths begin.
        grouping: what must not straddle two splits.
        workers: threads; default: one a core.
        progress: a bar on stderr.

    Raises:
        UserError: ``data_root`` is no folder, or ``grouping`` fits no row. Faults of the data are returned.
    """
    if data_root is not None and not data_root.is_dir():
        raise MissingFileError(f"--data-root {data_root} is not a folder.")
    names = _names(csv_paths)
    result = Validation(tuple(names))
    rows: list[tuple[str, Row]] = []
    columns: dict[tuple[str, int], str] = {}
    for name, path in zip(names, csv_paths, strict=True):
        rows += _read(result, name, path, data_root)
        if grouping is not None and grouping.column is not None and any(csv == name for csv, _ in rows):
            columns.update({(name, line): value for line, value in read_column(path, grouping.column).items()})
    found = ordered_map(lambda item: inspect_row(item[1]), rows, workers=workers or default_workers())
    bar = progress_bar(found, total=len(rows), name="looking at files", unit="row", quiet=not progress)
    result.entries = [Entry(name, row, seen) for (name, row), seen in zip(rows, bar, strict=True)]
    _judge_files(result)
    _judge_masks(result)
    _judge_values(result)
    _judge_shared_masks(result)
    _judge_likeness(result)
    if grouping is not None:
        _judge_groups(result, grouping, columns)
    result.findings.sort(key=lambda f: (LEVELS.index(f.level), f.kind, names.index(f.csv), f.line))
    return result


def _names(paths: Sequence[Path]) -> list[str]:
    """File names, with their folders where two are the same."""
    counted = Counter(path.name for path in paths)
    return [path.name if counted[path.name] == 1 else str(path) for path in paths]


def _read(result: Validation, name: str, path: Path, data_root: Path | None) -> list[tuple[str, Row]]:
    try:
        table, faults = examine_table(path, data_root=data_root)
    except UserError as error:
        result.add("fault", "csv", name, 0, str(error))
        return []
    for line, words in faults:
        result.add("fault", "row", name, line, words)
    for note in table.notes:
        result.add("note", "tolerance", name, 0, note)
    return [(name, row) for row in table.rows]


# --- row by row -----------------------------------------------------------------------------------


def _judge_files(result: Validation) -> None:
    for entry in result.entries:
        for words in entry.seen.faults:
            kind = "size" if words.startswith(f"image {entry.row.image} is ") else "file"
            result.add("fault", kind, entry.csv, entry.row.line, words)


def _judge_masks(result: Validation) -> None:
    specks: dict[str, list[int]] = {}
    for entry in result.entries:
        facts = entry.seen.mask
        if facts is None:
            continue
        doubt = _doubt(facts)
        if doubt is not None:
            kind, words = doubt
            result.add("warning", kind, entry.csv, entry.row.line, f"mask {entry.row.mask} {words}")
        if facts.specks:
            specks.setdefault(entry.csv, []).append(entry.row.line)
    for csv, lines in specks.items():
        words = f"{len(lines)} mask{'s have' if len(lines) != 1 else ' has'} components of fewer than {SPECK} pixels"
        result.add(
            "note", "specks", csv, 0, f"{words} (line {', '.join(map(str, lines[:5]))}{', …' * (len(lines) > 5)})"
        )


def _doubt(facts: MaskFacts) -> tuple[str, str] | None:
    if facts.foreground == 0:
        return "empty", "is empty: it has no foreground."
    if facts.foreground == 1:
        return "full", "is full: it has no background."
    if facts.inverted:
        return "inverted", (
            f"may be inverted: {facts.foreground:.0%} of it, and at least {FRAMED:.0%} of its edge, are foreground."
        )
    return None


def _judge_values(result: Validation) -> None:
    """One convention a CSV: 0 and 1, or 0 and 255; the rarer one is told."""
    for csv in result.csvs:
        lines: dict[int, list[int]] = {}
        for entry in result.entries:
            if entry.csv == csv and entry.seen.mask is not None and entry.seen.mask.value:
                lines.setdefault(entry.seen.mask.value, []).append(entry.row.line)
        if len(lines) > 1:
            (rare, few), (usual, many) = sorted(lines.items(), key=lambda item: len(item[1]))
            number = f"{len(few)} mask{'s hold' if len(few) != 1 else ' holds'}"
            words = f"{number} 0 and {rare}, {len(many)} hold 0 and {usual}"
            result.add("warning", "values", csv, few[0], f"{words}; the first of the rarer ones is on this line.")
        lossy = [e.row.line for e in result.entries if e.csv == csv and e.row.mask.suffix.lower() in (".jpg", ".jpeg")]
        if lossy:
            number = f"{len(lossy)} mask{'s are JPEGs' if len(lossy) != 1 else ' is a JPEG'}"
            result.add("note", "jpeg", csv, 0, f"{number}, whose blurred edges are cut at > 127 (line {lossy[0]})")


# --- rows against each other ----------------------------------------------------------------------


def _judge_shared_masks(result: Validation) -> None:
    """One mask for two different pictures: at least one of them has the mask of another."""
    told = {(f.csv, f.line) for f in result.findings if f.kind == "row"}
    seen: dict[str, Entry] = {}
    for entry in result.entries:
        facts = entry.seen.mask
        if facts is None or facts.foreground in (0, 1) or (entry.csv, entry.row.line) in told:
            continue
        first = seen.setdefault(facts.content, entry)
        if first is not entry and not _same_file(first, entry) and not _same_picture(first, entry):
            words = f"mask {entry.row.mask} is the same as that of {first.place}; is it the mask of another image?"
            result.add("warning", "mask", entry.csv, entry.row.line, words)


def _same_picture(a: Entry, b: Entry) -> bool:
    if a.seen.look is None or b.seen.look is None:
        return True  # told as a fault of the file
    apart = a.seen.look.thumbnail.astype(np.float32) - b.seen.look.thumbnail
    return float(np.sqrt((apart**2).mean())) <= COPY


def _judge_likeness(result: Validation) -> None:
    entries = [entry for entry in result.entries if entry.seen.look is not None]
    looks = [entry.seen.look for entry in entries if entry.seen.look is not None]
    before, within = nearest(looks, [SPLITS.index(entry.row.split) for entry in entries])
    for index, entry in enumerate(entries):
        leak, twin = before[index], within[index]
        if leak is not None:
            _tell_leak(result, entry, entries[leak.index], leak)
        if twin is not None and twin.difference <= COPY and not _same_file(entry, entries[twin.index]):
            words = f"{_likeness_words(entry, entries[twin.index], twin)}; in the same split."
            result.add("warning", "copy", entry.csv, entry.row.line, words)


def _same_file(a: Entry, b: Entry) -> bool:
    """One file under two rows: in two CSVs, or a duplicate row, which is told as such."""
    return a.row.image == b.row.image or a.row.image.resolve() == b.row.image.resolve()


def _tell_leak(result: Validation, entry: Entry, other: Entry, match: Match) -> None:
    if entry.csv == other.csv and _same_file(entry, other):
        return  # a row written twice, told as a fault of the row
    if match.difference <= COPY:
        words = f"leak: {_likeness_words(entry, other, match)}."
        result.add("fault", "copy", entry.csv, entry.row.line, words)
    else:
        apart = f"difference {match.difference:.1f} of 255"
        words = f"{entry.row.image.name} ({entry.row.split}) looks like {other.place}; {apart}."
        result.add("warning", "alike", entry.csv, entry.row.line, words)


def _likeness_words(entry: Entry, other: Entry, match: Match) -> str:
    subject = f"{entry.row.image.name} ({entry.row.split})"
    if _same_file(entry, other):
        return f"{subject} is the same file as {other.place}"
    if entry.seen.content == other.seen.content:
        return f"{subject} has the same content as {other.place}"
    apart = f"(re-encoded, resized or the next frame; difference {match.difference:.1f} of 255)"
    return f"{subject} is practically the same picture as {other.place} {apart}"


def _judge_groups(result: Validation, grouping: Grouping, columns: dict[tuple[str, int], str]) -> None:
    by_place = {
        entry.place: columns[key] for entry in result.entries if (key := (entry.csv, entry.row.line)) in columns
    }
    names = [entry.row.name for entry in result.entries]
    found = grouping.of([e.place for e in result.entries], by_place) if grouping.column else grouping.of(names)
    members: dict[str, list[Entry]] = {}
    for entry in result.entries:
        group = found.get(entry.place if grouping.column else entry.row.name)
        if group is not None:
            members.setdefault(group, []).append(entry)
    for group, rows in members.items():
        splits = Counter(entry.row.split for entry in rows)
        if len(splits) > 1:
            last = max(rows, key=lambda entry: SPLITS.index(entry.row.split))
            shown = ", ".join(f"{splits[s]} {s}" for s in SPLITS if splits[s])
            words = (
                f"leak: group {group} is in {len(splits)} splits: {shown} rows; the first {last.row.split} row is this."
            )
            result.add("fault", "group", last.csv, last.row.line, words)


# --- figures --------------------------------------------------------------------------------------


def summarise(result: Validation) -> list[dict[str, Any]]:
    """Figures of each split of each CSV: rows, sizes, foreground."""
    figures = []
    for csv in result.csvs:
        for split in SPLITS:
            rows = [entry for entry in result.entries if entry.csv == csv and entry.row.split == split]
            if rows:
                figures.append({"csv": csv, "split": split, **_figures(rows)})
    return figures


def _figures(rows: Sequence[Entry]) -> dict[str, Any]:
    sizes = sorted((e.seen.size for e in rows if e.seen.size is not None), key=lambda size: (size[0] * size[1], size))
    masks = [entry.seen.mask for entry in rows if entry.seen.mask is not None]
    filled = np.array([mask.foreground for mask in masks if mask.foreground > 0])
    share = [float(v) for v in np.quantile(filled, (0.05, 0.5, 0.95))] if filled.size else [None] * 3
    return {
        "rows": len(rows),
        "sizes": len(set(sizes)),
        "smallest": _width_height(sizes[0]) if sizes else None,
        "largest": _width_height(sizes[-1]) if sizes else None,
        "empty_masks": sum(mask.foreground == 0 for mask in masks),
        "one_component": sum(mask.components == 1 for mask in masks),
        "more_components": sum(mask.components > 1 for mask in masks),
        "foreground_mean": float(np.mean([mask.foreground for mask in masks])) if masks else None,
        "foreground_5_50_95": share,
    }


def _width_height(size: tuple[int, int]) -> list[int]:
    return [size[1], size[0]]
