"""The prompts of images in NumPy: prompt sets, one per lesion, and their conversion to and from the net's input.

``(0, 0)`` is the centre of the first pixel, in the frame of the image and in that of the net's input. A float32
coordinate that is written and read again is unchanged, bit for bit.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import numpy as np
import numpy.typing as npt

Size = tuple[int, int]  # width, height


def _no_points() -> npt.NDArray[np.float64]:
    return np.zeros((0, 2))


def _no_labels() -> npt.NDArray[np.int64]:
    return np.zeros(0, np.int64)


@dataclass(frozen=True)
class PromptSet:
    """The prompts of one lesion. A set without prompts is valid: SAM then decodes the image features alone."""

    xy: np.ndarray = field(default_factory=_no_points)  # (P, 2) float, x before y
    label: np.ndarray = field(default_factory=_no_labels)  # (P,) int64: 1 foreground, 0 background, -1 padding
    box: np.ndarray | None = None  # (4,) float x0, y0, x1, y1
    mask: np.ndarray | None = None  # (h, w) float32 logits: SAM's mask prompt, in the decoder's own frame
    # Points that the net places on the lesion but does not decode, like xy and label: for display and scores.
    suggested_xy: np.ndarray = field(default_factory=_no_points)
    suggested_label: np.ndarray = field(default_factory=_no_labels)

    @property
    def shape(self) -> tuple[object, ...]:
        """Sets of the same shape can be decoded in one batch."""
        mask = None if self.mask is None else self.mask.shape
        return len(self.xy), self.box is not None, mask, len(self.suggested_xy)

    @property
    def is_empty(self) -> bool:
        """Whether there is no prompt."""
        return not len(self.xy) and self.box is None and self.mask is None


class SetArrays:
    """Arrays over the prompt sets of an image; a base class of types with a field ``sets``."""

    sets: tuple[PromptSet, ...]

    @property
    def xy(self) -> npt.NDArray[np.float64]:
        """(P, 2), the points of all lesions."""
        return np.concatenate([_no_points(), *(one.xy for one in self.sets)])

    @property
    def label(self) -> npt.NDArray[np.int64]:
        """(P,), their labels."""
        return np.concatenate([_no_labels(), *(one.label for one in self.sets)])

    @property
    def placed_xy(self) -> npt.NDArray[np.float64]:
        """(Q, 2), the points of all lesions, then those that are only suggested."""
        return np.concatenate([self.xy, *(one.suggested_xy for one in self.sets)])

    @property
    def placed_label(self) -> npt.NDArray[np.int64]:
        """(Q,), their labels."""
        return np.concatenate([self.label, *(one.suggested_label for one in self.sets)])

    @property
    def lesion(self) -> npt.NDArray[np.int64]:
        """(P,), the number of the lesion of each point, from 0."""
        return np.repeat(np.arange(len(self.sets)), [len(one.xy) for one in self.sets]).astype(np.int64)

    @property
    def boxes(self) -> npt.NDArray[np.float64]:
        """(L, 4), the boxes of the lesions that have one."""
        boxes = [one.box for one in self.sets if one.box is not None]
        return np.stack(boxes) if boxes else np.zeros((0, 4))

    @property
    def box(self) -> npt.NDArray[np.float64] | None:
        """(4,), the only box; ``None`` if there are none or several."""
        boxes = self.boxes
        return boxes[0] if len(boxes) == 1 else None


@dataclass(frozen=True)
class ImagePrompts(SetArrays):
    """The prompts of one image, in pixels of the image."""

    size: Size
    sets: tuple[PromptSet, ...]  # one per lesion; (): no lesion, an empty mask
    mask_index: int | None = None  # which of SAM's three multimask masks is used; None: the net's own output
    fuse: bool = False  # whether the net's map of lesions is added to the mask, if the net has one

    @staticmethod
    def of(
        sets: Sequence[PromptSet], *, side: int, size: Size, mask_index: int | None = None, fuse: bool = False
    ) -> ImagePrompts:
        """Convert prompt sets from a square net input of ``side`` pixels to an image of ``size`` (width, height)."""
        scale = np.asarray(size, np.float64) / side

        def convert(one: PromptSet) -> PromptSet:
            xy, suggested = ((np.asarray(x, np.float64) + 0.5) * scale - 0.5 for x in (one.xy, one.suggested_xy))
            box = None if one.box is None else (np.asarray(one.box, np.float64) + 0.5) * np.tile(scale, 2) - 0.5
            labels = (np.asarray(x, np.int64) for x in (one.label, one.suggested_label))
            return PromptSet(xy, next(labels), box, one.mask, suggested, next(labels))

        return ImagePrompts(size, tuple(map(convert, sets)), mask_index, fuse)

    def at(self, side: int) -> tuple[PromptSet, ...]:
        """The prompt sets in a net input of ``side`` pixels, coordinates in float32."""
        scale = side / np.asarray(self.size, np.float64)

        def convert(corners: np.ndarray) -> np.ndarray:
            """Round away the error of float64, so that the float32 result is exact: 0 is read back as 0."""
            return np.round((corners + 0.5) * scale - 0.5, 9).astype(np.float32)

        return tuple(
            replace(
                one,
                xy=convert(one.xy),
                suggested_xy=convert(one.suggested_xy),
                box=None if one.box is None else convert(one.box.reshape(2, 2)).reshape(4),
            )
            for one in self.sets
        )
