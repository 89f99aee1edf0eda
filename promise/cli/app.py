"""promise-app: a web page for segmenting images and correcting the prompts of a net."""

from __future__ import annotations

import argparse
import logging
import sys
from collections.abc import Sequence
from pathlib import Path

from promise.cli.common import Parser, finite_number, prepare_process, run, start_logging
from promise.runtime.settings import CKPT_HELP, DEVICE_HELP, LESION_SETTINGS_HELP, MAX_LESIONS_HELP, PRECISIONS

DESCRIPTION = """
Serve a web page that segments uploaded images. The net places the prompts; the user can move, add and remove them.

Examples:

  promise-app
  promise-app --ckpt runs/polyp/best.safetensors
"""
log = logging.getLogger(__name__)


def make_parser() -> argparse.ArgumentParser:
    """Return the argument parser."""
    parser = Parser("promise-app", DESCRIPTION, allow_abbrev=False)
    net = parser.add_argument_group("net")
    net.add_argument("--ckpt", metavar="FILE", help=f"{CKPT_HELP}; default: the page offers all bundled ones")
    net.add_argument("--sam-checkpoint", metavar="FILE", help="weight file of SAM; default: cached, else downloaded")
    net.add_argument("--device", default="auto", metavar="NAME", help=f"{DEVICE_HELP} (default: %(default)s)")
    net.add_argument(
        "--precision", default="auto", metavar="NAME", help=f"{', '.join(PRECISIONS)} (default: %(default)s)"
    )
    net.add_argument(
        "--postprocess",
        metavar="STEPS",
        help="postprocessing of masks, such as open:5; default: as stored in the checkpoint",
    )
    net.add_argument("--max-lesions", type=int, metavar="N", help=MAX_LESIONS_HELP)
    net.add_argument("--lesion-settings", metavar="NAME=VALUE,…", help=LESION_SETTINGS_HELP)
    page = parser.add_argument_group("page")
    page.add_argument(
        "--host",
        default="127.0.0.1",
        help="address to serve on; 0.0.0.0 for access from other machines (default: %(default)s)",
    )
    page.add_argument(
        "--port", type=int, default=7860, metavar="N", help="port; 0 selects a free one (default: %(default)s)"
    )
    page.add_argument(
        "--samples",
        type=Path,
        metavar="FOLDER",
        help="images to list on the page; default: synthetic images, or, without --ckpt, those of data_format/skin",
    )
    page.add_argument(
        "--max-megabytes",
        type=finite_number,
        default=32,
        metavar="X",
        help="maximum size of an uploaded file (default: %(default)s)",
    )
    page.add_argument(
        "--max-megapixels",
        type=finite_number,
        default=25,
        metavar="X",
        help="maximum size of an image (default: %(default)s)",
    )
    page.add_argument(
        "--images-kept",
        type=int,
        default=8,
        metavar="N",
        help="maximum number of open images in all (default: %(default)s)",
    )
    page.add_argument(
        "--images-each",
        type=int,
        default=4,
        metavar="N",
        help="maximum number of open images of one browser (default: %(default)s)",
    )
    page.add_argument(
        "--idle-minutes",
        type=finite_number,
        default=30,
        metavar="X",
        help="time after which an unused image is closed (default: %(default)s)",
    )
    parser.add_argument("--quiet", action="store_true", help="print warnings only")
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command and return the exit status."""
    arguments = make_parser().parse_args(argv)
    return run("promise-app", lambda: _work(arguments))


def _work(arguments: argparse.Namespace) -> int:
    start_logging(quiet=arguments.quiet)
    prepare_process()
    from promise.app.run import Serving, is_private, serve
    from promise.app.uploads import Limits
    from promise.inference.segmenter import Segmenter, check_load_settings, load

    if not is_private(arguments.host):
        log.warning(
            "the page on %s can be used by everyone who has its address with the token, and the connection is not "
            "encrypted. Omit --host to restrict it to this machine.",
            arguments.host,
        )
    check_load_settings(
        device=arguments.device,
        precision=arguments.precision,
        postprocess=arguments.postprocess,
        lesion_settings=arguments.lesion_settings,
    )
    serving = Serving(
        ckpt=arguments.ckpt,
        host=arguments.host,
        port=arguments.port,
        limits=Limits(arguments.max_megabytes, arguments.max_megapixels),
        images_kept=arguments.images_kept,
        images_each=arguments.images_each,
        idle_minutes=arguments.idle_minutes,
        samples=arguments.samples,
    )

    def open_net(ckpt: str) -> Segmenter:
        return load(
            ckpt,
            sam_checkpoint=arguments.sam_checkpoint,
            device=arguments.device,
            precision=arguments.precision,
            postprocess=arguments.postprocess,
            max_lesions=arguments.max_lesions,
            lesion_settings=arguments.lesion_settings,
        )

    serve(open_net, serving, lambda address: print(f"promise-app: {address}  (Ctrl+C stops)", flush=True))
    return 0


if __name__ == "__main__":
    sys.exit(main())
