"""How is a mask told by its outlines, or by its runs as COCO does? Knows no files and no models."""

from __future__ import annotations

from typing import Any

import cv2
import numpy as np
import numpy.typing as npt


def outlines(mask: npt.NDArray[np.bool_]) -> list[npt.NDArray[np.int32]]:
    """Outlines of all parts and holes of a mask (H, W), each (N, 2) x, y of the pixels where it turns."""
    found, _ = cv2.findContours(mask.astype(np.uint8), cv2.RETR_LIST, cv2.CHAIN_APPROX_SIMPLE)
    return [np.asarray(outline[:, 0], np.int32) for outline in found]


def coco_shape(mask: npt.NDArray[np.bool_]) -> dict[str, Any] | None:
    """A mask (H, W) as COCO's ``segmentation``, ``bbox`` and ``area``; ``None`` without foreground.

    Polygons run through the centres of the parts' border pixels, where (0.5, 0.5) is the centre of the first pixel. A
    mask with a hole, or with a part of fewer than three corners, cannot be told so: it becomes runs, which are exact.
    """
    if not mask.any():
        return None
    rows, columns = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
    left, top = int(columns[0]), int(rows[0])
    found, tree = cv2.findContours(mask.astype(np.uint8), cv2.RETR_CCOMP, cv2.CHAIN_APPROX_SIMPLE)
    holes = bool((tree[0, :, 3] >= 0).any())
    parts = [(outline[:, 0] + 0.5).ravel().tolist() for outline in found]
    return {
        "segmentation": _runs(mask) if holes or any(len(part) < 6 for part in parts) else parts,
        "bbox": [left, top, int(columns[-1]) - left + 1, int(rows[-1]) - top + 1],
        "area": int(np.count_nonzero(mask)),
    }


def _runs(mask: npt.NDArray[np.bool_]) -> dict[str, Any]:
    """COCO's uncompressed run lengths: down the columns, background first."""
    flat = mask.ravel(order="F")
    ends = np.concatenate((np.flatnonzero(flat[1:] != flat[:-1]) + 1, [flat.size]))
    counts = np.diff(ends, prepend=0).tolist()
    return {"size": list(mask.shape), "counts": [0, *counts] if flat[0] else counts}
