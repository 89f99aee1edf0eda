"""Write overlays of scored rows: ground truth, prediction and prompts drawn on the image."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from promise.data.images import read_image, read_mask, write_png
from promise.data.table import Row
from promise.inference.overlay import draw_overlay
from promise.prompts.sets import ImagePrompts


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


def file_name(name: str) -> str:
    """The file name of the overlay of a row."""
    return f"{name.replace('/', '_').replace(chr(92), '_')}.png"


def remove_overlays(folder: Path) -> None:
    """Remove the overlays of an earlier evaluation, which may show other rows or prompts."""
    for overlay in (*folder.glob("overlays/*/*.png"), *folder.glob("gallery/*/*.png")):
        overlay.unlink()
