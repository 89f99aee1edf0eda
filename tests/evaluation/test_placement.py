"""Metrics of prompts on ground truths drawn by hand."""

from __future__ import annotations

import math

import numpy as np
import pytest

from promise.evaluation.metrics import metrics_of, prompt_metrics

TARGET = np.zeros((20, 30), bool)
TARGET[5:10, 10:20] = True  # rows 5 to 9, columns 10 to 19
NO_BOXES = np.zeros((0, 4))
NO_POINTS = (np.zeros((0, 2)), np.zeros(0, np.int64))


def test_points_are_counted_by_their_label() -> None:
    xy = np.array([[10, 5], [19, 9], [9, 5], [15, 7], [0, 0], [29, 19], [15, 7], [0, 0]], float)
    label = np.array([1, 1, 1, 0, 0, 0, -1, -1])
    found = prompt_metrics(xy, label, NO_BOXES, TARGET)
    assert found["positives_inside"] == pytest.approx(2 / 3)
    assert found["negatives_outside"] == pytest.approx(2 / 3)
    assert math.isnan(found["box_iou"])
    assert list(found) == list(metrics_of("prompts"))


@pytest.mark.parametrize(
    ("point", "inside"),
    [((9.49, 7.0), 0), ((9.5, 7.0), 1), ((19.49, 7.0), 1), ((19.5, 7.0), 0), ((15.0, 4.5), 1), ((15.0, 9.5), 0)],
)
def test_a_point_belongs_to_the_pixel_that_contains_it(point: tuple[float, float], inside: int) -> None:
    assert prompt_metrics(np.array([point]), np.array([1]), NO_BOXES, TARGET)["positives_inside"] == inside


@pytest.mark.parametrize("point", [(-0.6, 3.0), (30.0, 3.0), (3.0, -1.0), (3.0, 19.6)])
def test_a_point_outside_the_image_is_outside_the_ground_truth(point: tuple[float, float]) -> None:
    full = np.ones((20, 30), bool)
    found = prompt_metrics(np.array([point, point]), np.array([1, 0]), NO_BOXES, full)
    assert (found["positives_inside"], found["negatives_outside"]) == (0, 1)


@pytest.mark.parametrize(
    ("boxes", "expected"),
    [
        ([[10, 5, 19, 9]], 1.0),
        ([[10, 5, 14, 9]], 0.5),
        ([[10, 5, 29, 9]], 0.5),
        ([[0, 0, 9, 4]], 0.0),  # touches it
        ([[12, 7, 12, 7]], 1 / 50),  # one pixel
        ([[10, 5, 12, 7], [17, 8, 19, 9]], 1.0),  # the box around both
        ([[0, 5, 3, 9], [10, 5, 19, 9]], 0.5),
        ([[19, 9, 10, 5]], 0.0),  # corners exchanged: no pixels
    ],
)
def test_the_iou_of_boxes(boxes: list[list[float]], expected: float) -> None:
    assert prompt_metrics(*NO_POINTS, np.array(boxes, float), TARGET)["box_iou"] == pytest.approx(expected)


def test_the_ground_truth_box_is_around_all_lesions() -> None:
    two = TARGET.copy()
    two[15:18, 22:26] = True
    assert prompt_metrics(*NO_POINTS, np.array([[10.0, 5, 25, 17]]), two)["box_iou"] == 1


def test_prompts_that_are_missing_have_no_value() -> None:
    assert all(math.isnan(value) for value in prompt_metrics(*NO_POINTS, NO_BOXES, TARGET).values())
    positive = prompt_metrics(np.array([[15.0, 7]]), np.array([1]), NO_BOXES, TARGET)
    assert positive == pytest.approx(
        {"positives_inside": 1, "negatives_outside": math.nan, "box_iou": math.nan}, nan_ok=True
    )


def test_an_empty_ground_truth_has_no_value() -> None:
    xy, label, boxes = np.array([[15.0, 7], [1, 1]]), np.array([1, 0]), np.array([[0.0, 0, 3, 3]])
    assert all(math.isnan(value) for value in prompt_metrics(xy, label, boxes, TARGET & False).values())
