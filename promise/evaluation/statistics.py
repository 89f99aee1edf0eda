"""Means, bootstrap intervals, strata, misses and calibration of the scores of many images.

Rows are images and columns are metrics; NaN marks a score that an image does not have.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float64]

RESAMPLES = 2000
LEVEL = 0.95
SEED = 0  # of the bootstrap, so that intervals are reproducible
MISS = 0.1  # an image with a Dice below it is a miss
SIZES = {"small": 0.02, "medium": 0.10, "large": 1.0}  # size class: foreground below this fraction of the pixels
BINS = 10  # of the calibration plot
LEVELS = 40  # of coverage
_BLOCK = 2**22  # indices drawn per block: 32 MiB


def bootstrap(values: npt.ArrayLike, *, resamples: int = RESAMPLES, level: float = LEVEL, seed: int = SEED) -> Floats:
    """Percentile bootstrap intervals of the columns' means, over images (Efron 1979).

    Args:
        values: (N, K) scores; NaN is excluded from its column.
        resamples: number of resamples of N images, with replacement; all columns use the same images.
        level: fraction of the resampled means inside the interval.
        seed: of the resampling.

    Returns:
        (K, 2) low and high; NaN for a column without a score.
    """
    scores = np.asarray(values, np.float64)
    count, columns = scores.shape
    if count == 0:
        return np.full((columns, 2), np.nan)
    valid = ~np.isnan(scores)
    # One matrix product per block yields sums and numbers of scores: (times an image was drawn) × (its scores).
    both = np.concatenate((np.where(valid, scores, 0.0), valid.astype(np.float64)), axis=1)
    generator = np.random.default_rng(seed)
    means, block = [], max(1, _BLOCK // count)
    for start in range(0, resamples, block):
        rows = min(block, resamples - start)
        picks = generator.integers(0, count, (rows, count)) + count * np.arange(rows)[:, None]
        times = np.bincount(picks.ravel(), minlength=rows * count).reshape(rows, count)
        sums, numbers = np.split(times @ both, 2, axis=1)
        means.append(np.divide(sums, numbers, out=np.full_like(sums, np.nan), where=numbers > 0))
    table = np.concatenate(means)
    intervals, tail = np.full((columns, 2), np.nan), (1 - level) / 2
    for column in np.flatnonzero(valid.any(axis=0)):
        intervals[column] = np.nanquantile(table[:, column], (tail, 1 - tail))
    return intervals


def column_means(values: npt.ArrayLike, axis: int = 0) -> Floats:
    """Means along an axis; NaN is excluded, and the mean of no score is NaN."""
    scores = np.asarray(values, np.float64)
    valid = ~np.isnan(scores)
    sums, numbers = np.where(valid, scores, 0.0).sum(axis), valid.sum(axis)
    return np.asarray(np.divide(sums, numbers, out=np.full(sums.shape, np.nan), where=numbers > 0))


def pooled_overlap(intersection: npt.ArrayLike, predicted: npt.ArrayLike, target: npt.ArrayLike) -> dict[str, float]:
    """Dice and IoU over the pixels of all images: a large foreground weighs more than a small one.

    Args:
        intersection: (N,) pixels in both masks.
        predicted: (N,) pixels in the prediction.
        target: (N,) pixels in the ground truth.

    Returns:
        ``dice`` and ``iou``; NaN where no mask has foreground.
    """
    shared, total = int(np.sum(intersection)), int(np.sum(predicted)) + int(np.sum(target))
    if total == 0:
        return {"dice": float("nan"), "iou": float("nan")}
    return {"dice": 2 * shared / total, "iou": shared / (total - shared)}


def count_misses(dice: npt.ArrayLike, below: float = MISS) -> dict[str, Any]:
    """Number of images with a Dice (N,) below a bound, and their fraction of the images with a Dice (``share``)."""
    values = np.asarray(dice, np.float64)
    images, scored = int((values < below).sum()), int((~np.isnan(values)).sum())
    return {"below": below, "images": images, "share": images / scored if scored else float("nan")}


def size_class(fraction: float) -> str:
    """``small``, ``medium`` or ``large`` by the fraction of foreground pixels; an empty string for 0."""
    if fraction <= 0:
        return ""
    return next((name for name, below in SIZES.items() if fraction < below), "large")


def stratify(fractions: npt.ArrayLike, dice: npt.ArrayLike, iou: npt.ArrayLike) -> dict[str, dict[str, Any]]:
    """Mean Dice and IoU by size class, with the bootstrap interval of the Dice.

    Args:
        fractions: (N,) foreground pixels of the ground truth / all pixels; an image with 0 is in no class.
        dice: (N,) scores.
        iou: (N,) scores.
    """
    classes = np.array([size_class(fraction) for fraction in np.asarray(fractions, np.float64)])
    scores = np.stack((np.asarray(dice, np.float64), np.asarray(iou, np.float64)), axis=1)
    found = {}
    for name in SIZES:
        rows = scores[classes == name]
        means = column_means(rows)
        found[name] = {
            "images": len(rows),
            "dice": float(means[0]),
            "iou": float(means[1]),
            "dice_interval": bootstrap(rows[:, :1])[0].tolist(),
        }
    return found


def calibration(predicted: npt.ArrayLike, true: npt.ArrayLike, bins: int = BINS) -> dict[str, Any]:
    """Error of a predicted IoU.

    Args:
        predicted: (N,) predicted IoU; values outside [0, 1] are counted in the outermost bins.
        true: (N,) true IoU; images with NaN are excluded.
        bins: number of bins of the predicted IoU, of equal width over [0, 1].

    Returns:
        ``error``: mean absolute difference; ``bias``: mean of predicted − true; ``correlation``: Pearson's, NaN where
        one of the two is constant; ``bins``: limits, number of images and means of each bin.
    """
    estimate, measured = np.asarray(predicted, np.float64), np.asarray(true, np.float64)
    valid = ~(np.isnan(estimate) | np.isnan(measured))
    estimate, measured = estimate[valid], measured[valid]
    bin_of = np.clip((estimate * bins).astype(np.int64), 0, bins - 1)
    varies = len(measured) > 1 and np.ptp(estimate) > 0 and np.ptp(measured) > 0
    nan = float("nan")
    return {
        "error": float(np.abs(estimate - measured).mean()) if len(measured) else nan,
        "bias": float((estimate - measured).mean()) if len(measured) else nan,
        "correlation": float(np.corrcoef(estimate, measured)[0, 1]) if varies else nan,
        "bins": [
            {
                "low": i / bins,
                "high": (i + 1) / bins,
                "images": int((bin_of == i).sum()),
                "predicted": float(estimate[bin_of == i].mean()) if (bin_of == i).any() else nan,
                "true": float(measured[bin_of == i].mean()) if (bin_of == i).any() else nan,
            }
            for i in range(bins)
        ],
    }


def risk_coverage(certainty: npt.ArrayLike, dice: npt.ArrayLike, levels: int = LEVELS) -> list[tuple[float, float]]:
    """Mean 1 − Dice of the most certain images, as a function of the fraction of images that are kept.

    Args:
        certainty: (N,) higher is more certain; images with NaN are dropped first.
        dice: (N,) scores; images with NaN are excluded.
        levels: largest number of fractions.

    Returns:
        (coverage, risk), coverage ascending to 1.
    """
    order, scores = np.asarray(certainty, np.float64), np.asarray(dice, np.float64)
    valid = ~np.isnan(scores)
    order, scores = np.nan_to_num(order[valid], nan=-np.inf), scores[valid]
    count = len(scores)
    risks = np.cumsum(1 - scores[np.argsort(-order, kind="stable")])
    ends = np.unique(np.ceil(np.arange(1, levels + 1) * count / levels).astype(np.int64))[: levels * count]
    return [(int(k) / count, float(risks[k - 1] / k)) for k in ends]


def deviation(means: npt.ArrayLike) -> Floats:
    """Standard deviation (K,) between the means (D, K) of D ≥ 2 draws, with D − 1 in the denominator."""
    table = np.asarray(means, np.float64)
    return np.asarray(table.std(axis=0, ddof=1))
