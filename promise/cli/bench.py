"""promise-bench: what is fast here, measured by turns against the plain way."""

from __future__ import annotations

import argparse
import dataclasses
import sys
from collections.abc import Sequence
from pathlib import Path

from promise.cli.common import Parser, prepare_process, run, start_logging
from promise.runtime.errors import UserError

DESCRIPTION = (
    "Measure encoder, training step, cached epoch, evaluation, loader, metrics and start-up, each by turns against the "
    "plain way. A full run on vit_b takes about half an hour on two cores; --quick measures LiteMedSAM in a minute."
)


def make_parser() -> argparse.ArgumentParser:
    """The command's arguments."""
    parser = Parser("promise-bench", description=DESCRIPTION)
    parser.add_argument("--quick", action="store_true", help="LiteMedSAM, small batch, one turn")
    parser.add_argument("--sam", help="backbone (default: vit_b; with --quick: lite_medsam)")
    parser.add_argument(
        "--sam-checkpoint", default="random", help="SAM's weight file; default: random weights, which are as fast"
    )
    parser.add_argument("--batch-size", type=int, help="default: 8; with --quick: 2")
    parser.add_argument("--repeats", type=int, help="turns of each comparison (default: 3; with --quick: 1)")
    parser.add_argument("--images", type=int, help="of loader, epoch and evaluation (default: 16; with --quick: 4)")
    parser.add_argument(
        "--parts",
        nargs="+",
        metavar="PART",
        help="measure only these; default: all that compare with the plain way. More: growth:images, growth:views, "
        "growth:points, growth:batch, growth:size, growth:scoring, and memory (peaks at batch 1, 8 and 16)",
    )
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda, cuda:1, mps")
    parser.add_argument("--precision", default="auto", help="of the fast way: auto, fp32, bf16, fp16")
    parser.add_argument("--output", help="folder for bench.json and bench.md")
    parser.add_argument("--quiet", action="store_true", help="no messages")
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; returns the exit status."""
    arguments = make_parser().parse_args(argv)
    return run("promise-bench", lambda: _work(arguments))


def _work(arguments: argparse.Namespace) -> int:
    start_logging(quiet=arguments.quiet)
    prepare_process()
    from promise.benchmark import PARTS, Settings, benchmark

    base = Settings(sam="lite_medsam", batch_size=2, repeats=1, images=4) if arguments.quick else Settings()
    names = ("sam", "batch_size", "repeats", "images", "device", "precision")
    given = {name: value for name in names if (value := getattr(arguments, name)) is not None}
    checkpoint = {"random": None}.get(arguments.sam_checkpoint, arguments.sam_checkpoint)
    settings = dataclasses.replace(base, sam_checkpoint=checkpoint, **given)
    if min(settings.batch_size, settings.repeats, settings.images) < 1:
        raise UserError("--batch-size, --repeats and --images must be at least 1.")
    output = Path(arguments.output) if arguments.output else None
    print(benchmark(settings, parts=arguments.parts or tuple(PARTS), output=output), end="")
    return 0


if __name__ == "__main__":
    sys.exit(main())
