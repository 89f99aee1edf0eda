"""How does a probability map become a mask, and a map another size? Knows no models, files or metrics."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal, TypeAlias

import cv2
import numpy as np
import numpy.typing as npt

from promise.runtime.errors import UserError

Array: TypeAlias = npt.NDArray[Any]
Bools: TypeAlias = npt.NDArray[np.bool_]
Float32s: TypeAlias = npt.NDArray[np.float32]

PREPARED_SIDE = 1024  # the original's prepared images and masks, in pixels
_MORPHOLOGY = {"open": cv2.MORPH_OPEN, "close": cv2.MORPH_CLOSE}
_FORMS = (
    "'none', 'open:K' or 'close:K' with an odd kernel side K of at least 3, and behind commas 'threshold:T', 'fill', "
    "'largest', e.g. 'open:5' or 'close:7,threshold:0.45,fill'"
)


@dataclass(frozen=True)
class Postprocess:
    """Threshold a probability map, open or close the mask with a full square kernel, fill holes, keep the largest part.

    The original's evaluation is ``Postprocess("open", 5)``.

    Attributes:
        operation: ``"open"`` removes specks, ``"close"`` fills small holes, ``"none"`` does neither.
        kernel: the kernel's side in pixels of the map, odd and at least 3; unused by ``"none"``.
        threshold: foreground is at or above it, in [0, 1].
        fill: fill every hole; after the operation.
        largest: keep the largest component only; last.

    Raises:
        UserError: for a value outside these.
    """

    operation: Literal["none", "open", "close"] = "none"
    kernel: int = 5
    threshold: float = 0.5
    fill: bool = False
    largest: bool = False

    def __post_init__(self) -> None:
        if self.operation != "none" and self.operation not in _MORPHOLOGY:
            raise UserError(f"unknown postprocessing {self.operation!r}. Give {_FORMS}.")
        if self.kernel < 3 or self.kernel % 2 == 0:
            raise UserError(f"a postprocessing kernel of side {self.kernel} cannot be used. Give {_FORMS}.")
        if not 0 <= self.threshold <= 1:
            raise UserError(f"the threshold must lie in [0, 1], not at {self.threshold}.")

    @classmethod
    def parse(cls, text: str) -> Postprocess:
        """Read ``"none"``, ``"open:5"``, ``"close:7,threshold:0.45,fill,largest"``; ``str()`` gives the same text back.

        Raises:
            UserError: for anything else; the text lists the accepted forms.
        """
        found: dict[str, Any] = {}
        for word in text.split(","):
            name, colon, value = word.strip().partition(":")
            if name in _MORPHOLOGY and value.isascii() and value.isdigit():
                read = {"operation": name, "kernel": int(value)}
            elif name == "none" and not colon:
                read = {"operation": "none"}
            elif name == "threshold" and _is_decimal(value):
                read = {"threshold": float(value)}
            elif name in ("fill", "largest") and not colon:
                read = {name: True}
            else:
                raise UserError(f"cannot read the postprocessing {text!r}. Give {_FORMS}.")
            if found.keys() & read.keys():
                raise UserError(f"the postprocessing {text!r} says something twice. Give {_FORMS}.")
            found |= read
        return cls(**found)

    def __str__(self) -> str:
        words = [] if self.operation == "none" else [f"{self.operation}:{self.kernel}"]
        words += [f"threshold:{np.format_float_positional(self.threshold)}"] if self.threshold != 0.5 else []
        words += [name for name in ("fill", "largest") if getattr(self, name)]
        return ",".join(words) or "none"

    def __call__(self, prob: Array) -> Bools:
        """The mask of one map.

        Args:
            prob: (H, W) float in [0, 1].

        Returns:
            (H, W) bool.

        Raises:
            ValueError: for another type, range or number of dimensions, or no pixels.
        """
        _check_2d("prob", prob)
        if prob.dtype.kind != "f" or not (prob.min() >= 0 and prob.max() <= 1):
            raise ValueError(
                f"prob must be float in [0, 1], not {prob.dtype} from {prob.min():g} to {prob.max():g}; "
                "logits need a sigmoid first."
            )
        mask = np.asarray(prob >= self.threshold)
        if self.operation != "none":
            mask = open_or_close(mask, self.operation, self.kernel)
        if self.fill:
            mask = fill_holes(mask)
        return largest_component(mask) if self.largest else mask


def open_or_close(mask: Bools, operation: Literal["open", "close"], kernel: int) -> Bools:
    """Open or close a mask (H, W) with a full square of ``kernel`` pixels a side; the border is neutral."""
    square = np.ones((kernel, kernel), np.uint8)
    return np.asarray(cv2.morphologyEx(mask.astype(np.uint8), _MORPHOLOGY[operation], square) > 0)


def fill_holes(mask: Bools) -> Bools:
    """A mask (H, W) with every hole filled: background that no 4-connected path leads out of the picture from."""
    outlines, _ = cv2.findContours(mask.astype(np.uint8), cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_NONE)
    return np.asarray(cv2.drawContours(np.zeros(mask.shape, np.uint8), outlines, -1, 1, cv2.FILLED) > 0)


def largest_component(mask: Bools) -> Bools:
    """The largest 8-connected part of a mask (H, W), the first of equals; a mask without foreground as it is."""
    count, labels, stats, _ = cv2.connectedComponentsWithStats(mask.astype(np.uint8), connectivity=8)
    if count <= 2:
        return mask
    return np.asarray(labels == 1 + int(np.argmax(stats[1:, cv2.CC_STAT_AREA])))


def to_size(values: Array, height: int, width: int) -> Float32s:
    """Resize a map of probabilities or logits bilinearly; no averaging when it shrinks.

    The same as ``torch.nn.functional.interpolate(mode="bilinear", align_corners=False, antialias=False)``.

    Args:
        values: (H, W), any real type.
        height: rows of the result.
        width: columns of the result.

    Returns:
        (height, width) float32; the values themselves when the size is already right.

    Raises:
        ValueError: if the map is not 2-D or empty, or the new size is not positive.
    """
    _check_2d("the map", values)
    if height < 1 or width < 1:
        raise ValueError(f"the new size must be at least 1 × 1, not {height} × {width}.")
    source = np.ascontiguousarray(values, dtype=np.float32)
    if source.shape == (height, width):
        return source
    return np.asarray(cv2.resize(source, (width, height), interpolation=cv2.INTER_LINEAR), np.float32)


def reference_target(mask: Array, side: int = 256) -> Bools:
    """The ground truth as the original's evaluation sees it: shrunk, and grown by up to a pixel.

    The mask is brought to 1024 × 1024, the side of the original's prepared masks, by nearest neighbour, then
    resized bilinearly; whatever is touched by foreground counts as foreground.

    Args:
        mask: (H, W) bool.
        side: rows and columns of the result.

    Returns:
        (side, side) bool.

    Raises:
        ValueError: if the mask is not bool, not 2-D or empty, or the side is not positive.
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
        raise ValueError(f"{name} must be a NumPy array (height, width) with pixels in it, not {found}.")


def probability_at(logits: np.ndarray, height: int, width: int) -> np.ndarray:
    """Logits (h, w) of the decoder as a probability map (height, width) float32, as the native protocol cuts it."""
    return sigmoid(to_size(logits, height, width))


def sigmoid(logits: np.ndarray) -> np.ndarray:
    """Probabilities float32 of logits; the one sigmoid outside the losses."""
    # In double precision, and stable for large negative values; 0 gives exactly one half.
    return (0.5 * (1 + np.tanh(0.5 * logits.astype(np.float64)))).astype(np.float32)
