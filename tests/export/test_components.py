"""The search for lesions in a graph equals that of the net."""

from __future__ import annotations

import itertools
from typing import Any

import cv2
import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from promise.export.components import find_boxes, label_components
from promise.models.prompters.lesions import LesionSettings, find_lesions

ANY = {"min_score": 0.0, "min_probability": 0.0}


def spiral(side: int) -> NDArray[np.bool_]:
    """A line of one pixel from the border to the centre, with gaps of one pixel."""
    mask = np.zeros((side, side), np.uint8)
    ends = [(0, 0)]
    low, high = 0, side - 1
    while high - low >= 2:
        ends += [(high, low), (high, high), (low, high), (low, low + 2)]
        low, high = low + 2, high - 2
    for first, second in itertools.pairwise(ends):
        cv2.line(mask, first, second, 1)
        if second[0] == second[1] - 2:
            cv2.line(mask, second, (second[0] + 2, second[1]), 1)
    return mask > 0


def comb(side: int) -> NDArray[np.bool_]:
    """Teeth of different lengths that meet in the last row only."""
    mask = np.zeros((side, side), bool)
    for column in range(0, side, 2):
        mask[(column * 7) % (side - 1) :, column] = True
    mask[-1] = True
    return mask


def random_mask(side: int, density: float) -> NDArray[np.bool_]:
    return np.random.default_rng(side).random((side, side + 3)) < density


MASKS = {
    "spiral": spiral(63),
    "spiral from the centre": np.ascontiguousarray(spiral(63)[::-1, ::-1]),
    "comb": comb(64),
    "diagonal": np.eye(40, dtype=bool)[:, ::-1].copy(),
    "checkers": np.indices((20, 20)).sum(0) % 2 == 0,
    "specks": random_mask(50, 0.1),
    "at the percolation threshold": random_mask(99, 0.407),
    "dense": random_mask(51, 0.6),
    "full": np.ones((7, 5), bool),
    "empty": np.zeros((6, 9), bool),
    "one pixel": np.ones((1, 1), bool),
}


@pytest.mark.parametrize("mask", MASKS.values(), ids=MASKS)
def test_components_are_those_of_opencv_in_their_order(mask: NDArray[np.bool_]) -> None:
    count, expected = cv2.connectedComponents(mask.astype(np.uint8), connectivity=8)
    labels = label_components(torch.from_numpy(mask)[None])[0].numpy()
    numbers = np.unique(labels[mask])
    assert len(numbers) == count - 1
    assert (np.searchsorted(numbers, labels[mask]) + 1 == expected[mask]).all()
    assert not np.isin(labels[~mask], numbers).any()


def test_the_spiral_is_one_component() -> None:
    assert cv2.connectedComponents(spiral(63).astype(np.uint8), connectivity=8)[0] == 2
    assert spiral(63).mean() < 0.55


def equal(maps: NDArray[np.float32], settings: LesionSettings) -> list[int]:
    """Compare the lesions of maps (B, h, w), and return their numbers."""
    scores, boxes = find_boxes(torch.from_numpy(maps), settings)
    assert scores.shape == (len(maps), settings.max_lesions)
    counts = []
    for probability, score, box in zip(maps, scores.numpy(), boxes.numpy(), strict=True):
        expected = find_lesions(probability, settings, positive=0, negative=0)
        count = len(expected)
        assert score[:count].tolist() == [lesion.score for lesion in expected]
        assert box[:count].tolist() == [lesion.box.tolist() for lesion in expected]
        assert not score[count:].any()
        assert not box[count:].any()
        counts.append(count)
    return counts


@pytest.mark.parametrize(
    "settings",
    [
        {"max_lesions": 5, **ANY},
        {"max_lesions": 1, **ANY},
        {"max_lesions": 9, "min_share": 0.3, **ANY},
        {"max_lesions": 9, "min_score": 0.01},
        {"max_lesions": 9, "threshold": 0.6, "min_probability": 0.68, "min_score": 0.0},
    ],
    ids=str,
)
def test_lesions_are_those_of_the_net(settings: dict[str, Any]) -> None:
    rng = np.random.default_rng(3)
    noise = rng.random((8, 33, 46)).astype(np.float32)
    smooth = np.stack([cv2.GaussianBlur(one, (0, 0), 2.5) for one in noise])
    low, high = (edge(smooth, axis=(1, 2), keepdims=True) for edge in (np.min, np.max))
    smooth = (smooth - low) / (high - low)
    found = LesionSettings(**settings)
    assert max(equal(smooth, found)) > 1 or found.max_lesions == 1
    equal(np.round(noise * 4) / 4, found)  # many equal scores


def test_equal_scores_are_in_the_order_of_the_net() -> None:
    """The lesion that starts one row lower, but farther left, is in the same row of blocks, and comes first."""
    maps = np.zeros((1, 12, 12), np.float32)
    for x, y in ((8, 2), (1, 3), (5, 8)):
        maps[0, y, x] = 0.9
    assert equal(maps, LesionSettings(max_lesions=4, **ANY)) == [3]
    assert find_boxes(torch.from_numpy(maps), LesionSettings(**ANY))[1][0, :, 0].tolist() == [1, 8, 5, 0]


def test_maps_without_a_lesion_and_lesions_at_the_border() -> None:
    maps = np.full((3, 16, 16), 0.1, np.float32)
    maps[1] = 0.8
    maps[2, :3, :2] = maps[2, 12:, 5:] = maps[2, 4:9, 15] = 0.7
    assert equal(maps, LesionSettings(max_lesions=4)) == [0, 1, 3]
    assert equal(maps, LesionSettings(max_lesions=2)) == [0, 1, 2]
