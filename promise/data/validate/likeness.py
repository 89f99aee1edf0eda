"""Which pictures look the same, by a perceptual hash and a thumbnail; knows no files and no splits.

The hash is 64 signs of the low frequencies in the cosine transform of the grey picture at 32 × 32 pixels: it survives
JPEG and resizing. It only proposes; the difference of 16 × 16 thumbnails decides.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import cv2
import numpy as np
from numpy.typing import NDArray

HASHED = 32  # side of what is hashed
SIDE = 16  # of a thumbnail
RADIUS = 10  # hashes that differ in at most so many of 64 bits are compared by thumbnail
COPY = 2.0  # root mean square difference, of 255, up to which two are practically the same picture
ALIKE = 10.0  # up to which it looks like another one
CANDIDATES = 64  # nearest hashes that are compared, of the same split and of others each

_ONES = np.array([bin(value).count("1") for value in range(1 << 16)], np.uint8)


@dataclass(frozen=True)
class Likeness:
    """What is kept of a picture."""

    bits: int  # 64
    thumbnail: NDArray[np.uint8]  # (16, 16) grey


@dataclass(frozen=True)
class Match:
    """The nearest other picture."""

    index: int
    difference: float  # root mean square of the thumbnails, of 255


def likeness(image: NDArray[np.uint8]) -> Likeness:
    """Hash and thumbnail of a picture (H, W, 3) uint8 RGB."""
    grey = cv2.cvtColor(image, cv2.COLOR_RGB2GRAY)
    small = cv2.resize(grey, (HASHED, HASHED), interpolation=cv2.INTER_AREA)
    low = np.asarray(cv2.dct(small.astype(np.float32)))[:8, :8].ravel()
    signs = low > np.median(low[1:])  # the first is the mean brightness
    thumbnail = cv2.resize(small, (SIDE, SIDE), interpolation=cv2.INTER_AREA)
    return Likeness(int.from_bytes(np.packbits(signs).tobytes(), "big"), np.asarray(thumbnail, np.uint8))


def nearest(pictures: Sequence[Likeness], ranks: Sequence[int]) -> tuple[list[Match | None], list[Match | None]]:
    """For each picture, the nearest one that looks like it.

    Args:
        pictures: N.
        ranks: N; a picture's split, in the order of use: train, val, test.

    Returns:
        The nearest of a lower rank, and the nearest of the same rank that stands before it; None where nothing
        looks alike. Time grows with N²: a second for 10,000.
    """
    bits = np.array([p.bits for p in pictures], np.uint64).view(np.uint16).reshape(-1, 4).T.copy()  # four quarters
    thumbnails = np.array([p.thumbnail for p in pictures], np.int16).reshape(len(pictures), SIDE * SIDE)
    rank = np.array(ranks)
    before: list[Match | None] = []
    within: list[Match | None] = []
    for index in range(len(pictures)):
        distance = _ONES[bits ^ bits[:, index, None]].sum(axis=0, dtype=np.uint8)
        close = np.flatnonzero(distance <= RADIUS)
        earlier = close[rank[close] < rank[index]]
        twins = close[(rank[close] == rank[index]) & (close < index)]
        before.append(_best(index, earlier, distance, thumbnails))
        within.append(_best(index, twins, distance, thumbnails))
    return before, within


def _best(
    index: int, close: NDArray[np.intp], distance: NDArray[np.uint8], thumbnails: NDArray[np.int16]
) -> Match | None:
    if close.size > CANDIDATES:
        close = close[np.argpartition(distance[close], CANDIDATES)[:CANDIDATES]]
    if not close.size:
        return None
    apart = (thumbnails[close] - thumbnails[index]).astype(np.float32)
    difference = np.sqrt((apart**2).mean(axis=1))
    best = int(np.argmin(difference))
    return Match(int(close[best]), float(difference[best])) if difference[best] <= ALIKE else None
