"""promise-predict: write the masks of images, whatever lies in them, with the net's own prompts or with given ones."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

from promise.cli.common import build_parser, gather, prepare_process, run, start_logging
from promise.inference.config import PredictConfig
from promise.runtime.errors import SHOWN

DESCRIPTION = (
    "Write a mask for each image, in the image's own size. What is there already is kept: a run that was stopped goes "
    "on. Status 3: some images could not be read. Example: promise-predict --ckpt runs/polyp/best.safetensors "
    "--output masks scans/ more/*.png"
)


def make_parser() -> argparse.ArgumentParser:
    """The command's arguments."""
    parser = build_parser("promise-predict", DESCRIPTION, PredictConfig, skip=("images",))
    parser.add_argument(
        "images",
        nargs="*",
        metavar="IMAGES",
        help="files, folders, patterns in quotes, CSVs with a column image_name, text files with a path a line",
    )
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; returns the exit status."""
    arguments = make_parser().parse_args(argv)
    return run("promise-predict", lambda: _work(arguments))


def _work(arguments: argparse.Namespace) -> int:
    config = gather(arguments, PredictConfig)
    start_logging(quiet=config.quiet)
    prepare_process()
    from promise.inference.predict import predict

    result = predict(config)
    if not result.speaks:
        return 3 if result.failed else 0
    there = result.images - result.made - len(result.failed)
    kept = f", {there} were there already" if there else ""
    print(f"{result.made} mask{'s' * (result.made != 1)} made{kept}: {result.folder / 'masks'}")
    if not result.failed:
        return 0
    more = [f"  … and {len(result.failed) - SHOWN} more"] if len(result.failed) > SHOWN else []
    head = f"promise-predict: {len(result.failed)} of {result.images} images could not be used:"
    lines = [f"  {words if path in words else f'{path}: {words}'}" for path, words in result.failed[:SHOWN]]
    print("\n".join([head, *lines, *more]), file=sys.stderr)
    return 3


if __name__ == "__main__":
    sys.exit(main())
