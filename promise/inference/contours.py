"""Outlines of masks, and masks in COCO's format."""

from __future__ import annotations

from typing import Any

import cv2
import numpy as np
import numpy.typing as npt


def outlines(mask: npt.NDArray[np.bool_]) -> list[npt.NDArray[np.int32]]:
    """Outlines of all components and holes of a mask.

    Args:
        mask: (H, W) bool.

    Returns:
        One array (N, 2) per outline: x, y of the border pixels at which the direction changes.
    """
    found, _ = cv2.findContours(mask.astype(np.uint8), cv2.RETR_LIST, cv2.CHAIN_APPROX_SIMPLE)
    return [np.asarray(outline[:, 0], np.int32) for outline in found]


def coco_shape(mask: npt.NDArray[np.bool_]) -> dict[str, Any] | None:
    """Convert a mask to COCO's ``segmentation``, ``bbox`` and ``area``.

    Polygons run through the centres of the components' border pixels, where (0.5, 0.5) is the centre of the first
    pixel. A mask with a hole, or with a component of fewer than three corners, is written as run lengths, which are
    exact.

    Args:
        mask: (H, W) bool.

    Returns:
        The three keys, in pixels; ``None`` for a mask without foreground.
    """
    if not mask.any():
        return None
    rows, columns = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
    left, top = int(columns[0]), int(rows[0])
    found, hierarchy = cv2.findContours(mask.astype(np.uint8), cv2.RETR_CCOMP, cv2.CHAIN_APPROX_SIMPLE)
    holes = bool((hierarchy[0, :, 3] >= 0).any())
    polygons = [(outline[:, 0] + 0.5).ravel().tolist() for outline in found]
    return {
        "segmentation": _runs(mask) if holes or any(len(polygon) < 6 for polygon in polygons) else polygons,
        "bbox": [left, top, int(columns[-1]) - left + 1, int(rows[-1]) - top + 1],
        "area": int(np.count_nonzero(mask)),
    }


def _runs(mask: npt.NDArray[np.bool_]) -> dict[str, Any]:
    """COCO's uncompressed run lengths, in column-major order, background first."""
    flat = mask.ravel(order="F")
    ends = np.concatenate((np.flatnonzero(flat[1:] != flat[:-1]) + 1, [flat.size]))
    counts = np.diff(ends, prepend=0).tolist()
    return {"size": list(mask.shape), "counts": [0, *counts] if flat[0] else counts}
