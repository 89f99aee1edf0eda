"""promise-bench: speed and memory of this package on this machine, compared with a baseline."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from promise.benchmark.config import BenchConfig, resolve_settings
from promise.cli.common import build_parser, gather, prepare_process, run, start_logging

DESCRIPTION = """
Measure encoder, training step, cached epoch, evaluation, loader, metrics and start-up. The baseline runs the modules of
the SAM package in fp32 and decodes images one by one; its measurements are interleaved with those of this package.

A full run on vit_b takes about half an hour on two cores; --quick measures LiteMedSAM in one to two minutes.

Examples:

  promise-bench --quick
  promise-bench --sam lite_medsam --parts encoder step:APM_IPS_resnet
"""


def make_parser() -> argparse.ArgumentParser:
    """Return the argument parser."""
    return build_parser("promise-bench", DESCRIPTION, BenchConfig)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command and return the exit status."""
    arguments = make_parser().parse_args(argv)
    return run("promise-bench", lambda: _work(arguments))


def _work(arguments: argparse.Namespace) -> int:
    config = gather(arguments, BenchConfig)
    start_logging(quiet=config.quiet)
    prepare_process()
    settings = resolve_settings(config)
    from promise.benchmark.runner import PARTS, benchmark

    output = Path(config.output) if config.output else None
    print(benchmark(settings, parts=config.parts or tuple(PARTS), output=output), end="")
    return 0


if __name__ == "__main__":
    sys.exit(main())
