"""Overlays show masks and prompts at their positions; text tables are aligned."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
import pytest

from promise.inference.overlay import GROUND_TRUTH, NEGATIVE, POSITIVE, PREDICTED, draw_overlay
from promise.runtime.text_table import text_table
from promise.training.curves import draw_curves

NO_POINTS = {"xy": np.zeros((0, 2), np.float32), "label": np.zeros(0, np.int64)}
EMPTY = np.zeros((512, 512), bool)
BLACK = np.zeros((512, 512, 3), np.uint8)


def mean_position(overlay: np.ndarray, colour: tuple[int, int, int]) -> tuple[float, float]:
    """Mean (x, y) of the pixels of exactly this colour."""
    y, x = np.nonzero((overlay == colour).all(axis=2))
    return float(x.mean()), float(y.mean())


def test_points_are_drawn_at_their_positions_in_their_colours() -> None:
    xy, label = np.array([[100, 50], [300, 400], [200, 200]], np.float32), np.array([1, 0, -1])
    overlay = draw_overlay(BLACK, EMPTY, EMPTY, xy=xy, label=label)
    assert mean_position(overlay, POSITIVE) == pytest.approx((100, 50), abs=1)
    assert mean_position(overlay, NEGATIVE) == pytest.approx((300, 400), abs=1)
    assert not overlay[180:220, 180:220].any()  # padding is not drawn


def test_outlines_follow_ground_truth_and_prediction() -> None:
    target, predicted = EMPTY.copy(), EMPTY.copy()
    target[100:200, 50:150] = True
    predicted[300:400, 250:350] = True
    overlay = draw_overlay(BLACK, target, predicted, **NO_POINTS)
    assert mean_position(overlay, GROUND_TRUTH) == pytest.approx((99.5, 149.5), abs=1)
    assert mean_position(overlay, PREDICTED) == pytest.approx((299.5, 349.5), abs=1)
    assert not overlay[150, 100].any()  # an outline, not filled


def test_all_boxes_are_drawn() -> None:
    boxes = np.array([[100, 200, 300, 260], [20, 30, 60, 90]], np.float32)
    overlay = draw_overlay(BLACK, EMPTY, EMPTY, **NO_POINTS, boxes=boxes)
    assert mean_position(overlay[:, 80:], POSITIVE) == pytest.approx((120, 230), abs=2)
    assert mean_position(overlay[:120, :80], POSITIVE) == pytest.approx((40, 60), abs=2)
    assert not draw_overlay(BLACK, EMPTY, EMPTY, **NO_POINTS, boxes=boxes[:0]).any()


@pytest.mark.parametrize(
    ("shape", "expected"), [((64, 64), (512, 512)), ((600, 300), (600, 300)), ((1000, 2000), (384, 768))]
)
@pytest.mark.parametrize("caption", ["", "Dice 0.500"])
def test_overlays_have_a_readable_size(shape, expected, caption: str) -> None:
    image = np.full((*shape, 3), 90, np.uint8)
    overlay = draw_overlay(image, np.zeros(shape, bool), np.zeros(shape, bool), **NO_POINTS, caption=caption)
    assert overlay.shape == (expected[0] + (22 if caption else 0), expected[1], 3)
    assert (overlay[-1] == 90).all()
    assert (image == 90).all()


def test_points_scale_with_a_small_image() -> None:
    small = np.zeros((64, 64, 3), np.uint8)
    xy = np.array([[15.5, 31.5]], np.float32)
    overlay = draw_overlay(small, EMPTY[:64, :64], EMPTY[:64, :64], xy=xy, label=np.array([1]))
    assert mean_position(overlay, POSITIVE) == pytest.approx((127.5, 255.5), abs=1)


def test_the_input_image_is_not_changed() -> None:
    image = np.zeros((512, 512, 3), np.uint8)
    draw_overlay(image, ~EMPTY, EMPTY, xy=np.array([[9, 9]], np.float32), label=np.array([1]))
    assert not image.any()


@pytest.mark.parametrize("validated", [True, False])
def test_curves_are_drawn_with_and_without_validation(validated: bool, tmp_path: Path) -> None:
    score = 0.5 if validated else None
    history = [
        {"epoch": e, "train_loss": 1 / e, "val_loss": score, "val_dice": score, "val_iou": score} for e in (1, 2)
    ]
    draw_curves(tmp_path / "a.png", history)
    assert cv2.imread(str(tmp_path / "a.png")).shape == (432, 1080, 3)


def test_tables_align_texts_left_and_numbers_right() -> None:
    text = text_table(["net", "Dice"], [["APM_resnet", "0.9000"], ["IPS", "nan"], ["SAM", "10.5"]])
    assert text.splitlines() == [
        "net           Dice",
        "----------  ------",
        "APM_resnet  0.9000",
        "IPS            nan",
        "SAM           10.5",
    ]
    assert text_table(["a", "b"], []).splitlines() == ["a  b", "-  -"]
