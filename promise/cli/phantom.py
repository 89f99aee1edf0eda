"""promise-phantom: generate a synthetic data set of images, masks and a split CSV."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from promise.cli.common import Parser, finite_number, run, start_logging
from promise.runtime.errors import UserError, all_of
from promise.runtime.settings import MAX_NUMBER

DESCRIPTION = """
Generate a synthetic data set for tests and examples: images that resemble endoscopy, masks of their lesions, and a
split CSV.

Example:

  promise-phantom --output data/phantom --count 40
"""
MIN_SIZE, MAX_SIZE = 32, 8192


def make_parser() -> argparse.ArgumentParser:
    """Return the argument parser."""
    parser = Parser("promise-phantom", DESCRIPTION, allow_abbrev=False)
    parser.add_argument("--output", type=Path, required=True, metavar="FOLDER", help="output folder (required)")
    parser.add_argument("--count", type=int, default=120, metavar="N", help="number of images (default: %(default)s)")
    parser.add_argument(
        "--size", type=int, default=256, metavar="N", help="width and height in pixels (default: %(default)s)"
    )
    parser.add_argument(
        "--fractions",
        type=finite_number,
        nargs=3,
        default=(0.7, 0.1, 0.2),
        metavar=("TRAIN", "VAL", "TEST"),
        help="proportions of the splits (default: 0.7 0.1 0.2)",
    )
    parser.add_argument(
        "--seed",
        type=int,
        default=0,
        metavar="N",
        help="random seed; equal seeds give identical files (default: %(default)s)",
    )
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command and return the exit status."""
    arguments = make_parser().parse_args(argv)
    return run("promise-phantom", lambda: _work(arguments))


def _work(arguments: argparse.Namespace) -> int:
    start_logging(quiet=False)
    all_of(
        lambda: _check_range("--count", arguments.count, 1, MAX_NUMBER),
        lambda: _check_range("--size", arguments.size, MIN_SIZE, MAX_SIZE),
    )
    from promise.data.phantom import make_phantoms

    print(
        make_phantoms(
            arguments.output,
            count=arguments.count,
            size=arguments.size,
            seed=arguments.seed,
            splits=arguments.fractions,
        )
    )
    return 0


def _check_range(flag: str, value: int, least: int, most: int) -> None:
    if not least <= value <= most:
        message = f"{flag} must be at least {least} and at most {most}."
        raise UserError(message, code=f"{flag.removeprefix('--')}-out-of-range")


if __name__ == "__main__":
    sys.exit(main())
