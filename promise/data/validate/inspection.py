"""Inspect the image and the mask of one row: errors, sizes, foreground, hashes; rows are not compared here."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass

import cv2
import numpy as np
from numpy.typing import NDArray

from promise.data.images import content_hash, read_image
from promise.data.masks import describe_turn, read_mask_and_value, size_mismatch
from promise.data.table import Row
from promise.data.validate.likeness import Fingerprint, fingerprint
from promise.runtime.errors import UserError

SPECK = 10  # pixels; smaller components are specks
INVERTED_AREA = 0.5  # a mask with a larger fraction of foreground than this …
INVERTED_EDGE = 0.9  # … and at least this fraction of foreground on its edge may be inverted


@dataclass(frozen=True)
class MaskFacts:
    """Properties of a mask."""

    foreground: float  # fraction of the pixels
    components: int  # 8-connected
    specks: int  # components of fewer than 10 pixels
    edge: float  # fraction of the pixels on the edge of the image that are foreground
    value: int  # value of foreground pixels: 1 or 255; 0 for an empty mask
    content: str  # hash of size and pixels

    @property
    def inverted(self) -> bool:
        """Whether foreground and background may be swapped."""
        return INVERTED_AREA < self.foreground < 1 and self.edge >= INVERTED_EDGE


@dataclass(frozen=True)
class Inspection:
    """The result for one row."""

    errors: tuple[UserError, ...]
    size: tuple[int, int] | None  # (height, width) of the image; None if it cannot be read
    content: str  # hash of the bytes of the image file; empty if it cannot be read
    fingerprint: Fingerprint | None
    mask: MaskFacts | None  # None if the mask cannot be read
    turn: str | None = None  # a warning about different EXIF orientations of image and mask


def inspect_row(row: Row) -> Inspection:
    """Decode all pixels of both files of a row; errors are returned, not raised."""
    errors: list[UserError] = []
    size, content, look, facts, turn = None, "", None, None, None
    try:
        image = read_image(row.image)
        size, content, look = (image.shape[0], image.shape[1]), content_hash(row.image), fingerprint(image)
    except UserError as error:
        errors.append(UserError(f"image {error}", code=error.code))
    try:
        mask, value = read_mask_and_value(row.mask)
        facts = describe_mask(mask, value)
        if size is not None and size != mask.shape:
            errors.append(size_mismatch(row.image, size, row.mask, mask.shape))
        turn = None if errors else describe_turn(row.image, row.mask)
    except UserError as error:
        errors.append(UserError(f"mask {error}", code=error.code))
    return Inspection(tuple(errors), size, content, look, facts, turn)


def describe_mask(mask: NDArray[np.bool_], value: int) -> MaskFacts:
    """The properties of a mask.

    Args:
        mask: (H, W) bool.
        value: value of foreground pixels in the file.
    """
    areas = _component_areas(mask)
    edge = np.concatenate((mask[0], mask[-1], mask[:, 0], mask[:, -1]))
    digest = hashlib.blake2b(repr(mask.shape).encode(), digest_size=8)
    digest.update(np.packbits(mask).tobytes())
    return MaskFacts(
        foreground=float(mask.mean()),
        components=int(areas.size),
        specks=int((areas < SPECK).sum()),
        edge=float(edge.mean()),
        value=value,
        content=digest.hexdigest(),
    )


def _component_areas(mask: NDArray[np.bool_]) -> NDArray[np.int32]:
    """The number of pixels of each 8-connected component of the foreground."""
    pixels = mask.view(np.uint8)
    left, top, width, height = cv2.boundingRect(pixels)
    if not width:
        return np.zeros(0, np.int32)
    inner = pixels[top : top + height, left : left + width]  # faster: most of a mask is background
    number, _, stats, _ = cv2.connectedComponentsWithStats(inner, connectivity=8)
    return np.asarray(stats, np.int32)[1:number, cv2.CC_STAT_AREA]
