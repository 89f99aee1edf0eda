"""Intervals, pooled scores, strata, misses and calibration equal direct computations."""

from __future__ import annotations

import math

import numpy as np
import pytest

from promise.evaluation import statistics
from promise.evaluation.statistics import (
    bootstrap,
    calibration,
    column_means,
    count_misses,
    deviation,
    pooled_overlap,
    risk_coverage,
    size_class,
    stratify,
)

NAN = float("nan")


def test_intervals_equal_those_of_a_loop(monkeypatch: pytest.MonkeyPatch) -> None:
    """The same indices, one resample at a time; the size of the blocks has no effect."""
    values = np.random.default_rng(1).random((13, 2))
    values[4, 1] = NAN
    generator = np.random.default_rng(7)
    picks = generator.integers(0, 13, (300, 13))
    means = np.array([np.nanmean(values[pick], axis=0) for pick in picks])
    expected = np.quantile(means, (0.05, 0.95), axis=0).T
    np.testing.assert_allclose(bootstrap(values, resamples=300, level=0.9, seed=7), expected, atol=1e-12)
    monkeypatch.setattr(statistics, "_BLOCK", 14 * 10)
    generator = np.random.default_rng(7)
    picks = np.concatenate([generator.integers(0, 13, (10, 13)) for _ in range(30)])
    means = np.array([np.nanmean(values[pick], axis=0) for pick in picks])
    blocks = bootstrap(values, resamples=300, level=0.9, seed=7)
    np.testing.assert_allclose(blocks, np.quantile(means, (0.05, 0.95), axis=0).T, atol=1e-12)


def test_intervals_cover_the_true_mean_at_their_level() -> None:
    generator = np.random.default_rng(0)
    samples = generator.normal(0.7, 0.1, (60, 400))  # 400 experiments of 60 images
    intervals = bootstrap(samples)
    inside = ((intervals[:, 0] <= 0.7) & (intervals[:, 1] >= 0.7)).mean()
    assert 0.91 < inside < 0.98
    width = float((intervals[:, 1] - intervals[:, 0]).mean())
    assert width == pytest.approx(2 * 1.96 * 0.1 / math.sqrt(60), rel=0.05)


def test_intervals_of_no_score_and_of_one() -> None:
    assert bootstrap(np.array([[0.4, NAN]]))[0].tolist() == [pytest.approx(0.4)] * 2
    assert np.isnan(bootstrap(np.array([[0.4, NAN]]))[1]).all()
    assert np.isnan(bootstrap(np.zeros((0, 3)))).all()


def test_the_same_scores_have_the_same_interval() -> None:
    values = np.random.default_rng(3).random((50, 1))
    np.testing.assert_array_equal(bootstrap(values), bootstrap(values))
    assert not np.array_equal(bootstrap(values), bootstrap(values, seed=1))


def test_pooled_scores_count_pixels_not_images() -> None:
    # Two images: 90 of 100 pixels right, and 0 of 10.
    found = pooled_overlap([90, 0], [100, 0], [100, 10])
    assert found == {"dice": 180 / 210, "iou": 90 / 120}
    assert math.isnan(pooled_overlap([0], [0], [0])["dice"])


def test_a_miss_is_below_the_bound() -> None:
    assert count_misses([0.0, 0.0999, 0.1, 0.9, NAN]) == {"below": 0.1, "images": 2, "share": 0.5}
    assert math.isnan(count_misses([NAN])["share"])


@pytest.mark.parametrize(
    ("fraction", "name"),
    [(0, ""), (1e-6, "small"), (0.0199, "small"), (0.02, "medium"), (0.0999, "medium"), (0.1, "large"), (1, "large")],
)
def test_size_classes(fraction: float, name: str) -> None:
    assert size_class(fraction) == name


def test_strata_are_means_of_the_images_in_them() -> None:
    found = stratify([0.01, 0.015, 0.5, 0.0], [0.2, 0.4, 0.9, 1.0], [0.1, 0.3, 0.8, 1.0])
    assert list(found) == ["small", "medium", "large"]
    assert found["small"]["images"] == 2
    assert found["small"]["dice"] == pytest.approx(0.3)
    assert found["small"]["iou"] == pytest.approx(0.2)
    low, high = found["small"]["dice_interval"]
    assert (low, high) == pytest.approx((0.2, 0.4))
    assert found["large"]["dice"] == 0.9  # the image without foreground is in no class
    assert found["medium"]["images"] == 0
    assert math.isnan(found["medium"]["dice"])


def test_calibration_by_hand() -> None:
    found = calibration([0.95, 0.85, 0.05, 1.2, 0.5], [0.9, 0.4, 0.25, 0.8, NAN])
    assert found["error"] == pytest.approx((0.05 + 0.45 + 0.2 + 0.4) / 4)
    assert found["bias"] == pytest.approx((0.05 + 0.45 - 0.2 + 0.4) / 4)
    assert found["correlation"] == pytest.approx(np.corrcoef([0.95, 0.85, 0.05, 1.2], [0.9, 0.4, 0.25, 0.8])[0, 1])
    bins = found["bins"]
    assert [b["images"] for b in bins] == [1, 0, 0, 0, 0, 0, 0, 0, 1, 2]
    assert (bins[9]["low"], bins[9]["high"]) == (0.9, 1.0)
    assert bins[9]["predicted"] == pytest.approx(1.075)
    assert bins[9]["true"] == pytest.approx(0.85)
    assert math.isnan(bins[1]["true"])
    assert math.isnan(calibration([0.5], [0.5])["correlation"])
    assert math.isnan(calibration([], [])["error"])


def test_means_exclude_nan() -> None:
    assert column_means([[0.5, 0.1], [NAN, 0.3]]).tolist() == [0.5, pytest.approx(0.2)]
    assert np.isnan(column_means([[NAN]])).all()
    assert column_means([[[1.0, NAN], [3.0, 5.0]]], axis=1).tolist() == [[2.0, 5.0]]


def test_means_and_deviations() -> None:
    means = column_means([[1, NAN], [3, NAN]])
    assert means[0] == 2
    assert np.isnan(means[1])
    assert deviation([[0.1], [0.3]]) == pytest.approx(np.std([0.1, 0.3], ddof=1))


def test_the_risk_of_the_most_certain_images() -> None:
    dice = [0.9, 0.5, 0.7, NAN, 0.1]
    found = risk_coverage([0.8, 0.9, 0.4, 1.0, NAN], dice)  # the fourth image has no score, the fifth no estimate
    np.testing.assert_allclose(found, [(0.25, 0.5), (0.5, 0.3), (0.75, 0.3), (1.0, 0.45)])
    np.testing.assert_allclose(risk_coverage(dice, dice), [(0.25, 0.1), (0.5, 0.2), (0.75, 0.3), (1.0, 0.45)])
    assert [at for at, _ in risk_coverage(range(7), np.ones(7), levels=2)] == [4 / 7, 1.0]
    assert risk_coverage([], []) == []
