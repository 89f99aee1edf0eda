"""The predicted mask of one image."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from promise.inference.contours import outlines, smooth_outlines
from promise.prompts.sets import ImagePrompts


@dataclass(frozen=True)
class Segmentation:
    """The predicted mask of one image, with the prompts that produced it.

    Masks have the size of the image, H rows and W columns. Coordinates are pixels of the image, x before y; (0, 0) is
    the centre of the first pixel.

    A net that finds lesions decodes one mask per lesion; the result is their union. Without a lesion the mask is empty.
    Other nets prompt one object.

    Attributes:
        mask: (H, W) bool, True for foreground, after postprocessing.
        probability: (H, W) float32 in [0, 1], before postprocessing.
        iou: SAM's estimate of the IoU of the mask with the object; of several lesions the mean, 0 without a lesion.
        ious: (3,) float32, the estimates for all three multimask masks.
        prompts: the prompts that were used: ``prompts.sets`` has one entry per lesion, with ``xy``, ``label``, ``box``
            and ``mask``.
        logits: (4E, 4E) float32 logits of the decoder, which ``Session.predict`` accepts as ``mask``. E is the side of
            the image embedding.
        mask_index: which of SAM's three multimask masks this is, 0 to 2; ``None``: SAM's single mask.
        seconds: duration of prompting and decoding.
        quality: the net's learned estimate of the IoU of its automatic mask; ``None`` if the checkpoint has none, for
            other prompts, or without a lesion. See ``docs/predict.md``.
        threshold: pixels with at least this probability are foreground, before other postprocessing.
        points: (P, 2) float64, the point prompts of all lesions.
        labels: (P,) int64, 1 foreground, 0 background, -1 a padding point, which is ignored.
        lesion: (P,) int64, the number of the lesion of each point, from 0.
        boxes: (L, 4) float64 x0, y0, x1, y1, the boxes of the lesions that have one.
        box: (4,) float64, the only box; ``None`` if there are none or several.
        lesions: number of lesions that were prompted; 0: none was found, and the mask is empty.
        area: number of foreground pixels.
        fraction: fraction of the image that the mask covers, in [0, 1].
        choice: older name of ``mask_index``.
        share: older name of ``fraction``.
    """

    mask: npt.NDArray[np.bool_]
    probability: npt.NDArray[np.float32]
    iou: float
    ious: npt.NDArray[np.float32]
    prompts: ImagePrompts
    logits: npt.NDArray[np.float32]
    mask_index: int | None
    seconds: float
    quality: float | None = None
    threshold: float = 0.5

    @property
    def points(self) -> npt.NDArray[np.float64]:
        """(P, 2), the point prompts of all lesions."""
        return self.prompts.xy

    @property
    def labels(self) -> npt.NDArray[np.int64]:
        """(P,), their labels."""
        return self.prompts.label

    @property
    def lesion(self) -> npt.NDArray[np.int64]:
        """(P,), the number of the lesion of each point, from 0."""
        return self.prompts.lesion

    @property
    def boxes(self) -> npt.NDArray[np.float64]:
        """(L, 4), the boxes of the lesions that have one."""
        return self.prompts.boxes

    @property
    def box(self) -> npt.NDArray[np.float64] | None:
        """(4,), the only box; ``None`` if there are none or several."""
        return self.prompts.box

    @property
    def lesions(self) -> int:
        """Number of lesions that were prompted; 0: none was found, and the mask is empty."""
        return len(self.prompts.sets)

    @property
    def area(self) -> int:
        """Number of foreground pixels."""
        return int(np.count_nonzero(self.mask))

    @property
    def fraction(self) -> float:
        """Fraction of the image that the mask covers, in [0, 1]."""
        return self.area / self.mask.size

    @property
    def choice(self) -> int | None:
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

    def smooth_contours(self) -> list[npt.NDArray[np.float64]]:
        """Outlines with subpixel accuracy, for display: see :func:`promise.inference.contours.smooth_outlines`.

        Returns:
            One array (N, 2) per outline: x, y between the centres of foreground and background pixels.
        """
        return smooth_outlines(self.mask, self.probability, self.threshold)
