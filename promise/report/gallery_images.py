"""Embed the images of galleries in the page as JPEG, within a total size."""

from __future__ import annotations

import base64
import io
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from PIL import Image

BUDGET = 3_300_000  # bytes of JPEG in a page; base64 adds a third
# Longest side in pixels and JPEG quality, best first.
STEPS = ((560, 82), (480, 78), (400, 74), (320, 70), (256, 62), (192, 55))


@dataclass(frozen=True)
class GalleryImage:
    """One image of a gallery."""

    name: str
    kind: str  # best, median or worst
    scores: str
    source: str  # a data: URL; empty where the file cannot be read
    width: int = 0
    height: int = 0


def embed(entries: Sequence[tuple[Path, dict[str, Any]]], *, budget: int = BUDGET) -> list[list[GalleryImage]]:
    """Read, resize and encode images, all at the best size and quality at which they fit the budget.

    Args:
        entries: (folder of the evaluation, entry of the gallery in its summary).
        budget: bytes of all JPEGs.

    Returns:
        For each entry a list of one image; an empty list where the budget is exceeded at the smallest size.
    """
    opened = [_open(folder, str(entry.get("picture", ""))) for folder, entry in entries]
    encoded: list[tuple[bytes, int, int] | None] = []
    for side, quality in STEPS:
        encoded = [None if image is None else _encode(image, side, quality) for image in opened]
        if sum(len(found[0]) for found in encoded if found) <= budget:
            break
    images, used = [], 0
    for (_, entry), found in zip(entries, encoded, strict=True):
        used += len(found[0]) if found else 0
        images.append([_gallery_image(entry, found)] if used <= budget else [])
    return images


def _open(folder: Path, relative: str) -> Image.Image | None:
    """An image inside the folder of the evaluation; ``None`` where it is missing, damaged or outside the folder."""
    path = (folder / relative).resolve()
    if not relative or folder.resolve() not in path.parents:
        return None
    try:
        with Image.open(path) as image:
            return image.convert("RGB")
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError):
        return None


def _encode(image: Image.Image, side: int, quality: int) -> tuple[bytes, int, int]:
    small = image.copy()
    small.thumbnail((side, side), Image.Resampling.LANCZOS)
    stream = io.BytesIO()
    small.save(stream, "JPEG", quality=quality, optimize=True, progressive=True)
    return stream.getvalue(), small.width, small.height


def _gallery_image(entry: dict[str, Any], found: tuple[bytes, int, int] | None) -> GalleryImage:
    scores = "  ".join(
        f"{title} {entry[key]:.3f}"
        for key, title in (("dice", "Dice"), ("iou", "IoU"))
        if isinstance(entry.get(key), int | float)
    )
    name, kind = str(entry.get("name", "")), str(entry.get("kind", ""))
    if found is None:
        return GalleryImage(name, kind, scores, "")
    data, width, height = found
    return GalleryImage(name, kind, scores, f"data:image/jpeg;base64,{base64.b64encode(data).decode()}", width, height)
