"""promise-train: train a net on the images of a split CSV."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

from promise.cli.common import build_parser, gather, prepare_process, run, start_logging
from promise.training.config import TrainConfig

DESCRIPTION = (
    "Train the learned parts of a net on a frozen SAM. Example: "
    "promise-train --net APM_IPS_resnet --sam lite_medsam --split-csv polyp.csv --data-root data/polyp"
)


def make_parser() -> argparse.ArgumentParser:
    """The command's arguments."""
    parser = build_parser("promise-train", DESCRIPTION, TrainConfig)
    parser.add_argument("--list-nets", action="store_true", help="print the table of nets and exit")
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; returns the exit status."""
    arguments = make_parser().parse_args(argv)
    return run("promise-train", lambda: _work(arguments))


def _work(arguments: argparse.Namespace) -> int:
    listing = arguments.__dict__.pop("list_nets", False)
    explicit = vars(arguments).keys()
    config = gather(arguments, TrainConfig)
    start_logging(quiet=config.quiet)
    prepare_process()
    if listing:
        from promise.models.registry import list_nets, resolve_sam

        print(list_nets(resolve_sam(config.net, config.sam), config.num_points))
        return 0
    from promise.training.run import train

    result = train(config, explicit=explicit)
    if not result.main_process:
        return 0
    progress = result.progress
    score = "" if progress.best_score is None else f", validation {result.select} {progress.best_score:.4f}"
    skipped = f", {progress.skipped} batches skipped" if progress.skipped else ""
    print(f"best epoch {progress.best_epoch} of {progress.epoch}{score}{skipped}, {result.seconds / 60:.1f} min")
    print(f"{result.folder / 'best.safetensors'}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
