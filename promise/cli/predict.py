"""promise-predict: segment images and write their masks."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from promise.cli.common import build_parser, gather, prepare_process, run, start_logging
from promise.inference.config import PredictConfig
from promise.runtime.errors import shorten

DESCRIPTION = """
Segment images and write a mask of the same size for each. Existing masks are kept, so that interrupted runs resume.
Exit status 3: some images could not be read.

Example:

  promise-predict --ckpt runs/polyp/best.safetensors --output masks scans/ more/*.png

The name of a bundled checkpoint can replace its path:

  promise-predict --list-checkpoints
"""


def make_parser() -> argparse.ArgumentParser:
    """Return the argument parser."""
    parser = build_parser("promise-predict", DESCRIPTION, PredictConfig, skip=("images",))
    parser.add_argument(
        "images",
        nargs="*",
        metavar="IMAGES",
        help="files, folders, quoted patterns, CSVs with a column image_name, or text files with one path per line",
    )
    parser.add_argument("--list-checkpoints", action="store_true", help="print the bundled checkpoints and exit")
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command and return the exit status."""
    arguments = make_parser().parse_args(argv)
    return run("promise-predict", lambda: _work(arguments))


def _work(arguments: argparse.Namespace) -> int:
    config = gather(arguments, PredictConfig, skip=("list_checkpoints",))
    start_logging(quiet=config.quiet)
    prepare_process()
    if "list_checkpoints" in arguments:
        from promise.models.bundled import list_checkpoints

        print(list_checkpoints())
        return 0
    from promise.inference.predict import predict
    from promise.models.quality import USABLE

    result = predict(config)
    if not result.is_main_process:
        return 3 if result.failed else 0
    existing = result.images - result.made - len(result.failed)
    kept = f", {existing} already existed" if existing else ""
    print(f"{result.made} mask{'s' * (result.made != 1)} written{kept}: {result.folder / 'masks'}")
    if result.review is not None:
        print("\n".join(_review_lines(result.review, config.review_below, result.folder)))
    if result.doubtful:
        head = f"{len(result.doubtful)} to check, with an estimated IoU below {USABLE:g} (promise-app corrects masks):"
        print("\n".join([head, *shorten([f"  {name}: {iou:.3f}" for name, iou in result.doubtful])]))
    if result.review is None and result.without_lesion:
        several = len(result.without_lesion) > 1
        masks = "masks are" if several else "mask is"
        head = f"no lesion found in {len(result.without_lesion)} image{'s' * several}, whose {masks} empty:"
        print("\n".join([head, *shorten([f"  {name}" for name in result.without_lesion])]))
    if not result.failed:
        return 0
    head = f"promise-predict: {len(result.failed)} of {result.images} images could not be used:"
    lines = [f"  {reason if path in reason else f'{path}: {reason}'}" for path, reason in result.failed]
    print("\n".join([head, *shorten(lines)]), file=sys.stderr)
    return 3


def _review_lines(review: Sequence[tuple[str, float | None]], below: float | None, folder: Path) -> list[str]:
    """The images that a person should inspect, lowest estimated IoU first."""
    from promise.inference.output_folder import REVIEW

    images = f"{len(review)} image{'s' * (len(review) != 1)} to review"
    head = f"{images} (estimated IoU below {below:g}, or no lesion found): {folder / REVIEW}"
    return [head, *shorten([f"  {name}: {'no lesion' if iou is None else f'{iou:.3f}'}" for name, iou in review])]


if __name__ == "__main__":
    sys.exit(main())
