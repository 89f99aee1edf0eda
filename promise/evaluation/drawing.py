"""Write overlays of scored rows: ground truth, prediction and prompts drawn on the image."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np

from promise.data.images import read_image, write_png
from promise.data.masks import read_mask
from promise.data.table import Row
from promise.inference.overlay import draw_overlay
from promise.prompts.sets import ImagePrompts
from promise.runtime.errors import WriteError
from promise.runtime.files import short_name

log = logging.getLogger(__name__)

LONGEST_NAME = 230  # bytes; file systems allow 255, and some overlays have a prefix


def draw_row(path: Path, row: Row, predicted: np.ndarray, prompts: ImagePrompts, caption: str) -> None:
    """Draw the ground truth, the prediction (H, W) and the prompts on the image of a row; write a PNG file."""
    overlay = draw_overlay(
        read_image(row.image),
        read_mask(row.mask),
        predicted,
        xy=prompts.placed_xy,
        label=prompts.placed_label,
        boxes=prompts.boxes,
        caption=caption,
    )
    write_png(path, overlay)


@contextmanager
def warn_if_unwritten() -> Iterator[None]:
    """An overlay that cannot be written is reported; the scores are not lost for it."""
    try:
        yield
    except WriteError as error:
        log.warning("%s", error)


def file_name(name: str) -> str:
    """The file name of the overlay of a row."""
    plain = name.replace("/", "_").replace("\\", "_")
    return f"{short_name(plain, LONGEST_NAME)}.png"


def remove_overlays(folder: Path) -> None:
    """Remove the overlays of an earlier evaluation, which may show other rows or prompts."""
    for overlay in (*folder.glob("overlays/*/*.png"), *folder.glob("gallery/*/*.png")):
        overlay.unlink()
