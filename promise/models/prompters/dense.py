"""A dense prompter: a small U-Net on SAM's frozen features predicts a map of lesions, and prompts are placed on it."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from promise.models.prompters.base import Prompter
from promise.models.prompters.lesions import Lesion, LesionSettings, find_lesions
from promise.types import Encoded, Points, Prompted, Prompts, to_preferred_memory_format

GROUPS = 8
WIDTHS = (64, 128, 128, 128)  # channels at 1, 1/2, 1/4 and 1/8 of the side of the embedding


class ResidualBlock(nn.Module):
    """Two convolutions (3 × 3, 1 × 1) around a residual connection; the mean over the map is added between them."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm1 = nn.GroupNorm(GROUPS, width)
        self.conv1 = nn.Conv2d(width, width, 3, padding=1)
        self.context = nn.Linear(width, width)
        self.norm2 = nn.GroupNorm(GROUPS, width)
        self.conv2 = nn.Conv2d(width, width, 1)

    def forward(self, x: Tensor) -> Tensor:
        """Map (B, C, h, w) to the same shape."""
        out = self.conv1(F.gelu(self.norm1(x)))
        out = out + self.context(x.mean((2, 3)))[:, :, None, None]
        residual: Tensor = self.conv2(F.gelu(self.norm2(out)))
        return x + residual


class DenseHead(nn.Module):
    """A U-Net on embedding and taps that predicts logits of lesions at twice the resolution of the embedding.

    The taps are read at half the resolution of the embedding, where most of the computation takes place.
    """

    tap_pooling = 2

    def __init__(
        self,
        *,
        embedding_channels: int,
        tap_channels: Sequence[int],
        widths: Sequence[int] = WIDTHS,
        dropout: float = 0.1,
    ) -> None:
        """Create the head with fresh weights.

        Args:
            embedding_channels: channels of the embedding.
            tap_channels: channels of the taps, shallow to deep.
            widths: channels at 1, 1/2, 1/4 and 1/8 of the side of the embedding; multiples of 8.
            dropout: fraction of the channels of embedding and taps that are dropped in training.
        """
        super().__init__()
        full, half, quarter, eighth = widths
        self.dropout = dropout
        # Each channel of an image is normalised by itself, which removes the look of a camera or a clinic: trained on
        # one data set, the head finds more in another. Without weights: the convolutions behind have their own.
        inputs = (embedding_channels, *tap_channels)
        self.norms = nn.ModuleList(nn.GroupNorm(channels, channels, affine=False) for channels in inputs)
        self.stem_full = nn.Conv2d(embedding_channels, full, 1)
        self.stem_half = nn.Conv2d(embedding_channels + sum(tap_channels), half, 1)
        self.encode_half = nn.Sequential(ResidualBlock(half), ResidualBlock(half))
        self.down_quarter = nn.Conv2d(half, quarter, 3, padding=1)
        self.encode_quarter = nn.Sequential(ResidualBlock(quarter), ResidualBlock(quarter))
        self.down_eighth = nn.Conv2d(quarter, eighth, 3, padding=1)
        self.encode_eighth = ResidualBlock(eighth)
        self.up_quarter = nn.Conv2d(eighth, quarter, 1)
        self.decode_quarter = ResidualBlock(quarter)
        self.up_half = nn.Conv2d(quarter, half, 1)
        self.decode_half = ResidualBlock(half)
        self.up_full = nn.Conv2d(half, full, 1)
        self.decode_full = ResidualBlock(full)
        self.out = nn.Sequential(nn.GroupNorm(GROUPS, full), nn.GELU(), nn.Conv2d(full, 4, 3, padding=1))

    def forward(self, embedding: Tensor, taps: Sequence[Tensor], warp: Tensor | None = None) -> Tensor:
        """Map an embedding (B, C, E, E) and taps (B, C_i, E / 2, E / 2) to logits (B, 1, 2E, 2E) float32.

        With ``warp`` (B, 2, 3), the map is that of the warped features; see :func:`warp_maps`. They are warped behind
        the first 1 × 1 convolutions, which is the same, and faster: there are fewer channels.
        """
        norm, *tap_norms = self.norms
        x = self._drop(norm(embedding))
        maps = [self._drop(one(tap)) for one, tap in zip(tap_norms, taps, strict=True)]
        full = self.stem_full(x)
        half = self.stem_half(torch.cat((_pool(x), *maps), dim=1))
        if warp is not None:
            full, half = warp_maps(full, warp), warp_maps(half, warp)
        half = self.encode_half(half)
        quarter = self.encode_quarter(self.down_quarter(_pool(half)))
        eighth = self.encode_eighth(self.down_eighth(_pool(quarter)))
        quarter = self.decode_quarter(quarter + _resize_like(self.up_quarter(eighth), quarter))
        half = self.decode_half(half + _resize_like(self.up_half(quarter), half))
        full = self.decode_full(full + _resize_like(self.up_full(half), full))
        logits: Tensor = F.pixel_shuffle(self.out(full), 2).float()
        return logits

    def _drop(self, x: Tensor) -> Tensor:
        return F.dropout2d(x, self.dropout, self.training) if self.dropout else x


def warp_maps(x: Tensor, warp: Tensor) -> Tensor:
    """Warp maps (B, C, h, w) bilinearly; what lies outside is mirrored at the border.

    Args:
        x: the maps.
        warp: (B, 2, 3), as :func:`torch.nn.functional.affine_grid` defines it: from a place in the result to one in
            ``x``, both in [-1, 1].
    """
    grid = F.affine_grid(warp.float(), list(x.shape), align_corners=False)
    warped = F.grid_sample(x.float(), grid, mode="bilinear", padding_mode="reflection", align_corners=False)
    return to_preferred_memory_format(warped.to(x.dtype))


def _pool(x: Tensor) -> Tensor:
    return F.avg_pool2d(x, 2, ceil_mode=True)


def _resize_like(x: Tensor, like: Tensor) -> Tensor:
    return F.interpolate(x, size=like.shape[-2:], mode="bilinear", align_corners=False)


class DensePrompter(Prompter):
    """Predicts a map of lesions, and places a box and points on each lesion."""

    tap_pooling = DenseHead.tap_pooling

    def __init__(
        self, head: nn.Module, *, num_points: int, image_size: int, settings: LesionSettings | None = None
    ) -> None:
        """Combine a head with its settings.

        Args:
            head: embedding (B, C, E, E) and taps → logits (B, 1, h, w).
            num_points: points of a lesion; half of them positive, the others negative; a single one is positive.
            image_size: side S of the input, pixels.
            settings: how lesions are found and prompted.
        """
        super().__init__()
        self.head = head
        self.lesions: LesionSettings = settings or LesionSettings()
        self.num_points = num_points
        self.image_size = image_size

    def lesion_logits(self, encoded: Encoded) -> Tensor:
        """The map of lesions, the mean of the maps: logits (B, 1, h, w) float32."""
        logits = self._mean_map(encoded)
        if self.training or not self.lesions.flips:
            return logits
        across, down, both = (self._mirrored_logits(encoded, axes) for axes in ((3,), (2,), (2, 3)))
        # In this order, the map of mirrored features is the mirrored map, bit for bit.
        return ((logits + across) + (down + both)) / 4

    def maps(self, encoded: Encoded) -> Tensor:
        """One map (B, 1, h, w), without mirror images."""
        # Heads of other people's nets need not know the argument.
        warp = {} if encoded.warp is None else {"warp": encoded.warp}
        logits: Tensor = self.head(encoded.embedding, encoded.taps, **warp)
        return logits

    def _mean_map(self, encoded: Encoded) -> Tensor:
        return self.maps(encoded).mean(dim=1, keepdim=True)

    def _mirrored_logits(self, encoded: Encoded, axes: tuple[int, ...]) -> Tensor:
        """The logits of features that are mirrored along some axes, mirrored back."""
        return self._mean_map(encoded.map(lambda x: x.flip(axes))).flip(axes)

    def forward(self, encoded: Encoded) -> Prompted:
        """Predict prompts for the lesions of B images; an image may have none."""
        logits = self.lesion_logits(encoded)
        return Prompted(self.place_prompts(logits), logits)

    def place_prompts(self, logits: Tensor) -> Prompts:
        """Place the prompts of the lesions of maps (B, 1, h, w), on the CPU; returned on the device of the maps."""
        device, settings = logits.device, self.lesions
        probability = self.probability(logits).cpu().numpy()
        parts = settings.prompts
        count = self.num_points
        positive = (count + 1) // 2  # count is 1 or even
        found = [find_lesions(one, settings, positive=positive, negative=count - positive) for one in probability]
        image = np.repeat(np.arange(len(found)), [len(one) for one in found])
        lesions = [lesion for one in found for lesion in one]
        points, boxes = _to_pixels(lesions, self.image_size / probability.shape[-1], count)
        masks = None
        if settings.mask_prompt:
            masks = self.mask_prompts(logits)[torch.from_numpy(image).to(device)]
        points = points.to(device)
        return Prompts(
            points if "points" in parts else None,
            boxes.to(device) if "box" in parts else None,
            masks,
            torch.from_numpy(image).to(device),
            None if "points" in parts else points,
        )

    def probability(self, logits: Tensor) -> Tensor:
        """Maps (B, h, w) as probabilities (B, s, s), on which lesions are found."""
        side = min(self.image_size, 2 * logits.shape[-1])
        maps = F.interpolate(logits.detach().float(), size=(side, side), mode="bilinear", align_corners=False)
        return torch.sigmoid(maps[:, 0])

    def mask_prompts(self, logits: Tensor) -> Tensor:
        """Maps (B, 1, h, w) as SAM's mask prompts (B, 1, 4E, 4E)."""
        side = 2 * logits.shape[-1]
        return F.interpolate(logits.detach().float(), size=(side, side), mode="bilinear")

    def compiled_part(self) -> nn.Module:
        """The head, without the search for lesions."""
        return self.head


def _to_pixels(lesions: Sequence[Lesion], scale: float, num_points: int) -> tuple[Points, Tensor]:
    """Points and boxes (N, 4) of N lesions in input pixels, ``scale`` of which are one pixel of their map."""
    xy = np.stack([lesion.xy for lesion in lesions]) if lesions else np.zeros((0, num_points, 2))
    label = np.stack([lesion.label for lesion in lesions]) if lesions else np.zeros((0, num_points), np.int64)
    boxes = np.stack([lesion.box for lesion in lesions]) if lesions else np.zeros((0, 4), np.float32)
    points = ((xy + 0.5) * scale - 0.5).astype(np.float32)
    return Points(torch.from_numpy(points), torch.from_numpy(label)), box_corners(torch.from_numpy(boxes), scale)


def box_corners(boxes: Tensor, scale: float) -> Tensor:
    """Boxes (…, 4) in input pixels, from the first and last columns and rows in pixels of a map.

    They reach from the outer edges of the first pixels to those of the last: (0, 0) is the centre of a pixel.
    """
    first, last = boxes.tensor_split(2, dim=-1)
    return torch.cat((first * scale, (last + 1) * scale - 1), dim=-1)
