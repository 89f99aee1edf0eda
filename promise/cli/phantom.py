"""promise-phantom: write the synthetic sample set, images, masks and split CSV."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from promise.cli.common import Parser, run, start_logging
from promise.runtime.errors import UserError


def make_parser() -> argparse.ArgumentParser:
    """The command's arguments."""
    parser = Parser(
        prog="promise-phantom",
        description="Write endoscopy-like synthetic pictures with lesion masks and a split CSV, to try things on.",
        allow_abbrev=False,
    )
    parser.add_argument("--output", type=Path, required=True, help="folder to write to")
    parser.add_argument("--count", type=int, default=120, help="pictures (default: %(default)s)")
    parser.add_argument("--size", type=int, default=256, help="side in pixels (default: %(default)s)")
    parser.add_argument(
        "--fractions",
        type=float,
        nargs=3,
        default=(0.7, 0.1, 0.2),
        metavar=("TRAIN", "VAL", "TEST"),
        help="in these proportions (default: 0.7 0.1 0.2)",
    )
    parser.add_argument("--seed", type=int, default=0, help="the same seed gives the same bytes (default: 0)")
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; returns the exit status."""
    arguments = make_parser().parse_args(argv)
    return run("promise-phantom", lambda: _work(arguments))


def _work(arguments: argparse.Namespace) -> int:
    start_logging(quiet=False)
    if arguments.count < 1 or arguments.size < 32:
        raise UserError("--count must be at least 1 and --size at least 32.")
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


if __name__ == "__main__":
    sys.exit(main())
