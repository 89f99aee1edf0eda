"""promise-validate: faults, warnings and leaks of split CSVs, one line each."""

from __future__ import annotations

import argparse
import sys
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from promise.cli.common import Parser, run, start_logging, worker_count
from promise.runtime.errors import SHOWN
from promise.runtime.settings import DATA_ROOT_HELP, SPLITS

if TYPE_CHECKING:
    from promise.data.validate.validate import Validation

DESCRIPTION = """
Check split CSVs and all their files. The command reports unreadable files, suspicious masks, identical or nearly
identical images in two splits, and groups that occur in two splits.

Example:

  promise-validate train.csv kvasir.csv clinicdb.csv --data-root data \\
    --group sequence_of_frame.json --picture data.png

Exit status 0: no faults. Exit status 1: faults, or warnings with --strict.
"""


def make_parser() -> argparse.ArgumentParser:
    """Return the argument parser."""
    parser = Parser("promise-validate", DESCRIPTION, allow_abbrev=False)
    parser.add_argument("csvs", nargs="*", type=Path, metavar="CSV", help="split CSVs; all rows are compared")
    parser.add_argument("--split-csv", nargs="+", type=Path, default=[], metavar="CSV", help="further split CSVs")
    parser.add_argument("--data-root", type=Path, metavar="FOLDER", help=DATA_ROOT_HELP)
    parser.add_argument(
        "--group",
        metavar="HOW",
        help="groups to keep in one split: JSON file (frame → group), re:PATTERN for the name, or column of the CSV",
    )
    parser.add_argument("--strict", action="store_true", help="exit with status 1 on warnings too")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write all findings and statistics")
    parser.add_argument(
        "--picture", type=Path, metavar="FILE", help="write a chart of rows, image sizes and foreground fractions"
    )
    parser.add_argument("--workers", type=worker_count, metavar="N", help="threads (default: one per core, at most 8)")
    parser.add_argument("--quiet", action="store_true", help="hide the progress bar")
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command and return the exit status."""
    parser = make_parser()
    arguments = parser.parse_args(argv)
    arguments.csvs += arguments.split_csv
    if not arguments.csvs:
        parser.error("a split CSV is required")
    return run("promise-validate", lambda: _work(arguments))


def _work(arguments: argparse.Namespace) -> int:
    start_logging(quiet=arguments.quiet)
    from promise.data.splits import read_grouping
    from promise.data.validate.validate import summarise, validate
    from promise.runtime.files import require_writable, write_json

    for path in (arguments.json, arguments.picture):
        if path is not None:
            require_writable(path)
    result = validate(
        arguments.csvs,
        data_root=arguments.data_root,
        grouping=read_grouping(arguments.group) if arguments.group else None,
        workers=arguments.workers,
        progress=not arguments.quiet,
    )
    figures = summarise(result)
    if arguments.json is not None:
        counts = {level: result.count(level) for level in ("fault", "warning", "note")}
        findings = [vars(finding) for finding in result.findings]
        write_json(arguments.json, {"version": 1, "counts": counts, "splits": figures, "findings": findings})
    if arguments.picture is not None:
        _draw(result, arguments.picture)
    _print(result, figures)
    return int(result.count("fault") > 0 or (arguments.strict and result.count("warning") > 0))


def _print(result: Validation, figures: Sequence[dict[str, object]]) -> None:
    from promise.runtime.text_table import text_table

    if figures:
        header = ["csv", "split", "rows", "width × height", "foreground 5–50–95 %", "empty", "several parts"]
        print(text_table(header, [_cells(row) for row in figures]) + "\n")
    shown: Counter[tuple[str, str]] = Counter()
    for finding in result.findings:
        key = (finding.level, finding.kind)
        shown[key] += 1
        if shown[key] <= SHOWN:
            print(f"{finding.level:8} {finding}")
    for (level, kind), number in shown.items():
        if number > SHOWN:
            print(f"{level:8} … and {number - SHOWN} more of kind {kind!r}; --json lists all")
    rows = f"{len(result.entries):,} rows"
    print(f"{rows}: {result.count('fault')} faults, {result.count('warning')} warnings, {result.count('note')} notes")


def _cells(row: dict[str, object]) -> list[str]:
    def text(size: object) -> str:
        return "×".join(str(n) for n in size) if isinstance(size, list) else "-"

    small, large = text(row["smallest"]), text(row["largest"])
    fractions = row["foreground_5_50_95"]
    assert isinstance(fractions, list)
    percentiles = "-" if fractions[0] is None else " – ".join(f"{100 * fraction:.1f}" for fraction in fractions)
    sizes = small if small == large else f"{small} to {large}"
    counts = [str(row[key]) for key in ("empty_masks", "more_components")]
    return [str(row["csv"]), str(row["split"]), str(row["rows"]), sizes, percentiles, *counts]


def _draw(result: Validation, path: Path) -> None:
    from promise.data.validate.chart import SplitFigures, draw_chart

    splits: dict[str, SplitFigures] = {}
    for name in SPLITS:
        entries = [entry for entry in result.entries if entry.row.split == name]
        if entries:
            splits[name] = SplitFigures(
                sizes=[entry.seen.size for entry in entries if entry.seen.size is not None],
                foreground=[entry.seen.mask.foreground for entry in entries if entry.seen.mask is not None],
                rows=dict(Counter(entry.csv for entry in entries)),
            )
    draw_chart(path, splits, result.csvs)


if __name__ == "__main__":
    sys.exit(main())
