"""The table of backbones: builder, image size, taps, pixel normalisation and weights of each member of the SAM family.

To add a backbone, pass a :class:`Backbone` to :func:`register`.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch
from torch import Tensor, nn

from promise.models.sam.adapter import Adapter, Encode, run_block
from promise.models.sam.hugging_face import (
    HuggingFace,
    build_from_config,
    build_from_sizes,
    describe,
    encode_hugging_face,
)
from promise.models.sam.lite_medsam import build_lite_medsam, encode_tiny_vit, lite_medsam_file
from promise.models.sam.segment_anything import SegmentAnything, build_segment_anything, encode_vit
from promise.models.sam.weights import Weights, check_values, find_weights
from promise.runtime.errors import UserError, unknown_name
from promise.runtime.reading import as_path

__all__ = [
    "BACKBONES",
    "HUGGING_FACE",
    "SEGMENT_ANYTHING",
    "Backbone",
    "build_sam",
    "encode_hugging_face",
    "encode_tiny_vit",
    "encode_vit",
    "get_backbone",
    "hugging_face_backbone",
    "load_sam_state",
    "register",
    "run_block",
]

SEGMENT_ANYTHING, HUGGING_FACE = SegmentAnything(), HuggingFace()


@dataclass(frozen=True)
class Backbone:
    """One member of the SAM family."""

    name: str
    build: Callable[[], nn.Module]  # a SAM with random weights: image_encoder, prompt_encoder, mask_decoder
    encode: Encode  # runs its image encoder block by block
    image_size: int  # S, pixels
    tap_blocks: tuple[int, ...]  # counted from 1, shallow to deep
    tap_channels: tuple[int, ...]
    pixels: str  # normalisation of the input: "imagenet" (mean and deviation) or "minmax" (each image to [0, 1])
    weights: Weights | str | None = None  # default weights: a published file, or a source for adapter.read
    embedding_side: int = 64  # E
    embedding_channels: int = 256  # C
    adapter: Adapter = SEGMENT_ANYTHING  # gives access to the parts of its prompt encoder and mask decoder


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
        # The publisher provides no SHA-256, so the size is checked.
        Weights("medsam_vit_b.pth", "https://zenodo.org/records/10689643/files/medsam_vit_b.pth", size=375049145),
    ),
)
for _name, _builder, _blocks, _width, _pixels, _weights in _VITS:
    register(
        Backbone(
            name=_name,
            build=partial(build_segment_anything, _builder),
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
        build=build_lite_medsam,
        encode=encode_tiny_vit,
        image_size=256,
        tap_blocks=(2, 3, 4),
        tap_channels=(160, 320, 320),
        pixels="minmax",
        weights=Weights(
            "lite_medsam.pth",
            sha256="79d8c9dca6db4d69d3f905579e5250af05e859fff9c1f543e89a513c3028ce76",
            bundled=lite_medsam_file,
        ),
    )
)


# name, model on the hub, width, blocks, heads, global-attention blocks
_HUGGING_FACE_VITS = (
    ("hf_vit_b", "facebook/sam-vit-base", 768, 12, 12, (3, 6, 9, 12)),
    ("hf_vit_l", "facebook/sam-vit-large", 1024, 24, 16, (6, 12, 18, 24)),
    ("hf_vit_h", "facebook/sam-vit-huge", 1280, 32, 16, (8, 16, 24, 32)),
)
for _name, _model, _width, _count, _heads, _global in _HUGGING_FACE_VITS:
    register(
        Backbone(
            name=_name,
            build=partial(build_from_sizes, width=_width, blocks=_count, heads=_heads, global_blocks=_global),
            encode=encode_hugging_face,
            image_size=1024,
            tap_blocks=_global[-3:],
            tap_channels=(_width,) * 3,
            pixels="imagenet",
            weights=_model,
            adapter=HUGGING_FACE,
        )
    )


def hugging_face_backbone(
    name: str, source: Path | str, *, pixels: str = "imagenet", tap_blocks: tuple[int, ...] | None = None
) -> Backbone:
    """Describe a ``SamModel`` of any size from its configuration; pass the result to :func:`register`.

    Args:
        name: name of the backbone, for ``--sam``.
        source: a folder written by ``save_pretrained``, or a model's name on the hub. The weights are read from it too,
            unless ``--sam-checkpoint`` is used.
        pixels: normalisation of the input that the weights were trained with, ``imagenet`` or ``minmax``.
        tap_blocks: blocks to tap, counted from 1, shallow to deep; default: the last three with global attention.

    Raises:
        MissingFileError: the extra ``[hf]``, the folder or its ``config.json`` is missing.
        UserError: the configuration is not that of a supported SAM.
    """
    found = describe(source)
    taps = found.global_blocks[-3:] if tap_blocks is None else tap_blocks
    return Backbone(
        name=name,
        build=partial(build_from_config, found.config),
        encode=encode_hugging_face,
        image_size=found.image_size,
        tap_blocks=taps,
        tap_channels=(found.width,) * len(taps),
        pixels=pixels,
        weights=str(source),
        embedding_side=found.embedding_side,
        embedding_channels=found.embedding_channels,
        adapter=HUGGING_FACE,
    )


def get_backbone(name: str) -> Backbone:
    """Look up a backbone by its name.

    Raises:
        UserError: the name is unknown; the error lists the known names and the nearest.
    """
    if name not in BACKBONES:
        raise unknown_name("backbone", name, BACKBONES)
    return BACKBONES[name]


def build_sam(backbone: Backbone, checkpoint: Path | str | None = "auto") -> nn.Module:
    """Build a SAM in evaluation mode.

    Args:
        backbone: its entry in the table.
        checkpoint: ``"auto"`` uses the published weights, ``None`` leaves the weights random (the same values in every
            call), anything else is read by the backbone's adapter and loaded strictly: a file, or for Hugging Face's
            SAM a folder or a name on the hub.

    Raises:
        MissingFileError: the weights, or a package that the backbone requires, are missing.
        UserError: the weights cannot be read or do not match the backbone.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)  # random weights are the same in training and evaluation
        sam = backbone.build()
    source = _weights_source(backbone, checkpoint)
    if source is not None:
        load_sam_state(sam, backbone.adapter.read(source), origin=str(source), name=backbone.name)
    return sam.eval()


def _weights_source(backbone: Backbone, checkpoint: Path | str | None) -> Path | str | None:
    """The source that the adapter reads; ``None`` if the weights stay random."""
    if checkpoint is not None:
        as_path(checkpoint, "the weight file of SAM")
    source = backbone.weights if checkpoint == "auto" else checkpoint
    if source is None:
        warnings.warn(f"SAM ({backbone.name}) has random weights: for tests only.", RuntimeWarning, stacklevel=3)
    return find_weights(source) if isinstance(source, Weights) else source


def load_sam_state(sam: nn.Module, state: dict[str, Tensor], *, origin: str, name: str) -> None:
    """Load a state dict of SAM strictly.

    Args:
        sam: the module, changed in place.
        state: its state dict.
        origin: where the state comes from, for error messages.
        name: the name of the backbone, for error messages.

    Raises:
        UserError: entries are missing, unexpected or of another shape; one error lists all of them (code
            ``weights-misfit``).
    """
    expected = sam.state_dict()
    missing = [key for key in expected if key not in state]
    unexpected = [key for key in state if key not in expected]
    shapes = [key for key in expected if key in state and expected[key].shape != state[key].shape]
    if missing or unexpected or shapes:
        parts = [
            f"{len(keys)} {kind} ({', '.join(keys[:3])}{', …' if len(keys) > 3 else ''})"
            for keys, kind in ((missing, "missing"), (unexpected, "unexpected"), (shapes, "of another shape"))
            if keys
        ]
        raise UserError(
            f"{origin} does not match the backbone {name}: of {len(expected)} entries, {'; '.join(parts)}. "
            "Pass the architecture of this file with --sam.",
            code="weights-misfit",
        )
    check_values(expected, state, origin=str(origin))
    sam.load_state_dict(state)
