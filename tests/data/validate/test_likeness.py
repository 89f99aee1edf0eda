from __future__ import annotations

import time

import cv2
import numpy as np
import pytest

from promise.data.phantom import make_phantom
from promise.data.validate.likeness import ALIKE, COPY, Fingerprint, Match, difference, fingerprint, nearest

PHANTOMS = [make_phantom(seed=9, index=i, size=(128, 160))[0] for i in range(12)]


def reencoded(image: np.ndarray, *, scale: float, quality: int) -> np.ndarray:
    size = (round(image.shape[1] * scale), round(image.shape[0] * scale))
    small = cv2.resize(image, size, interpolation=cv2.INTER_LINEAR)
    data = cv2.imencode(".jpg", small[:, :, ::-1], [cv2.IMWRITE_JPEG_QUALITY, quality])[1]
    return np.ascontiguousarray(cv2.imdecode(data, cv2.IMREAD_COLOR)[:, :, ::-1])


@pytest.mark.parametrize(("scale", "quality"), [(0.5, 70), (1, 40), (2, 90), (0.7, 70)])
def test_a_copy_is_found_and_nothing_else(scale: float, quality: int) -> None:
    looks = [fingerprint(image) for image in PHANTOMS]
    copies = [fingerprint(reencoded(image, scale=scale, quality=quality)) for image in PHANTOMS]
    before, within = nearest([*looks, *copies], [0] * 12 + [2] * 12)
    assert before[:12] == [None] * 12
    assert [match and match.index for match in before[12:]] == list(range(12))
    assert all(match is not None and match.difference <= COPY for match in before[12:])
    assert within == [None] * 24


def test_matches_of_the_same_rank_are_reported_for_the_later_image_only() -> None:
    look = [fingerprint(PHANTOMS[0])] * 2
    assert nearest(look, [1, 1]) == ([None, None], [None, Match(0, 0.0)])
    assert nearest(look, [1, 0]) == ([Match(1, 0.0), None], [None, None])


def test_flat_images_of_different_brightness_do_not_look_alike() -> None:
    flat = [fingerprint(np.full((40, 40, 3), value, np.uint8)) for value in (10, 30)]
    assert nearest(flat, [0, 0])[1] == [None, None]


def test_the_nearest_of_several_is_returned() -> None:
    base = PHANTOMS[0].astype(int)
    near, nearer = (np.clip(base + shift, 0, 255).astype(np.uint8) for shift in (6, 3))
    before, _ = nearest([fingerprint(near), fingerprint(nearer), fingerprint(PHANTOMS[0])], [0, 0, 2])
    assert before[2] is not None
    assert before[2].index == 1
    assert before[2].difference == pytest.approx(3, abs=0.5)
    assert before[2].difference < ALIKE
    assert before[2].difference == pytest.approx(difference(fingerprint(nearer), fingerprint(PHANTOMS[0])))


def test_an_empty_set_has_no_matches() -> None:
    assert nearest([], []) == ([], [])


@pytest.mark.parametrize("distinct", [True, False])
def test_ten_thousand_take_seconds(distinct: bool) -> None:
    rng = np.random.default_rng(0)
    looks = [
        Fingerprint(int(rng.integers(2**63)) if distinct else 0, np.zeros((16, 16), np.uint8)) for _ in range(10_000)
    ]
    started = time.process_time()
    before, _ = nearest(looks, [i % 3 for i in range(10_000)])
    assert time.process_time() - started < 20  # 3 to 7 s here
    assert sum(match is not None for match in before) == (0 if distinct else 6666)
