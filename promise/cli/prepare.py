"""promise-prepare: raw downloads to images, masks and a split CSV."""

from __future__ import annotations

import argparse
import logging
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from promise.cli.common import Parser, run, start_logging
from promise.runtime.errors import UserError

if TYPE_CHECKING:
    from promise.data.prepare.layouts import ImageSet

DESCRIPTION = """Make square images, binary masks and split CSVs of raw downloads, each given as LAYOUT=FOLDER. Example:

  promise-prepare kvasir-seg=data/Kvasir-SEG --size 1024 --fractions 0.8 0.1 0.1 --output data/kvasir

The field's polyp split, a tenth of it held out for validation, ClinicDB by whole videos:

  promise-prepare kvasir-seg=data/kvasir_seg cvc-clinicdb=data/cvc_clinicdb --split-file pranet_split.json \\
    --val-share 0.1 --group clinicdb=sequence_of_frame.json --output data/pranet

A run that was stopped goes on when it is started again. Masks predicted on prepared pictures go back by

  promise-prepare --restore predictions --frames data/kvasir/frames.csv --output original_size"""


def make_parser() -> argparse.ArgumentParser:
    """The command's arguments."""
    parser = Parser(
        "promise-prepare",
        description=DESCRIPTION,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument(
        "sources", nargs="*", metavar="LAYOUT=FOLDER", help="what to prepare; --list-layouts names them"
    )
    parser.add_argument("--list-layouts", action="store_true", help="print the layouts and leave")
    parser.add_argument("--output", type=Path, help="folder for images/, masks/, the split CSVs and frames.csv")
    parser.add_argument("--overwrite", action="store_true", help="replace what an earlier preparation wrote there")
    parser.add_argument("--workers", type=int, help="threads (default: one a core, at most 8)")
    parser.add_argument("--quiet", action="store_true", help="no messages, no progress bar")
    pictures = parser.add_argument_group("pictures")
    pictures.add_argument("--size", type=int, default=1024, help="side in pixels (default: %(default)s)")
    pictures.add_argument(
        "--crop-border",
        action=argparse.BooleanOptionalAction,
        default=True,
        help="cut off the dark border (default: yes)",
    )
    pictures.add_argument(
        "--in-place", action="store_true", help="make no pictures: only CSVs that name the files where they lie"
    )
    splits = parser.add_argument_group("splits")
    splits.add_argument("--split-file", type=Path, help="JSON: split → names, or set → split → names")
    splits.add_argument("--fractions", type=float, nargs=3, metavar=("TRAIN", "VAL", "TEST"), help="draw, with --seed")
    splits.add_argument("--val-share", type=float, default=0.0, help="of each set's train rows, set aside as val rows")
    splits.add_argument(
        "--group",
        action="append",
        default=[],
        metavar="[SET=]HOW",
        help="what stays in one split: a JSON (frame → group), re:PATTERN on the name, or a column of a csv",
    )
    splits.add_argument("--train-rows", type=int, default=0, help="draw so many, in proportion (default: all)")
    splits.add_argument("--seed", type=int, default=0, help="of what is drawn (default: 0)")
    folders = parser.add_argument_group("layout folder and csv")
    folders.add_argument("--images", help="folder of images below the set's folder")
    folders.add_argument("--masks", help="folder of masks; may be the same")
    folders.add_argument("--mask-prefix", default="", help="a mask is called PREFIX + image + SUFFIX")
    folders.add_argument("--mask-suffix", default="")
    folders.add_argument("--image-suffix", default="", help="is dropped from the image's name first")
    folders.add_argument(
        "--skip-unpaired", action="store_true", help="leave out images without mask, masks without image"
    )
    folders.add_argument("--data-root", type=Path, help="csv: where its paths begin")
    back = parser.add_argument_group("the way back")
    back.add_argument("--restore", type=Path, metavar="FOLDER", help="bring its masks to the original pictures' size")
    back.add_argument("--frames", type=Path, help="frames.csv of the preparation")
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; returns the exit status."""
    parser = make_parser()
    arguments = parser.parse_args(argv)
    _check_usage(parser, arguments)
    return run("promise-prepare", lambda: _work(arguments))


def _check_usage(parser: argparse.ArgumentParser, arguments: argparse.Namespace) -> None:
    if arguments.list_layouts:
        return
    if arguments.restore is None and not (arguments.sources and arguments.output):
        parser.error("what to prepare and --output are required")
    if arguments.restore is not None and (arguments.sources or not (arguments.output and arguments.frames)):
        parser.error("--restore goes with --frames and --output, and with nothing to prepare")


def _work(arguments: argparse.Namespace) -> int:
    start_logging(quiet=arguments.quiet)
    from promise.data.prepare.assignment import Splitting
    from promise.data.prepare.layouts import CSV, LAYOUTS, PRANET
    from promise.data.prepare.prepare import Recipe, prepare
    from promise.runtime.workers import default_workers

    if arguments.list_layouts:
        texts = {**{name: layout.text for name, layout in LAYOUTS.items()}, "pranet": PRANET, "csv": CSV}
        print("\n".join(f"{name:13} {text}" for name, text in texts.items()))
        return 0
    if arguments.restore is not None:
        return _restore(arguments)
    names = ("size", "crop_border", "in_place", "skip_unpaired", "overwrite", "quiet")
    workers = default_workers() if arguments.workers is None else arguments.workers
    recipe = Recipe(**{name: getattr(arguments, name) for name in names}, workers=workers)
    splitting = Splitting(
        split_file=arguments.split_file,
        fractions=None if arguments.fractions is None else tuple(arguments.fractions),
        val_share=arguments.val_share,
        groups=tuple(arguments.group),
        train_rows=arguments.train_rows,
        seed=arguments.seed,
    )
    result = prepare(_find(arguments), arguments.output, recipe=recipe, splitting=splitting)
    for note in result.notes:
        logging.getLogger("promise").warning(note)
    if result.kept:
        logging.getLogger("promise").info(f"{result.kept} pictures were there already")
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
    print(f"{arguments.output}: {len(written)} masks in their original frames")
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
            raise UserError(f"{source}: wants LAYOUT=FOLDER; the layouts are {', '.join(NAMES)}.")
        own = layout == "folder"
        root = arguments.data_root if layout == "csv" else None
        sets += find_sets(layout, Path(folder), part=part if own else None, rule=rule if own else None, data_root=root)
    return sets


if __name__ == "__main__":
    sys.exit(main())
