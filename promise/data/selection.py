"""Which rows of which split CSVs: a data set each, its files opened and found good; no torch."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from promise.data.check import check_files
from promise.data.table import Row, read_table
from promise.runtime.errors import UserError


@dataclass(frozen=True)
class DataSet:
    """The chosen rows of one CSV."""

    name: str  # the CSV's, without suffix; with a number where two have the same
    rows: tuple[Row, ...]
    split: str


def select_rows(
    paths: Sequence[str], *, data_root: str | None, split: str | None, level: str, progress: bool
) -> tuple[list[DataSet], list[str]]:
    """Read CSVs and open the files of their chosen rows, and of no others.

    Args:
        paths: of the CSVs.
        data_root: as in :func:`promise.data.table.read_table`.
        split: whose rows; ``None``: test where there are any, else val.
        level: how far files are opened; see :func:`promise.data.check.check_files`.
        progress: a bar on stderr.

    Returns:
        The data sets, and notes for the user.

    Raises:
        UserError: faults of a table or of its files, or a CSV without such rows.
    """
    datasets: list[DataSet] = []
    notes: list[str] = []
    for path in paths:
        table = read_table(path, data_root=data_root)
        chosen = split or ("test" if table.split("test") else "val")
        rows = table.split(chosen)
        if not rows:
            counts = ", ".join(f"{n} {name}" for name, n in table.counts.items()) or "no rows"
            raise UserError(f"{path}: no row has train_type {chosen!r} (there are {counts}). Choose with --split.")
        notes += [*table.notes, *check_files(rows, csv_path=path, level=level, progress=progress)]
        stem, taken = Path(path).stem, {d.name for d in datasets}
        name = next(n for n in (stem, *(f"{stem}-{i}" for i in range(2, 10**6))) if n not in taken)
        datasets.append(DataSet(name, rows, chosen))
    return datasets, notes
