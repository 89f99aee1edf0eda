"""An encoded image that is prompted repeatedly."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from promise.inference.loop import predict_batch
from promise.inference.segmentation import Segmentation, Size
from promise.prompts.file import parse_prompts
from promise.prompts.source import PromptGroup, stack_prompts
from promise.runtime.errors import UserError
from promise.types import Encoded, Prompts

if TYPE_CHECKING:
    from promise.inference.segmenter import Segmenter


class Session:
    """An encoded image that can be prompted repeatedly. Created by :meth:`Segmenter.session`.

    Results do not depend on earlier prompts: the same prompts always produce the same mask.

    Attributes:
        size: (width, height) of the image in pixels.
    """

    def __init__(self, segmenter: Segmenter, encoded: Encoded, size: Size) -> None:
        self._segmenter = segmenter
        self._encoded = encoded
        self.size = size

    def automatic(self) -> Segmentation:
        """Segment the image with the net's own prompts.

        Returns:
            The same result as :meth:`Segmenter.predict` for this image.

        Raises:
            UserError: the net has no prompter (``net-without-prompter``).
        """
        self._segmenter.require_prompter()
        return self._decode(None)

    def predict(
        self,
        points: npt.ArrayLike | Tensor | None = None,
        labels: npt.ArrayLike | Tensor | None = None,
        box: npt.ArrayLike | Tensor | None = None,
        mask: npt.ArrayLike | Tensor | None = None,
        mask_index: int = 0,
        *,
        choice: int | None = None,
    ) -> Segmentation:
        """Segment the image with prompts. Without points, box and mask, the net's own prompts are used.

        Args:
            points: (P, 2) x, y in pixels of the image; (0, 0) is the centre of the first pixel.
            labels: (P,) 1 for foreground, 0 for background; default: all foreground.
            box: (4,) x0, y0, x1, y1 in pixels of the image.
            mask: (4E, 4E) logits of an earlier result, used as SAM's mask prompt.
            mask_index: which of SAM's three multimask masks to return, 0 to 2. The nets are trained on the first.
            choice: older name of ``mask_index``.

        Returns:
            The mask, with the prompts that were used.

        Raises:
            UserError: prompts of wrong shapes, or outside the image (all faults are reported together); no prompts,
                and the net has no prompter (``net-without-prompter``).
        """
        if choice is not None and mask_index not in (0, choice):
            message = f"mask_index is {mask_index} and choice, its older name, is {choice}: pass only mask_index."
            raise UserError(message, code="conflicting-mask-index")
        index = _to_lists(mask_index if choice is None else choice)  # a NumPy integer becomes an int
        xy = [] if points is None else _to_lists(points)
        marks = [1] * len(xy) if labels is None and isinstance(xy, list) else _to_lists(labels)
        corners = None if box is None else _to_lists(box)
        entry = {"size": list(self.size), "points": xy, "labels": marks, "box": corners, "mask_index": index}
        prompts, errors = parse_prompts(entry, self.size, self._segmenter.side)
        logits = None
        try:
            logits = None if mask is None else self._mask_prompt(mask)
        except UserError as error:
            errors.append(error)
        if errors or prompts is None:
            message = "; ".join(str(error) for error in errors) + "."
            raise UserError(message, code="invalid-prompts", errors=errors)
        if not len(prompts.xy) and box is None and mask is None:
            self._segmenter.require_prompter()
            return self._decode(None, prompts.mask_index)
        stacked = stack_prompts([replace(prompts, mask=logits)], self._segmenter.side)
        return replace(self._decode(stacked, prompts.mask_index), points=prompts.xy, box=prompts.box)

    def _mask_prompt(self, mask: npt.ArrayLike | Tensor) -> npt.NDArray[np.float32]:
        side = self._segmenter.mask_side
        logits = mask if isinstance(mask, Tensor) else torch.from_numpy(np.asarray(mask, np.float32))
        if logits.shape != (side, side):
            message = f"mask must be the ({side}, {side}) logits of an earlier result, not {tuple(logits.shape)}"
            raise UserError(message, code="mask-shape-mismatch")
        if not logits.isfinite().all():
            raise UserError("mask must contain finite logits", code="mask-not-finite")
        return logits.float().cpu().numpy()

    def _decode(self, prompts: Prompts | None, mask_index: int = 0) -> Segmentation:
        segmenter = self._segmenter
        batch = segmenter.batch(self._encoded, [""])
        row = predict_batch(segmenter.net, batch, PromptGroup([0], prompts, mask_index), segmenter.device)[0]
        return segmenter.finish(row, self.size)


def _to_lists(values: Any) -> Any:
    """Arrays and tensors as lists. Other values are returned unchanged and rejected by the checks that follow."""
    try:
        return values.tolist() if isinstance(values, Tensor) else np.asarray(values).tolist()
    except ValueError:  # ragged
        return values
