"""How a picture became a square one, and the way back for masks; knows no sets and opens no picture.

As the original prepares polyp sets: the dark border is cut off, black is added on the right and below until the
picture is square, and area interpolation brings it to one size.
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

BRIGHT = 20  # a channel above this is no border
ENOUGH = 10  # more bright flags than this in a row or column, summed over the channels, make it content
CORNER = 20  # side of the top left corner that is left out: some recorders write into it


@dataclass(frozen=True)
class Frame:
    """Crop, then pad right and below to a square, then resize; in pixels of the original, EXIF applied."""

    width: int  # of the original
    height: int
    left: int  # the crop; right and bottom are the first pixels outside
    top: int
    right: int
    bottom: int
    size: int  # side of the prepared square

    @property
    def side(self) -> int:
        """Of the square before it is resized, in original pixels."""
        return max(self.right - self.left, self.bottom - self.top)

    def prepare(self, pixels: NDArray[np.uint8]) -> NDArray[np.uint8]:
        """The square picture.

        Args:
            pixels: (height, width) or (height, width, C) uint8.

        Returns:
            (size, size) or (size, size, C): each pixel the mean of the area it covers.
        """
        resized = cv2.resize(self._square(pixels), (self.size, self.size), interpolation=cv2.INTER_AREA)
        return np.asarray(resized, np.uint8)

    def prepare_mask(self, levels: NDArray[np.uint8]) -> NDArray[np.bool_]:
        """The square mask, (size, size) bool.

        Args:
            levels: (height, width) uint8, 0 to 255; foreground is what has more than 127 after resizing.
        """
        resized = self.prepare(levels) if self.size < self.side else _enlarge(self._square(levels), self.size)
        return np.asarray(resized > 127)

    def _square(self, pixels: NDArray[np.uint8]) -> NDArray[np.uint8]:
        assert pixels.shape[:2] == (self.height, self.width)
        cut = pixels[self.top : self.bottom, self.left : self.right]
        below, right = self.side - cut.shape[0], self.side - cut.shape[1]
        square = cv2.copyMakeBorder(cut, 0, below, 0, right, cv2.BORDER_CONSTANT, value=(0, 0, 0, 0))
        return np.asarray(square, np.uint8)

    def restore(self, prepared: NDArray[Any]) -> NDArray[Any]:
        """Bring a mask, or any map, of the square back to the original frame; outside of the crop it is 0.

        Each original pixel takes the value at its centre, so nothing is blurred. A mask that was prepared
        comes back the same where the square was enlarged by 1.5 or more or by 1; else its outline moves by less
        than a pixel of the coarser of both grids.

        Args:
            prepared: (n, n) of any type; n need not be the prepared size: a net's output will do.

        Returns:
            (height, width) of the same type.

        Raises:
            UserError: not square.
        """
        if prepared.ndim != 2 or prepared.shape[0] != prepared.shape[1]:
            shown = "×".join(str(n) for n in prepared.shape[::-1])
            raise UserError(f"a prepared mask is square and has one channel; this one is {shown}.")
        n, whole = prepared.shape[0], np.zeros((self.height, self.width), prepared.dtype)
        at = (2 * np.arange(self.side) + 1) * n // (2 * self.side)  # the cell that holds each pixel's centre
        rows, columns = at[: self.bottom - self.top], at[: self.right - self.left]
        whole[self.top : self.bottom, self.left : self.right] = prepared[np.ix_(rows, columns)]
        return whole


def _enlarge(square: NDArray[np.uint8], size: int) -> NDArray[np.uint8]:
    """Area interpolation (S, S) → (size, size), size at least S, by whole numbers.

    OpenCV finds the pixel under a cell's edge by a product of floats, and takes the one before where that falls just
    short of a whole number: 33 pixels made 54 lose some single rows.
    """
    side, cells = len(square), np.arange(size)
    first = cells * side // size
    second = np.minimum(first + 1, side - 1)
    of_second = np.maximum((cells + 1) * side - (first + 1) * size, 0).astype(np.float32) / side
    rows = square[first] + of_second[:, None] * (square[second].astype(np.float32) - square[first])
    both = rows[:, first] + of_second * (rows[:, second] - rows[:, first])
    return np.asarray(np.rint(both), np.uint8)


def whole_frame(width: int, height: int, *, size: int) -> Frame:
    """No crop."""
    return Frame(width, height, 0, 0, width, height, size)


def content_frame(image: NDArray[np.uint8], *, size: int) -> Frame:
    """Crop to the content: from the first to the last row and column with more than 10 bright flags.

    Args:
        image: (H, W, 3) uint8 RGB. A picture without content is left whole.
        size: side of the prepared square.
    """
    bright = image > BRIGHT
    bright[:CORNER, :CORNER] = False
    flags = bright.sum(axis=2, dtype=np.uint8)
    rows = np.flatnonzero(flags.sum(axis=1, dtype=np.int64) > ENOUGH)
    columns = np.flatnonzero(flags.sum(axis=0, dtype=np.int64) > ENOUGH)
    height, width = flags.shape
    if not rows.size or not columns.size:
        return whole_frame(width, height, size=size)
    left, right = int(columns[0]), int(columns[-1]) + 1
    return Frame(width, height, left, int(rows[0]), right, int(rows[-1]) + 1, size)


# --- the record -----------------------------------------------------------------------------------

_FIELDS = tuple(field.name for field in dataclasses.fields(Frame))


def write_frames(path: Path, frames: Mapping[str, Frame]) -> None:
    """A CSV with a line for each prepared image: its name as in the split CSV, then the frame's numbers."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["image_name", *_FIELDS])
    writer.writerows([name, *dataclasses.astuple(frame)] for name, frame in frames.items())
    write_text(path, text.getvalue())


def read_frames(path: str | Path) -> dict[str, Frame]:
    """What :func:`write_frames` wrote: image name → frame.

    Raises:
        MissingFileError: no such file.
        UserError: no record of frames, or a line of it that is damaged.
    """
    path = Path(path)
    if not path.is_file():
        raise MissingFileError(f"{path}: no such file. promise-prepare writes frames.csv beside the images.")
    with path.open(encoding="utf-8", newline="") as stream:
        reader = csv.DictReader(stream)
        if list(reader.fieldnames or ()) != ["image_name", *_FIELDS]:
            raise UserError(f"{path} is no record of frames; its first line should be: image_name,{','.join(_FIELDS)}")
        frames = {}
        for row in reader:
            try:
                frames[row["image_name"]] = Frame(**{name: int(row[name]) for name in _FIELDS})
            except (TypeError, ValueError) as error:
                raise UserError(f"{path}, line {reader.line_num}: not a frame ({error}).") from error
    return frames
