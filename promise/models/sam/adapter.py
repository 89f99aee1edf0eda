"""The interface between :class:`promise.models.sam.frozen.FrozenSam` and one implementation of SAM.

A SAM is a module with three parts, ``image_encoder``, ``prompt_encoder`` and ``mask_decoder``. Two things are specific
to the classes of these parts: a function that runs the image encoder block by block (:data:`Encode`), and an
:class:`Adapter` that reads weight files and gives access to the parts of the prompt encoder and the mask decoder. An
adapter holds no weights; each method receives the part that it works on.

Legend: B images, P points, S side of the input in pixels, E side of the image embedding, C its channels, N tokens, M
mask tokens (four: the single mask, then the three multimask masks).
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

Maps = tuple[Tensor, tuple[Tensor, ...]]  # embedding (B, C, E, E); taps, shallow to deep, each (B, C_i, E, E)
Run = Callable[[Any, Tensor], Tensor]  # (block, its input) -> its output
# (image_encoder, image (B, 3, S, S), numbers of the tapped blocks, how to run a block)
Encode = Callable[[Any, Tensor, tuple[int, ...], Run], Maps]
Fused = Callable[[Tensor, tuple[int, ...]], Maps]
# (image_encoder, dtype) -> the fused encoder for inference, which maps (image, tap blocks) to the same maps
Fuse = Callable[[Any, torch.dtype], Fused]

POINT_LABELS = (-1, 0, 1, 2, 3)  # padding, background, foreground, a box's first corner, its second corner


class Adapter(ABC):
    """One implementation of SAM. All computations keep the gradient and accept any device and any batch size."""

    @abstractmethod
    def read(self, source: Path | str) -> dict[str, Tensor]:
        """Read SAM's weights.

        Args:
            source: the value of ``--sam-checkpoint``.

        Returns:
            A state dict with the names of the module that :attr:`Backbone.build` returns.

        Raises:
            MissingFileError: nothing is found at ``source``.
            UserError: the source cannot be read.
        """

    @abstractmethod
    def position(self, prompt_encoder: Any, xy: Tensor) -> Tensor:
        """Positional encoding (B, P, C) of positions (B, P, 2), x before y.

        Positions are in input pixels with (0, 0) the *corner* of the first pixel: the half pixel is already added.
        """

    @abstractmethod
    def label_embeddings(self, prompt_encoder: Any) -> tuple[Tensor, ...]:
        """The embedding (1, C) of each label in :data:`POINT_LABELS`, in that order."""

    @abstractmethod
    def mask_embedding(self, prompt_encoder: Any, masks: Tensor) -> Tensor:
        """Embedding (B, C, E, E) of mask prompts (B, 1, 4E, 4E), logits."""

    @abstractmethod
    def no_mask_embedding(self, prompt_encoder: Any) -> Tensor:
        """The embedding (1, C) of the absence of a mask prompt, the same at all positions."""

    @abstractmethod
    def dense_position(self, prompt_encoder: Any) -> Tensor:
        """Positional encoding (1, C, E, E) of the cells of the image embedding."""

    @abstractmethod
    def tokens(self, mask_decoder: Any) -> Tensor:
        """The decoder's learned tokens (1 + M, C): the quality token first, then the mask tokens."""

    @abstractmethod
    def transform(
        self, mask_decoder: Any, embedding: Tensor, position: Tensor, tokens: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Run the two-way transformer.

        Args:
            mask_decoder: the decoder.
            embedding: (B, C, E, E), including the embedding of the mask prompt.
            position: (B, C, E, E).
            tokens: (B, N, C).

        Returns:
            The updated tokens (B, N, C) and the updated embedding (B, C, E, E).
        """

    @abstractmethod
    def upscale(self, mask_decoder: Any, embedding: Tensor) -> Tensor:
        """Upscale (B, C, E, E) to pixel features (B, C / 8, 4E, 4E)."""

    @abstractmethod
    def mask_weights(self, mask_decoder: Any, channel: int, token: Tensor) -> Tensor:
        """Weights (B, C / 8) of the pixel features in mask ``channel``, from that mask's updated token (B, C)."""

    @abstractmethod
    def quality(self, mask_decoder: Any, token: Tensor) -> Tensor:
        """Estimated IoU (B, M) of all masks, from the updated quality token (B, C)."""


def run_block(block: Any, x: Tensor) -> Tensor:
    """Run a block without gradient checkpointing."""
    out: Tensor = block(x)
    return out


def normalise_channels(x: Tensor, norm: Any) -> Tensor:
    """Layer normalisation over the channels of (B, C, H, W) with PyTorch's fused kernel; fastest on channels-last maps.

    Args:
        x: the map, (B, C, H, W).
        norm: a layer with ``weight``, ``bias`` and ``eps``.
    """
    rows = F.layer_norm(x.permute(0, 2, 3, 1), norm.weight.shape, norm.weight, norm.bias, norm.eps)
    return rows.permute(0, 3, 1, 2)
