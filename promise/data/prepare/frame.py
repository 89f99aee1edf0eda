"""Convert images into squares, and masks of the squares back to the original frame.

The steps are those of the reference implementation for polyp data: the dark border is cropped, the image is padded with
black on the right and at the bottom to a square, and the square is resized with area interpolation.
"""

from __future__ import annotations

import csv
import dataclasses
import io
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from promise.runtime.errors import MissingFileError, UserError
from promise.runtime.files import write_text
from promise.runtime.reading import require_file

BRIGHT = 20  # channel values above this are bright
MIN_BRIGHT = 10  # a row or column with more bright values than this, over all channels, is content
CORNER = 20  # pixels; side of the top left corner that is ignored, since some recorders write into it


@dataclass(frozen=True)
class Frame:
    """Crop, pad on the right and at the bottom to a square, resize. In original pixels, after EXIF orientation."""

    width: int  # of the original image
    height: int
    left: int  # of the crop; right and bottom are exclusive
    top: int
    right: int
    bottom: int
    size: int  # side of the prepared square

    @property
    def side(self) -> int:
        """Side of the square before resizing, in original pixels."""
        return max(self.right - self.left, self.bottom - self.top)

    def prepare(self, pixels: NDArray[np.uint8]) -> NDArray[np.uint8]:
        """Convert an image into a square.

        Args:
            pixels: (height, width) or (height, width, C) uint8.

        Returns:
            (size, size) or (size, size, C) uint8; each pixel is the mean of the area that it covers.
        """
        resized = cv2.resize(self._square(pixels), (self.size, self.size), interpolation=cv2.INTER_AREA)
        return np.asarray(resized, np.uint8)

    def prepare_mask(self, levels: NDArray[np.uint8]) -> NDArray[np.bool_]:
        """Convert a mask into a square.

        Args:
            levels: (height, width) uint8, 0 to 255.

        Returns:
            (size, size) bool; foreground is > 127 after resizing.
        """
        resized = self.prepare(levels) if self.size < self.side else _enlarge(self._square(levels), self.size)
        return np.asarray(resized > 127)

    def _square(self, pixels: NDArray[np.uint8]) -> NDArray[np.uint8]:
        assert pixels.shape[:2] == (self.height, self.width)
        crop = pixels[self.top : self.bottom, self.left : self.right]
        bottom, right = self.side - crop.shape[0], self.side - crop.shape[1]
        square = cv2.copyMakeBorder(crop, 0, bottom, 0, right, cv2.BORDER_CONSTANT, value=(0, 0, 0, 0))
        return np.asarray(square, np.uint8)

    def restore(self, prepared: NDArray[Any]) -> NDArray[Any]:
        """Map a mask, or any map of the square, back to the original frame; pixels outside the crop are 0.

        Each original pixel takes the value at its centre (nearest neighbour). A prepared mask is restored exactly if
        the square was enlarged by a factor of 1 or of at least 1.5. Otherwise its outline moves by less than one pixel
        of the coarser grid.

        Args:
            prepared: (n, n) of any type; n may differ from :attr:`size`, as for the output of a net.

        Returns:
            (height, width) of the same type.

        Raises:
            UserError: ``mask-not-square``.
        """
        if prepared.ndim != 2 or prepared.shape[0] != prepared.shape[1]:
            shown = "×".join(str(n) for n in prepared.shape[::-1])
            raise UserError(
                f"a prepared mask must be square with one channel; this one is {shown}.", code="mask-not-square"
            )
        n, whole = prepared.shape[0], np.zeros((self.height, self.width), prepared.dtype)
        cells = (2 * np.arange(self.side) + 1) * n // (2 * self.side)  # the cell that contains the centre of each pixel
        rows, columns = cells[: self.bottom - self.top], cells[: self.right - self.left]
        whole[self.top : self.bottom, self.left : self.right] = prepared[np.ix_(rows, columns)]
        return whole


def _enlarge(square: NDArray[np.uint8], size: int) -> NDArray[np.uint8]:
    """Area interpolation (S, S) → (size, size), size at least S, with integer coordinates.

    OpenCV computes the source pixel of a cell's edge as a product of floats. If the product is slightly below an
    integer, it uses the pixel before: enlarging 33 pixels to 54 loses rows.
    """
    side, cells = len(square), np.arange(size)
    first = cells * side // size
    second = np.minimum(first + 1, side - 1)
    weight = np.maximum((cells + 1) * side - (first + 1) * size, 0).astype(np.float32) / side
    rows = square[first] + weight[:, None] * (square[second].astype(np.float32) - square[first])
    both = rows[:, first] + weight * (rows[:, second] - rows[:, first])
    return np.asarray(np.rint(both), np.uint8)


def whole_frame(width: int, height: int, *, size: int) -> Frame:
    """The frame without crop; ``width`` and ``height`` of the original image and the side ``size``, in pixels."""
    return Frame(width, height, 0, 0, width, height, size)


def content_frame(image: NDArray[np.uint8], *, size: int) -> Frame:
    """The frame that crops the dark border.

    The content extends from the first to the last row and column with more than ``MIN_BRIGHT`` values above
    ``BRIGHT``, over all channels. An image without content is not cropped.

    Args:
        image: (H, W, 3) uint8 RGB.
        size: side of the prepared square, pixels.
    """
    bright = image > BRIGHT
    bright[:CORNER, :CORNER] = False
    counts = bright.sum(axis=2, dtype=np.uint8)
    rows = np.flatnonzero(counts.sum(axis=1, dtype=np.int64) > MIN_BRIGHT)
    columns = np.flatnonzero(counts.sum(axis=0, dtype=np.int64) > MIN_BRIGHT)
    height, width = counts.shape
    if not rows.size or not columns.size:
        return whole_frame(width, height, size=size)
    left, right = int(columns[0]), int(columns[-1]) + 1
    return Frame(width, height, left, int(rows[0]), right, int(rows[-1]) + 1, size)


# --- frames.csv -----------------------------------------------------------------------------------

_FIELDS = tuple(field.name for field in dataclasses.fields(Frame))


def write_frames(path: Path, frames: Mapping[str, Frame]) -> None:
    """Write a CSV with one line per prepared image: its path as in the split CSV, then the fields of its frame."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["image_name", *_FIELDS])
    writer.writerows([name, *dataclasses.astuple(frame)] for name, frame in frames.items())
    write_text(path, text.getvalue())


def read_frames(path: str | Path) -> dict[str, Frame]:
    """Read the CSV of :func:`write_frames`: path of the image → frame.

    Raises:
        MissingFileError: the file does not exist.
        UserError: another header (``not-frames-csv``), or a line that is not a frame (``invalid-frame``).
    """
    path = Path(path)
    missing = f"{path}: no such file. promise-prepare writes frames.csv next to the images."
    require_file(path, MissingFileError(missing))
    with path.open(encoding="utf-8", newline="") as stream:
        reader = csv.DictReader(stream)
        if list(reader.fieldnames or ()) != ["image_name", *_FIELDS]:
            raise UserError(
                f"{path}: the first line is not that of a frames.csv of promise-prepare. Expected: "
                f"image_name,{','.join(_FIELDS)}. Is the path right?",
                code="not-frames-csv",
            )
        frames = {}
        for row in reader:
            try:
                frames[row["image_name"]] = Frame(**{name: int(row[name]) for name in _FIELDS})
            except (TypeError, ValueError) as error:
                raise UserError(
                    f"{path}, line {reader.line_num}: invalid frame ({error}).", code="invalid-frame"
                ) from error
    return frames
