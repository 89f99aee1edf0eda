from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from scipy.ndimage import maximum_filter, minimum_filter

from promise.data.prepare.frame import Frame, content_frame, read_frames, whole_frame, write_frames
from promise.runtime.errors import MissingFileError


@st.composite
def framed_masks(draw: st.DrawFn) -> tuple[Frame, np.ndarray]:
    """A crop of an image of at most 60 × 60 pixels, and a mask of blobs and speckle within the crop."""
    width, height = draw(st.integers(1, 60)), draw(st.integers(1, 60))
    left, top = draw(st.integers(0, width - 1)), draw(st.integers(0, height - 1))
    right, bottom = draw(st.integers(left + 1, width)), draw(st.integers(top + 1, height))
    side = max(right - left, bottom - top)
    size = draw(st.sampled_from([side, 2 * side, 3 * side + 1]) | st.integers(1, 150))
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    mask = np.zeros((height, width), bool)
    mask[top:bottom, left:right] = rng.random((bottom - top, right - left)) < draw(st.floats(0, 1))
    if draw(st.booleans()):
        mask = maximum_filter(mask, 5)
        mask[:top], mask[bottom:], mask[:, :left], mask[:, right:] = False, False, False, False
    return Frame(width, height, left, top, right, bottom, size), mask


@settings(max_examples=300, deadline=None)
@example((Frame(1, 33, 0, 0, 1, 33, 54), np.arange(33)[:, None] % 11 == 0))  # where OpenCV's rounding shifts rows
@given(framed_masks())
def test_a_mask_is_restored_to_within_one_pixel(framed: tuple[Frame, np.ndarray]) -> None:
    frame, mask = framed
    prepared = frame.prepare_mask(mask.astype(np.uint8) * 255)
    assert prepared.shape == (frame.size, frame.size)
    back = frame.restore(prepared)
    assert back.shape == mask.shape
    enlarged = frame.size / frame.side
    if enlarged >= 1.5 or enlarged == 1:
        assert np.array_equal(back, mask)
        return
    # Each differing pixel has a pixel of its own label within one pixel of the coarser grid.
    reach = 2 * math.ceil(max(1, 1 / enlarged)) + 1
    assert not (back & ~maximum_filter(mask, reach, mode="constant")).any()
    outside = minimum_filter(mask, reach, mode="constant")  # the padding and pixels outside the crop are background
    assert not (~back & outside).any()


@settings(max_examples=60, deadline=None)
@given(framed_masks())
def test_the_crop_is_restored_in_place_without_padding(framed: tuple[Frame, np.ndarray]) -> None:
    frame, _ = framed
    back = frame.restore(np.ones((frame.size, frame.size), bool))
    inside = np.zeros_like(back)
    inside[frame.top : frame.bottom, frame.left : frame.right] = True
    assert np.array_equal(back, inside)


def test_a_smaller_prediction_is_restored_in_place() -> None:
    frame = Frame(width=100, height=60, left=10, top=4, right=90, bottom=54, size=320)
    mask = np.zeros((60, 100), bool)
    mask[20:40, 30:50] = True  # one original pixel is one cell of an 80 × 80 prediction
    prediction = np.zeros((80, 80), bool)
    prediction[16:36, 20:40] = True
    assert np.array_equal(frame.restore(prediction), mask)


def test_a_probability_map_keeps_its_values() -> None:
    frame = whole_frame(4, 2, size=4)
    back = frame.restore(np.arange(16, dtype=np.float32).reshape(4, 4))
    assert back.dtype == np.float32
    assert back.tolist() == [[0, 1, 2, 3], [4, 5, 6, 7]]


def test_a_mask_that_is_not_square(user_error: Callable[..., Any]) -> None:
    with user_error("mask-not-square") as caught:
        whole_frame(4, 4, size=4).restore(np.zeros((2, 4)))
    assert "4×2" in str(caught.value)


def test_padding_is_black_on_the_right_and_at_the_bottom() -> None:
    wide = whole_frame(4, 2, size=4).prepare(np.full((2, 4, 3), 200, np.uint8))
    tall = whole_frame(2, 4, size=4).prepare(np.full((4, 2, 3), 200, np.uint8))
    assert (wide[:2] == 200).all()
    assert (wide[2:] == 0).all()
    assert (tall[:, :2] == 200).all()
    assert (tall[:, 2:] == 0).all()


def test_a_pixel_is_the_mean_of_the_area_it_covers() -> None:
    pixels = np.array([[0, 100, 8, 8], [20, 40, 8, 8], [1, 1, 0, 0], [1, 1, 0, 4]], np.uint8)
    assert whole_frame(4, 4, size=2).prepare(pixels).tolist() == [[40, 8], [1, 1]]


def test_foreground_is_above_127() -> None:
    levels = np.array([[127, 128], [0, 255]], np.uint8)
    assert whole_frame(2, 2, size=2).prepare_mask(levels).tolist() == [[False, True], [False, True]]


# --- the content box ---


def black(height: int = 60, width: int = 80) -> np.ndarray:
    return np.zeros((height, width, 3), np.uint8)


def test_the_dark_border_is_cropped() -> None:
    image = black()
    image[25:50, 30:70] = 90
    assert content_frame(image, size=8) == Frame(80, 60, 30, 25, 70, 50, 8)


def test_twenty_is_still_border() -> None:
    image = black()
    image[...] = 20
    image[25:50, 30:70] = 21
    assert content_frame(image, size=8) == Frame(80, 60, 30, 25, 70, 50, 8)


def test_a_row_needs_more_than_ten_bright_values() -> None:
    image = black()
    image[25:50, 30:70] = 90
    image[22, 40:43] = 90  # 3 pixels, 9 values
    image[22, 43, 0] = 90  # 10 values
    assert content_frame(image, size=8).top == 25
    image[22, 43, 1] = 90  # 11 values
    assert content_frame(image, size=8).top == 22


def test_only_the_corner_is_ignored() -> None:
    image = black()
    image[25:50, 30:70] = 90
    image[:20, :20] = 255
    assert content_frame(image, size=8) == Frame(80, 60, 30, 25, 70, 50, 8)
    image[5:10, 20:30] = 255
    assert content_frame(image, size=8) == Frame(80, 60, 20, 5, 70, 50, 8)


def test_an_image_without_content_is_not_cropped() -> None:
    assert content_frame(black(), size=8) == whole_frame(80, 60, size=8)


def test_a_large_bright_image_does_not_overflow() -> None:
    assert content_frame(np.full((300, 400, 3), 255, np.uint8), size=8) == whole_frame(400, 300, size=8)


# --- frames.csv ---


def test_written_frames_are_read_again(tmp_path: Path) -> None:
    frames = {"images/a, b.png": Frame(80, 60, 30, 25, 70, 50, 8), "images/ä.png": whole_frame(3, 5, size=9)}
    write_frames(tmp_path / "frames.csv", frames)
    assert read_frames(tmp_path / "frames.csv") == frames


@pytest.mark.parametrize(
    ("text", "code", "fact"),
    [
        ("image_name,train_type,mask_name\n", "not-frames-csv", "image_name,width,height"),
        ("image_name,width,height,left,top,right,bottom,size\na.png,1,2,3\n", "invalid-frame", "line 2"),
    ],
)
def test_an_invalid_frames_csv(tmp_path: Path, text: str, code: str, fact: str, user_error: Callable[..., Any]) -> None:
    (tmp_path / "frames.csv").write_text(text)
    with user_error(code) as caught:
        read_frames(tmp_path / "frames.csv")
    assert "frames.csv" in str(caught.value)
    assert fact in str(caught.value)


def test_a_missing_frames_csv(tmp_path: Path) -> None:
    with pytest.raises(MissingFileError) as caught:
        read_frames(tmp_path / "frames.csv")
    assert caught.value.code == "missing-file"
    assert "frames.csv: " in str(caught.value)
