"""Faster implementations for CPUs, with the same weights and the same results up to rounding.

The entry point is :func:`optimize_for_cpu`. The commands call it; users of the library may.
"""

from __future__ import annotations

from promise.models.cpu.tiny_vit import FusedTinyViT
from promise.models.cpu.vit import FusedViT
from promise.models.cpu.winograd import use_winograd
from promise.models.promise import Promise
from promise.models.sam.adapter import Encode, Fuse
from promise.models.sam.lite_medsam import encode_tiny_vit
from promise.models.sam.segment_anything import encode_vit

# The block-by-block implementation of an encoder → its fused implementation for inference.
FUSED: dict[Encode, Fuse] = {encode_vit: FusedViT, encode_tiny_vit: FusedTinyViT}


def optimize_for_cpu(net: Promise) -> Promise:
    """Optimise a net in place; weights, state-dict names and interface do not change.

    A frozen image encoder runs fused, strip by strip within the CPU's cache. In fp32, the large convolutions of a
    prompter use Winograd's algorithm during training. Results agree with the unmodified net up to rounding (1e-4 in
    fp32). The function can be called before or after the optimiser is built, and on any device: Winograd's algorithm
    is used on CPUs only.

    Returns:
        The same net.
    """
    net.sam.fuse = FUSED.get(net.sam.backbone.encode)
    if net.apm is not None:
        use_winograd(net.apm)
    return net
