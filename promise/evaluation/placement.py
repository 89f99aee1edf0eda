"""Where the prompts of an image lie relative to its ground truth.

Coordinates are pixels of the ground truth; (0, 0) is the centre of the first pixel. An image may have any number of
points and boxes, such as those of several lesions.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from promise.evaluation.pair import Array, Bools


@dataclass(frozen=True, eq=False)
class Placement:
    """The prompts of one image with its ground truth."""

    xy: Array  # (P, 2) float, x before y
    label: Array  # (P,) integer: 1 foreground, 0 background, -1 padding, which is ignored
    boxes: Array  # (L, 4) float x0, y0, x1, y1: the centres of the first and the last pixel
    target: Bools  # (H, W)


def positives_inside(placement: Placement) -> float:
    """Fraction of the positive points that are in the ground truth; NaN without such points or foreground."""
    return _mean(_inside(placement)[placement.label == 1], placement)


def negatives_outside(placement: Placement) -> float:
    """Fraction of the negative points that are not in the ground truth; NaN without such points or foreground."""
    return _mean(~_inside(placement)[placement.label == 0], placement)


def box_iou(placement: Placement) -> float:
    """IoU of the smallest box around all boxes with the one around the foreground; NaN without boxes or foreground."""
    if not len(placement.boxes) or not placement.target.any():
        return float("nan")
    y, x = np.nonzero(placement.target)
    predicted = np.concatenate((placement.boxes[:, :2].min(axis=0), placement.boxes[:, 2:].max(axis=0)))
    expected = np.array([x.min(), y.min(), x.max(), y.max()], np.float64)
    shared = _area(np.concatenate((np.maximum(predicted, expected)[:2], np.minimum(predicted, expected)[2:])))
    return shared / (_area(predicted) + _area(expected) - shared)


def _inside(placement: Placement) -> Bools:
    """Whether each point (P,) is in a foreground pixel; a point outside the image is not."""
    height, width = placement.target.shape
    x, y = np.floor(placement.xy.reshape(-1, 2) + 0.5).astype(np.int64).T
    in_image = (x >= 0) & (y >= 0) & (x < width) & (y < height)
    found: Bools = in_image & placement.target[np.clip(y, 0, height - 1), np.clip(x, 0, width - 1)]
    return found


def _mean(values: Bools, placement: Placement) -> float:
    return float(values.mean()) if len(values) and placement.target.any() else float("nan")


def _area(box: Array) -> float:
    """Area in pixels, which includes the first and the last pixel; 0 for a box without pixels."""
    return float(np.prod(np.maximum(box[2:] - box[:2] + 1, 0)))
