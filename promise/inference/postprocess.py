"""Postprocessing: from a probability map to a mask, and the resizing of maps."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal, TypeAlias

import cv2
import numpy as np
import numpy.typing as npt

from promise.runtime.errors import UserError, excerpt

Array: TypeAlias = npt.NDArray[Any]
Bools: TypeAlias = npt.NDArray[np.bool_]
Float32s: TypeAlias = npt.NDArray[np.float32]

PREPARED_SIDE = 1024  # pixels; side of the prepared images and masks of the reference implementation
STRIP = 2**20  # values that are converted at a time in double precision
MAX_KERNEL = 1023  # side of a kernel in pixels; its memory grows with the square
_MORPHOLOGY = {"open": cv2.MORPH_OPEN, "close": cv2.MORPH_CLOSE}
_FORMS = (
    f"'none', 'open:K' or 'close:K' with an odd kernel side K of at least 3 and at most {MAX_KERNEL}, optionally "
    "followed by 'threshold:T', 'fill' and 'largest', separated by commas, such as 'open:5' or "
    "'close:7,threshold:0.45,fill'"
)


@dataclass(frozen=True)
class Postprocess:
    """Threshold a probability map, apply a morphological operation, fill holes and keep the largest component.

    The steps are applied in this order. The evaluation of the reference implementation uses ``Postprocess("open", 5)``.

    Attributes:
        operation: ``"open"`` removes small components, ``"close"`` fills small holes, ``"none"`` does neither.
        kernel: side of the square kernel in pixels of the map, odd, from 3 to :data:`MAX_KERNEL`; not used by
            ``"none"``.
        threshold: pixels with at least this probability are foreground; in [0, 1].
        fill: whether all holes are filled.
        largest: whether only the largest component is kept.

    Raises:
        UserError: unknown operation (``unknown-postprocess-operation``), or a value out of range
            (``invalid-kernel``, ``invalid-threshold``).
    """

    operation: Literal["none", "open", "close"] = "none"
    kernel: int = 5
    threshold: float = 0.5
    fill: bool = False
    largest: bool = False

    def __post_init__(self) -> None:
        if self.operation != "none" and self.operation not in _MORPHOLOGY:
            raise UserError(
                f"unknown postprocessing {self.operation!r}. Accepted: {_FORMS}.", code="unknown-postprocess-operation"
            )
        if not 3 <= self.kernel <= MAX_KERNEL or self.kernel % 2 == 0:
            raise UserError(
                f"the side of a postprocessing kernel cannot be {self.kernel}. Accepted: {_FORMS}.",
                code="invalid-kernel",
            )
        if not 0 <= self.threshold <= 1:
            raise UserError(f"the threshold must be in [0, 1], not {self.threshold}.", code="invalid-threshold")

    @classmethod
    def parse(cls, text: str) -> Postprocess:
        """Read a text such as ``"none"``, ``"open:5"`` or ``"close:7,threshold:0.45,fill,largest"``.

        ``str()`` is the inverse.

        Raises:
            UserError: the text cannot be read (``invalid-postprocess``), or contains a setting twice
                (``duplicate-postprocess-setting``); the message lists the accepted forms.
        """
        fields: dict[str, Any] = {}
        for word in text.split(","):
            name, colon, value = word.strip().partition(":")
            if name in _MORPHOLOGY and value.isascii() and value.isdigit() and len(value) < 10:
                read = {"operation": name, "kernel": int(value)}
            elif name == "none" and not colon:
                read = {"operation": "none"}
            elif name == "threshold" and _is_decimal(value):
                read = {"threshold": float(value)}
            elif name in ("fill", "largest") and not colon:
                read = {name: True}
            else:
                raise UserError(
                    f"cannot read the postprocessing {excerpt(text)!r}. Accepted: {_FORMS}.",
                    code="invalid-postprocess",
                )
            if fields.keys() & read.keys():
                raise UserError(
                    f"the postprocessing {excerpt(text)!r} contains a setting twice. Accepted: {_FORMS}.",
                    code="duplicate-postprocess-setting",
                )
            fields |= read
        return cls(**fields)

    def __str__(self) -> str:
        words = [] if self.operation == "none" else [f"{self.operation}:{self.kernel}"]
        words += [f"threshold:{np.format_float_positional(self.threshold)}"] if self.threshold != 0.5 else []
        words += [name for name in ("fill", "largest") if getattr(self, name)]
        return ",".join(words) or "none"

    def __call__(self, prob: Array) -> Bools:
        """Convert one probability map to a mask.

        Args:
            prob: (H, W) float in [0, 1].

        Returns:
            (H, W) bool.

        Raises:
            ValueError: another type, range or number of dimensions, or no pixels.
        """
        _check_2d("prob", prob)
        if prob.dtype.kind != "f" or not (prob.min() >= 0 and prob.max() <= 1):
            raise ValueError(
                f"prob must be float in [0, 1], not {prob.dtype} from {prob.min():g} to {prob.max():g}; "
                "apply a sigmoid to logits first."
            )
        mask = np.asarray(prob >= self.threshold)
        if self.operation != "none":
            mask = open_or_close(mask, self.operation, self.kernel)
        if self.fill:
            mask = fill_holes(mask)
        return largest_component(mask) if self.largest else mask


def open_or_close(mask: Bools, operation: Literal["open", "close"], kernel: int) -> Bools:
    """Open or close a mask (H, W) with a full square of ``kernel`` × ``kernel`` pixels; the border is neutral."""
    square = np.ones((kernel, kernel), np.uint8)
    return np.asarray(cv2.morphologyEx(mask.view(np.uint8), _MORPHOLOGY[operation], square)).view(np.bool_)


def fill_holes(mask: Bools) -> Bools:
    """Fill all holes of a mask (H, W): background without a 4-connected path to the border of the image."""
    outlines, _ = cv2.findContours(mask.view(np.uint8), cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_NONE)
    return np.asarray(cv2.drawContours(np.zeros(mask.shape, np.uint8), outlines, -1, 1, cv2.FILLED)).view(np.bool_)


def largest_component(mask: Bools) -> Bools:
    """The largest 8-connected component of a mask (H, W); ties go to the first in scan order.

    A mask without foreground is returned unchanged.
    """
    count, labels, stats, _ = cv2.connectedComponentsWithStats(mask.astype(np.uint8), connectivity=8)
    if count <= 2:
        return mask
    return np.asarray(labels == 1 + int(np.argmax(stats[1:, cv2.CC_STAT_AREA])))


def to_size(values: Array, height: int, width: int) -> Float32s:
    """Resize a map of probabilities or logits bilinearly, without antialiasing.

    Equivalent to ``torch.nn.functional.interpolate(mode="bilinear", align_corners=False, antialias=False)``.

    Args:
        values: (H, W), any real type.
        height: number of rows of the result.
        width: number of columns of the result.

    Returns:
        (height, width) float32; if the size does not change, the values are not interpolated.

    Raises:
        ValueError: the map is not 2-D or is empty, or the new size is not positive.
    """
    _check_2d("the map", values)
    if height < 1 or width < 1:
        raise ValueError(f"the new size must be at least 1 × 1, not {height} × {width}.")
    source = np.ascontiguousarray(values, dtype=np.float32)
    if source.shape == (height, width):
        return source
    return np.asarray(cv2.resize(source, (width, height), interpolation=cv2.INTER_LINEAR), np.float32)


def reference_target(mask: Array, side: int = 256) -> Bools:
    """The ground truth in the evaluation of the reference implementation: reduced, and dilated by up to one pixel.

    The mask is resized to 1024 × 1024, the size of the prepared masks of the reference implementation, with nearest
    neighbours, then bilinearly to the result. Every pixel with a positive value is foreground.

    Args:
        mask: (H, W) bool.
        side: number of rows and of columns of the result.

    Returns:
        (side, side) bool.

    Raises:
        ValueError: the mask is not bool, not 2-D or is empty, or the side is not positive.
    """
    _check_2d("mask", mask)
    if mask.dtype != np.bool_:
        raise ValueError(f"mask must be bool, not {mask.dtype}; threshold it first.")
    prepared = mask.astype(np.uint8)
    if prepared.shape != (PREPARED_SIDE, PREPARED_SIDE):
        size = (PREPARED_SIDE, PREPARED_SIDE)
        prepared = np.asarray(cv2.resize(prepared, size, interpolation=cv2.INTER_NEAREST), np.uint8)
    return np.asarray(to_size(prepared, side, side) > 0)


def _is_decimal(text: str) -> bool:
    return text.isascii() and text.replace(".", "", 1).isdigit()


def _check_2d(name: str, array: Array) -> None:
    if not isinstance(array, np.ndarray) or array.ndim != 2 or array.size == 0:
        found = getattr(array, "shape", type(array).__name__)
        raise ValueError(f"{name} must be a non-empty NumPy array (height, width), not {found}.")


def probability_at(logits: np.ndarray, height: int, width: int) -> np.ndarray:
    """Resize logits (h, w) of the decoder and apply the sigmoid: the probability map of the protocol ``native``.

    Args:
        logits: (h, w) float.
        height: number of rows of the result.
        width: number of columns of the result.

    Returns:
        (height, width) float32 in [0, 1].
    """
    resized = to_size(logits, height, width)
    return sigmoid(resized, out=None if np.may_share_memory(resized, logits) else resized)


def sigmoid(logits: np.ndarray, *, out: Float32s | None = None) -> np.ndarray:
    """Probabilities (float32) of logits (…, H, W). This is the only sigmoid outside the losses.

    Args:
        logits: any shape with at least one dimension, float.
        out: the array that is returned, float32 of the same shape; it may be ``logits``.
    """
    found = np.empty(logits.shape, np.float32) if out is None else out
    step = max(1, STRIP * len(logits) // max(1, logits.size))
    for top in range(0, len(logits), step):
        rows = slice(top, top + step)
        # Double precision, numerically stable for large negative values, and exactly 0.5 at 0.
        found[rows] = 0.5 * (1 + np.tanh(0.5 * logits[rows].astype(np.float64)))
    return found
