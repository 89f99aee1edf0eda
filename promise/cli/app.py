"""promise-app: a page on which a person corrects the net's prompts."""

from __future__ import annotations

import argparse
import logging
import sys
from collections.abc import Sequence
from pathlib import Path

from promise.cli.common import Parser, prepare_process, run, start_logging

DESCRIPTION = (
    "Serve a page on which an image is dropped, the net prompts itself, and a person moves, adds and removes the "
    "prompts. Example: promise-app --ckpt runs/polyp/best.safetensors"
)
log = logging.getLogger(__name__)


def make_parser() -> argparse.ArgumentParser:
    """The command's arguments."""
    parser = Parser("promise-app", description=DESCRIPTION, allow_abbrev=False)
    net = parser.add_argument_group("net")
    net.add_argument("--ckpt", type=Path, required=True, metavar="FILE", help="checkpoint of promise-train")
    net.add_argument("--sam-checkpoint", metavar="FILE", help="SAM's weights; default: from the cache, else fetched")
    net.add_argument("--device", default="auto", help="auto, cpu, cuda, cuda:1, mps (default: auto)")
    net.add_argument("--precision", default="auto", help="auto, fp32, bf16, fp16 (default: auto)")
    net.add_argument("--postprocess", metavar="…", help="of masks, such as open:5; default: the checkpoint's own")
    page = parser.add_argument_group("page")
    page.add_argument("--host", default="127.0.0.1", help="0.0.0.0: other machines too (default: %(default)s)")
    page.add_argument("--port", type=int, default=7860, metavar="N", help="0: a free one (default: %(default)s)")
    page.add_argument("--samples", type=Path, metavar="FOLDER", help="pictures to try; default: synthetic ones")
    page.add_argument("--max-megabytes", type=float, default=32, metavar="X", help="of a file (default: %(default)s)")
    page.add_argument("--max-megapixels", type=float, default=25, metavar="X", help="(default: %(default)s)")
    page.add_argument("--images-kept", type=int, default=8, metavar="N", help="open at once (default: %(default)s)")
    page.add_argument(
        "--idle-minutes", type=float, default=30, metavar="X", help="until an image is dropped (default: %(default)s)"
    )
    parser.add_argument("--quiet", action="store_true", help="warnings only")
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; returns the exit status."""
    arguments = make_parser().parse_args(argv)
    return run("promise-app", lambda: _work(arguments))


def _work(arguments: argparse.Namespace) -> int:
    start_logging(quiet=arguments.quiet)
    prepare_process()
    from promise.app.run import Serving, is_private, serve
    from promise.app.uploads import Limits
    from promise.inference.segmenter import Segmenter, load

    if not is_private(arguments.host):
        log.warning("everyone who reaches %s can use this page: it has no password.", arguments.host)
    serving = Serving(
        host=arguments.host,
        port=arguments.port,
        limits=Limits(arguments.max_megabytes, arguments.max_megapixels),
        images_kept=arguments.images_kept,
        idle_minutes=arguments.idle_minutes,
        samples=arguments.samples,
    )

    def open_net() -> Segmenter:
        return load(
            arguments.ckpt,
            sam_checkpoint=arguments.sam_checkpoint,
            device=arguments.device,
            precision=arguments.precision,
            postprocess=arguments.postprocess,
        )

    serve(open_net, serving, lambda address: print(f"promise-app: {address}  (Ctrl+C ends)", flush=True))
    return 0


if __name__ == "__main__":
    sys.exit(main())
