"""Outlines and run lengths reproduce the mask."""

from __future__ import annotations

import cv2
import numpy as np
import pytest

from promise.inference.contours import coco_shape, outlines


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
