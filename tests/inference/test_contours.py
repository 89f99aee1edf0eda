"""Outlines and run lengths reproduce the mask."""

from __future__ import annotations

import cv2
import numpy as np
import pytest

from promise.inference.contours import coco_shape, outlines, smooth_outlines


@pytest.fixture
def blob() -> np.ndarray:
    small = np.random.default_rng(1).random((6, 9)).astype(np.float32)
    return cv2.resize(small, (90, 60), interpolation=cv2.INTER_CUBIC) > 0.6


def decode(shape: dict) -> np.ndarray:
    """Decode uncompressed run lengths as COCO does: column-major order, background first."""
    height, width = shape["size"]
    values = np.repeat(np.arange(len(shape["counts"])) % 2, shape["counts"])
    return values.reshape(width, height).T.astype(bool)


def test_polygons_enclose_the_mask() -> None:
    mask = np.zeros((40, 50), bool)
    mask[5:20, 10:30] = True
    mask[25:35, 33:45] = True
    found = coco_shape(mask)
    assert found["area"] == 15 * 20 + 10 * 12
    assert found["bbox"] == [10, 5, 35, 30]
    drawn = np.zeros(mask.shape, np.uint8)
    for polygon in found["segmentation"]:
        cv2.fillPoly(drawn, [np.int32(np.reshape(polygon, (-1, 2)) - 0.5)], 1)
    assert np.array_equal(drawn > 0, mask)


@pytest.mark.parametrize("case", ["hole", "speck", "corner", "column"])
def test_masks_without_exact_polygons_become_run_lengths(case: str) -> None:
    mask = np.zeros((9, 7), bool)
    mask[{"hole": slice(1, 8), "speck": 4, "corner": 0, "column": slice(0, 9)}[case], 3 if case == "speck" else 0] = (
        True
    )
    if case == "hole":
        mask[1:8, 1:6] = True
        mask[3:5, 3] = False
    found = coco_shape(mask)
    assert np.array_equal(decode(found["segmentation"]), mask)
    assert found["area"] == mask.sum()


def test_area_and_bounding_box_of_any_mask(blob) -> None:
    shape = coco_shape(blob)
    assert shape["area"] == blob.sum()
    left, top, width, height = shape["bbox"]
    assert blob[top : top + height, left : left + width].sum() == blob.sum()
    for edge in (blob[top], blob[top + height - 1], blob[:, left], blob[:, left + width - 1]):
        assert edge.any()


def test_an_empty_mask_has_no_shape() -> None:
    assert coco_shape(np.zeros((4, 5), bool)) is None
    assert outlines(np.zeros((4, 5), bool)) == []


def test_outlines_run_through_the_mask(blob) -> None:
    parts, _ = cv2.findContours(blob.astype(np.uint8), cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_NONE)
    found = outlines(blob)
    assert len(found) >= len(parts) > 1
    assert all(blob[y, x] for outline in found for x, y in outline)


def enclosed(found: list[np.ndarray], shape: tuple[int, int]) -> np.ndarray:
    """Pixels whose centres an odd number of outlines encloses."""
    inside = np.zeros(shape, int)
    for outline in found:
        corners = outline.astype(np.float32)
        inside += [[cv2.pointPolygonTest(corners, (x, y), False) > 0 for x in range(shape[1])] for y in range(shape[0])]
    return inside % 2 == 1


@pytest.mark.parametrize("threshold", [0.5, 0.3])
def test_smooth_outlines_follow_the_probability(threshold: float) -> None:
    y, x = np.mgrid[:60, :80]
    distance = np.hypot(x - 41.3, y - 28.6)
    probability = np.float32(np.clip(threshold + (17.25 - distance) * 0.1, 0, 1))
    (found,) = smooth_outlines(probability >= threshold, probability, threshold)
    radius = np.hypot(found[:, 0] - 41.3, found[:, 1] - 28.6)
    assert np.abs(radius - 17.25).max() < 0.02
    pixels = outlines(probability >= threshold)[0]
    assert np.abs(np.hypot(pixels[:, 0] - 41.3, pixels[:, 1] - 28.6) - 17.25).max() > 0.5


def test_smooth_outlines_enclose_the_centres_of_the_mask_and_no_others(blob) -> None:
    blob[3, 80:] = blob[10, 5] = True  # along the border, and alone
    blob[20, 20] = blob[21, 21] = True
    assert np.array_equal(enclosed(smooth_outlines(blob, np.float32(blob)), blob.shape), blob)
    # A mask that postprocessing changed: the outline is that of the mask, not of the probability.
    changed = smooth_outlines(blob, np.full(blob.shape, 0.7, np.float32))
    assert np.array_equal(enclosed(changed, blob.shape), blob)


def test_diagonal_pixels_are_one_component_and_the_border_ends_at_the_image() -> None:
    mask = np.array([[1, 0], [0, 1]], bool)
    for each in (mask, mask[::-1]):
        (found,) = smooth_outlines(each, np.float32(each))
        assert (found.min(), found.max()) == (-0.5, 1.5)
    assert smooth_outlines(np.zeros((4, 5), bool), np.zeros((4, 5), np.float32)) == []
