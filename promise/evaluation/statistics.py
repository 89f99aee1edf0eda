"""What do scores of many images amount to, and how sure is that? On arrays; knows no files, models or names.

Rows are images, columns are metrics; not-a-number marks a score that an image does not have.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float64]

RESAMPLES = 2000
LEVEL = 0.95
SEED = 0  # of the bootstrap: the same scores always have the same interval
MISS = 0.1  # a Dice below it is a miss
SIZES = {"small": 0.02, "medium": 0.10, "large": 1.0}  # foreground below this share of the pixels; large: the rest
BINS = 10  # of the calibration
_BLOCK = 2**22  # picks drawn at once: 32 MiB


def bootstrap(values: npt.ArrayLike, *, resamples: int = RESAMPLES, level: float = LEVEL, seed: int = SEED) -> Floats:
    """Percentile bootstrap intervals of the columns' means, over images (Efron 1979).

    Args:
        values: (N, K) scores; those that are not a number are left out of their column.
        resamples: how often N images are drawn from the N, with replacement; the same images for every column.
        level: share of the resampled means inside the interval.
        seed: of the draws.

    Returns:
        (K, 2) low and high; not-a-number for a column without a score.
    """
    scores = np.asarray(values, np.float64)
    count, columns = scores.shape
    if count == 0:
        return np.full((columns, 2), np.nan)
    there = ~np.isnan(scores)
    # Sums and numbers of scores in one matrix product each block: how often an image was drawn × its scores.
    both = np.concatenate((np.where(there, scores, 0.0), there.astype(np.float64)), axis=1)
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
    for column in np.flatnonzero(there.any(axis=0)):
        intervals[column] = np.nanquantile(table[:, column], (tail, 1 - tail))
    return intervals


def column_means(values: npt.ArrayLike, axis: int = 0) -> Floats:
    """Means along an axis of the scores that are there; not-a-number where there is none."""
    scores = np.asarray(values, np.float64)
    there = ~np.isnan(scores)
    sums, numbers = np.where(there, scores, 0.0).sum(axis), there.sum(axis)
    return np.asarray(np.divide(sums, numbers, out=np.full(sums.shape, np.nan), where=numbers > 0))


def pooled_overlap(intersection: npt.ArrayLike, predicted: npt.ArrayLike, truth: npt.ArrayLike) -> dict[str, float]:
    """Dice and IoU of all pixels of all images together: large foregrounds count for more than small ones.

    Args:
        intersection: (N,) pixels in both masks.
        predicted: (N,) pixels in the prediction.
        truth: (N,) pixels in the truth.
    """
    both, either = int(np.sum(intersection)), int(np.sum(predicted)) + int(np.sum(truth))
    if either == 0:
        return {"dice": float("nan"), "iou": float("nan")}
    return {"dice": 2 * both / either, "iou": both / (either - both)}


def count_misses(dice: npt.ArrayLike, below: float = MISS) -> dict[str, Any]:
    """How many of the images (N,) have a Dice below a bound, and their share of those that have one."""
    values = np.asarray(dice, np.float64)
    images, scored = int((values < below).sum()), int((~np.isnan(values)).sum())
    return {"below": below, "images": images, "share": images / scored if scored else float("nan")}


def size_class(share: float) -> str:
    """``small``, ``medium`` or ``large`` by the foreground's share of the pixels; empty where there is none."""
    if share <= 0:
        return ""
    return next((name for name, below in SIZES.items() if share < below), "large")


def stratify(shares: npt.ArrayLike, dice: npt.ArrayLike, iou: npt.ArrayLike) -> dict[str, dict[str, Any]]:
    """Means by size class, with the interval of the Dice.

    Args:
        shares: (N,) the truth's foreground as a share of its pixels; an empty truth has no class.
        dice: (N,).
        iou: (N,).
    """
    classes = np.array([size_class(share) for share in np.asarray(shares, np.float64)])
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
    """How far an estimate of the IoU is from the IoU.

    Args:
        predicted: (N,) estimates; those outside [0, 1] count in the outermost bins.
        true: (N,) IoU; rows without one are left out.
        bins: of the estimate, of equal width over [0, 1].

    Returns:
        ``error`` mean absolute difference, ``bias`` mean of predicted − true, ``correlation`` Pearson's (not a
        number where one of the two does not vary), ``bins`` with their images and means.
    """
    estimate, truth = np.asarray(predicted, np.float64), np.asarray(true, np.float64)
    there = ~(np.isnan(estimate) | np.isnan(truth))
    estimate, truth = estimate[there], truth[there]
    where = np.clip((estimate * bins).astype(np.int64), 0, bins - 1)
    varied = len(truth) > 1 and np.ptp(estimate) > 0 and np.ptp(truth) > 0
    nothing = float("nan")
    return {
        "error": float(np.abs(estimate - truth).mean()) if len(truth) else nothing,
        "bias": float((estimate - truth).mean()) if len(truth) else nothing,
        "correlation": float(np.corrcoef(estimate, truth)[0, 1]) if varied else nothing,
        "bins": [
            {
                "low": i / bins,
                "high": (i + 1) / bins,
                "images": int((where == i).sum()),
                "predicted": float(estimate[where == i].mean()) if (where == i).any() else nothing,
                "true": float(truth[where == i].mean()) if (where == i).any() else nothing,
            }
            for i in range(bins)
        ],
    }


def deviation(means: npt.ArrayLike) -> Floats:
    """Standard deviation (K,) between the means (D, K) of D ≥ 2 draws, with D − 1 in the denominator."""
    table = np.asarray(means, np.float64)
    return np.asarray(table.std(axis=0, ddof=1))
