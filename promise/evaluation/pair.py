"""One prediction and its target: the counts that metrics are computed from, each computed once.

Every metric except the weighted F-measure and the surface Dice depends only on how many pixels of each value lie
inside and outside the target. A map is therefore reduced to counts first: four quadrants × (outside, inside) × levels.
A mask is a map with two levels, and one cumulative sum yields the counts at all 256 thresholds.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, TypeAlias

import cv2
import numpy as np
import numpy.typing as npt
from scipy import ndimage

Array: TypeAlias = npt.NDArray[Any]
Bools: TypeAlias = npt.NDArray[np.bool_]
Counts: TypeAlias = npt.NDArray[np.int64]
Floats: TypeAlias = npt.NDArray[np.float64]

TOP = 255  # the highest level of an 8-bit map
GAUSS = cv2.getGaussianKernel(7, 5.0, cv2.CV_64F)  # the window of the weighted F-measure
EPS = float(np.spacing(1))  # MATLAB's eps; it affects the last digits when the target is tiny


@dataclass(frozen=True, eq=False)
class Pair:
    """A mask or a map with its target. A mask has T = 1 threshold; a map has T = 257, the last one adaptive."""

    pred: Array  # (H, W) bool, or float64 in [0, 1]: the map after min–max normalisation, at 8 bits
    target: Bools  # (H, W)
    values: Floats  # (L,) value of each level, from 0 to 1
    counts: Counts  # (4, 2, L) pixels by quadrant around the target's centroid, by target and by level
    tp: Counts  # (T,) pixels inside the target at or above each threshold
    fp: Counts  # (T,) pixels outside the target at or above each threshold
    surroundings: Surroundings | None  # None where the target is empty
    _curves: dict[Callable[[Pair], Floats], Floats] = field(default_factory=dict)

    @property
    def size(self) -> int:
        """Number of pixels."""
        return int(self.target.size)

    @property
    def positives(self) -> int:
        """Number of pixels inside the target."""
        return int(self.counts[:, 1].sum())

    def curve(self, function: Callable[[Pair], Floats]) -> Floats:
        """The result (T,) of a function of this pair; repeated calls return the stored result."""
        if function not in self._curves:
            self._curves[function] = function(self)
        return self._curves[function]


def mask_pair(pred: Bools, target: Bools, surroundings: Surroundings | None) -> Pair:
    """Count a (H, W) bool mask."""
    counts = _count_levels(pred.astype(np.int64), target, span=1)
    outside, inside = counts.sum(axis=0)
    return Pair(pred, target, np.array([0.0, 1.0]), counts, inside[1:], outside[1:], surroundings)


def map_pair(pred: Array, target: Bools, surroundings: Surroundings | None) -> Pair:
    """Count a (H, W) float map in [0, 1] at 8 bits, after min–max normalisation unless it is constant."""
    levels = np.rint(pred.astype(np.float64) * TOP).astype(np.int64)
    low, high = int(levels.min()), int(levels.max())
    if low == high:  # pysodmetrics does not normalise a constant map
        low, high = 0, TOP
    # The order of these operations follows pysodmetrics: `_count_marked` truncates, so the last bit matters.
    values = (np.arange(low, high + 1) / TOP - low / TOP) / (high / TOP - low / TOP)
    counts = _count_levels(levels - low, target, span=high - low)
    fp, tp = _count_marked(counts.sum(axis=0), values)
    return Pair(values[levels - low], target, values, counts, tp, fp, surroundings)


def _count_levels(levels: Counts, target: Bools, span: int) -> Counts:
    """Pixels by quadrant around the target's centroid, by target and by level 0 … span: (4, 2, span + 1)."""
    code = levels + (span + 1) * target
    parts = [
        np.bincount(code[rows, columns].ravel(), minlength=2 * span + 2).reshape(2, span + 1)
        for rows in _halves(target.sum(axis=1))
        for columns in _halves(target.sum(axis=0))
    ]
    return np.stack(parts)


def _halves(profile: Counts) -> tuple[slice, slice]:
    """The two sides of the target's centroid along one axis; the centroid's own line belongs to the first."""
    mass = int(profile.sum())
    # MATLAB counts from 1 and its ranges include their end: hence round first, then add 1.
    cut = round(int(profile @ np.arange(len(profile))) / mass) + 1 if mass else len(profile) // 2
    return slice(0, cut), slice(cut, len(profile))


def _count_marked(sides: Counts, values: Floats) -> Counts:
    """Marked pixels outside and inside (2, 257): thresholds 0 … 255, then twice the mean (at most the top level)."""
    histogram, ranks = sides.sum(axis=0), np.arange(len(values))
    curve = np.searchsorted((values * TOP).astype(np.uint8), np.arange(TOP + 1))
    # In integers, so that pixels exactly at twice the mean are marked.
    adaptive = min(2 * int(histogram @ ranks), int(histogram.sum()) * (len(values) - 1))
    starts = np.append(curve, np.searchsorted(ranks * histogram.sum(), adaptive))
    at_or_above = np.cumsum(sides[:, ::-1], axis=1)[:, ::-1]
    return np.pad(at_or_above, ((0, 0), (0, 1)))[:, starts]


@dataclass(frozen=True, eq=False)
class Surroundings:
    """Distances to a target that is not empty, for the weighted F-measure.

    The 7 × 7 window does not reach errors outside the box.
    """

    target: Bools  # (H, W)
    box: tuple[slice, slice]  # the target's bounding box, 3 pixels wider on each side
    nearest: tuple[Counts, Counts]  # (h, w) each: row and column in the box of the nearest target pixel
    cost: Floats  # (N,) of the N pixels outside the target: 1 next to it, 2 far away

    @classmethod
    def of(cls, target: Bools) -> Surroundings | None:
        """Measure the distances to a target (H, W); ``None`` where it is empty."""
        if not target.any():
            return None
        box = (_widened_extent(target.sum(axis=1)), _widened_extent(target.sum(axis=0)))
        nearest = ndimage.distance_transform_edt(~target[box], return_distances=False, return_indices=True)
        # OpenCV is exact up to float32, and squared distances are integers.
        distance = cv2.distanceTransform((~target).astype(np.uint8), cv2.DIST_L2, cv2.DIST_MASK_PRECISE)
        distance = np.sqrt(np.rint(np.square(distance[~target].astype(np.float64))))
        return cls(target, box, (nearest[0], nearest[1]), 2 - np.exp(np.log(0.5) / 5 * distance))

    def weighted_f(self, pred: Array) -> float:
        """F1 of weighted precision and recall of a map (H, W) in [0, 1] (Margolin et al., CVPR 2014)."""
        error = np.abs(pred - self.target.astype(np.float64))
        near, inside = error[self.box], self.target[self.box]
        # A pixel outside takes the error of the nearest target pixel, so that smoothing does not blur the edge.
        spread = cv2.sepFilter2D(near[self.nearest], -1, GAUSS, GAUSS, borderType=cv2.BORDER_CONSTANT)
        missed = np.minimum(near, spread)[inside]
        hits = len(missed) - float(missed.sum())
        false_alarms = float((error[~self.target] * self.cost).sum())
        precision, recall = hits / (hits + false_alarms + EPS), hits / len(missed)
        return 2 * precision * recall / (precision + recall + EPS)


def _widened_extent(profile: Counts) -> slice:
    """From the first to the last nonzero line, 3 lines wider on both sides."""
    lines = np.flatnonzero(profile)
    return slice(max(int(lines[0]) - 3, 0), int(lines[-1]) + 4)
