"""Types that are passed between the parts of the package, with the shapes of their tensors.

Legend: B images, N prompt sets, P points, S side of the input of the net in pixels, E side of the image embedding, C
channels. Points are (x, y), x before y, in input pixels; (0, 0) is the centre of the first pixel.
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
        ValueError: the shapes of ``xy`` and ``label`` do not match.
    """

    xy: Tensor  # (B, P, 2) float, input pixels, x before y
    label: Tensor  # (B, P) integer: 1 foreground, 0 background, -1 padding, which is ignored

    def __post_init__(self) -> None:
        if self.xy.ndim != 3 or self.xy.shape[-1] != 2 or self.label.shape != self.xy.shape[:2]:
            raise ValueError(
                f"Points needs xy (B, P, 2) and label (B, P), got {tuple(self.xy.shape)} and {tuple(self.label.shape)}."
            )

    def to(self, device: torch.device) -> Points:
        """Return a copy on a device."""
        return Points(self.xy.to(device, non_blocking=True), self.label.to(device, non_blocking=True))


@dataclass(frozen=True)
class Prompts:
    """Prompts of a batch for the decoder: points, boxes and mask prompts, from any source.

    A prompt set is what one mask is decoded from. By default each image has one. With ``image``, an image may have
    several, one for each lesion, or none: its mask is the union of the masks of its sets, and is empty without a set.

    Where an argument ``prompts`` is ``None``, the net places the prompts; :meth:`none` means that there are no prompts.

    Raises:
        ValueError: all fields are ``None``, or ``image`` does not have one ascending entry per prompt set.
    """

    points: Points | None = None  # of N prompt sets
    boxes: Tensor | None = None  # (N, 4) float x0, y0, x1, y1 in input pixels
    masks: Tensor | None = None  # (N, 1, 4E, 4E) float, mask prompt of SAM: logits of an earlier prediction
    image: Tensor | None = None  # (N,) int64, ascending: place of each set's image in the batch; None: N = B, in order
    suggested: Points | None = None  # of N prompt sets: points that a prompter places but does not pass to the decoder

    def __post_init__(self) -> None:
        if self.points is None and self.boxes is None and self.masks is None:
            raise ValueError("Prompts needs points, boxes or masks; for no prompts use Prompts.none(B).")
        if self.image is not None and self.image.shape != (len(self),):
            raise ValueError(f"Prompts.image needs one entry per prompt set ({len(self)}), got {self.image.shape}.")

    def __len__(self) -> int:
        points = None if self.points is None else self.points.xy
        first = next(x for x in (points, self.boxes, self.masks) if x is not None)
        return int(first.shape[0])

    @staticmethod
    def none(batch: int) -> Prompts:
        """Return empty prompts for B images: the decoder receives image features only."""
        return Prompts(Points(torch.zeros(batch, 0, 2), torch.zeros(batch, 0, dtype=torch.int64)))

    def to(self, device: torch.device) -> Prompts:
        """Return a copy on a device."""
        return self._map(lambda x: x.to(device, non_blocking=True))

    def sets(self, chosen: Tensor) -> Prompts:
        """Return the prompt sets at some positions (M,) of the N sets."""
        return self._map(lambda x: x[chosen])

    def take(self, places: Sequence[int]) -> Prompts:
        """Return the prompts of the images at some positions of the batch, in that order."""
        if self.image is None:
            return self.sets(torch.as_tensor(list(places), dtype=torch.int64))
        owner = self.image.cpu()
        chosen = [torch.nonzero(owner == place).flatten() for place in places]
        counts = torch.tensor([len(one) for one in chosen], dtype=torch.int64)
        image = torch.repeat_interleave(torch.arange(len(chosen)), counts)
        return replace(self.sets(torch.cat(chosen)), image=image.to(self.image.device))

    def _map(self, change: Callable[[Tensor], Tensor]) -> Prompts:
        points, suggested = (
            None if x is None else Points(change(x.xy), change(x.label)) for x in (self.points, self.suggested)
        )
        boxes, masks, image = (None if x is None else change(x) for x in (self.boxes, self.masks, self.image))
        return Prompts(points, boxes, masks, image, suggested)


@dataclass(frozen=True)
class Prompted:
    """Output of a prompter for a batch."""

    prompts: Prompts
    lesion_logits: Tensor | None = None  # (B, 1, h, w) float, if the prompter predicts a map of the lesion


@dataclass(frozen=True)
class Encoded:
    """Features of a batch of images from the frozen encoder."""

    embedding: Tensor  # (B, 256, E, E) float, after the neck
    taps: tuple[Tensor, ...] = ()  # each (B, C_i, E, E), before the neck, shallow to deep; () if not requested
    # (B, 2, 3) float: how a prompter that predicts a map warps the features, as torch's affine_grid; training only
    warp: Tensor | None = None
    # (B, 3, 4E, 4E) float, the normalised images at this size; only for prompters that read them
    image: Tensor | None = None

    @property
    def tensors(self) -> tuple[Tensor, ...]:
        """All maps."""
        return (self.embedding, *self.taps, *(() if self.image is None else (self.image,)))

    def map(self, change: Callable[[Tensor], Tensor]) -> Encoded:
        """Return features with a function applied to every map."""
        image = None if self.image is None else change(self.image)
        return replace(
            self, embedding=change(self.embedding), taps=tuple(change(tap) for tap in self.taps), image=image
        )

    def to(self, device: torch.device, *, non_blocking: bool = False) -> Encoded:
        """Return a copy on a device."""
        moved = self.map(lambda x: x.to(device, non_blocking=non_blocking))
        return moved if self.warp is None else replace(moved, warp=self.warp.to(device, non_blocking=non_blocking))

    def pin_memory(self) -> Encoded:
        """Return a copy in page-locked memory; maps that are on a GPU already stay there."""
        return self.map(lambda x: x if x.is_cuda else x.pin_memory())


def to_preferred_memory_format(x: Tensor) -> Tensor:
    """Return maps (B, C, H, W) in the memory format in which nets compute.

    16-bit maps are channels-last, which saves a tenth of the time of a training step on a CPU. 32-bit maps are
    channels-first, which is closest to the numerical results of the reference implementation.
    """
    last = x.dtype != torch.float32
    return x.contiguous(memory_format=torch.channels_last if last else torch.contiguous_format)


def join(parts: Sequence[Encoded]) -> Encoded:
    """Concatenate features along the batch axis, in the preferred memory format."""

    def cat(maps: Sequence[Tensor]) -> Tensor:
        return to_preferred_memory_format(torch.cat(tuple(maps)))

    taps = zip(*(part.taps for part in parts), strict=True)
    images = [part.image for part in parts if part.image is not None]
    return Encoded(
        cat([part.embedding for part in parts]),
        tuple(cat(tap) for tap in taps),
        image=cat(images) if images else None,
    )


@dataclass(frozen=True)
class Prediction:
    """Prediction of a net for a batch of images."""

    mask_logits: Tensor  # (B, 1, 4E, 4E) float, logits of one of SAM's masks; see Promise.decode
    iou: Tensor  # (B, 1) float, IoU of that mask as estimated by SAM; of several lesions: the mean over their masks
    prompts: Prompts  # that the decoder used
    ious: Tensor | None = None  # (B, 3) float, estimated IoU of the three multimask masks
    lesion_logits: Tensor | None = None  # (B, 1, h, w) float, map of the lesion, if the prompter ran and predicts one
    fused: bool = False  # whether the map was added to the mask
    sam_logits: Tensor | None = None  # (B, 1, 4E, 4E) float, the mask before the map was added, if it was
    quality: Tensor | None = None  # (B,) float, learned estimate of the IoU of an automatic mask; NaN without a lesion

    def take(self, places: Sequence[int]) -> Prediction:
        """Return the predictions for the images at some positions of the batch."""

        def some(x: Tensor | None) -> Tensor | None:
            return None if x is None else x[list(places)]

        return replace(
            self,
            mask_logits=self.mask_logits[list(places)],
            iou=self.iou[list(places)],
            prompts=self.prompts.take(places),
            ious=some(self.ious),
            lesion_logits=some(self.lesion_logits),
            sam_logits=some(self.sam_logits),
            quality=some(self.quality),
        )

    @property
    def points(self) -> Points | None:
        """Point prompts that were used; ``None`` if there were only boxes or masks."""
        return self.prompts.points

    @property
    def boxes(self) -> Tensor | None:
        """Boxes (N, 4) that were used, or ``None``."""
        return self.prompts.boxes


@dataclass(frozen=True)
class Batch:
    """A batch of samples for a net."""

    image: Tensor | Encoded  # (B, 3, S, S) float, normalised as the backbone requires; or its features
    mask: Tensor  # (B, 1, S, S) float, 0 background, 1 foreground
    name: tuple[str, ...]  # B names, unique in their table
    index: Tensor  # (B,) int64, row numbers in the table

    def __len__(self) -> int:
        return len(self.name)

    def take(self, places: Sequence[int]) -> Batch:
        """Return the samples at some positions, in that order; the batch itself if these are all."""
        if list(places) == list(range(len(self))):
            return self
        where = torch.as_tensor(places, dtype=torch.int64)
        image = self.image
        chosen = image.map(lambda x: x[where.to(x.device)]) if isinstance(image, Encoded) else image[where]
        return Batch(chosen, self.mask[where], tuple(self.name[i] for i in places), self.index[where])

    def pin_memory(self) -> Batch:
        """Return a copy in page-locked memory. Data loaders of torch call this method if ``pin_memory`` is set."""
        return replace(self, image=self.image.pin_memory(), mask=self.mask.pin_memory())
