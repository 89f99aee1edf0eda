"""promise-prepare: convert raw downloads into images, masks and split CSVs."""

from __future__ import annotations

import argparse
import logging
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from promise.cli.common import Parser, finite_number, run, start_logging, worker_count
from promise.runtime.errors import UserError
from promise.runtime.settings import DATA_ROOT_HELP

if TYPE_CHECKING:
    from promise.data.prepare.layouts import ImageSet

DESCRIPTION = """
Convert raw downloads into square images, binary masks and split CSVs. Interrupted runs resume.

Example:

  promise-prepare kvasir-seg=data/Kvasir-SEG --output data/kvasir \\
    --size 1024 --fractions 0.8 0.1 0.1

The published polyp split, with a tenth of the training rows for validation and the videos of ClinicDB kept together:

  promise-prepare kvasir-seg=data/kvasir_seg cvc-clinicdb=data/cvc_clinicdb \\
    --split-file pranet_split.json --val-share 0.1 \\
    --group clinicdb=sequence_of_frame.json --output data/pranet

Masks predicted on prepared images are converted to the size of the original images:

  promise-prepare --restore predictions --frames data/kvasir/frames.csv \\
    --output original_size
"""


def make_parser() -> argparse.ArgumentParser:
    """Return the argument parser."""
    parser = Parser("promise-prepare", DESCRIPTION, allow_abbrev=False)
    parser.add_argument(
        "sources", nargs="*", metavar="LAYOUT=FOLDER", help="downloads to prepare; --list-layouts lists the layouts"
    )
    parser.add_argument("--list-layouts", action="store_true", help="list the layouts and exit")
    parser.add_argument(
        "--output", type=Path, metavar="FOLDER", help="folder for images/, masks/, the split CSVs and frames.csv"
    )
    parser.add_argument("--overwrite", action="store_true", help="replace the results of an earlier run in --output")
    parser.add_argument("--workers", type=worker_count, metavar="N", help="threads (default: one per core, at most 8)")
    parser.add_argument("--quiet", action="store_true", help="hide messages and progress bar")
    _add_image_flags(parser)
    _add_split_flags(parser)
    _add_layout_flags(parser)
    back = parser.add_argument_group("restore masks to original size")
    back.add_argument("--restore", type=Path, metavar="FOLDER", help="folder of masks predicted on prepared images")
    back.add_argument("--frames", type=Path, metavar="FILE", help="frames.csv written when the images were prepared")
    return parser


def _add_image_flags(parser: Parser) -> None:
    images = parser.add_argument_group("images")
    images.add_argument(
        "--size", type=int, default=1024, metavar="N", help="width and height in pixels (default: %(default)s)"
    )
    images.add_argument(
        "--crop-border",
        action=argparse.BooleanOptionalAction,
        default=True,
        help="remove the dark border (default: yes)",
    )
    images.add_argument(
        "--in-place", action="store_true", help="write CSVs with the paths of the original files, and no images"
    )


def _add_split_flags(parser: Parser) -> None:
    splits = parser.add_argument_group("splits")
    splits.add_argument(
        "--split-file", type=Path, metavar="FILE", help="published split, JSON: split → names, or set → split → names"
    )
    splits.add_argument(
        "--fractions",
        type=finite_number,
        nargs=3,
        metavar=("TRAIN", "VAL", "TEST"),
        help="proportions of a random split",
    )
    splits.add_argument(
        "--val-share",
        type=finite_number,
        default=0.0,
        metavar="X",
        help="fraction of train rows of each set to use as val rows",
    )
    splits.add_argument(
        "--group",
        action="append",
        default=[],
        metavar="[SET=]HOW",
        help="groups to keep in one split: JSON file (frame → group), re:PATTERN for the name, or column of a CSV",
    )
    splits.add_argument(
        "--train-rows",
        type=int,
        default=0,
        metavar="N",
        help="number of train rows to keep, drawn in proportion to the sets (default: all)",
    )
    splits.add_argument("--seed", type=int, default=0, metavar="N", help="random seed (default: %(default)s)")


def _add_layout_flags(parser: Parser) -> None:
    layout = parser.add_argument_group("layouts folder and csv")
    layout.add_argument("--images", metavar="NAME", help="subfolder of images")
    layout.add_argument("--masks", metavar="NAME", help="subfolder of masks; may be that of the images")
    layout.add_argument(
        "--mask-prefix", default="", metavar="PREFIX", help="the name of a mask is PREFIX + name of the image + SUFFIX"
    )
    layout.add_argument("--mask-suffix", default="", metavar="SUFFIX", help="see --mask-prefix")
    layout.add_argument(
        "--image-suffix", default="", metavar="SUFFIX", help="removed from the name of the image before that"
    )
    layout.add_argument(
        "--skip-unpaired", action="store_true", help="ignore images without a mask and masks without an image"
    )
    layout.add_argument("--data-root", type=Path, metavar="FOLDER", help=f"csv: {DATA_ROOT_HELP}")


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command and return the exit status."""
    parser = make_parser()
    arguments = parser.parse_args(argv)
    _check_usage(parser, arguments)
    return run("promise-prepare", lambda: _work(arguments))


def _check_usage(parser: argparse.ArgumentParser, arguments: argparse.Namespace) -> None:
    if arguments.list_layouts:
        return
    if arguments.restore is None and not (arguments.sources and arguments.output):
        parser.error("LAYOUT=FOLDER and --output are required")
    if arguments.restore is not None and (arguments.sources or not (arguments.output and arguments.frames)):
        parser.error("--restore requires --frames and --output, and excludes LAYOUT=FOLDER")


def _work(arguments: argparse.Namespace) -> int:
    start_logging(quiet=arguments.quiet)
    from promise.data.prepare.assignment import Splitting
    from promise.data.prepare.layouts import CSV, LAYOUTS, PRANET
    from promise.data.prepare.pairs import PrepareOptions
    from promise.data.prepare.prepare import prepare
    from promise.runtime.workers import default_workers

    if arguments.list_layouts:
        texts = {**{name: layout.text for name, layout in LAYOUTS.items()}, "pranet": PRANET, "csv": CSV}
        print("\n".join(f"{name:13} {text}" for name, text in texts.items()))
        return 0
    if arguments.restore is not None:
        return _restore(arguments)
    names = ("size", "crop_border", "in_place", "skip_unpaired", "overwrite", "quiet")
    workers = default_workers() if arguments.workers is None else arguments.workers
    options = PrepareOptions(**{name: getattr(arguments, name) for name in names}, workers=workers)
    splitting = Splitting(
        split_file=arguments.split_file,
        fractions=None if arguments.fractions is None else tuple(arguments.fractions),
        val_share=arguments.val_share,
        groups=tuple(arguments.group),
        train_rows=arguments.train_rows,
        seed=arguments.seed,
    )
    result = prepare(_find(arguments), arguments.output, options=options, splitting=splitting)
    for note in result.notes:
        logging.getLogger("promise").warning(note)
    if result.kept:
        logging.getLogger("promise").info(f"{result.kept} images already existed")
    for path, counts in result.tables.items():
        print(f"{path}: {', '.join(f'{number} {split}' for split, number in counts.items())}")
    return 0


def _restore(arguments: argparse.Namespace) -> int:
    from promise.data.prepare.restore import restore_masks

    written = restore_masks(
        arguments.restore,
        arguments.frames,
        arguments.output,
        overwrite=arguments.overwrite,
        workers=arguments.workers,
        quiet=arguments.quiet,
    )
    print(f"{arguments.output}: {len(written)} masks of original size")
    return 0


def _find(arguments: argparse.Namespace) -> list[ImageSet]:
    from promise.data.prepare.layouts import NAMES, Part, Rule, find_sets

    part = None
    if arguments.images is not None or arguments.masks is not None:
        part = Part(arguments.images or "images", arguments.masks or "masks")
    affixes = (arguments.mask_prefix, arguments.mask_suffix, arguments.image_suffix)
    rule = Rule(*affixes) if any(affixes) else None
    sets = []
    for source in arguments.sources:
        layout, equals, folder = source.partition("=")
        if not equals:
            raise UserError(
                f"{source}: expected LAYOUT=FOLDER, where LAYOUT is one of {', '.join(NAMES)}.", code="missing-layout"
            )
        is_folder = layout == "folder"
        root = arguments.data_root if layout == "csv" else None
        sets += find_sets(
            layout, Path(folder), part=part if is_folder else None, rule=rule if is_folder else None, data_root=root
        )
    return sets


if __name__ == "__main__":
    sys.exit(main())
