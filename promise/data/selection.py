"""Select the rows of one or several split CSVs and check their files. Needs no torch."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import chain, count
from pathlib import Path

from promise.data.check import check_files
from promise.data.table import Row, read_table
from promise.runtime.errors import UserError


@dataclass(frozen=True)
class DataSet:
    """The selected rows of one CSV."""

    name: str  # name of the CSV without suffix; a number is appended if two CSVs have the same name
    rows: tuple[Row, ...]
    split: str


def select_rows(
    paths: Sequence[str], *, data_root: str | None, split: str | None, level: str, progress: bool
) -> tuple[list[DataSet], list[str]]:
    """Read CSVs and check the files of the selected rows; other files are not opened.

    Args:
        paths: the CSVs.
        data_root: as in :func:`promise.data.table.read_table`.
        split: the split to select; ``None``: test if the CSV has test rows, else val.
        level: how the files are checked; see :func:`promise.data.check.check_files`.
        progress: show a progress bar on stderr.

    Returns:
        One data set per CSV, and notes for the user.

    Raises:
        UserError: faults of a table or of its files, or a CSV without rows of the split (``no-rows-of-split``).
    """
    datasets: list[DataSet] = []
    notes: list[str] = []
    for path in paths:
        table = read_table(path, data_root=data_root)
        selected = split or ("test" if table.split("test") else "val")
        rows = table.split(selected)
        if not rows:
            counts = ", ".join(f"{n} {name}" for name, n in table.counts.items())
            raise UserError(
                f"{path}: no row has train_type {selected!r} (there are {counts} rows). Choose with --split.",
                code="no-rows-of-split",
            )
        notes += [*table.notes, *check_files(rows, csv_path=path, level=level, progress=progress)]
        stem, taken = Path(path).stem, {d.name for d in datasets}
        name = next(n for n in chain([stem], (f"{stem}-{i}" for i in count(2))) if n not in taken)
        datasets.append(DataSet(name, rows, selected))
    return datasets, notes
