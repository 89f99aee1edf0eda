"""Clicks: the error they are placed in, and the masks that they correct."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from promise.inference import correction
from promise.inference.correction import Click, Corrected, apply_click, box_decoder, empty_logits
from promise.models.prompters.lesions import border_distance, largest_error

SIDE = 64


def rectangle(x0: int, y0: int, x1: int, y1: int, side: int = SIDE) -> np.ndarray:
    mask = np.zeros((side, side), bool)
    mask[y0 : y1 + 1, x0 : x1 + 1] = True
    return mask


def logits_of(mask: np.ndarray) -> np.ndarray:
    """Logits that grow with the distance to the outline, as those of a net."""
    return border_distance(mask) - border_distance(~mask)


def sam_of(target: np.ndarray) -> correction.DecodeBoxes:
    """A SAM that fills each box, and estimates its IoU with the target correctly."""

    def decode(boxes: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        masks = [rectangle(*np.clip(np.rint(box), 0, SIDE - 1).astype(int)) for box in boxes]
        ious = [(mask & target).sum() / (mask | target).sum() for mask in masks]
        return np.stack([logits_of(mask) for mask in masks]), np.array(ious, np.float32)

    return decode


def dice(logits: np.ndarray, target: np.ndarray) -> float:
    mask = logits > 0
    return 2 * (mask & target).sum() / (mask.sum() + target.sum())


def test_the_largest_error_is_a_component_with_its_centre() -> None:
    target = rectangle(10, 10, 30, 30)
    mask = rectangle(10, 10, 21, 30) | rectangle(50, 50, 54, 54)
    missed = largest_error(mask, target)  # columns 22 to 30, nine wide; the false square has 25 pixels
    assert missed is not None
    assert (missed.x, missed.missed, missed.radius) == (26, True, 5)
    assert 14 <= missed.y <= 26
    false = largest_error(target, rectangle(10, 10, 21, 30))
    assert false is not None
    assert (false.x, false.missed) == (26, False)
    assert largest_error(target, target) is None


def test_many_small_errors_do_not_outweigh_a_large_one() -> None:
    mask = np.zeros((SIDE, SIDE), bool)
    mask[::4, ::4] = True  # 256 false pixels, each a component
    error = largest_error(mask, mask | rectangle(20, 20, 24, 24))
    assert error is not None
    assert error.missed


def test_missed_regions_win_ties_and_the_border_of_the_image_is_a_border() -> None:
    error = largest_error(rectangle(40, 40, 48, 48), rectangle(0, 0, 8, 8))
    assert error is not None
    assert (error.x, error.y, error.missed, error.radius) == (4, 4, True, 5)


def test_a_positive_click_grows_the_mask_to_the_lesion() -> None:
    target, before = rectangle(10, 10, 40, 30), logits_of(rectangle(10, 10, 25, 30))
    error = largest_error(before > 0, target)
    assert error is not None
    after = apply_click(Corrected(before), Click(error.x, error.y, True), sam_of(target), side=SIDE)
    assert dice(before, target) < 0.7
    assert dice(after.logits, target) > 0.95
    assert after.clicks == (Click(error.x, error.y, True),)


def test_a_negative_click_cuts_the_mask() -> None:
    target, before = rectangle(10, 10, 40, 30), logits_of(rectangle(10, 10, 55, 30))
    error = largest_error(before > 0, target)
    assert error is not None
    after = apply_click(Corrected(before), Click(error.x, error.y, False), sam_of(target), side=SIDE)
    assert dice(after.logits, target) > 0.95 > dice(before, target)


def test_a_negative_click_erases_a_false_component_and_keeps_the_other() -> None:
    kept = rectangle(5, 5, 25, 25)
    before = logits_of(kept | rectangle(40, 40, 56, 56))
    after = apply_click(Corrected(before), Click(48, 48, False), sam_of(kept), side=SIDE)
    np.testing.assert_array_equal(after.logits > 0, kept)


def test_a_click_on_an_empty_mask_starts_a_lesion_around_it() -> None:
    target = rectangle(20, 24, 36, 40)
    after = apply_click(Corrected(empty_logits(SIDE, SIDE)), Click(28, 32, True), sam_of(target), side=SIDE)
    assert (after.logits > 0)[32, 28]
    assert dice(after.logits, target) > 0.8


def test_a_distant_click_adds_a_lesion_and_keeps_the_other() -> None:
    first = rectangle(4, 4, 12, 12)
    decode = sam_of(first | rectangle(46, 46, 54, 54))
    after = apply_click(Corrected(logits_of(first)), Click(50, 50, True), decode, side=SIDE)
    mask = after.logits > 0
    assert mask[50, 50]
    assert mask[first].all()
    assert not mask[30, 30]


def test_clicks_are_in_input_pixels_and_the_logits_may_be_smaller() -> None:
    small = np.full((16, 16), -3.0, np.float32)
    seen = []

    def decode(boxes: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        seen.append(boxes)
        one = np.where(rectangle(10, 2, 13, 5, side=16), 3.0, -3.0).astype(np.float32)
        return np.stack([one] * len(boxes)), np.ones(len(boxes), np.float32)

    after = apply_click(Corrected(small), Click(47, 15, True), decode, side=SIDE)
    assert (after.logits > 0)[3, 11]  # (47 + 0.5) / 4 and (15 + 0.5) / 4
    middle = (seen[0][0, :2] + seen[0][0, 2:]) / 2
    np.testing.assert_allclose(middle, [(11 + 0.5) * 4 - 0.5, (3 + 0.5) * 4 - 0.5])


def test_earlier_clicks_stay_satisfied() -> None:
    state = Corrected(logits_of(rectangle(10, 10, 25, 30)))
    for click in (Click(33, 20, True), Click(33, 40, False), Click(50, 20, False)):
        state = apply_click(state, click, sam_of(rectangle(10, 10, 40, 30)), side=SIDE)
    mask = state.logits > 0
    assert [bool(mask[int(c.y), int(c.x)]) for c in state.clicks] == [c.positive for c in state.clicks]


def test_boxes_are_decoded_by_frozen_sam_without_the_token_shift(build) -> None:
    net = build("APM_IPS_cross", num_points=4)
    encoded = net.encode(torch.rand(1, 3, SIDE, SIDE, generator=torch.Generator().manual_seed(0)))
    boxes = np.array([[4, 4, 30, 40], [10, 8, 50, 60], [0, 0, 63, 63], [1, 2, 9, 9], [5, 5, 20, 20]], np.float32)
    logits, iou = box_decoder(net, encoded)(boxes)
    assert logits.shape == (5, 16, 16)
    assert iou.shape == (5,)
    sam = build("SAM")
    sam.sam.load_state_dict(net.sam.state_dict())
    alone, _ = box_decoder(sam, encoded)(boxes[3:4])
    np.testing.assert_allclose(logits[3], alone[0], atol=1e-4)
    assert np.abs(logits[3] - logits[0]).max() > 1e-3


@pytest.mark.parametrize("positive", [True, False])
def test_a_click_is_satisfied_where_sam_finds_nothing(positive: bool) -> None:
    def decode(boxes: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        return np.full((len(boxes), SIDE, SIDE), -5 if positive else 5, np.float32), np.ones(len(boxes), np.float32)

    before = empty_logits(SIDE, SIDE) if positive else -empty_logits(SIDE, SIDE)
    after = apply_click(Corrected(before), Click(40, 20, positive), decode, side=SIDE)
    mask = after.logits > 0
    assert mask[20, 40] == positive
    assert (mask == positive).mean() < 0.5 or not positive  # only the component is erased, here the whole image


@pytest.mark.parametrize("positive", [True, False])
def test_any_click_on_any_mask_gives_finite_logits(build, positive: bool) -> None:
    net = build("SAM")
    generator = np.random.default_rng(0)
    encoded = net.encode(torch.rand(1, 3, SIDE, SIDE, generator=torch.Generator().manual_seed(1)))
    decode = box_decoder(net, encoded)
    for logits in (empty_logits(16, 16), -empty_logits(16, 16), generator.normal(size=(16, 16)).astype(np.float32)):
        state = Corrected(logits)
        for x, y in generator.uniform(0, SIDE - 1, (3, 2)):
            state = apply_click(state, Click(x, y, positive), decode, side=SIDE)
        assert np.isfinite(state.logits).all()
        assert state.logits.dtype == np.float32
