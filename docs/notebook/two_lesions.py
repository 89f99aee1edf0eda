"""Compose images with two lesions from pairs with one: to train a net on, or to measure how many of them it finds.

    python docs/notebook/two_lesions.py pranet/train.csv runs/with_pairs --split train --count 100 --append
    python docs/notebook/two_lesions.py runs/pranet/kvasir.csv runs/two_lesions --count 100

Not part of the package. The images of a pair are resized to the same height and put side by side: of each, the half of
its width that is centred on its lesion, or more if the lesion and a margin of 10 % do not fit. Images whose mask has
another number of components than one are not used.

Writes images/, masks/ (both lesions) and split.csv to OUT; the pairs belong to the split of their images. With
``--append``, split.csv also has all rows of CSV, so that a net can be trained with it. The same seed gives the same
pairs.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path

import cv2
import numpy as np
from no_lesion_crops import Sample, write_samples

from promise.cli.common import run
from promise.data.images import read_image
from promise.data.masks import read_mask
from promise.data.table import Row, read_table

HEIGHT = 512
MARGIN = 0.1  # of the height, left and right of the lesion


def half(image: np.ndarray, mask: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The columns around the lesion, at the common height."""
    width = round(HEIGHT * mask.shape[1] / mask.shape[0])
    image = cv2.resize(image, (width, HEIGHT), interpolation=cv2.INTER_AREA)
    mask = cv2.resize(mask.astype(np.uint8), (width, HEIGHT), interpolation=cv2.INTER_NEAREST) > 0
    columns = np.flatnonzero(mask.any(axis=0))
    first, last = int(columns[0]), int(columns[-1])
    wanted = min(width, max(width // 2, last - first + 1 + 2 * int(MARGIN * HEIGHT)))
    left = min(max(0, (first + last + 1 - wanted) // 2), width - wanted)
    return image[:, left : left + wanted], mask[:, left : left + wanted]


def pairs(rows: Sequence[Row], args: argparse.Namespace) -> Iterable[Sample]:
    """Up to ``args.count`` composed images; the images are in random order, each is used once."""
    order = np.random.default_rng(args.seed).permutation(len(rows))
    first, found = None, 0
    for place in order:
        if found == args.count:
            return
        mask = read_mask(rows[place].mask)
        if cv2.connectedComponents(mask.astype(np.uint8))[0] != 2:  # the background counts
            continue
        second = half(read_image(rows[place].image), mask)
        if first is None:
            first = second
            continue
        image, both = (np.concatenate(parts, axis=1) for parts in zip(first, second, strict=True))
        first, found = None, found + 1
        yield f"pair_{found:04d}", image, both


def main(arguments: Sequence[str] | None = None) -> int:
    """Write the pairs of the rows of a CSV."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", maxsplit=1)[0])
    parser.add_argument("csv", type=Path, help="split CSV of the images")
    parser.add_argument("out", type=Path, help="output folder")
    parser.add_argument("--split", default="test", choices=("train", "val", "test"))
    parser.add_argument("--count", type=int, default=100)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--append", action="store_true", help="also write the rows of CSV to split.csv")
    args = parser.parse_args(arguments)
    table = read_table(args.csv)
    found = pairs(table.split(args.split), args)
    count = write_samples(found, args.out, split=args.split, rows=table.rows if args.append else ())
    print(f"{args.out}: {count} images")
    return 0


if __name__ == "__main__":
    sys.exit(run("two_lesions.py", main))
