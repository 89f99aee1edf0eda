"""The three protocols on one prediction, and the rules for an empty ground truth."""

from __future__ import annotations

import math

import numpy as np
import pytest

from promise.evaluation.metrics import PROTOCOLS, binary_metrics
from promise.evaluation.scoring import score
from promise.inference.postprocess import Postprocess

SQUARE = np.zeros((40, 60), bool)
SQUARE[10:30, 15:45] = True
SURE = np.where(np.kron(np.pad(np.ones((2, 2)), 1), np.ones((8, 8))) > 0, 9.0, -9.0).astype(np.float32)  # (32, 32)
EMPTY = np.zeros((40, 60), bool)


def test_native_scores_the_mask_at_the_size_of_the_ground_truth() -> None:
    result = score(SURE, SQUARE)
    assert result.mask.shape == SQUARE.shape
    assert result.scores["native"] == binary_metrics(result.mask, SQUARE)
    assert result.scores["native"]["iou"] > 0.9
    assert result.scores["native"]["nsd"] > 0.9
    assert "nsd" not in result.scores["reference"]  # whose pixels are not those of the image
    assert not result.empty_target


def test_a_speck_is_opened_away_in_the_reference_protocol_only() -> None:
    logits = SURE.copy()
    logits[0, 0] = 9.0
    plain, speck = score(SURE, SQUARE), score(logits, SQUARE)
    assert speck.mask[0, 0]
    assert speck.scores["native"]["precision"] < plain.scores["native"]["precision"]
    closed = score(logits, SQUARE, postprocess=Postprocess("open", 5))
    assert not closed.mask[0, 0]


@pytest.mark.parametrize(("rule", "right", "wrong"), [("one", 1, 0), ("zero", 0, 0), ("skip", math.nan, math.nan)])
def test_an_empty_ground_truth_is_scored_by_the_rule(rule: str, right: float, wrong: float) -> None:
    negative = np.full((32, 32), -9, np.float32)
    for logits, expected in ((negative, right), (SURE, wrong)):
        result = score(logits, EMPTY, empty_rule=rule)
        assert result.empty_target
        overlaps = [result.scores["native"][n] for n in ("dice", "iou", "nsd", "precision", "recall", "f_beta")]
        overlaps += [result.scores["soft"][n] for n in ("dice_mean", "iou_max", "weighted_f", "f_mean")]
        assert overlaps == pytest.approx([expected] * 10, nan_ok=True)
        assert result.scores["native"]["mae"] == pytest.approx(result.mask.mean())
    assert score(negative, EMPTY).scores["reference"]["iou"] == 0
    assert math.isnan(score(negative, EMPTY).scores["reference"]["dice"])
    assert score(SURE, EMPTY).scores["reference"]["dice"] == 0


def test_the_rule_does_not_affect_other_ground_truths() -> None:
    rows = [score(SURE, SQUARE, empty_rule=rule).scores for rule in ("one", "skip", "zero")]
    for row in rows[1:]:
        for protocol in PROTOCOLS:
            assert row[protocol] == pytest.approx(rows[0][protocol], nan_ok=True)


def test_the_counts_belong_to_the_native_mask() -> None:
    result = score(SURE, SQUARE)
    assert (result.target_pixels, result.predicted_pixels) == (600, result.mask.sum())
    assert result.intersection == (result.mask & SQUARE).sum() > 0
    dice = 2 * result.intersection / (result.target_pixels + result.predicted_pixels)
    assert result.scores["native"]["dice"] == pytest.approx(dice)


def test_the_native_protocol_may_have_its_own_postprocessing() -> None:
    empty = Postprocess(threshold=1.0)
    alone, both = score(SURE, SQUARE, native=empty), score(SURE, SQUARE, postprocess=empty)
    assert not alone.mask.any()
    assert alone.scores["reference"] == score(SURE, SQUARE).scores["reference"]
    assert both.scores["reference"]["iou"] == both.scores["native"]["iou"] == 0


def test_extreme_logits_are_probabilities() -> None:
    logits = np.array([[-1e4, 1e4], [0, 0]], np.float32)
    result = score(logits, np.array([[False, True], [True, True]]))
    assert result.mask.tolist() == [[False, True], [True, True]]  # a logit of 0 is a probability of 0.5: foreground
