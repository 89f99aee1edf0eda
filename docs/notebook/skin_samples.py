"""Draw the images of data_format/skin, and the split of all others, from the training images of ISIC 2017.

    python docs/notebook/skin_samples.py isic2017_train_256 data_format/skin runs/skin

Not part of the package. SOURCE has images/ and masks/ with equal names, JPEG and PNG. The images are taken in a random
order, without those whose mask is suspicious or has specks, and without those that look like one already taken, as
promise-validate judges both. The first 240 are copied to SAMPLES: 160 training, 20 validation and 60 test images. The
next ones are listed in OUT/split.csv: 200 test, 100 validation and 800 training images. The same seed gives the same
images. Masks are written with one bit per pixel.
"""

from __future__ import annotations

import argparse
import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path

import cv2
import numpy as np

from promise.data.images import read_image, read_mask
from promise.data.validate.inspection import describe_mask
from promise.data.validate.likeness import ALIKE, Fingerprint, difference, fingerprint
from promise.data.validate.validate import find_suspicion
from promise.runtime.files import write_lines

SAMPLES = {"train": 160, "val": 20, "test": 60}
OTHERS = {"test": 200, "val": 100, "train": 800}


def distinct(source: Path, seed: int) -> Iterator[tuple[Path, Path]]:
    """Image and mask files in random order; see the docstring of this file."""
    images = sorted((source / "images").glob("*.jpg"))
    taken: list[Fingerprint] = []
    for place in np.random.default_rng(seed).permutation(len(images)):
        image = images[place]
        mask = source / "masks" / f"{image.stem}.png"
        facts = describe_mask(read_mask(mask), 255)
        print_ = fingerprint(read_image(image))
        if find_suspicion(facts) or facts.specks or any(difference(print_, one) <= ALIKE for one in taken):
            continue
        taken.append(print_)
        yield image, mask


def write_samples(pairs: Iterator[tuple[Path, Path]], out: Path) -> None:
    """Copy the images, write the masks with one bit per pixel, and the CSV."""
    lines = []
    for folder in ("images", "masks"):
        (out / folder).mkdir(parents=True, exist_ok=True)
    for split, count in SAMPLES.items():
        for image, mask in sorted(next(pairs) for _ in range(count)):
            shutil.copyfile(image, out / "images" / image.name)
            bits = read_mask(mask).astype(np.uint8) * 255
            cv2.imwrite(str(out / "masks" / mask.name), bits, [cv2.IMWRITE_PNG_BILEVEL, 1])
            names = {"image_name": f"images/{image.name}", "mask_name": f"masks/{mask.name}"}
            lines.append({"image_name": names["image_name"], "train_type": split, "mask_name": names["mask_name"]})
    write_lines(out / "split.csv", lines)


def main(arguments: Sequence[str] | None = None) -> None:
    """Write samples and the split of the others."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", maxsplit=1)[0])
    parser.add_argument("source", type=Path, help="folder with images/ and masks/")
    parser.add_argument("samples", type=Path, help="folder for the samples")
    parser.add_argument("out", type=Path, help="folder for split.csv, with the other images")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args(arguments)
    pairs = distinct(args.source, args.seed)
    write_samples(pairs, args.samples)
    args.out.mkdir(parents=True, exist_ok=True)
    lines = []
    for split, count in OTHERS.items():
        for image, mask in sorted(next(pairs) for _ in range(count)):
            paths = (path.resolve().as_posix() for path in (image, mask))
            lines.append(dict(zip(("image_name", "mask_name"), paths, strict=True)) | {"train_type": split})
    write_lines(args.out / "split.csv", lines)


if __name__ == "__main__":
    main()
