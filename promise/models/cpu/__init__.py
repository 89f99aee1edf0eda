"""A net arranged for CPUs: the same weights and, to rounding, the same results, in a fraction of the time.

One door: :func:`optimize_for_cpu`. The commands use it; for the library it is optional.
"""

from __future__ import annotations

from promise.models.cpu.tiny_vit import FusedTinyViT
from promise.models.cpu.vit import FusedViT
from promise.models.cpu.winograd import use_winograd
from promise.models.promise import Promise
from promise.models.sam.adapter import Encode, Fuse
from promise.models.sam.lite_medsam import encode_tiny_vit
from promise.models.sam.segment_anything import encode_vit

# How an encoder is run block by block → how it is arranged for inference.
FUSED: dict[Encode, Fuse] = {encode_vit: FusedViT, encode_tiny_vit: FusedTinyViT}


def optimize_for_cpu(net: Promise) -> Promise:
    """Rearrange a net in place; its weights, their names and its interface stay.

    A frozen image encoder runs fused, strip by strip in the cache; the large convolutions of a prompter learn by
    Winograd's algorithm in fp32. Results agree with the plain net to rounding (1e-4 in fp32). Call it before
    an optimiser is built or after, on any device: Winograd's algorithm is used on CPUs alone.

    Returns:
        The same net.
    """
    net.sam.fuse = FUSED.get(net.sam.backbone.encode)
    if net.apm is not None:
        use_winograd(net.apm)
    return net
