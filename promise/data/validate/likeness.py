"""Find images that look alike, by a perceptual hash and a thumbnail.

The hash has 64 bits: the signs of the low frequencies in the cosine transform of the grey image at 32 × 32 pixels. It
is robust to JPEG compression and resizing. The hash selects candidates; the difference of 16 × 16 thumbnails decides.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import cv2
import numpy as np
from numpy.typing import NDArray

HASHED_SIDE = 32  # pixels; side of the image that is hashed
THUMBNAIL_SIDE = 16  # pixels
MAX_BITS = 10  # images whose hashes differ in at most this many of 64 bits are compared by thumbnail
COPY = 2.0  # two images are copies up to this root mean square difference of the thumbnails, in grey levels of 255
ALIKE = 10.0  # two images look alike up to this difference
CANDIDATES = 64  # number of nearest hashes that are compared, separately for the same split and for other splits

_ONES = np.array([bin(value).count("1") for value in range(1 << 16)], np.uint8)


@dataclass(frozen=True)
class Fingerprint:
    """The hash and the thumbnail of an image."""

    bits: int  # 64 bits
    thumbnail: NDArray[np.uint8]  # (16, 16) grey


@dataclass(frozen=True)
class Match:
    """The nearest other image."""

    index: int
    difference: float  # root mean square difference of the thumbnails, in grey levels of 255


def difference(first: Fingerprint, second: Fingerprint) -> float:
    """Root mean square difference of two thumbnails, in grey levels of 255."""
    return float(np.sqrt(((first.thumbnail.astype(np.float32) - second.thumbnail) ** 2).mean()))


def fingerprint(image: NDArray[np.uint8]) -> Fingerprint:
    """Hash and thumbnail of an image, (H, W, 3) uint8 RGB."""
    grey = cv2.cvtColor(image, cv2.COLOR_RGB2GRAY)
    small = cv2.resize(grey, (HASHED_SIDE, HASHED_SIDE), interpolation=cv2.INTER_AREA)
    low = np.asarray(cv2.dct(small.astype(np.float32)))[:8, :8].ravel()
    signs = low > np.median(low[1:])  # the first coefficient is the mean brightness
    thumbnail = cv2.resize(small, (THUMBNAIL_SIDE, THUMBNAIL_SIDE), interpolation=cv2.INTER_AREA)
    return Fingerprint(int.from_bytes(np.packbits(signs).tobytes(), "big"), np.asarray(thumbnail, np.uint8))


def nearest(images: Sequence[Fingerprint], ranks: Sequence[int]) -> tuple[list[Match | None], list[Match | None]]:
    """For each image, find the nearest images that look alike.

    Args:
        images: N fingerprints.
        ranks: N; the split of each image, as its index in train, val, test.

    Returns:
        Two lists of length N: the nearest image of a lower rank, and the nearest image of the same rank with a lower
        index; ``None`` if no image looks alike. The time is quadratic in N, about one second for 10,000 images.
    """
    bits = np.array([p.bits for p in images], np.uint64).view(np.uint16).reshape(-1, 4).T.copy()  # (4, N)
    thumbnails = np.array([p.thumbnail for p in images], np.int16).reshape(len(images), THUMBNAIL_SIDE**2)
    rank = np.array(ranks)
    before: list[Match | None] = []
    within: list[Match | None] = []
    for index in range(len(images)):
        distance = _ONES[bits ^ bits[:, index, None]].sum(axis=0, dtype=np.uint8)
        close = np.flatnonzero(distance <= MAX_BITS)
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
    differences = np.sqrt(((thumbnails[close] - thumbnails[index]).astype(np.float32) ** 2).mean(axis=1))
    best = int(np.argmin(differences))
    return Match(int(close[best]), float(differences[best])) if differences[best] <= ALIKE else None
