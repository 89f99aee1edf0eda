"""Outlines of masks, and masks in COCO's format."""

from __future__ import annotations

from typing import Any

import cv2
import numpy as np
import numpy.typing as npt

# Marching squares: for the foreground corners of a cell (1 top left + 2 top right + 4 bottom right + 8 bottom left) the
# sides (0 top, 1 right, 2 bottom, 3 left) that the outline joins, foreground always on the same hand.
_SEGMENTS: tuple[tuple[tuple[int, int], ...], ...] = (
    (), ((3, 0),), ((0, 1),), ((3, 1),), ((1, 2),), ((1, 0), (3, 2)), ((0, 2),), ((3, 2),),
    ((2, 3),), ((2, 0),), ((0, 3), (2, 1)), ((2, 1),), ((1, 3),), ((1, 0),), ((0, 3),), (),
)  # fmt: skip


def outlines(mask: npt.NDArray[np.bool_]) -> list[npt.NDArray[np.int32]]:
    """Outlines of all components and holes of a mask.

    Args:
        mask: (H, W) bool.

    Returns:
        One array (N, 2) per outline: x, y of the border pixels at which the direction changes.
    """
    found, _ = cv2.findContours(mask.astype(np.uint8), cv2.RETR_LIST, cv2.CHAIN_APPROX_SIMPLE)
    return [np.asarray(outline[:, 0], np.int32) for outline in found]


def smooth_outlines(
    mask: npt.NDArray[np.bool_], probability: npt.NDArray[np.float32], threshold: float = 0.5
) -> list[npt.NDArray[np.float64]]:
    """Outlines of a mask with subpixel accuracy, for display: marching squares (Lorensen and Cline 1987, in 2-D).

    An outline separates the centres of foreground pixels from those of background pixels. Between two neighbours it is
    where the linearly interpolated probability equals the threshold; at the border of the image it is the border. Where
    postprocessing changed a pixel, the distance of its probability from the threshold has the sign of the mask.

    Args:
        mask: (H, W) bool.
        probability: (H, W) in [0, 1], the map before postprocessing.
        threshold: of the mask.

    Returns:
        One closed outline (N, 2) per border of a component or hole, simplified by at most 0.05 pixels: x, y in pixels,
        where (0, 0) is the centre of the first pixel. Components are 8-connected.
    """
    padded = np.pad(mask, 1).astype(np.uint8)
    width = padded.shape[1]
    corners = padded[:-1, :-1] + 2 * padded[:-1, 1:] + 4 * padded[1:, 1:] + 8 * padded[1:, :-1]
    rows, columns = np.divmod(np.flatnonzero(corners - np.uint8(1) < 14), width - 1)
    kinds, cells = corners[rows, columns], 2 * (rows * width + columns)
    following: dict[int, int] = {}  # the edge crossed after each edge; an edge is 2 · its first pixel + (1 if vertical)
    for kind, segments in enumerate(_SEGMENTS):
        cell = cells[kinds == kind]
        sides = (cell, cell + 3, cell + 2 * width, cell + 1)  # top, right, bottom, left
        for start, end in segments:
            following.update(zip(sides[start].tolist(), sides[end].tolist(), strict=True))
    found = []
    while following:
        edges = [next(iter(following))]
        while (edge := following.pop(edges[-1])) != edges[0]:
            edges.append(edge)
        pixel, vertical = np.divmod(np.array(edges), 2)
        y, x = np.divmod(pixel, width) - np.ones((2, 1), int)
        first, second = (
            _depth(probability, y + step * vertical, x + step * (1 - vertical), threshold) for step in (0, 1)
        )
        along = first / (first + second)
        outline = np.stack((x + along * (1 - vertical), y + along * vertical), axis=1)
        found.append(np.asarray(cv2.approxPolyDP(outline.astype(np.float32), 0.05, True)[:, 0], np.float64))
    return found


def _depth(probability: npt.NDArray[np.float32], y: Any, x: Any, threshold: float) -> npt.NDArray[np.float64]:
    """Distance of the probability of pixels from the threshold; outside the image that of the nearest pixel."""
    nearest = np.clip(y, 0, probability.shape[0] - 1), np.clip(x, 0, probability.shape[1] - 1)
    return np.asarray(np.maximum(np.abs(probability[nearest] - threshold), 1e-3), np.float64)


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
