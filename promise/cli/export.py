"""promise-export: a checkpoint as ONNX or torch.export graphs, compared with PyTorch before they are kept."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Mapping, Sequence
from typing import Any

from promise.cli.common import Parser, prepare_process, run, start_logging

DESCRIPTION = (
    "Write encoder, prompter, decoder and one graph from picture to mask, compare them with PyTorch, and tell their "
    "size and speed. Example: promise-export --ckpt runs/polyp/best.safetensors --output exported"
)


def make_parser() -> argparse.ArgumentParser:
    """The command's arguments."""
    parser = Parser("promise-export", description=DESCRIPTION, allow_abbrev=False, argument_default=argparse.SUPPRESS)
    parser.add_argument("--ckpt", required=True, metavar="FILE", help="checkpoint of promise-train, or the original's")
    parser.add_argument("--output", required=True, metavar="DIR", help="folder to write to")
    parser.add_argument(
        "--format",
        choices=("onnx", "torch"),
        help="onnx: for ONNX Runtime and others (needs promise-sam[export]); torch: programs of torch.export, .pt2 "
        "(default: onnx)",
    )
    parser.add_argument("--net", metavar="NAME", help="as in promise-eval; only the original's files need it")
    parser.add_argument("--sam", metavar="NAME", help="backbone of an original file (default: vit_b)")
    parser.add_argument("--sam-checkpoint", metavar="FILE", help="SAM's weights, where not the published ones")
    parser.add_argument(
        "--postprocess", metavar="…", help="as in promise-eval; default: the checkpoint's own where it has one"
    )
    parser.add_argument(
        "--images", type=int, metavar="N", help="synthetic pictures that the graphs are compared on (default: 3)"
    )
    parser.add_argument("--overwrite", action="store_true", help="replace an earlier export in the folder")
    parser.add_argument("--quiet", action="store_true", help="no messages and no progress bar")
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; returns the exit status."""
    arguments = make_parser().parse_args(argv)
    return run("promise-export", lambda: _work(arguments))


def _work(arguments: argparse.Namespace) -> int:
    start_logging(quiet=getattr(arguments, "quiet", False))
    prepare_process()
    from promise.export import Settings, export

    exported = export(Settings(**vars(arguments)))
    print(_text(exported.manifest))
    print(f"\nwritten: {exported.folder}")
    return 0


def _text(manifest: Mapping[str, Any]) -> str:
    runtime = {"onnx": "onnxruntime", "torch": "torch.export"}[manifest["format"]]
    lines = [f"{'graph':<10} {'file':<14} {'MB':>8} {'s an image':>11}   on {runtime}, CPU"]
    for name, graph in manifest["graphs"].items():
        lines.append(f"{name:<10} {graph['file']:<14} {graph['bytes'] / 1e6:>8.1f} {graph['seconds']:>11.3f}")
    lines.append(f"(PyTorch's encoder: {manifest['pytorch_seconds']:.3f} s)")
    lines.append("")
    lines.append(f"compared with PyTorch on {manifest['checks']['pictures']} synthetic pictures, the worst of each:")
    for check in manifest["checks"]["found"]:
        found = f"Dice {check['found']:.5f}" if check["unit"] == "dice" else f"{check['found']:.1e}"
        bound = f">= {check['bound']}" if check["unit"] == "dice" else f"<= {check['bound']:.0e}"
        lines.append(f"  {check['graph'] + ', ' + check['what']:<24} {found:>12}  ({bound})")
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(main())
