"""Draw the dermoscopy images of data_format/skin from the training images of ISIC 2017.

    python docs/notebook/skin_samples.py isic2018=ISIC2017 data_format/skin
    python docs/notebook/skin_samples.py folder=isic2017_train_256 data_format/skin

Not part of the package. The source is LAYOUT=FOLDER, as for promise-prepare: a download of the challenge, or a folder
with images/ and masks/ of equal file names. Images of 256 × 256 pixels are copied unchanged; others are resized to that
without keeping their proportions. Masks become 1-bit PNG files.

The images are taken in random order. Left out are the images that OUT/held_out.txt names (the test set of the bundled
checkpoint ``skin``), images that look like any earlier or held-out image (see promise/data/validate/likeness.py), and
masks that are empty, full, possibly inverted, or have a component of fewer than ten pixels.

Writes images/, masks/ and split.csv to OUT. The same seed gives the same images.
"""

from __future__ import annotations

import argparse
import shutil
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

import cv2
import numpy as np
from PIL import Image

from promise.cli.common import run
from promise.data.images import read_image, read_size
from promise.data.masks import is_jpeg, read_mask
from promise.data.prepare.layouts import Pair, find_sets
from promise.data.validate.inspection import describe_mask
from promise.data.validate.likeness import fingerprint, nearest
from promise.runtime.files import write_lines

SIDE = 256  # pixels
QUALITY = 90  # of resized images, JPEG
HELD_OUT = "held_out.txt"  # one name per line, without extension


def usable(pairs: Sequence[Pair], held_out: set[str], seed: int) -> Iterator[Pair]:
    """The pairs that may be drawn, in random order."""
    order = np.random.default_rng(seed).permutation(len(pairs))
    shuffled = [pairs[place] for place in order]
    ranked = sorted(shuffled, key=lambda pair: pair.name not in held_out)  # stable: held-out images first
    _, twins = nearest([fingerprint(read_image(pair.image)) for pair in ranked], [0] * len(ranked))
    for pair, twin in zip(ranked, twins, strict=True):
        if pair.name not in held_out and twin is None:
            facts = describe_mask(read_mask(pair.mask), 255)
            if 0 < facts.foreground < 1 and not facts.specks and not facts.inverted:
                yield pair


def store(pair: Pair, out: Path) -> tuple[str, str]:
    """Write the image and the mask; returns their paths relative to ``out``."""
    image, mask = f"images/{pair.name}.jpg", f"masks/{pair.name}.png"
    if read_size(pair.image) == (SIDE, SIDE) and is_jpeg(pair.image):
        shutil.copyfile(pair.image, out / image)
    else:
        resized = cv2.resize(read_image(pair.image), (SIDE, SIDE), interpolation=cv2.INTER_AREA)
        Image.fromarray(resized).save(out / image, quality=QUALITY)
    pixels = read_mask(pair.mask).astype(np.uint8)
    resized = cv2.resize(pixels, (SIDE, SIDE), interpolation=cv2.INTER_NEAREST)
    Image.fromarray(resized > 0).save(out / mask, optimize=True)
    return image, mask


def main(arguments: Sequence[str] | None = None) -> int:
    """Draw the images and write the folder."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", maxsplit=1)[0])
    parser.add_argument("source", metavar="LAYOUT=FOLDER", help="training images of ISIC 2017")
    parser.add_argument("out", type=Path, help=f"output folder; its {HELD_OUT} is read, if there is one")
    parser.add_argument("--count", type=int, nargs=3, default=(160, 20, 60), metavar=("TRAIN", "VAL", "TEST"))
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args(arguments)
    layout, _, folder = args.source.partition("=")
    pairs = sorted(find_sets(layout, Path(folder))[0].pairs, key=lambda pair: pair.name)
    names = args.out / HELD_OUT
    held_out = set(names.read_text(encoding="utf-8").split()) if names.is_file() else set()
    splits = [split for split, count in zip(("train", "val", "test"), args.count, strict=True) for _ in range(count)]
    for name in ("images", "masks"):
        (args.out / name).mkdir(parents=True, exist_ok=True)
    drawn = [(split, pair) for split, pair in zip(splits, usable(pairs, held_out, args.seed), strict=False)]
    if len(drawn) < len(splits):
        parser.error(f"only {len(drawn)} of {len(splits)} images can be used")
    lines = []
    for split, pair in sorted(drawn, key=lambda one: (splits.index(one[0]), one[1].name)):
        image, mask = store(pair, args.out)
        lines.append({"image_name": image, "train_type": split, "mask_name": mask})
    write_lines(args.out / "split.csv", lines)
    print(f"{args.out / 'split.csv'}: {len(lines)} images")
    return 0


if __name__ == "__main__":
    sys.exit(run("skin_samples.py", main))
