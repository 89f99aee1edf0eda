"""Validate the data sets of one or several split CSVs: faults, suspicious masks and leaks. Needs no torch.

A fault invalidates results or stops a command. A warning should be reviewed. A note reports a tolerance.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from promise.data.masks import is_jpeg
from promise.data.records import read_column
from promise.data.splits import Grouping
from promise.data.table import Row, examine_table, require_data_root
from promise.data.validate.inspection import INVERTED_EDGE, SPECK, Inspection, MaskFacts, inspect_row
from promise.data.validate.likeness import COPY, Match, difference, nearest
from promise.runtime.errors import UserError
from promise.runtime.progress import progress_bar
from promise.runtime.settings import SPLITS
from promise.runtime.workers import default_workers, ordered_map

LEVELS = ("fault", "warning", "note")
EXAMPLES = 5  # lines that a finding about several rows names


@dataclass(frozen=True)
class Finding:
    """One result of a validation; the fields are written to JSON."""

    level: str  # fault, warning or note
    kind: str  # csv, row, file, size, empty, full, inverted, values, mask, copy, alike, group, specks, jpeg, tolerance
    csv: str
    line: int  # 1-based line of the CSV; 0: the whole CSV
    text: str

    def __str__(self) -> str:
        place = f"{self.csv} line {self.line}" if self.line else self.csv
        return f"{place}: {self.text}"


@dataclass(frozen=True)
class Entry:
    """A row of one of the CSVs, and the properties of its files."""

    csv: str
    row: Row
    inspection: Inspection

    @property
    def seen(self) -> Inspection:
        """Earlier name of :attr:`inspection`."""
        return self.inspection

    @property
    def place(self) -> str:
        """The position of the row, for messages about other rows."""
        return f"{self.csv} line {self.row.line} ({self.row.split}, {self.row.image.name})"


@dataclass
class Validation:
    """All findings, and the rows that were validated."""

    csvs: tuple[str, ...]
    findings: list[Finding] = field(default_factory=list)
    entries: list[Entry] = field(default_factory=list)

    def count(self, level: str) -> int:
        """The number of findings of a level."""
        return sum(finding.level == level for finding in self.findings)

    def add(self, level: str, kind: str, csv: str, line: int, text: str) -> None:
        """Append a finding."""
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
        csv_paths: CSVs whose rows are compared, such as a training set and its test sets.
        data_root: as in :func:`promise.data.table.read_table`.
        grouping: groups that must not be divided between splits.
        workers: number of threads; default: one per core, at most 8.
        progress: show a progress bar on stderr.

    Returns:
        The findings, sorted by level, kind, CSV and line. Faults of the data are returned, not raised.

    Raises:
        MissingFileError: ``missing-data-root``.
        UserError: no name has a group (``no-group``), or a CSV lacks the column of ``grouping`` (``unknown-column``).
    """
    require_data_root(data_root)
    names = _names(csv_paths)
    result = Validation(tuple(names))
    rows: list[tuple[str, Row]] = []
    columns: dict[tuple[str, int], str] = {}
    for name, path in zip(names, csv_paths, strict=True):
        rows += _read(result, name, path, data_root)
        if grouping is not None and grouping.column is not None and any(csv == name for csv, _ in rows):
            columns.update({(name, line): value for line, value in read_column(path, grouping.column).items()})
    found = ordered_map(lambda item: inspect_row(item[1]), rows, workers=workers or default_workers())
    bar = progress_bar(found, total=len(rows), name="inspecting files", unit="row", quiet=not progress)
    result.entries = [Entry(name, row, inspection) for (name, row), inspection in zip(rows, bar, strict=True)]
    _check_files(result)
    _check_masks(result)
    _check_mask_values(result)
    _check_shared_masks(result)
    _check_similar_images(result)
    if grouping is not None:
        _check_groups(result, grouping, columns)
    result.findings.sort(key=lambda f: (LEVELS.index(f.level), f.kind, names.index(f.csv), f.line))
    return result


def _names(paths: Sequence[Path]) -> list[str]:
    """File names; full paths for file names that are not unique."""
    counted = Counter(path.name for path in paths)
    return [path.name if counted[path.name] == 1 else str(path) for path in paths]


def _read(result: Validation, name: str, path: Path, data_root: Path | None) -> list[tuple[str, Row]]:
    try:
        table, faults = examine_table(path, data_root=data_root)
    except UserError as error:
        result.add("fault", "csv", name, 0, str(error))
        return []
    for fault in faults:
        result.add("fault", "row", name, fault.line, fault.text)
    for note in table.notes:
        result.add("note", "tolerance", name, 0, note)
    return [(name, row) for row in table.rows]


# --- single rows ----------------------------------------------------------------------------------


def _check_files(result: Validation) -> None:
    for entry in result.entries:
        for error in entry.inspection.errors:
            kind = "size" if error.code == "image-size-mismatch" else "file"
            result.add("fault", kind, entry.csv, entry.row.line, str(error))


def _check_masks(result: Validation) -> None:
    specks: dict[str, list[int]] = {}
    for entry in result.entries:
        facts = entry.inspection.mask
        if entry.inspection.turn is not None:
            result.add("warning", "orientation", entry.csv, entry.row.line, entry.inspection.turn)
        if facts is None:
            continue
        suspicion = _suspicion(facts)
        if suspicion is not None:
            kind, text = suspicion
            result.add("warning", kind, entry.csv, entry.row.line, f"mask {entry.row.mask} {text}")
        if facts.specks:
            specks.setdefault(entry.csv, []).append(entry.row.line)
    for csv, lines in specks.items():
        number = f"{len(lines)} mask{'s have' if len(lines) != 1 else ' has'}"
        shown = ", ".join(map(str, lines[:EXAMPLES])) + ", …" * (len(lines) > EXAMPLES)
        result.add("note", "specks", csv, 0, f"{number} components of fewer than {SPECK} pixels (line {shown})")


def _suspicion(facts: MaskFacts) -> tuple[str, str] | None:
    """The kind and the text of a warning about a mask, if any."""
    if facts.foreground == 0:
        return "empty", "is empty: it has no foreground."
    if facts.foreground == 1:
        return "full", "is full: it has no background."
    if facts.inverted:
        return "inverted", (
            f"may be inverted: {facts.foreground:.0%} of its pixels and at least {INVERTED_EDGE:.0%} of its edge are "
            "foreground."
        )
    return None


def _check_mask_values(result: Validation) -> None:
    """Report CSVs that mix masks with values 0 and 1 and masks with values 0 and 255, and JPEG masks."""
    for csv in result.csvs:
        entries = [entry for entry in result.entries if entry.csv == csv]
        lines: dict[int, list[int]] = {}
        for entry in entries:
            if entry.inspection.mask is not None and entry.inspection.mask.value:
                lines.setdefault(entry.inspection.mask.value, []).append(entry.row.line)
        if len(lines) > 1:
            (rare, few), (usual, many) = sorted(lines.items(), key=lambda item: len(item[1]))
            number = f"{len(few)} mask{'s have' if len(few) != 1 else ' has'}"
            text = f"{number} the values 0 and {rare}, but {len(many)} have 0 and {usual}"
            result.add("warning", "values", csv, few[0], f"{text}; this is the first of the former.")
        jpegs = [entry.row.line for entry in entries if is_jpeg(entry.row.mask)]
        if jpegs:
            number = f"{len(jpegs)} mask{'s are JPEGs' if len(jpegs) != 1 else ' is a JPEG'}"
            result.add(
                "note", "jpeg", csv, 0, f"{number}; the blurred edges are thresholded at > 127 (line {jpegs[0]})"
            )


# --- comparisons of rows --------------------------------------------------------------------------


def _check_shared_masks(result: Validation) -> None:
    """Report different images with the same mask: at least one of them has the mask of another image."""
    faulty = {(finding.csv, finding.line) for finding in result.findings if finding.kind == "row"}
    firsts: dict[str, Entry] = {}
    for entry in result.entries:
        facts = entry.inspection.mask
        if facts is None or facts.foreground in (0, 1) or (entry.csv, entry.row.line) in faulty:
            continue
        first = firsts.setdefault(facts.content, entry)
        if first is not entry and not _same_file(first, entry) and not _same_image(first, entry):
            text = f"mask {entry.row.mask} is identical to the mask of {first.place}. Does it belong to another image?"
            result.add("warning", "mask", entry.csv, entry.row.line, text)


def _same_image(a: Entry, b: Entry) -> bool:
    first, second = a.inspection.fingerprint, b.inspection.fingerprint
    return first is None or second is None or difference(first, second) <= COPY  # unreadable images are faults already


def _check_similar_images(result: Validation) -> None:
    pairs = [(e, e.inspection.fingerprint) for e in result.entries if e.inspection.fingerprint is not None]
    entries = [entry for entry, _ in pairs]
    before, within = nearest([look for _, look in pairs], [SPLITS.index(entry.row.split) for entry in entries])
    for entry, leak, twin in zip(entries, before, within, strict=True):
        if leak is not None:
            _add_leak(result, entry, entries[leak.index], leak)
        if twin is not None and twin.difference <= COPY and not _same_file(entry, entries[twin.index]):
            text = f"{_describe_copy(entry, entries[twin.index], twin)}; both are in the same split."
            result.add("warning", "copy", entry.csv, entry.row.line, text)


def _same_file(a: Entry, b: Entry) -> bool:
    """Whether two rows have the same image file: in two CSVs, or in a duplicate row, which is a fault already."""
    return a.row.image == b.row.image or a.row.image.resolve() == b.row.image.resolve()


def _add_leak(result: Validation, entry: Entry, other: Entry, match: Match) -> None:
    if entry.csv == other.csv and _same_file(entry, other):
        return  # a duplicate row, which is a fault already
    if match.difference <= COPY:
        text = f"leak: {_describe_copy(entry, other, match)}."
        result.add("fault", "copy", entry.csv, entry.row.line, text)
    else:
        text = f"{_describe(entry)} looks like {other.place}; difference {match.difference:.1f} of 255."
        result.add("warning", "alike", entry.csv, entry.row.line, text)


def _describe(entry: Entry) -> str:
    return f"{entry.row.image.name} ({entry.row.split})"


def _describe_copy(entry: Entry, other: Entry, match: Match) -> str:
    if _same_file(entry, other):
        return f"{_describe(entry)} is the same file as {other.place}"
    if entry.inspection.content == other.inspection.content:
        return f"{_describe(entry)} has the same content as {other.place}"
    cause = f"(re-encoded, resized or a neighbouring frame; difference {match.difference:.1f} of 255)"
    return f"{_describe(entry)} is nearly identical to {other.place} {cause}"


def _check_groups(result: Validation, grouping: Grouping, columns: dict[tuple[str, int], str]) -> None:
    by_place = {
        entry.place: columns[entry.csv, entry.row.line]
        for entry in result.entries
        if (entry.csv, entry.row.line) in columns
    }
    keys = [entry.place if grouping.column else entry.row.name for entry in result.entries]
    groups = grouping.of(keys, by_place)
    members: dict[str, list[Entry]] = {}
    for key, entry in zip(keys, result.entries, strict=True):
        if key in groups:
            members.setdefault(groups[key], []).append(entry)
    for group, rows in members.items():
        splits = Counter(entry.row.split for entry in rows)
        if len(splits) > 1:
            last = max(rows, key=lambda entry: SPLITS.index(entry.row.split))
            shown = ", ".join(f"{splits[s]} {s}" for s in SPLITS if splits[s])
            text = (
                f"leak: group {group} is in {len(splits)} splits ({shown} rows); "
                f"this is its first {last.row.split} row."
            )
            result.add("fault", "group", last.csv, last.row.line, text)


# --- statistics -----------------------------------------------------------------------------------


def summarise(result: Validation) -> list[dict[str, Any]]:
    """Statistics of each split of each CSV, as written to JSON.

    ``smallest`` and ``largest`` are [width, height] in pixels, by area. ``foreground_mean`` is the mean foreground
    fraction of all masks, ``foreground_5_50_95`` its percentiles over the masks with foreground.
    """
    statistics = []
    for csv in result.csvs:
        for split in SPLITS:
            rows = [entry for entry in result.entries if entry.csv == csv and entry.row.split == split]
            if rows:
                statistics.append({"csv": csv, "split": split, **_statistics(rows)})
    return statistics


def _statistics(rows: Sequence[Entry]) -> dict[str, Any]:
    inspections = [entry.inspection for entry in rows]
    sizes = sorted((i.size for i in inspections if i.size is not None), key=lambda size: (size[0] * size[1], size))
    masks = [i.mask for i in inspections if i.mask is not None]
    filled = np.array([mask.foreground for mask in masks if mask.foreground > 0])
    percentiles = [float(v) for v in np.quantile(filled, (0.05, 0.5, 0.95))] if filled.size else [None] * 3
    return {
        "rows": len(rows),
        "sizes": len(set(sizes)),
        "smallest": _width_height(sizes[0]) if sizes else None,
        "largest": _width_height(sizes[-1]) if sizes else None,
        "empty_masks": sum(mask.foreground == 0 for mask in masks),
        "one_component": sum(mask.components == 1 for mask in masks),
        "more_components": sum(mask.components > 1 for mask in masks),
        "foreground_mean": float(np.mean([mask.foreground for mask in masks])) if masks else None,
        "foreground_5_50_95": percentiles,
    }


def _width_height(size: tuple[int, int]) -> list[int]:
    return [size[1], size[0]]
