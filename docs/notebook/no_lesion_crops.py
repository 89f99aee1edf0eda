"""Cut crops without a lesion from annotated images: to train a net on, or to measure how often it finds nothing.

    python docs/notebook/no_lesion_crops.py pranet/train.csv runs/with_crops --split train --count 160 --seed 1 --append
    python docs/notebook/no_lesion_crops.py pranet/kvasir.csv runs/no_lesion --count 100

Not part of the package. In each image, the largest square without a pixel of the mask is cut at a random position. Its
side is between ``--least`` and 80 % of the shorter side of the image; squares of which a quarter or more is nearly
black, the frame of endoscopic images, are not used. Images without such a square are skipped.

Writes images/, masks/ (empty) and split.csv to OUT; the crops belong to the split of their images. With ``--append``,
split.csv also has all rows of CSV, so that a net can be trained with it. The same seed gives the same crops.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np

from promise.cli.common import run
from promise.data.images import read_image, write_png
from promise.data.masks import read_mask
from promise.data.table import Row, read_table
from promise.runtime.files import write_lines

DARK = 30  # grey level
SIDES = 16  # candidate sides
STEP = 8  # pixels between candidate positions

Window = tuple[slice, slice]  # rows, columns
Sample = tuple[str, np.ndarray, np.ndarray]  # name, image (H, W, 3), mask (H, W)


def largest_free_square(image: np.ndarray, mask: np.ndarray, least: float, rng: np.random.Generator) -> Window | None:
    """Rows and columns of a square without lesion and frame; ``None`` if there is none."""
    shorter = min(mask.shape)
    lesion, dark = _sums(mask), _sums(image.max(axis=2) < DARK)
    for fraction in np.linspace(0.8, least, SIDES):
        side = int(fraction * shorter)
        y, x = np.mgrid[: mask.shape[0] - side + 1 : STEP, : mask.shape[1] - side + 1 : STEP]
        lesions, darks = (s[y + side, x + side] - s[y, x + side] - s[y + side, x] + s[y, x] for s in (lesion, dark))
        free = np.flatnonzero((lesions == 0) & (darks < side * side / 4))
        if free.size:
            place = rng.choice(free)
            top, left = int(y.flat[place]), int(x.flat[place])
            return slice(top, top + side), slice(left, left + side)
    return None


def _sums(region: np.ndarray) -> np.ndarray:
    """Sums (H + 1, W + 1) over all pixels above and to the left."""
    return np.pad(region.astype(np.int64).cumsum(0).cumsum(1), ((1, 0), (1, 0)))


def write_samples(samples: Iterable[Sample], out: Path, *, split: str = "test", rows: Sequence[Row] = ()) -> int:
    """Write images, masks and split.csv, which begins with ``rows``; returns the number of samples."""
    lines = [{"image_name": _from(out, r.image), "train_type": r.split, "mask_name": _from(out, r.mask)} for r in rows]
    for name, image, mask in samples:
        for folder, pixels in (("images", image), ("masks", mask.astype(np.uint8) * 255)):
            (out / folder).mkdir(parents=True, exist_ok=True)
            write_png(out / folder / f"{name}.png", pixels)
        lines.append({"image_name": f"images/{name}.png", "train_type": split, "mask_name": f"masks/{name}.png"})
    write_lines(out / "split.csv", lines)
    return len(lines) - len(rows)


def _from(folder: Path, path: Path) -> str:
    return Path(os.path.relpath(path, folder)).as_posix()


def crops(rows: Sequence[Row], args: argparse.Namespace) -> Iterable[Sample]:
    """Up to ``args.count`` crops, from images in random order."""
    rng = np.random.default_rng(args.seed)
    found = 0
    for place in rng.permutation(len(rows)):
        if found == args.count:
            return
        image, mask = read_image(rows[place].image), read_mask(rows[place].mask)
        window = largest_free_square(image, mask, args.least, rng)
        if window is not None:
            found += 1
            yield f"crop_{found:04d}", image[window], np.zeros_like(mask[window])


def main(arguments: Sequence[str] | None = None) -> int:
    """Write the crops of the rows of a CSV."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", maxsplit=1)[0])
    parser.add_argument("csv", type=Path, help="split CSV of the images")
    parser.add_argument("out", type=Path, help="output folder")
    parser.add_argument("--split", default="test", choices=("train", "val", "test"))
    parser.add_argument("--count", type=int, default=100)
    parser.add_argument("--least", type=float, default=0.4, help="smallest side, as a fraction of the shorter side")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--append", action="store_true", help="also write the rows of CSV to split.csv")
    args = parser.parse_args(arguments)
    table = read_table(args.csv)
    found = crops(table.split(args.split), args)
    count = write_samples(found, args.out, split=args.split, rows=table.rows if args.append else ())
    print(f"{args.out}: {count} crops")
    return 0


if __name__ == "__main__":
    sys.exit(run("no_lesion_crops.py", main))
