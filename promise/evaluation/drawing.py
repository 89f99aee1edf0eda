"""Overlays of scored rows: ground truth, prediction and prompts on the image, as files."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from promise.data.images import read_image, read_mask, write_png
from promise.data.table import Row
from promise.inference.overlay import draw_overlay
from promise.prompts.file import ImagePrompts


def draw_row(path: Path, row: Row, predicted: np.ndarray, prompts: ImagePrompts, caption: str) -> None:
    """Draw truth, prediction (H, W) and prompts on a row's image, and write the picture."""
    picture = draw_overlay(
        read_image(row.image),
        read_mask(row.mask),
        predicted,
        xy=prompts.xy,
        label=prompts.label,
        box=prompts.box,
        caption=caption,
    )
    write_png(path, picture)


def file_name(name: str) -> str:
    """A row's name as that of a picture."""
    return f"{name.replace('/', '_').replace(chr(92), '_')}.png"


def remove_pictures(folder: Path) -> None:
    """Remove the pictures of an earlier evaluation: of other prompts, maybe."""
    for picture in (*folder.glob("overlays/*/*.png"), *folder.glob("gallery/*/*.png")):
        picture.unlink()
