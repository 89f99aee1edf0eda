"""The predicted mask of one image."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from promise.inference.contours import outlines

Size = tuple[int, int]  # width, height


@dataclass(frozen=True)
class Segmentation:
    """The predicted mask of one image, with the prompts that produced it.

    Masks have the size of the image, H rows and W columns. Coordinates are pixels of the image, x before y; (0, 0) is
    the centre of the first pixel.

    Attributes:
        mask: (H, W) bool, True for foreground, after postprocessing.
        probability: (H, W) float32 in [0, 1], before postprocessing.
        iou: SAM's estimate of the IoU of the mask with the object.
        ious: (3,) float32, the estimates for all three multimask masks.
        points: (P, 2) float64, the point prompts that were used.
        labels: (P,) int64, 1 foreground, 0 background.
        box: (4,) float64 x0, y0, x1, y1, the box that was used, or ``None``.
        logits: (4E, 4E) float32 logits of the decoder, which ``Session.predict`` accepts as ``mask``. E is the side of
            the image embedding.
        mask_index: which of SAM's three multimask masks this is, 0 to 2.
        seconds: duration of prompting and decoding.
        area: number of foreground pixels.
        fraction: fraction of the image that the mask covers, in [0, 1].
        choice: older name of ``mask_index``.
        share: older name of ``fraction``.
    """

    mask: npt.NDArray[np.bool_]
    probability: npt.NDArray[np.float32]
    iou: float
    ious: npt.NDArray[np.float32]
    points: npt.NDArray[np.float64]
    labels: npt.NDArray[np.int64]
    box: npt.NDArray[np.float64] | None
    logits: npt.NDArray[np.float32]
    mask_index: int
    seconds: float

    @property
    def area(self) -> int:
        """Number of foreground pixels."""
        return int(np.count_nonzero(self.mask))

    @property
    def fraction(self) -> float:
        """Fraction of the image that the mask covers, in [0, 1]."""
        return self.area / self.mask.size

    @property
    def choice(self) -> int:
        """Older name of :attr:`mask_index`."""
        return self.mask_index

    @property
    def share(self) -> float:
        """Older name of :attr:`fraction`."""
        return self.fraction

    def contours(self) -> list[npt.NDArray[np.int32]]:
        """Outlines of all components and holes of the mask.

        Returns:
            One array (N, 2) per outline: x, y of the border pixels at which the direction changes.
        """
        return outlines(self.mask)
