"""Mask prompts as JSON: float32 logits, compressed and in base64."""

from __future__ import annotations

import base64
import zlib
from typing import Any

import numpy as np

from promise.runtime.errors import UserError

LARGEST_MASK = 2**22  # values of a mask prompt


def pack_mask(mask: np.ndarray) -> dict[str, Any]:
    """The object of a mask (h, w) float32 in a prompts file."""
    packed = zlib.compress(np.ascontiguousarray(mask, "<f4").tobytes())
    return {"shape": list(mask.shape), "zlib_base64_float32": base64.b64encode(packed).decode()}


def unpack_mask(packed: Any, side: int | None = None) -> np.ndarray:
    """(h, w) float32 logits of the object that :func:`pack_mask` writes.

    Raises:
        UserError: the object cannot be decoded, does not hold h × w finite values, or has another side than ``side``.
    """
    shape = packed.get("shape") if isinstance(packed, dict) else None
    text = packed.get("zlib_base64_float32") if isinstance(packed, dict) else None
    if not (
        isinstance(text, str)
        and isinstance(shape, list)
        and len(shape) == 2
        and all(type(length) is int and length > 0 for length in shape)
    ):
        raise UserError(
            "mask must be an object with shape [h, w] and zlib_base64_float32, as promise-predict writes it",
            code="invalid-mask",
        )
    height, width = shape
    if side is not None and shape != [side, side]:
        raise UserError(f"mask has the shape {shape}; the net requires [{side}, {side}]", code="mask-shape-mismatch")
    size = 4 * height * width  # bytes
    if height * width > LARGEST_MASK:
        raise UserError(
            f"mask has the shape {shape}; at most {LARGEST_MASK} values are accepted", code="mask-too-large"
        )
    try:
        compressed = base64.b64decode(text, validate=True)
        content = zlib.decompressobj().decompress(compressed, size + 1)  # a bomb is cut off after one byte too many
    except (ValueError, zlib.error) as error:
        raise UserError(f"mask cannot be decoded ({error})", code="invalid-mask-encoding") from error
    if len(content) != size:
        found = f"more than {size}" if len(content) > size else len(content)
        raise UserError(f"mask contains {found} bytes; its shape {shape} requires {size}", code="mask-length-mismatch")
    mask = np.frombuffer(content, "<f4").reshape(height, width).astype(np.float32)
    if not np.isfinite(mask).all():
        raise UserError("mask must contain finite logits", code="mask-not-finite")
    return mask
