"""promise-compare: two evaluations on the same images, paired."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from promise.cli.common import Parser, run, start_logging
from promise.runtime.errors import UserError

if TYPE_CHECKING:
    from promise.evaluation.compare import Change, Comparison, Paired

DESCRIPTION = (
    "Compare two evaluations image by image: mean difference B − A with a 95 % bootstrap interval, Wilcoxon "
    "signed-rank test, wins and losses, the images that changed most. Example: "
    "promise-compare runs/apm runs/apm-ips --top 10"
)


def make_parser() -> argparse.ArgumentParser:
    """The command's arguments."""
    parser = Parser("promise-compare", description=DESCRIPTION.replace("%", "%%"), allow_abbrev=False)
    where = "folder of an evaluation, a run's folder with eval in it, or a summary.json"
    parser.add_argument("a", metavar="A", type=Path, help=f"the baseline: {where}")
    parser.add_argument("b", metavar="B", type=Path, help="what is held against it: the same")
    parser.add_argument(
        "--metric",
        nargs="+",
        default=["native_dice"],
        metavar="NAME",
        help="columns of per_image.csv, such as native_iou, reference_dice, soft_dice_mean (default: native_dice)",
    )
    parser.add_argument(
        "--top", type=int, default=5, metavar="N", help="images that changed most, so many each way (default: 5)"
    )
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the numbers there too")
    parser.add_argument("--overwrite", action="store_true", help="replace FILE")
    parser.add_argument("--quiet", action="store_true", help="no warnings on stderr; --json holds them")
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; returns the exit status."""
    arguments = make_parser().parse_args(argv)
    return run("promise-compare", lambda: _work(arguments))


def _work(arguments: argparse.Namespace) -> int:
    start_logging(quiet=arguments.quiet)
    if arguments.top < 0:
        raise UserError("--top must be at least 0.")
    if arguments.json is not None and arguments.json.exists() and not arguments.overwrite:
        raise UserError(f"{arguments.json} is there already. Replace it by --overwrite, or choose another --json.")
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
        f"Differences are B − A, paired by image; intervals: 95 % percentile bootstrap over images, "
        f"{comparison.resamples} resamples, seed {comparison.seed}. No correction for several comparisons."
    )
    return "\n\n".join([head, *(_block(paired) for paired in comparison.results), foot])


def _block(paired: Paired) -> str:
    low, high = paired.interval
    left_out = f", {paired.left_out} left out (not a number in one)" if paired.left_out else ""
    p = "–" if paired.p is None else f"{paired.p:.2g}"
    lines = [
        f"{paired.dataset}, {paired.metric}: {paired.images} images{left_out}",
        f"  A {paired.mean_a:.4f}   B {paired.mean_b:.4f}   B − A {paired.difference:+.4f}  [{low:+.4f}, {high:+.4f}]",
        f"  Wilcoxon signed-rank p {p} ({paired.p_note})",
        f"  B better on {paired.wins}, equal on {paired.ties}, worse on {paired.losses}",
        *_changes("most gained", paired.gained),
        *_changes("most lost", paired.lost),
    ]
    return "\n".join(lines)


def _changes(title: str, changes: Sequence[Change]) -> list[str]:
    width = max((len(change.name) for change in changes), default=0)
    rows = [f"    {c.name.ljust(width)}  {c.a:.4f} → {c.b:.4f}  {c.difference:+.4f}" for c in changes]
    return [f"  {title}:", *rows] if rows else []


if __name__ == "__main__":
    sys.exit(main())
