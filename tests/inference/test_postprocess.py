"""Thresholding, morphology and resizing, compared with their definitions, SciPy and torch."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from scipy import ndimage

from promise.inference import postprocess
from promise.inference.postprocess import (
    Postprocess,
    fill_holes,
    largest_component,
    probability_at,
    reference_target,
    to_size,
)
from promise.runtime.errors import UserError

FURTHER = [
    "open:5,close:5",
    "fill:1",
    "fill,fill",
    "threshold",
    "threshold:x",
    "threshold:1e-1",
    "open:5,,fill",
    "none:3",
]


def torch_resize(values: np.ndarray, height: int, width: int) -> np.ndarray:
    tensor = torch.from_numpy(values.astype(np.float32))[None, None]
    resized = torch.nn.functional.interpolate(tensor, (height, width), mode="bilinear", align_corners=False)
    return resized[0, 0].numpy()


@pytest.mark.parametrize(
    "text", ["none", "open:3", "open:5", "close:7", "threshold:0.45", "open:5,threshold:0.45,fill,largest", "fill"]
)
def test_str_is_the_inverse_of_parse(text):
    assert str(Postprocess.parse(text)) == text


def test_parse_reads_operation_and_kernel():
    assert Postprocess.parse("close:7") == Postprocess("close", 7, 0.5)
    assert Postprocess.parse("none") == Postprocess()
    assert Postprocess.parse("largest, threshold:0.05,open:3") == Postprocess("open", 3, 0.05, largest=True)
    assert Postprocess.parse("none,fill") == Postprocess(fill=True)
    assert Postprocess.parse(str(Postprocess(threshold=1e-7))).threshold == 1e-7


@pytest.mark.parametrize(
    "text",
    [
        "",
        "open",
        "open:",
        "open:4",
        "open:1",
        "open:-5",
        "open:99999",
        f"open:{'9' * 5000}",
        "open:5:5",
        "dilate:5",
        "None",
        *FURTHER,
    ],
)
def test_invalid_text_is_refused_with_the_accepted_forms(text):
    with pytest.raises(UserError) as caught:
        Postprocess.parse(text)
    assert caught.value.code in ("invalid-postprocess", "duplicate-postprocess-setting", "invalid-kernel")
    assert "'none', 'open:K' or 'close:K' with an odd kernel side K of at least 3" in str(caught.value)


def test_texts_have_the_codes_of_their_faults(user_error):
    for text, code in (
        ("dilate:5", "invalid-postprocess"),
        ("open:5,close:5", "duplicate-postprocess-setting"),
        ("fill,fill", "duplicate-postprocess-setting"),
        ("open:4", "invalid-kernel"),
        ("threshold:2", "invalid-threshold"),
    ):
        with user_error(code):
            Postprocess.parse(text)


@pytest.mark.parametrize(
    ("fields", "code", "fact"),
    [
        ({"operation": "erode"}, "unknown-postprocess-operation", "'erode'"),
        ({"operation": "open", "kernel": 4}, "invalid-kernel", "4"),
        ({"operation": "open", "kernel": 99_999}, "invalid-kernel", "99999"),
        ({"threshold": 1.5}, "invalid-threshold", "[0, 1], not 1.5"),
        ({"threshold": float("nan")}, "invalid-threshold", "not nan"),
    ],
)
def test_invalid_settings_are_refused(fields, code, fact, user_error):
    with user_error(code) as caught:
        Postprocess(**fields)
    assert fact in str(caught.value)


def test_settings_cannot_change():
    with pytest.raises(dataclasses.FrozenInstanceError):
        Postprocess().kernel = 7


def test_the_threshold_is_inclusive():
    prob = np.array([[0.49, 0.5, 0.51]], np.float32)
    assert Postprocess()(prob).tolist() == [[False, True, True]]
    assert Postprocess(threshold=0.51)(prob).tolist() == [[False, False, True]]


def test_opening_removes_small_components_and_keeps_large_ones():
    prob = np.zeros((20, 20), np.float32)
    prob[2:6, 2:6] = 1  # 4 × 4: no 5 × 5 square fits
    prob[10:16, 10:15] = 1
    expected = np.zeros((20, 20), bool)
    expected[10:16, 10:15] = True
    np.testing.assert_array_equal(Postprocess("open", 5)(prob), expected)
    np.testing.assert_array_equal(Postprocess("open", 3)(prob), prob > 0)


def test_closing_fills_small_holes():
    prob = np.zeros((20, 20), np.float32)
    prob[4:16, 4:16] = 1
    filled = prob > 0
    prob[9:11, 9:11] = 0
    np.testing.assert_array_equal(Postprocess("close", 3)(prob), filled)
    np.testing.assert_array_equal(Postprocess()(prob), prob > 0)


@given(
    hnp.arrays(bool, hnp.array_shapes(min_dims=2, max_dims=2, min_side=1, max_side=16)),
    st.sampled_from([3, 5]),
)
def test_morphology_equals_scipys_with_a_neutral_border(mask, side):
    square = np.ones((side, side), bool)
    eroded = ndimage.binary_erosion(mask, square, border_value=1)
    dilated = ndimage.binary_dilation(mask, square)
    prob = mask.astype(np.float32)
    opened, closed = Postprocess("open", side)(prob), Postprocess("close", side)(prob)
    assert opened.dtype == closed.dtype == np.bool_
    np.testing.assert_array_equal(opened, ndimage.binary_dilation(eroded, square))
    np.testing.assert_array_equal(closed, ndimage.binary_erosion(dilated, square, border_value=1))
    assert (opened <= mask).all()
    assert (closed >= mask).all()


@given(hnp.arrays(bool, hnp.array_shapes(min_dims=2, max_dims=2, min_side=1, max_side=14)))
def test_filling_and_the_largest_component_equal_scipys(mask):
    np.testing.assert_array_equal(fill_holes(mask), ndimage.binary_fill_holes(mask))
    labels, count = ndimage.label(mask, np.ones((3, 3)))
    largest = largest_component(mask)
    areas = np.bincount(labels.ravel(), minlength=count + 1)[1:]
    assert largest.sum() == (areas.max() if count else 0)
    kept = np.unique(labels[largest])
    assert len(kept) == (count > 0)
    assert (largest == (labels == kept[0] if count else mask)).all()


def test_the_order_of_the_steps():
    prob = np.zeros((12, 14), np.float32)
    prob[1:6, 1:6] = 0.6
    prob[2:5, 2:5] = 0  # a ring of 16 pixels, 25 when filled
    prob[8:12, 8:13] = 0.6  # 20 pixels
    prob[0, 13] = 0.5
    ring, block = np.zeros(prob.shape, bool), np.zeros(prob.shape, bool)
    ring[1:6, 1:6], block[8:12, 8:13] = True, True
    np.testing.assert_array_equal(Postprocess(largest=True)(prob), block)
    np.testing.assert_array_equal(Postprocess(fill=True, largest=True)(prob), ring)
    np.testing.assert_array_equal(Postprocess(threshold=0.55, fill=True)(prob), ring | block)
    np.testing.assert_array_equal(Postprocess("open", 3, fill=True)(prob), block)
    assert not Postprocess(threshold=0.7, fill=True, largest=True)(prob).any()


@pytest.mark.parametrize(
    ("prob", "message"),
    [
        (np.zeros((1, 4, 4), np.float32), r"prob must be a non-empty NumPy array .* not \(1, 4, 4\)"),
        (np.zeros((0, 4), np.float32), r"not \(0, 4\)"),
        ([[0.5]], "not list"),
        (
            np.full((2, 2), 7.0),
            "prob must be float in .* not float64 from 7 to 7; apply a sigmoid to logits first",
        ),
        (np.full((2, 2), np.nan), "from nan to nan"),
        (np.ones((2, 2), np.uint8), "not uint8 from 1 to 1"),
    ],
)
def test_invalid_probability_maps_are_refused(prob, message):
    with pytest.raises(ValueError, match=message):
        Postprocess()(prob)


@pytest.mark.parametrize("size", [(64, 64), (100, 37), (24, 32), (7, 90), (1, 1), (48, 64)])
def test_to_size_equals_torchs_bilinear_resize(size):
    values = np.random.default_rng(0).standard_normal((48, 64)).astype(np.float32)
    resized = to_size(values, *size)
    assert resized.dtype == np.float32
    np.testing.assert_allclose(resized, torch_resize(values, *size), atol=2e-5)


def test_to_size_keeps_values_at_the_same_size():
    values = np.random.default_rng(0).random((5, 7)).astype(np.float32)
    np.testing.assert_array_equal(to_size(values, 5, 7), values)
    assert to_size(values > 0.5, 5, 7).dtype == np.float32


@pytest.mark.parametrize("size", [(0, 5), (5, -1)])
def test_to_size_refuses_an_invalid_size(size):
    with pytest.raises(ValueError, match=f"must be at least 1 × 1, not {size[0]} × {size[1]}"):
        to_size(np.zeros((4, 4), np.float32), *size)


@pytest.mark.parametrize("seed", range(3))
def test_reference_target_equals_the_reference_implementation(seed):
    rng = np.random.default_rng(seed)
    mask = ndimage.zoom(rng.random((64, 64)), 16, order=1) > 0.6
    mask |= rng.random(mask.shape) > 0.999  # single pixels: half of each axis is not sampled
    expected = torch_resize(mask, 256, 256) > 0
    got = reference_target(mask)
    assert got.dtype == np.bool_
    np.testing.assert_array_equal(got, expected)
    assert got.mean() > mask.mean()


def test_reference_target_samples_the_middle_of_each_block():
    mask = np.zeros((1024, 1024), bool)
    mask[[4, 13], [9, 18]] = True  # row 4 is the edge of its block of four; row 13, column 18 the middle
    assert np.argwhere(reference_target(mask)).tolist() == [[3, 4]]


@pytest.mark.parametrize("shape", [(256, 256), (300, 411), (2048, 1500)])
def test_reference_target_is_first_resized_to_the_prepared_size(shape):
    mask = np.random.default_rng(1).random(shape) > 0.7
    tensor = torch.from_numpy(mask.astype(np.float32))[None, None]
    prepared = torch.nn.functional.interpolate(tensor, (1024, 1024), mode="nearest")[0, 0].numpy()
    got = reference_target(mask, side=128)
    assert got.shape == (128, 128)
    np.testing.assert_array_equal(got, torch_resize(prepared, 128, 128) > 0)


def test_reference_target_refuses_other_arrays():
    with pytest.raises(ValueError, match="mask must be bool, not uint8; threshold it first"):
        reference_target(np.zeros((4, 4), np.uint8))
    with pytest.raises(ValueError, match=r"not \(4,\)"):
        reference_target(np.zeros(4, bool))


@pytest.mark.parametrize("size", [(31, 47), (8, 8), (1, 300), (300, 1)])
def test_probabilities_do_not_depend_on_the_strips(size: tuple[int, int], monkeypatch) -> None:
    logits = np.random.default_rng(0).normal(0, 20, (8, 8)).astype(np.float32)
    before = logits.copy()
    plain = (0.5 * (1 + np.tanh(0.5 * to_size(logits, *size).astype(np.float64)))).astype(np.float32)
    for strip in (1, 100, 10**6):
        monkeypatch.setattr(postprocess, "STRIP", strip)
        np.testing.assert_array_equal(probability_at(logits, *size), plain)
        np.testing.assert_array_equal(logits, before)
