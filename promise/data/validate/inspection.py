"""What the image and the mask of one row are like: what cannot be used, sizes, foreground, hashes; no torch.

It compares nothing with other rows.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass

import cv2
import numpy as np
from numpy.typing import NDArray

from promise.data.images import content_hash, read_image, read_mask_and_value
from promise.data.table import Row, tell_sizes
from promise.data.validate.likeness import Likeness, likeness
from promise.runtime.errors import UserError

SPECK = 10  # a component of fewer pixels is a speck
MOSTLY = 0.5  # a mask of more foreground than this …
FRAMED = 0.9  # … that also takes this share of the picture's edge is suspected to be inverted


@dataclass(frozen=True)
class MaskFacts:
    """What a mask holds."""

    foreground: float  # share of the pixels
    components: int  # 8-connected
    specks: int  # components of fewer than 10 pixels
    edge: float  # share of the picture's edge that is foreground
    value: int  # what stands for foreground: 1 or 255; 0 where there is none
    content: str  # hash of size and pixels

    @property
    def inverted(self) -> bool:
        """Whether it looks like background and foreground were swapped."""
        return MOSTLY < self.foreground < 1 and self.edge >= FRAMED


@dataclass(frozen=True)
class Inspection:
    """Of one row."""

    faults: tuple[str, ...]
    size: tuple[int, int] | None  # height, width of the image
    content: str  # hash of the image file's bytes; empty when it cannot be read
    look: Likeness | None
    mask: MaskFacts | None


def inspect_row(row: Row) -> Inspection:
    """Decode both files of a row, every pixel of them; faults are returned, not raised."""
    faults = []
    size, content, look, facts = None, "", None, None
    try:
        image = read_image(row.image)
        size, content, look = (image.shape[0], image.shape[1]), content_hash(row.image), likeness(image)
    except UserError as error:
        faults.append(f"image {error}")
    try:
        mask, value = read_mask_and_value(row.mask)
        facts = describe_mask(mask, value)
        if size is not None and size != mask.shape:
            faults.append(tell_sizes(row, size, mask.shape))
    except UserError as error:
        faults.append(f"mask {error}")
    return Inspection(tuple(faults), size, content, look, facts)


def describe_mask(mask: NDArray[np.bool_], value: int) -> MaskFacts:
    """Facts of a mask (H, W) bool whose foreground is written as ``value``."""
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
    """Pixels of each 8-connected component of the foreground."""
    pixels = mask.view(np.uint8)
    left, top, width, height = cv2.boundingRect(pixels)
    if not width:
        return np.zeros(0, np.int32)
    inner = pixels[top : top + height, left : left + width]  # most of a mask is background
    number, _, stats, _ = cv2.connectedComponentsWithStats(inner, connectivity=8)
    return np.asarray(stats, np.int32)[1:number, cv2.CC_STAT_AREA]
