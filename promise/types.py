"""The nouns that flow between the parts, with the legend of their shapes; knows only torch.

Legend: B images, P points, S side of the network's input in pixels, E side of the image embedding,
C channels. Points are (x, y), x before y, in input pixels with (0, 0) the centre of the first pixel.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor


@dataclass(frozen=True)
class Points:
    """Point prompts of a batch.

    Raises:
        ValueError: when the shapes of ``xy`` and ``label`` do not belong together.
    """

    xy: Tensor  # (B, P, 2) float, input pixels, x before y
    label: Tensor  # (B, P) integer: 1 foreground, 0 background, -1 padding that prompts nothing

    def __post_init__(self) -> None:
        if self.xy.ndim != 3 or self.xy.shape[-1] != 2 or self.label.shape != self.xy.shape[:2]:
            raise ValueError(
                f"Points wants xy (B, P, 2) and label (B, P), got {tuple(self.xy.shape)} and {tuple(self.label.shape)}."
            )

    def to(self, device: torch.device) -> Points:
        """The same points on another device."""
        return Points(self.xy.to(device, non_blocking=True), self.label.to(device, non_blocking=True))


@dataclass(frozen=True)
class Prompts:
    """The prompts of a batch, whole: what a person, a file, a rule or a prompter gives the decoder.

    ``None`` in place of prompts asks the net for its own; :meth:`none` is the absence of any prompt.

    Raises:
        ValueError: when all fields are ``None``.
    """

    points: Points | None = None
    boxes: Tensor | None = None  # (B, 4) float x0, y0, x1, y1 in input pixels
    masks: Tensor | None = None  # (B, 1, 4E, 4E) float, logits of an earlier prediction: SAM's mask prompt

    def __post_init__(self) -> None:
        if self.points is None and self.boxes is None and self.masks is None:
            raise ValueError("Prompts needs points, boxes or masks; Prompts.none(B) is no prompt at all.")

    @staticmethod
    def none(batch: int) -> Prompts:
        """No prompt for B images: the decoder sees the image features alone."""
        return Prompts(Points(torch.zeros(batch, 0, 2), torch.zeros(batch, 0, dtype=torch.int64)))

    def to(self, device: torch.device) -> Prompts:
        """The same prompts on another device."""
        return Prompts(
            None if self.points is None else self.points.to(device),
            None if self.boxes is None else self.boxes.to(device, non_blocking=True),
            None if self.masks is None else self.masks.to(device, non_blocking=True),
        )


@dataclass(frozen=True)
class Prompted:
    """What a prompter predicts for a batch."""

    prompts: Prompts  # whole, as given by hand or read from a file
    lesion_logits: Tensor | None = None  # (B, 1, h, w) float, where the prompter has a map of the lesion


@dataclass(frozen=True)
class Encoded:
    """What the frozen encoder says of a batch of images."""

    embedding: Tensor  # (B, 256, E, E) float, after the neck
    taps: tuple[Tensor, ...] = ()  # each (B, C_i, E, E), before the neck, shallow to deep; () when not asked for

    def map(self, change: Callable[[Tensor], Tensor]) -> Encoded:
        """The same features with a change applied to every map."""
        return Encoded(change(self.embedding), tuple(change(tap) for tap in self.taps))

    def to(self, device: torch.device, *, non_blocking: bool = False) -> Encoded:
        """The same features on another device."""
        return self.map(lambda x: x.to(device, non_blocking=non_blocking))

    def pin_memory(self) -> Encoded:
        """The same features in page-locked memory."""
        return self.map(Tensor.pin_memory)


def to_preferred_memory_format(x: Tensor) -> Tensor:
    """Maps (B, C, H, W) as the nets want them in memory.

    In 16 bits channels-last, which saves a tenth of a training step on a CPU; in 32 bits channels first, whose
    sums are nearest to the original's.
    """
    last = x.dtype != torch.float32
    return x.contiguous(memory_format=torch.channels_last if last else torch.contiguous_format)


def join(parts: Sequence[Encoded]) -> Encoded:
    """Features of batches as those of one batch, arranged."""

    def cat(maps: Sequence[Tensor]) -> Tensor:
        return to_preferred_memory_format(torch.cat(tuple(maps)))

    taps = zip(*(part.taps for part in parts), strict=True)
    return Encoded(cat([part.embedding for part in parts]), tuple(cat(tap) for tap in taps))


@dataclass(frozen=True)
class Prediction:
    """What a net predicts for a batch of images."""

    mask_logits: Tensor  # (B, 1, 4E, 4E) float, raw logits of one of the three multimask masks; the first by default
    iou: Tensor  # (B, 1) float, SAM's own estimate of that mask's IoU
    prompts: Prompts  # that were used: given, or the net's own
    ious: Tensor | None = None  # (B, 3) float, the estimates of all three multimask masks
    lesion_logits: Tensor | None = None  # (B, 1, h, w) float, the prompter's map, where it has one and was asked

    def take(self, places: Sequence[int]) -> Prediction:
        """The predictions for some of the batch's images."""

        def some(x: Tensor | None) -> Tensor | None:
            return None if x is None else x[list(places)]

        points = self.prompts.points
        prompts = Prompts(
            None if points is None else Points(points.xy[list(places)], points.label[list(places)]),
            some(self.prompts.boxes),
            some(self.prompts.masks),
        )
        mask, iou = self.mask_logits[list(places)], self.iou[list(places)]
        return Prediction(mask, iou, prompts, some(self.ious), some(self.lesion_logits))

    @property
    def points(self) -> Points | None:
        """The point prompts that were used; ``None`` when there were only boxes or masks."""
        return self.prompts.points

    @property
    def boxes(self) -> Tensor | None:
        """The boxes (B, 4) that were used, or ``None``."""
        return self.prompts.boxes


@dataclass(frozen=True)
class Batch:
    """A batch of samples, ready for a net."""

    image: Tensor | Encoded  # (B, 3, S, S) float, normalised as the backbone wants it; or its features
    mask: Tensor  # (B, 1, S, S) float, 0 background, 1 foreground
    name: tuple[str, ...]  # B names, unique in their table
    index: Tensor  # (B,) int64, row numbers in the table

    def __len__(self) -> int:
        return len(self.name)

    def take(self, places: Sequence[int]) -> Batch:
        """Some of the batch's samples, in the order given; itself when those are all."""
        if list(places) == list(range(len(self))):
            return self
        where = torch.as_tensor(places, dtype=torch.int64)
        image = self.image
        chosen = image.map(lambda x: x[where.to(x.device)]) if isinstance(image, Encoded) else image[where]
        return Batch(chosen, self.mask[where], tuple(self.name[i] for i in places), self.index[where])

    def pin_memory(self) -> Batch:
        """The same batch in page-locked memory; torch's loaders call this where pinning is on."""
        return replace(self, image=self.image.pin_memory(), mask=self.mask.pin_memory())
