"""Mask files: binary masks, grey levels, and whether a mask fits its image."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from promise.data.images import decode, explain_errors, read_header
from promise.runtime.errors import UserError
from promise.runtime.reading import as_path

JPEG_MAX_GREY = 0.25  # largest fraction of grey pixels (64 to 191) in a JPEG mask


def read_mask(path: str | Path) -> NDArray[np.bool_]:
    """Read a mask file as (H, W) bool, True for foreground.

    A mask holds the values 0 and 1, or 0 and 255, in one channel or in three equal channels; alpha is ignored. JPEG
    masks, whose edges are blurred by the compression, are thresholded at > 127.

    Raises:
        MissingFileError: the file does not exist.
        UserError: as in :func:`read_image`; also if the channels differ (``mask-channels-differ``) or other values
            occur (``mask-not-binary``).
    """
    return read_mask_and_value(path)[0]


def is_jpeg(path: Path) -> bool:
    """Whether the file name ends in ``.jpg`` or ``.jpeg``, in any case."""
    return path.suffix.lower() in (".jpg", ".jpeg")


def read_mask_and_value(path: str | Path) -> tuple[NDArray[np.bool_], int]:
    """As :func:`read_mask`; also returns the value of foreground pixels: 1 or 255, or 0 for an empty mask."""
    path = as_path(path, "the mask")
    with explain_errors(path):
        array = decode(path)
    lossy = is_jpeg(path)
    grey = _single_channel(array, path, tolerance=32 if lossy else 0)
    if lossy:
        mask = _threshold_jpeg(grey, path)
        return mask, 255 if mask.any() else 0
    values = _distinct_values(grey)
    if not (np.isin(values, (0, 1)).all() or np.isin(values, (0, 255)).all()):
        shown = ", ".join(f"{v:g}" for v in values[:6]) + (", …" if len(values) > 6 else "")
        raise UserError(
            f"{path}: not a binary mask: it contains {len(values)} value{'s' * (len(values) != 1)} ({shown}); "
            f"expected 0 and 1, or 0 and 255. {_make_binary(int(values[-1]))}",
            code="mask-not-binary",
        )
    return np.asarray(grey > 0), int(values[-1])


def read_levels(path: str | Path) -> NDArray[np.uint8]:
    """Read a mask whose edges may be grey, as (H, W) uint8 levels from 0 to 255.

    Values 0 and 1 become 0 and 255; 16 bits are scaled to 8. Three channels must be equal, except for the error of
    JPEG compression; alpha is ignored.

    Raises:
        MissingFileError: the file does not exist.
        UserError: as in :func:`read_image`; also if the channels differ (``mask-channels-differ``).
    """
    path = as_path(path, "the mask")
    with explain_errors(path):
        grey = _single_channel(decode(path), path, tolerance=32)
    highest = float(grey.max())
    if grey.dtype.kind == "b" or highest <= 1:
        return np.asarray(np.rint(grey.astype(np.float64) * 255), np.uint8)
    if grey.dtype == np.uint8 or highest <= 255:
        return np.asarray(grey, np.uint8)
    return np.asarray(np.rint(grey / 65535 * 255), np.uint8)


def describe_turn(image: Path, mask: Path) -> str | None:
    """A warning if an image and its mask have different EXIF orientations, so that they may not match; else ``None``.

    Both files can be read.
    """
    turns = [read_header(path)[2] for path in (image, mask)]
    if turns[0] == turns[1]:
        return None
    texts = [f"orientation {turn}" if turn != 1 else "none" for turn in turns]
    return (
        f"image {image} is turned by its EXIF orientation ({texts[0]}), its mask {mask} by another ({texts[1]}). "
        "Does the mask match the image?"
    )


def size_mismatch(
    image: Path, image_size: tuple[int, ...], mask: Path, mask_size: tuple[int, ...], *, place: str = ""
) -> UserError:
    """The error of an image and a mask of different size (``image-size-mismatch``).

    Args:
        image: the image file.
        image_size: (height, width) in pixels.
        mask: the mask file.
        mask_size: (height, width) in pixels.
        place: put before the text, such as ``"line 2: "``.
    """
    return UserError(
        f"{place}image {image} has {image_size[1]}×{image_size[0]} pixels, but its mask {mask} has "
        f"{mask_size[1]}×{mask_size[0]}.",
        code="image-size-mismatch",
    )


def _single_channel(array: NDArray[Any], path: Path, *, tolerance: int) -> NDArray[Any]:
    if array.ndim == 2 or array.shape[2] < 3:
        return np.asarray(array if array.ndim == 2 else array[:, :, 0])
    colour = array[:, :, :3]
    spread = colour.max(axis=2).astype(np.int64) - colour.min(axis=2)
    if int(spread.max()) > tolerance:
        worst = np.argmax(spread)
        shown = ", ".join(str(v) for v in colour.reshape(-1, 3)[worst])
        raise UserError(
            f"{path}: not a binary mask: its channels differ (one pixel is R, G, B = {shown}). Is "
            "it a palette or colour image? Set the lesions to 255 and everything else to 0.",
            code="mask-channels-differ",
        )
    return np.asarray(colour[:, :, 0])


def _make_binary(maximum: int) -> str:
    """How to convert a grey mask; promise-prepare would find no foreground in values up to 127."""
    if maximum > 127:
        return "promise-prepare makes such masks binary: values above 127 are foreground."
    return "Set the lesions to 255."


def _distinct_values(grey: NDArray[Any]) -> NDArray[Any]:
    """The distinct values, in ascending order."""
    if grey.dtype == np.uint8:  # a histogram is five times as fast as sorting
        return np.flatnonzero(cv2.calcHist([grey], [0], None, [256], [0, 256]))
    return np.unique(grey)


def _threshold_jpeg(grey: NDArray[Any], path: Path) -> NDArray[np.bool_]:
    """> 127; an error if the values show that the image is not black and white."""
    maximum = int(grey.max())
    grey_fraction = float(((grey > 63) & (grey < 192)).mean())
    if 0 < maximum <= 127:
        raise UserError(
            f"{path}: not a binary mask: its maximum value is {maximum}; a JPEG mask must contain 0 and 255. "
            f"{_make_binary(maximum)}",
            code="mask-not-binary",
        )
    if grey_fraction > JPEG_MAX_GREY:
        raise UserError(
            f"{path}: not a binary mask: {grey_fraction:.0%} of its pixels are between 64 and 191. "
            f"{_make_binary(maximum)}",
            code="mask-not-binary",
        )
    return np.asarray(grey > 127)
