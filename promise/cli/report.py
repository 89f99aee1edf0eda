"""promise-report: one self-contained HTML page of a run and its evaluations."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from promise.cli.common import Parser, run, start_logging

DESCRIPTION = (
    "Write a self-contained HTML report of a training run and its evaluations, or of evaluations alone, with the "
    "tables as Markdown and LaTeX beside it. Example: promise-report runs/polyp --eval runs/sam-box"
)


def make_parser() -> argparse.ArgumentParser:
    """The command's arguments."""
    parser = Parser("promise-report", description=DESCRIPTION, allow_abbrev=False)
    parser.add_argument(
        "run", metavar="RUN", type=Path, nargs="?", help="a run's folder with its evaluations in it, or an evaluation's"
    )
    parser.add_argument("--eval", type=Path, nargs="+", default=[], metavar="FOLDER", help="more evaluations to show")
    parser.add_argument("--output", type=Path, metavar="FILE", help="default: report.html in RUN")
    parser.add_argument("--overwrite", action="store_true", help="replace an earlier report and its tables")
    parser.add_argument("--quiet", action="store_true", help="warnings only")
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; returns the exit status."""
    arguments = make_parser().parse_args(argv)
    return run("promise-report", lambda: _work(arguments))


def _work(arguments: argparse.Namespace) -> int:
    start_logging(quiet=arguments.quiet)
    from promise.report.page import write_report

    page = write_report(arguments.run, arguments.eval, output=arguments.output, overwrite=arguments.overwrite)
    print(f"report: {page}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
