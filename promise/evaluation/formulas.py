"""The formulas of the metrics: functions of a :class:`~promise.evaluation.pair.Pair`.

A curve returns one value per threshold (T,) and 0 where it is 0 / 0. The functions at the end turn a curve into one
number.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import TypeAlias

import cv2
import numpy as np

from promise.evaluation.pair import EPS, Array, Bools, Counts, Floats, Pair

Curve: TypeAlias = Callable[[Pair], Floats]
Formula: TypeAlias = Callable[[Pair], float]

BETA_SQUARED = 0.3  # of F-beta: precision counts more than recall
_SHORT = math.sqrt(0.5)  # pixels; a contour around one corner of a square
#: Length of the contour in a square of 2 × 2 pixels, by the four pixels read as a binary number.
_LENGTHS = np.array(
    [0, _SHORT, _SHORT, 1, _SHORT, 1, 2 * _SHORT, _SHORT, _SHORT, 2 * _SHORT, 1, _SHORT, 1, _SHORT, _SHORT, 0]
)


# --- curves ---------------------------------------------------------------------------------------


def precision(pair: Pair) -> Floats:
    """TP / (TP + FP)."""
    return np.asarray(pair.tp / np.maximum(pair.tp + pair.fp, 1))


def recall(pair: Pair) -> Floats:
    """TP / (TP + FN)."""
    return np.asarray(pair.tp / max(pair.positives, 1))


def dice(pair: Pair) -> Floats:
    """2·TP / (2·TP + FP + FN)."""
    return np.asarray(2 * pair.tp / np.maximum(pair.tp + pair.fp + pair.positives, 1))


def iou(pair: Pair) -> Floats:
    """TP / (TP + FP + FN)."""
    return np.asarray(pair.tp / np.maximum(pair.fp + pair.positives, 1))


def f_beta(pair: Pair) -> Floats:
    """1.3·P·R / (0.3·P + R) with P and R written out."""
    return np.asarray((1 + BETA_SQUARED) * pair.tp / np.maximum(pair.tp + pair.fp + BETA_SQUARED * pair.positives, 1))


def e_phi(pair: Pair) -> Floats:
    """Enhanced alignment; the fraction of correct pixels where the target is empty or covers the image."""
    tp, fp, positives, size = pair.tp, pair.fp, pair.positives, pair.size
    marked, divisor = tp + fp, max(size - 1, 1)
    if positives in (0, size):
        return np.asarray((marked if positives else size - marked) / divisor)
    p, t = marked / size, positives / size
    missed, rest, total = positives - tp, size - positives - fp, np.zeros(len(tp))
    for pixels, x, y in ((tp, 1 - p, 1 - t), (fp, 1 - p, -t), (missed, -p, 1 - t), (rest, -p, -t)):
        total += pixels * (1 + 2 * x * y / (x**2 + y**2 + EPS)) ** 2 / 4
    return np.asarray(total / divisor)


# --- single numbers -------------------------------------------------------------------------------


def mask_dice(pair: Pair) -> float:
    """Dice of a mask; NaN where mask and target are both empty."""
    undefined = pair.positives == 0 and pair.fp[0] == 0
    return float("nan") if undefined else float(dice(pair)[0])


def mask_mae(pair: Pair) -> float:
    """Fraction of wrong pixels of a mask."""
    return float(pair.fp[0] + pair.positives - pair.tp[0]) / pair.size


def map_mae(pair: Pair) -> float:
    """Mean absolute difference between map and target."""
    outside, inside = pair.counts.sum(axis=0)
    return float(outside @ pair.values + inside @ (1 - pair.values)) / pair.size


def weighted_f(pair: Pair) -> float:
    """F1 with errors weighted by their distance to the target; 0 where the target is empty."""
    return pair.surroundings.weighted_f(pair.pred) if pair.surroundings else 0.0


def surface_dice(pair: Pair, *, tolerance: int) -> float:
    """Fraction of the contours of mask and target that is within ``tolerance`` pixels of the other contour.

    The surface Dice of Nikolov et al. (arXiv:1809.04430) for a whole number of pixels. As in their package
    surface-distance, a contour has one element in every square of 2 × 2 pixels that has foreground and background,
    located at its centre; the surroundings of the image are background. NaN where mask and target are both empty.
    """
    x, y, width, height = cv2.boundingRect((pair.pred | pair.target).astype(np.uint8))
    if width == 0:
        return float("nan")
    box = slice(y, y + height), slice(x, x + width)
    pred, target = _contour_squares(pair.pred[box]), _contour_squares(pair.target[box])
    # Centres are whole pixels apart: those within the tolerance of an element are a small disk, so that dilating the
    # other contour is exact, as is the crop.
    offsets = np.arange(-tolerance, tolerance + 1) ** 2
    disk = (offsets[:, None] + offsets <= tolerance**2).astype(np.uint8)
    shared = total = 0.0
    for own, other in ((pred, target), (target, pred)):
        near = cv2.dilate((other > 0).astype(np.uint8), disk) > 0
        shared += _length(own[near])
        total += _length(own)
    return shared / total


def _contour_squares(mask: Bools) -> Array:
    """The index (h + 1, w + 1) in :data:`_LENGTHS` of each square of 2 × 2 pixels; 0 where it holds no contour."""
    padded = np.pad(mask.astype(np.uint8), 1)
    index = 8 * padded[:-1, :-1] + 4 * padded[:-1, 1:] + 2 * padded[1:, :-1] + padded[1:, 1:]
    return np.where(index == 15, 0, index)


def _length(squares: Array) -> float:
    # Counted before the lengths are added, so that equal contours have exactly equal lengths.
    return float(np.bincount(squares[squares > 0], minlength=len(_LENGTHS)) @ _LENGTHS)


def s_alpha(pair: Pair, *, ddof: int) -> float:
    """Structure measure with alpha 0.5; from the mean alone where the target is empty or covers the image."""
    outside, inside = pair.counts.sum(axis=0)
    fraction = pair.positives / pair.size
    mean, _ = _mean_and_variance(outside + inside, ddof)
    if fraction in (0, 1):
        return mean if fraction else 1 - mean
    # For the background, level v counts as 1 − v: the same histogram in reverse order.
    objects = fraction * _object_score(inside, ddof) + (1 - fraction) * _object_score(outside[::-1], ddof)
    regions = sum(int(part.sum()) / pair.size * _region_score(part) for part in pair.counts if part.any())
    return max(0.0, 0.5 * objects + 0.5 * regions)


def _mean_and_variance(histogram: Counts, ddof: int) -> tuple[float, float]:
    """Moments of levels scaled to [0, 1]; summed in integers, so that a flat region has variance 0."""
    ranks, span = np.arange(len(histogram)), len(histogram) - 1
    size, first, second = int(histogram.sum()), int(histogram @ ranks), int(histogram @ ranks**2)
    variance = (size * second - first**2) / (size * (size - ddof) * span**2) if size > ddof else 0.0
    return first / (size * span), variance


def _object_score(histogram: Counts, ddof: int) -> float:
    """Brightness and uniformity of the map on an object."""
    mean, variance = _mean_and_variance(histogram, ddof)
    return 2 * mean / (mean**2 + 1 + math.sqrt(variance) + EPS)


def _region_score(quadrant: Counts) -> float:
    """SSIM without its constants of map and target in one quadrant; 1 where both are flat."""
    levels, sides = quadrant.sum(axis=0), quadrant.sum(axis=1)
    (x, x_variance), (y, y_variance) = _mean_and_variance(levels, 1), _mean_and_variance(sides, 1)
    ranks, size = np.arange(len(levels)), int(sides.sum())
    products = size * int(quadrant[1] @ ranks) - int(levels @ ranks) * int(sides[1])
    covariance: float = products / (size * max(size - 1, 1) * (len(levels) - 1))
    numerator = 4 * x * y * covariance
    denominator = (x**2 + y**2) * (x_variance + y_variance)
    return numerator / (denominator + EPS) if numerator else float(denominator == 0)


# --- one number of a curve ------------------------------------------------------------------------


def of_mask(curve: Curve) -> Formula:
    """The value of a mask, which has one threshold."""
    return lambda pair: float(pair.curve(curve)[0])


def mean_of(curve: Curve) -> Formula:
    """The mean over 256 thresholds of a map."""

    def mean(pair: Pair) -> float:
        values = pair.curve(curve)[:-1].tolist()
        return math.fsum(values) / len(values)

    return mean


def max_of(curve: Curve) -> Formula:
    """The largest value over 256 thresholds of a map."""
    return lambda pair: float(pair.curve(curve)[:-1].max())


def adaptive(curve: Curve) -> Formula:
    """The value at the adaptive threshold of a map: twice its mean, at most 1."""
    return lambda pair: float(pair.curve(curve)[-1])
