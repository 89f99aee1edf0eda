"""How well does a predicted map match a target mask? Knows no logits, devices, files or models.

Everything but the weighted F-measure depends only on how many pixels have which value inside and outside the
target, so a map becomes counts first: four quadrants × (outside, inside) × levels. A binary mask is a map
with two levels, and all 256 thresholds cost one cumulative sum.

The plain names (``dice``, ``s_alpha``, …) follow the original ProMISe implementation on binary masks; the
soft ones follow pysodmetrics 1.6.2 on 8-bit maps, the field's practice.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
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
BETA_SQUARED = 0.3  # of F-beta: precision counts more than recall
GAUSS = cv2.getGaussianKernel(7, 5.0, cv2.CV_64F)  # the window of the weighted F-measure
EPS = float(np.spacing(1))  # MATLAB's eps; it shows in the last digits when the target is tiny


@dataclass(frozen=True)
class Metric:
    """What a printed number means, for table headers and the documentation."""

    title: str
    formula: str  # in words
    source: str
    low: float = 0.0
    high: float = 1.0  # E-phi divides by N − 1 and passes it by 1 / (N − 1)
    higher_is_better: bool = True


_PLAIN = {
    "dice": Metric("Dice", "2·TP / (2·TP + FP + FN); 0/0 is NaN (0 over thresholds)", "Dice 1945"),
    "iou": Metric("IoU", "TP / (TP + FP + FN); 0/0 is 0", "Jaccard 1901"),
    "mae": Metric("MAE", "mean |pred − target|", "Perazzi et al., CVPR 2012", higher_is_better=False),
    "precision": Metric("Precision", "P = TP / (TP + FP); 0/0 is 0", "van Rijsbergen 1979"),
    "recall": Metric("Recall", "R = TP / (TP + FN); 0/0 is 0", "van Rijsbergen 1979"),
    "s_alpha": Metric("S-alpha", "(object + region similarity) / 2", "Fan et al., ICCV 2017"),
    "e_phi": Metric("E-phi", "(1 + alignment of mean-free masks)² / 4, averaged", "Fan et al., IJCAI 2018"),
    "f_beta": Metric("F-beta", "1.3·P·R / (0.3·P + R); 0/0 is 0", "Achanta et al., CVPR 2009"),
    "weighted_f": Metric("Weighted F", "F1, errors weighted by distance", "Margolin et al., CVPR 2014"),
}
_CURVES = {"e": "e_phi", "f": "f_beta", "dice": "dice", "iou": "iou"}  # their short names in soft metrics
_CUTS = {
    "": (["mae", "s_alpha", "weighted_f"], ""),
    "_adaptive": (["e", "f"], ", cut at 2·mean, at most 1"),
    "_mean": (list(_CURVES), ", mean over 256 thresholds"),
    "_max": (list(_CURVES), ", largest over 256 thresholds"),
}
#: Every key that `evaluate_pair` can return, with its meaning.
METRICS: dict[str, Metric] = _PLAIN | {
    f"soft_{short}{cut}": replace(
        (plain := _PLAIN[_CURVES.get(short, short)]),
        title=f"Soft {plain.title} {cut[1:]}".rstrip(),
        formula=f"{plain.formula}; of the min–max normalised 8-bit map{words}",
    )
    for cut, (shorts, words) in _CUTS.items()
    for short in shorts
}


def binary_metrics(pred: Array, target: Array) -> dict[str, float]:
    """The nine plain metrics of a (H, W) bool mask, as in the original ProMISe; raises as `evaluate_pair`."""
    pred, target = _checked(pred, target)
    if pred.dtype != np.bool_:
        raise ValueError(f"pred must be bool, not {pred.dtype}; give pred >= 0.5, or use evaluate_pair.")
    return _binary(pred, target, _Surroundings.of(target))


def soft_metrics(pred: Array, target: Array) -> dict[str, float]:
    """The ``soft_`` metrics of a (H, W) map, without the prefix, as pysodmetrics 1.6.2 scores round(255·map).

    A map that is not constant is min–max normalised: the order of the pixels counts, not their calibration.
    Raises as `evaluate_pair` does.
    """
    pred, target = _checked(pred, target)
    return _soft(pred, target, _Surroundings.of(target))


def evaluate_pair(pred: Array, target: Array) -> dict[str, float]:
    """The plain metrics of a mask, or of ``map >= 0.5`` with the ``soft_`` metrics of the map beside them.

    Args:
        pred: (H, W) bool, or float in [0, 1].
        target: (H, W) bool, or integers 0 and 1.

    Raises:
        ValueError: for another type, range or number of dimensions, no pixels, or different shapes.
    """
    pred, target = _checked(pred, target)
    around = _Surroundings.of(target)
    if pred.dtype == np.bool_:
        return _binary(pred, target, around)
    soft = {f"soft_{name}": value for name, value in _soft(pred, target, around).items()}
    return _binary(pred >= 0.5, target, around) | soft


def _checked(pred: Array, target: Array) -> tuple[Array, Bools]:
    for name, array in (("pred", pred), ("target", target)):
        if not isinstance(array, np.ndarray) or array.ndim != 2 or array.size == 0:
            found = getattr(array, "shape", type(array).__name__)
            raise ValueError(f"{name} must be a NumPy array (height, width) with pixels in it, not {found}.")
    if pred.shape != target.shape:
        raise ValueError(f"pred {pred.shape} and target {target.shape} must have the same shape.")
    if target.dtype.kind not in "bui" or target.min() < 0 or target.max() > 1:
        found = f"{target.dtype} from {target.min()} to {target.max()}"
        raise ValueError(f"target must be bool, or integers 0 and 1, not {found}; threshold it first.")
    if pred.dtype.kind not in "bf":
        raise ValueError(f"pred must be bool or a float map in [0, 1], not {pred.dtype}.")
    if not (pred.min() >= 0 and pred.max() <= 1):  # written so that NaN fails too
        raise ValueError(f"pred holds {pred.min():g} to {pred.max():g}, not [0, 1]; logits need a sigmoid first.")
    return pred, target.astype(np.bool_)


def _binary(pred: Bools, target: Bools, around: _Surroundings | None) -> dict[str, float]:
    counts = _count_levels(pred.astype(np.int64), target, span=1)
    outside, inside = counts.sum(axis=0)
    tp, fp, positives = inside[1:], outside[1:], int(inside.sum())
    row = {name: float(value[0]) for name, value in _curves(tp, fp, positives, pred.size).items()}
    if positives == 0 and fp[0] == 0:
        row["dice"] = float("nan")
    row["mae"] = float(fp[0] + positives - tp[0]) / pred.size
    # Reference parity: the original divides the objects' variance by n, Fan's MATLAB code by n − 1.
    row["s_alpha"] = _s_alpha(counts, ddof=0)
    row["weighted_f"] = around.weighted_f(pred) if around else 0.0
    return row


def _soft(pred: Array, target: Bools, around: _Surroundings | None) -> dict[str, float]:
    levels = np.rint(pred.astype(np.float64) * TOP).astype(np.int64)
    low, high = int(levels.min()), int(levels.max())
    if low == high:  # pysodmetrics leaves a constant map as it is
        low, high = 0, TOP
    # The order of these operations is pysodmetrics': `_count_marked` truncates, and so sees the last bit.
    values = (np.arange(low, high + 1) / TOP - low / TOP) / (high / TOP - low / TOP)
    counts = _count_levels(levels - low, target, span=high - low)
    outside, inside = counts.sum(axis=0)
    fp, tp = _count_marked(counts.sum(axis=0), values)
    row = {
        "mae": float(outside @ values + inside @ (1 - values)) / pred.size,
        "s_alpha": _s_alpha(counts, ddof=1),
        "weighted_f": around.weighted_f(values[levels - low]) if around else 0.0,
    }
    curves = _curves(tp, fp, int(inside.sum()), pred.size)
    for short, name in _CURVES.items():
        *curve, adaptive = curves[name].tolist()
        row |= {f"{short}_mean": math.fsum(curve) / len(curve), f"{short}_max": max(curve)}
        if short in _CUTS["_adaptive"][0]:
            row[f"{short}_adaptive"] = adaptive
    return row


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
    """The two sides of the target's centroid along one axis; the centroid's own line goes to the first."""
    mass = int(profile.sum())
    # MATLAB counts from 1 and its ranges include their end: hence the rounding first, then the step.
    cut = round(int(profile @ np.arange(len(profile))) / mass) + 1 if mass else len(profile) // 2
    return slice(0, cut), slice(cut, len(profile))


def _count_marked(sides: Counts, values: Floats) -> Counts:
    """Marked pixels outside and inside (2, 257): cut at 0 … 255, then at twice the mean (at most the top)."""
    histogram, ranks = sides.sum(axis=0), np.arange(len(values))
    curve = np.searchsorted((values * TOP).astype(np.uint8), np.arange(TOP + 1))
    # In integers, so that pixels exactly at twice the mean are marked.
    adaptive = min(2 * int(histogram @ ranks), int(histogram.sum()) * (len(values) - 1))
    starts = np.append(curve, np.searchsorted(ranks * histogram.sum(), adaptive))
    at_or_above = np.cumsum(sides[:, ::-1], axis=1)[:, ::-1]
    return np.pad(at_or_above, ((0, 0), (0, 1)))[:, starts]


def _curves(tp: Counts, fp: Counts, positives: int, size: int) -> dict[str, Floats]:
    """The metrics that only count pixels, one value per threshold; 0 / 0 is 0."""
    marked = tp + fp
    return {
        "precision": tp / np.maximum(marked, 1),
        "recall": tp / max(positives, 1),
        "dice": 2 * tp / np.maximum(marked + positives, 1),
        "iou": tp / np.maximum(fp + positives, 1),
        # 1.3·P·R / (0.3·P + R) with P and R written out
        "f_beta": (1 + BETA_SQUARED) * tp / np.maximum(marked + BETA_SQUARED * positives, 1),
        "e_phi": _e_phi(tp, fp, positives, size),
    }


def _e_phi(tp: Counts, fp: Counts, positives: int, size: int) -> Floats:
    """Enhanced alignment, one value per threshold; for an all-or-nothing target the share that is right."""
    marked, divisor = tp + fp, max(size - 1, 1)
    if positives in (0, size):
        return (marked if positives else size - marked) / divisor
    p, t = marked / size, positives / size
    missed, rest, total = positives - tp, size - positives - fp, np.zeros(len(tp))
    for pixels, x, y in ((tp, 1 - p, 1 - t), (fp, 1 - p, -t), (missed, -p, 1 - t), (rest, -p, -t)):
        total += pixels * (1 + 2 * x * y / (x**2 + y**2 + EPS)) ** 2 / 4
    return total / divisor


def _s_alpha(counts: Counts, ddof: int) -> float:
    """Structure measure with alpha 0.5; for an all-or-nothing target the mean tells everything."""
    outside, inside = counts.sum(axis=0)
    size, share = int(counts.sum()), int(inside.sum()) / int(counts.sum())
    mean, _ = _mean_and_variance(outside + inside, ddof)
    if share in (0, 1):
        return mean if share else 1 - mean
    # Seen from the background, level v is worth 1 − v: the same table read backwards.
    objects = share * _object_score(inside, ddof) + (1 - share) * _object_score(outside[::-1], ddof)
    regions = sum(int(part.sum()) / size * _region_score(part) for part in counts if part.any())
    return max(0.0, 0.5 * objects + 0.5 * regions)


def _mean_and_variance(histogram: Counts, ddof: int) -> tuple[float, float]:
    """Moments of levels scaled to [0, 1]; summed in integers, so that a flat region has variance 0."""
    ranks, span = np.arange(len(histogram)), len(histogram) - 1
    size, first, second = int(histogram.sum()), int(histogram @ ranks), int(histogram @ ranks**2)
    variance = (size * second - first**2) / (size * (size - ddof) * span**2) if size > ddof else 0.0
    return first / (size * span), variance


def _object_score(histogram: Counts, ddof: int) -> float:
    """How bright and how even the map is on an object."""
    mean, variance = _mean_and_variance(histogram, ddof)
    return 2 * mean / (mean**2 + 1 + math.sqrt(variance) + EPS)


def _region_score(quadrant: Counts) -> float:
    """SSIM without its constants of map and target over one quadrant; 1 where both are flat."""
    levels, sides = quadrant.sum(axis=0), quadrant.sum(axis=1)
    (x, x_variance), (y, y_variance) = _mean_and_variance(levels, 1), _mean_and_variance(sides, 1)
    ranks, size = np.arange(len(levels)), int(sides.sum())
    products = size * int(quadrant[1] @ ranks) - int(levels @ ranks) * int(sides[1])
    covariance: float = products / (size * max(size - 1, 1) * (len(levels) - 1))
    numerator = 4 * x * y * covariance
    denominator = (x**2 + y**2) * (x_variance + y_variance)
    return numerator / (denominator + EPS) if numerator else float(denominator == 0)


@dataclass(frozen=True, eq=False)
class _Surroundings:
    """What the weighted F-measure needs of a target; no error outside the box reaches it in 7×7 pixels."""

    target: Bools  # (H, W)
    box: tuple[slice, slice]  # the target's bounding box, 3 pixels wider
    nearest: tuple[Counts, Counts]  # (h, w) each: row and column in the box of the nearest target pixel
    cost: Floats  # (N,) of the N pixels outside the target: 1 beside it, 2 far away

    @classmethod
    def of(cls, target: Bools) -> _Surroundings | None:
        if not target.any():
            return None
        box = (_stretch(target.sum(axis=1)), _stretch(target.sum(axis=0)))
        nearest = ndimage.distance_transform_edt(~target[box], return_distances=False, return_indices=True)
        # OpenCV is exact up to float32, and squared distances are integers.
        distance = cv2.distanceTransform((~target).astype(np.uint8), cv2.DIST_L2, cv2.DIST_MASK_PRECISE)
        distance = np.sqrt(np.rint(np.square(distance[~target].astype(np.float64))))
        return cls(target, box, (nearest[0], nearest[1]), 2 - np.exp(np.log(0.5) / 5 * distance))

    def weighted_f(self, pred: Array) -> float:
        """F1 of weighted precision and recall of a map (H, W) in [0, 1]."""
        error = np.abs(pred - self.target.astype(np.float64))
        near, inside = error[self.box], self.target[self.box]
        # A pixel outside borrows the error of the nearest target pixel, so that the edge is not blurred.
        spread = cv2.sepFilter2D(near[self.nearest], -1, GAUSS, GAUSS, borderType=cv2.BORDER_CONSTANT)
        missed = np.minimum(near, spread)[inside]
        hits = len(missed) - float(missed.sum())
        false_alarms = float((error[~self.target] * self.cost).sum())
        precision, recall = hits / (hits + false_alarms + EPS), hits / len(missed)
        return 2 * precision * recall / (precision + recall + EPS)


def _stretch(profile: Counts) -> slice:
    """From the first to the last occupied line, 3 wider on both sides."""
    lines = np.flatnonzero(profile)
    return slice(max(int(lines[0]) - 3, 0), int(lines[-1]) + 4)
