"""promise-eval: score a net on the rows of split CSVs."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from promise.cli.common import build_parser, gather, prepare_process, run, start_logging
from promise.evaluation.config import EvalConfig

DESCRIPTION = """
Score a checkpoint, or an untrained net, on one or more data sets. The reference, native and soft protocols are computed
in one pass.

Example:

  promise-eval --ckpt runs/polyp/best.safetensors --overlays 8 \\
    --split-csv kvasir.csv clinicdb.csv
"""


def make_parser() -> argparse.ArgumentParser:
    """Return the argument parser."""
    return build_parser("promise-eval", DESCRIPTION, EvalConfig)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command and return the exit status."""
    arguments = make_parser().parse_args(argv)
    return run("promise-eval", lambda: _work(arguments))


def _work(arguments: argparse.Namespace) -> int:
    config = gather(arguments, EvalConfig)
    start_logging(quiet=config.quiet)
    prepare_process()
    if config.tune_postprocess:
        return _tune(config)
    from promise.evaluation.evaluate import evaluate
    from promise.evaluation.summary import brief_text, read_summary, results_text

    earlier = [read_summary(Path(path)) for path in config.beside]
    result = evaluate(config)
    text = brief_text if config.brief else results_text
    print(text([*earlier, result.summary]))
    print(f"\nresults: {result.folder}")
    if config.overlays:
        print(f"overlays: {result.folder / 'overlays'}")
    return 0


def _tune(config: EvalConfig) -> int:
    from promise.evaluation.summary import tuning_text
    from promise.evaluation.tune import tune

    result = tune(config)
    ranked = [(str(postprocess), dice) for postprocess, dice in result.ranked]
    if result.lesions:
        chosen = ", ".join(f"{step.name}={step.chosen:g} (Dice {step.chosen_dice:.4f})" for step in result.lesions)
        print(f"lesion settings, tuned one after the other: {chosen}\n")
    print(tuning_text(ranked, images=result.images, ckpt=result.ckpt))
    print(f"\nall candidates: {result.folder / 'tune.csv'}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
