"""promise-compare: paired comparison of two evaluations on the same images."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from promise.cli.common import Parser, run, start_logging
from promise.runtime.errors import ExistingRunError, UserError

if TYPE_CHECKING:
    from promise.evaluation.compare import Change, Comparison, Paired

DESCRIPTION = """
Compare two evaluations image by image: mean difference B − A with a 95 % bootstrap interval, Wilcoxon signed-rank test,
number of images on which B is better or worse, and the images with the largest differences.

Example:

  promise-compare runs/apm runs/apm-ips --top 10
"""


def make_parser() -> argparse.ArgumentParser:
    """Return the argument parser."""
    parser = Parser("promise-compare", DESCRIPTION, allow_abbrev=False)
    where = "results folder of promise-eval, run folder that contains eval/, or summary.json"
    parser.add_argument("a", metavar="A", type=Path, help=f"baseline: {where}")
    parser.add_argument("b", metavar="B", type=Path, help="evaluation that is compared with the baseline; likewise")
    parser.add_argument(
        "--metric",
        nargs="+",
        default=["native_dice"],
        metavar="NAME",
        help="columns of per_image.csv, such as native_iou, native_nsd, soft_dice_mean (default: native_dice)",
    )
    parser.add_argument(
        "--top",
        type=int,
        default=5,
        metavar="N",
        help="number of images to list for the largest gains, and for the largest losses (default: %(default)s)",
    )
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write the results to this file")
    parser.add_argument("--overwrite", action="store_true", help="replace an existing --json file")
    parser.add_argument("--quiet", action="store_true", help="print no warnings; the --json file contains them")
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command and return the exit status."""
    arguments = make_parser().parse_args(argv)
    return run("promise-compare", lambda: _work(arguments))


def _work(arguments: argparse.Namespace) -> int:
    start_logging(quiet=arguments.quiet)
    if arguments.top < 0:
        raise UserError("--top must be at least 0.", code="top-out-of-range")
    if arguments.json is not None and arguments.json.exists() and not arguments.overwrite:
        raise ExistingRunError(
            f"{arguments.json} already exists. Replace it with --overwrite, or choose another file with --json.",
            code="existing-output",
        )
    from promise.evaluation.compare import compare
    from promise.evaluation.reader import read_evaluation
    from promise.runtime.files import write_json

    a, b = read_evaluation(arguments.a), read_evaluation(arguments.b)
    comparison = compare(a, b, metrics=list(dict.fromkeys(arguments.metric)), top=arguments.top)
    if arguments.json is not None:
        write_json(arguments.json, comparison.as_dict())
    if not arguments.quiet:
        for warning in comparison.warnings:
            print(f"warning: {warning}", file=sys.stderr)
    print(_text(comparison, a.title, b.title))
    return 0


def _text(comparison: Comparison, a: str, b: str) -> str:
    head = f"A  {comparison.a}  ({a})\nB  {comparison.b}  ({b})"
    foot = (
        f"Differences are B − A, paired by image. Intervals: 95 % percentile bootstrap over images, "
        f"{comparison.resamples} resamples, seed {comparison.seed}. No correction for multiple comparisons."
    )
    return "\n\n".join([head, *(_block(paired) for paired in comparison.results), foot])


def _block(paired: Paired) -> str:
    low, high = paired.interval
    left_out = f", {paired.left_out} left out (no value in A or B)" if paired.left_out else ""
    p = "–" if paired.p is None else f"{paired.p:.2g}"
    lines = [
        f"{paired.dataset}, {paired.metric}: {paired.images} images{left_out}",
        f"  A {paired.mean_a:.4f}   B {paired.mean_b:.4f}   B − A {paired.difference:+.4f}  [{low:+.4f}, {high:+.4f}]",
        f"  Wilcoxon signed-rank p {p} ({paired.p_note})",
        f"  B better on {paired.wins}, equal on {paired.ties}, worse on {paired.losses}",
        *_changes("largest gains", paired.gained),
        *_changes("largest losses", paired.lost),
    ]
    return "\n".join(lines)


def _changes(title: str, changes: Sequence[Change]) -> list[str]:
    width = max((len(change.name) for change in changes), default=0)
    rows = [f"    {c.name.ljust(width)}  {c.a:.4f} → {c.b:.4f}  {c.difference:+.4f}" for c in changes]
    return [f"  {title}:", *rows] if rows else []


if __name__ == "__main__":
    sys.exit(main())
