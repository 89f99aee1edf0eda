"""An encoded image that is prompted repeatedly."""

from __future__ import annotations

import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from promise.inference.correction import Click, Corrected, apply_click, box_decoder
from promise.inference.loop import predict_batch
from promise.inference.postprocess import probability_at
from promise.inference.segmentation import Segmentation
from promise.prompts.entry import parse_prompts
from promise.prompts.sets import ImagePrompts, PromptSet, Size
from promise.prompts.source import PromptGroup, group_prompts
from promise.runtime.errors import UserError
from promise.types import Encoded

if TYPE_CHECKING:
    from promise.inference.segmenter import Segmenter

PARTS = ("points", "labels", "box", "mask")  # prompts of a lesion


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
        # The logits before the last correction, and its result: the next click continues from it.
        self._corrected: tuple[npt.NDArray[np.float32], Corrected] | None = None

    def automatic(self) -> Segmentation:
        """Segment the image with the net's own prompts.

        Returns:
            The same result as :meth:`Segmenter.predict` for this image. If a net finds no lesion, the mask is empty.

        Raises:
            UserError: the net has no prompter (``net-without-prompter``).
        """
        self._segmenter.require_prompter()
        return self._decode(PromptGroup([0], None))

    def predict(  # noqa: PLR0913 (one argument for each kind of prompt)
        self,
        points: npt.ArrayLike | Tensor | None = None,
        labels: npt.ArrayLike | Tensor | None = None,
        box: npt.ArrayLike | Tensor | None = None,
        mask: npt.ArrayLike | Tensor | None = None,
        mask_index: int | None = None,
        *,
        boxes: npt.ArrayLike | Tensor | None = None,
        lesions: Sequence[PromptSet | Mapping[str, Any]] | None = None,
        fuse: bool = False,
        choice: int | None = None,
    ) -> Segmentation:
        """Segment the image with prompts: of one object, or of several lesions.

        ``points``, ``labels``, ``box`` and ``mask`` prompt one object. ``boxes`` and ``lesions`` prompt several: one
        mask is decoded for each, and the result is their union. Without any prompts, the net's own are used.

        Args:
            points: (P, 2) x, y in pixels of the image; (0, 0) is the centre of the first pixel.
            labels: (P,) 1 for foreground, 0 for background; default: all foreground.
            box: (4,) x0, y0, x1, y1 in pixels of the image.
            mask: (4E, 4E) logits of an earlier result, used as SAM's mask prompt.
            mask_index: which of SAM's three multimask masks to return, 0 to 2; default: the net's own output, on which
                it is trained.
            boxes: (L, 4), one lesion per box.
            lesions: the prompts of each lesion: a mapping with any of ``points``, ``labels``, ``box`` and ``mask``, as
                above, or an element of ``Segmentation.prompts.sets``. An empty list means no lesion: the mask is empty.
            fuse: whether the net's map of lesions is added to the mask, as for its own prompts. Nets without such a map
                ignore it.
            choice: older name of ``mask_index``.

        Returns:
            The mask, with the prompts that were used.

        Raises:
            UserError: prompts of wrong shapes, or outside the image (all faults are reported together); several ways to
                pass prompts at once (``conflicting-prompts``); a lesion without prompts (``lesion-without-prompts``);
                no prompts, and the net has no prompter (``net-without-prompter``).

        Examples:
            >>> session.predict(points=[[30, 40]], box=[10, 12, 50, 47])  # doctest: +SKIP
            >>> session.predict(lesions=[{"box": [10, 12, 50, 47]}, {"points": [[70, 20]]}])  # doctest: +SKIP
        """
        if choice is not None and mask_index not in (None, choice):
            message = f"mask_index is {mask_index} and choice, its older name, is {choice}: pass only mask_index."
            raise UserError(message, code="conflicting-mask-index")
        index = mask_index if choice is None else choice
        one = {
            name: value
            for name, value in (("points", points), ("labels", labels), ("box", box), ("mask", mask))
            if value is not None
        }
        if sum((bool(one), boxes is not None, lesions is not None)) > 1:
            raise UserError(
                "pass the prompts of one object (points, labels, box, mask), boxes or lesions, not several of them.",
                code="conflicting-prompts",
            )
        if boxes is not None:
            lesions = [{"box": corners} for corners in _to_list_of_lists(boxes)]
        prompts = self._check([one] if lesions is None else lesions, index, fuse)
        if lesions is None and prompts.sets[0].is_empty:
            self._segmenter.require_prompter()
            return self._decode(PromptGroup([0], None, prompts.mask_index))
        empty = [number for number, each in enumerate(prompts.sets, start=1) if each.is_empty]
        if empty:
            raise UserError(
                f"lesion {empty[0]} of {len(prompts.sets)} has no prompts: pass points, a box or a mask for each.",
                code="lesion-without-prompts",
            )
        (group,) = group_prompts([prompts], self._segmenter.side)
        return replace(self._decode(group), prompts=prompts)

    def correct(
        self,
        points: npt.ArrayLike | Tensor,
        labels: npt.ArrayLike | Tensor | None = None,
        *,
        before: Segmentation | None = None,
    ) -> Segmentation:
        """Correct a mask with clicks, one after another, as ``promise-eval --clicks`` measures it.

        A click is not a prompt: it marks an error of the mask, near the centre of that error. See
        :mod:`promise.inference.correction`.

        Args:
            points: (P, 2) x, y of the clicks in pixels of the image, in their order.
            labels: (P,) 1 where the mask misses a lesion, 0 where it is wrong; default: all 1.
            before: the mask that is corrected, a result of this session; default: the automatic one.

        Returns:
            The corrected mask. Its prompts are those of ``before``. It has no estimate of its IoU: ``iou`` and ``ious``
            are NaN.

        Raises:
            UserError: points outside the image, or labels other than 0 and 1 (``invalid-prompts``); no mask to correct,
                and the net has no prompter (``net-without-prompter``).

        Examples:
            >>> session.correct([[30, 40], [12, 9]], [1, 0])  # doctest: +SKIP
        """
        started = time.perf_counter()
        (given,) = self._check([{"points": points, "labels": labels}], None, False).sets
        if (given.label < 0).any():
            raise UserError("labels of clicks must be 0 or 1.", code="invalid-prompts")
        before = self.automatic() if before is None else before
        segmenter, (width, height) = self._segmenter, self.size
        clicks = tuple(
            Click.on_image(xy, label > 0, size=self.size, side=segmenter.side)
            for xy, label in zip(given.xy, given.label.tolist(), strict=True)
        )
        state = self._latest(before.logits, clicks)
        decode = box_decoder(segmenter.net, self._encoded.to(segmenter.device))
        for click in clicks[len(state.clicks) :]:
            state = apply_click(state, click, decode, side=segmenter.side)
        self._corrected = before.logits, state
        probability = probability_at(state.logits, height, width)
        return replace(
            before,
            mask=segmenter.postprocess(probability),
            probability=probability,
            logits=state.logits,
            iou=math.nan,
            ious=np.full_like(before.ious, np.nan),
            quality=None,
            seconds=time.perf_counter() - started,
        )

    def _latest(self, logits: npt.NDArray[np.float32], clicks: tuple[Click, ...]) -> Corrected:
        """The last correction, if it is of these logits and with the first of these clicks; else the logits."""
        if self._corrected is not None:
            before, state = self._corrected
            if clicks[: len(state.clicks)] == state.clicks and np.array_equal(before, logits):
                return state
        return Corrected(logits)

    def _check(self, lesions: Sequence[PromptSet | Mapping[str, Any]], index: Any, fuse: bool) -> ImagePrompts:
        """The prompts in pixels of the image, checked; all faults are reported together."""
        if isinstance(lesions, str | Mapping | PromptSet) or not isinstance(lesions, Sequence):
            raise UserError("lesions must be a list with the prompts of each lesion.", code="invalid-lesions")
        given = [_to_mapping(one) for one in lesions]
        entry = {"size": list(self.size), "mask_index": _to_lists(index), "fuse": fuse}  # a NumPy integer → an int
        entry |= _to_entry(given[0]) if len(given) == 1 else {"lesions": [_to_entry(one) for one in given]}
        prompts, errors = parse_prompts(entry, self.size, self._segmenter.side)
        masks: list[npt.NDArray[np.float32] | None] = []
        for number, one in enumerate(given, start=1):
            where = f"lesion {number} of {len(given)}: " if len(given) > 1 else ""
            try:
                masks.append(None if one.get("mask") is None else self._mask_prompt(one["mask"]))
            except UserError as error:
                errors.append(UserError(f"{where}{error}", code=error.code))
            unknown = [str(name) for name in one if name not in PARTS]
            if unknown:
                message = f"{where}unknown prompts {', '.join(unknown)}; known: {', '.join(PARTS)}"
                errors.append(UserError(message, code="unknown-prompt-part"))
        if errors or prompts is None:
            message = "; ".join(str(error) for error in errors) + "."
            raise UserError(message, code="invalid-prompts", errors=errors)
        return replace(
            prompts, sets=tuple(replace(one, mask=mask) for one, mask in zip(prompts.sets, masks, strict=True))
        )

    def _mask_prompt(self, mask: npt.ArrayLike | Tensor) -> npt.NDArray[np.float32]:
        side = self._segmenter.mask_side
        logits = mask if isinstance(mask, Tensor) else torch.from_numpy(np.asarray(mask, np.float32))
        if logits.shape != (side, side):
            message = f"mask must be the ({side}, {side}) logits of an earlier result, not {tuple(logits.shape)}"
            raise UserError(message, code="mask-shape-mismatch")
        if not logits.isfinite().all():
            raise UserError("mask must contain finite logits", code="mask-not-finite")
        return logits.float().cpu().numpy()

    def _decode(self, group: PromptGroup) -> Segmentation:
        segmenter = self._segmenter
        batch = segmenter.batch(self._encoded, [""])
        return segmenter.finish(predict_batch(segmenter.net, batch, group, segmenter.device)[0], self.size)


def _to_mapping(one: Any) -> Mapping[str, Any]:
    if isinstance(one, PromptSet):
        return {"points": one.xy, "labels": one.label, "box": one.box, "mask": one.mask}
    if not isinstance(one, Mapping):
        message = f"a lesion must be a mapping with any of {', '.join(PARTS)}, not {type(one).__name__}."
        raise UserError(message, code="invalid-lesions")
    return one


def _to_entry(one: Mapping[str, Any]) -> dict[str, Any]:
    """Points, labels and box as in a prompts file; the checks of :func:`parse_prompts` follow."""
    points, labels, box = (one.get(name) for name in ("points", "labels", "box"))
    xy = [] if points is None else _to_lists(points)
    marks = [1] * len(xy) if labels is None and isinstance(xy, list) else _to_lists(labels)
    return {"points": xy, "labels": marks, "box": None if box is None else _to_lists(box)}


def _to_lists(values: Any) -> Any:
    """Arrays and tensors as lists. Other values are returned unchanged and rejected by the checks that follow."""
    try:
        return values.tolist() if isinstance(values, Tensor) else np.asarray(values).tolist()
    except ValueError:  # ragged
        return values


def _to_list_of_lists(values: Any) -> list[Any]:
    lists = _to_lists(values)
    if not isinstance(lists, list):
        raise UserError("boxes must be a list of [x0, y0, x1, y1].", code="invalid-box")
    return lists
