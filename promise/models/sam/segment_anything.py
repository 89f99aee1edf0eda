"""The adapter of Meta's package ``segment_anything``: the only file that uses attributes of its classes.

It uses no private method of the package. If a release of the package renames an attribute,
``tests/models/sam/test_segment_anything.py`` reports which one is missing.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from segment_anything import sam_model_registry
from torch import Tensor, nn

from promise.models.sam.adapter import Adapter, Maps, Run, normalise_channels, run_block
from promise.models.sam.weights import read_state_dict
from promise.runtime.reading import expand_home


def build_segment_anything(size: str) -> nn.Module:
    """Build the package's SAM with random weights; ``size`` is ``vit_b``, ``vit_l`` or ``vit_h``."""
    sam: nn.Module = sam_model_registry[size]()
    return sam


def encode_vit(encoder: Any, image: Tensor, taps: tuple[int, ...], run: Run = run_block) -> Maps:
    """Run ``ImageEncoderViT`` block by block.

    Args:
        encoder: the package's image encoder.
        image: (B, 3, S, S) float.
        taps: blocks whose outputs are returned, counted from 1.
        run: runs a block.

    Returns:
        The embedding (B, C, E, E) after the neck, and the taps (B, C_i, E, E) before it.
    """
    x = encoder.patch_embed(image)  # (B, E, E, C_i)
    if encoder.pos_embed is not None:
        x = x + encoder.pos_embed
    kept = []
    for number, block in enumerate(encoder.blocks, start=1):
        x = run(block, x)
        if number in taps:
            kept.append(x.permute(0, 3, 1, 2))
    return encoder.neck(x.permute(0, 3, 1, 2)), tuple(kept)


class SegmentAnything(Adapter):
    """``segment_anything``'s ``PromptEncoder`` and ``MaskDecoder``."""

    def read(self, source: Path | str) -> dict[str, Tensor]:
        """Read a ``.pth`` file; see :func:`promise.models.sam.weights.read_state_dict`."""
        return read_state_dict(expand_home(source))

    def position(self, prompt_encoder: Any, xy: Tensor) -> Tensor:
        """Uses the random frequencies of ``pe_layer``."""
        position: Tensor = prompt_encoder.pe_layer.forward_with_coords(xy, prompt_encoder.input_image_size)
        return position

    def label_embeddings(self, prompt_encoder: Any) -> tuple[Tensor, ...]:
        """``not_a_point_embed``, then ``point_embeddings``."""
        return tuple(e.weight for e in (prompt_encoder.not_a_point_embed, *prompt_encoder.point_embeddings))

    def mask_embedding(self, prompt_encoder: Any, masks: Tensor) -> Tensor:
        """Uses ``mask_downscaling``."""
        embedding: Tensor = prompt_encoder.mask_downscaling(masks)
        return embedding

    def no_mask_embedding(self, prompt_encoder: Any) -> Tensor:
        """``no_mask_embed``."""
        embedding: Tensor = prompt_encoder.no_mask_embed.weight
        return embedding

    def dense_position(self, prompt_encoder: Any) -> Tensor:
        """Uses ``get_dense_pe``."""
        position: Tensor = prompt_encoder.get_dense_pe()
        return position

    def tokens(self, mask_decoder: Any) -> Tensor:
        """``iou_token``, then ``mask_tokens``."""
        return torch.cat((mask_decoder.iou_token.weight, mask_decoder.mask_tokens.weight))

    def transform(
        self, mask_decoder: Any, embedding: Tensor, position: Tensor, tokens: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Uses ``transformer``, which returns the embedding as (B, E·E, C)."""
        tokens, updated = mask_decoder.transformer(embedding, position, tokens)
        return tokens, updated.transpose(1, 2).reshape(embedding.shape)

    def upscale(self, mask_decoder: Any, embedding: Tensor) -> Tensor:
        """Uses the layers of ``output_upscaling``; the second is a layer normalisation over channels."""
        first, norm, *rest = mask_decoder.output_upscaling
        x = normalise_channels(first(embedding), norm)
        for layer in rest:
            x = layer(x)
        return x

    def mask_weights(self, mask_decoder: Any, channel: int, token: Tensor) -> Tensor:
        """Uses ``output_hypernetworks_mlps``."""
        weights: Tensor = mask_decoder.output_hypernetworks_mlps[channel](token)
        return weights

    def quality(self, mask_decoder: Any, token: Tensor) -> Tensor:
        """Uses ``iou_prediction_head``."""
        quality: Tensor = mask_decoder.iou_prediction_head(token)
        return quality
