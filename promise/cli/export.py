"""promise-export: export a checkpoint as ONNX or torch.export graphs, verified against PyTorch."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Mapping, Sequence
from typing import Any

from promise.cli.common import build_parser, gather, prepare_process, run, start_logging
from promise.export.config import ExportConfig

DESCRIPTION = """
Export a net as graphs: encoder, prompter, decoder, and one graph from image to mask. The graphs are compared with
PyTorch before they are kept. The command prints the differences, file sizes and times.

Example:

  promise-export --ckpt runs/polyp/best.safetensors --output exported
"""


def make_parser() -> argparse.ArgumentParser:
    """Return the argument parser."""
    return build_parser("promise-export", DESCRIPTION, ExportConfig)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command and return the exit status."""
    arguments = make_parser().parse_args(argv)
    return run("promise-export", lambda: _work(arguments))


def _work(arguments: argparse.Namespace) -> int:
    config = gather(arguments, ExportConfig)
    start_logging(quiet=config.quiet)
    prepare_process()
    from promise.export import exporter
    from promise.export.formats import FORMATS

    exported = exporter.export(config)
    print(_text(exported.manifest, FORMATS[config.format].runtime))
    print(f"\nwritten: {exported.folder}")
    return 0


def _text(manifest: Mapping[str, Any], runtime: str) -> str:
    lines = [f"{'graph':<10} {'file':<14} {'MB':>8} {'s per image':>11}   on {runtime}, CPU"]
    for name, graph in manifest["graphs"].items():
        lines.append(f"{name:<10} {graph['file']:<14} {graph['bytes'] / 1e6:>8.1f} {graph['seconds']:>11.3f}")
    lines.append(f"(encoder in PyTorch: {manifest['pytorch_seconds']:.3f} s)")
    lines.append("")
    lines.append(f"largest differences from PyTorch on {manifest['checks']['pictures']} synthetic images:")
    for check in manifest["checks"]["found"]:
        found = f"Dice {check['found']:.5f}" if check["unit"] == "dice" else f"{check['found']:.1e}"
        bound = f">= {check['bound']}" if check["unit"] == "dice" else f"<= {check['bound']:.0e}"
        lines.append(f"  {check['graph'] + ', ' + check['what']:<24} {found:>12}  ({bound})")
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(main())
