"""promise-report: self-contained HTML report of a run and its evaluations."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from promise.cli.common import Parser, run, start_logging

DESCRIPTION = """
Write a self-contained HTML report of a training run and its evaluations, or of evaluations only. The tables are also
written as Markdown and LaTeX.

Example:

  promise-report runs/polyp --eval runs/sam-box
"""


def make_parser() -> argparse.ArgumentParser:
    """Return the argument parser."""
    parser = Parser("promise-report", DESCRIPTION, allow_abbrev=False)
    parser.add_argument(
        "run", metavar="RUN", type=Path, nargs="?", help="run folder with its evaluations, or results of promise-eval"
    )
    parser.add_argument(
        "--eval", type=Path, nargs="+", default=[], metavar="FOLDER", help="further results of promise-eval"
    )
    parser.add_argument("--output", type=Path, metavar="FILE", help="report to write; default: report.html in RUN")
    parser.add_argument("--overwrite", action="store_true", help="replace an existing report and its tables")
    parser.add_argument("--quiet", action="store_true", help="print warnings only")
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command and return the exit status."""
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
