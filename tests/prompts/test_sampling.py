"""Jittered boxes."""

from __future__ import annotations

import numpy as np
import torch

from promise.prompts.sampling import JITTER, MAX_JITTER, generator_for, jitter_boxes


def jittered(box: list[float], count: int = 4000, image_size: int = 1024) -> np.ndarray:
    generators = [generator_for(0, str(number)) for number in range(count)]
    return jitter_boxes(torch.tensor([box] * count), generators, image_size=image_size).numpy()


def test_sides_move_by_a_tenth_of_the_box_along_their_axis() -> None:
    box = [500.0, 400.0, 579.0, 439.0]  # 80 × 40 pixels: no move reaches the limit of 20 often
    moves = jittered(box) - np.array(box)
    assert np.abs(moves.mean(axis=0)).max() < 0.4
    np.testing.assert_allclose(moves.std(axis=0), JITTER * np.array([80, 40, 80, 40]), rtol=0.06)
    assert np.abs(np.corrcoef(moves.T) - np.eye(4)).max() < 0.06


def test_moves_are_limited_and_stay_in_the_image() -> None:
    box = [0.0, 300.0, 1023.0, 900.0]
    boxes = jittered(box)
    assert boxes.min() >= 0
    assert boxes.max() <= 1023
    assert np.abs(boxes - np.array(box)).max() == 1024 * MAX_JITTER


def test_a_box_of_one_pixel_keeps_the_order_of_its_corners() -> None:
    boxes = jittered([7.0, 7.0, 7.0, 7.0], image_size=64)
    assert (boxes[:, :2] <= boxes[:, 2:]).all()
    assert boxes.std() > 0
