"""Read image and mask files into arrays, with an error for every file that cannot be read; write PNG files."""

from __future__ import annotations

import hashlib
import io
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps, UnidentifiedImageError

from promise.runtime.errors import MissingFileError, UserError
from promise.runtime.files import atomic_path

EXTENSIONS = (".png", ".jpg", ".jpeg", ".tif", ".tiff", ".bmp")
JPEG_MAX_GREY = 0.25  # largest fraction of grey pixels (64 to 191) in a JPEG mask


def read_image(path: str | Path) -> NDArray[np.uint8]:
    """Read an image file as (H, W, 3) uint8 RGB.

    Supports PNG, JPEG, TIFF and BMP in grey, RGB or palette mode; an alpha channel is dropped. Images with more than
    8 bits per channel are scaled from their own minimum and maximum to 0–255. The EXIF orientation is applied.

    Raises:
        MissingFileError: the file does not exist (``missing-file``).
        UserError: the file is empty (``empty-file``), truncated (``corrupt-image``), not an image (``not-an-image``),
            has several pages (``multi-page-image``) or contains NaN or infinity (``non-finite-values``).
    """
    return _to_rgb(_decode(Path(path)), path)


def rgb_pixels(image: NDArray[Any] | Image.Image) -> NDArray[np.uint8]:
    """Convert an image in memory to (H, W, 3) uint8 RGB, with the same rules as :func:`read_image`.

    Args:
        image: PIL image, or array (H, W), (H, W, 1), (H, W, 3) or (H, W, 4) of uint8 or uint16.

    Raises:
        UserError: unsupported shape or type (``invalid-image-array``), or an array without pixels (``empty-image``).
    """
    if isinstance(image, Image.Image):
        return _to_rgb(_pil_to_array(ImageOps.exif_transpose(image)), "the image")
    channels = image.shape[2] if image.ndim == 3 else 1
    if image.ndim not in (2, 3) or channels not in (1, 3, 4) or image.dtype not in (np.uint8, np.uint16):
        raise UserError(
            f"an image must be (height, width), (height, width, 3) or (height, width, 4) of uint8 or uint16, not "
            f"{image.shape} of {image.dtype}.",
            code="invalid-image-array",
        )
    if not image.size:
        raise UserError(f"an image of {image.shape} has no pixels.", code="empty-image")
    return _to_rgb(image, "the image")


def _to_rgb(array: NDArray[Any], origin: str | Path) -> NDArray[np.uint8]:
    if array.dtype != np.uint8:
        array = _to_eight_bits(array, origin)
    if array.ndim == 2:
        array = array[:, :, None]
    if array.shape[2] < 3:  # grey, or grey with alpha
        array = np.repeat(array[:, :, :1], 3, axis=2)
    return np.ascontiguousarray(array[:, :, :3])


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
    path = Path(path)
    array = _decode(path)
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
            "expected 0 and 1, or 0 and 255.",
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
    path = Path(path)
    grey = _single_channel(_decode(path), path, tolerance=32)
    highest = float(grey.max())
    if grey.dtype.kind == "b" or highest <= 1:
        return np.asarray(np.rint(grey.astype(np.float64) * 255), np.uint8)
    if grey.dtype == np.uint8 or highest <= 255:
        return np.asarray(grey, np.uint8)
    return np.asarray(np.rint(grey / 65535 * 255), np.uint8)


def write_png(path: Path, pixels: NDArray[np.uint8] | NDArray[np.uint16]) -> None:
    """Write (H, W) grey values or (H, W, 3) RGB of 8 or 16 bits; the file is replaced atomically."""
    encoded, data = cv2.imencode(".png", pixels if pixels.ndim == 2 else cv2.cvtColor(pixels, cv2.COLOR_RGB2BGR))
    assert encoded
    with atomic_path(path) as temporary:
        temporary.write_bytes(np.asarray(data).tobytes())


def content_hash(path: str | Path) -> str:
    """Hash of the bytes of a file, 16 hexadecimal digits; it does not depend on the file name."""
    with Path(path).open("rb") as stream:
        return hashlib.file_digest(stream, "blake2b").hexdigest()[:16]


def read_size(path: str | Path) -> tuple[int, int]:
    """(height, width) in pixels, read from the header, with EXIF orientation applied.

    Raises the errors of :func:`read_image`, except those that show only in the pixel data.
    """
    path = Path(path)
    _require_content(path)
    try:
        with Image.open(path) as image:
            width, height = image.size
            # `getexif` decodes the whole image if a PNG has no EXIF chunk before its pixels.
            no_exif = image.format == "PNG" and "exif" not in image.info
            transposed = not no_exif and image.getexif().get(0x0112, 1) >= 5  # orientations 5–8 swap the sides
    except Exception as error:
        raise _unreadable(path, error) from error
    return (width, height) if transposed else (height, width)


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


def _require_content(path: Path) -> None:
    if not path.is_file():
        raise MissingFileError(f"{path}: no such file.", code="missing-file")
    if path.stat().st_size == 0:
        raise UserError(f"{path}: the file is empty (0 bytes).", code="empty-file")


def _unreadable(path: Path, error: Exception) -> UserError:
    if isinstance(error, UserError):
        return error
    if isinstance(error, UnidentifiedImageError):
        return UserError(f"{path}: not an image file (supported formats: PNG, JPEG, TIFF, BMP).", code="not-an-image")
    if isinstance(error, PermissionError):
        return UserError(f"{path}: permission denied.", code="permission-denied")
    return UserError(f"{path}: truncated or corrupted ({error}).", code="corrupt-image")


def _decode(path: Path) -> NDArray[Any]:
    """(H, W) or (H, W, C) array in RGB order, with the bit depth of the file.

    PIL decodes first, because OpenCV fills the rest of a truncated file with grey without an error.
    PIL keeps only the high byte of 16-bit colour, so OpenCV then reads those files.
    """
    _require_content(path)
    try:
        with Image.open(io.BytesIO(path.read_bytes())) as image:  # one read instead of one per chunk
            frames = getattr(image, "n_frames", 1)
            if image.format == "TIFF" and frames > 1:
                raise UserError(
                    f"{path}: the file contains {frames} images; expected one image per file.", code="multi-page-image"
                )
            deep = ";16" in str([tile[3] for tile in image.tile]) and image.mode.startswith("RGB")
            image.load()
            if not deep:
                ImageOps.exif_transpose(image, in_place=True)
                return _pil_to_array(image)
    except UnidentifiedImageError as error:
        if path.suffix.lower() not in (".tif", ".tiff"):
            raise _unreadable(path, error) from error
        return _decode_deep(path, error)  # TIFF variants that PIL does not support
    except Exception as error:  # decoders raise many types of exceptions for corrupted files
        raise _unreadable(path, error) from error
    return _decode_deep(path, None)


def _pil_to_array(image: Image.Image) -> NDArray[Any]:
    if image.mode in ("L", "RGB", "RGBA") or image.mode.startswith(("I", "F")):
        return np.array(image)
    if image.mode in ("1", "LA", "La"):
        return np.array(image.convert("L"))
    return np.array(image.convert("RGB"))


def _decode_deep(path: Path, error: Exception | None) -> NDArray[Any]:
    # From memory: OpenCV's imread cannot open every file name on Windows.
    array = cv2.imdecode(np.frombuffer(path.read_bytes(), np.uint8), cv2.IMREAD_UNCHANGED)
    if array is None:
        raise _unreadable(path, error or ValueError("16-bit colour that OpenCV cannot decode"))
    decoded: NDArray[Any] = np.asarray(array)
    if decoded.ndim == 3 and decoded.shape[2] >= 3:
        decoded = decoded[:, :, [2, 1, 0, *range(3, decoded.shape[2])]]
    return decoded


def _to_eight_bits(array: NDArray[Any], origin: str | Path) -> NDArray[np.uint8]:
    """Scale the minimum and maximum of all colour channels to 0–255; a constant image becomes zeros."""
    colour = array[:, :, :3] if array.ndim == 3 else array
    values = colour.astype(np.float64)
    if not np.isfinite(values).all():
        raise UserError(f"{origin}: contains NaN or infinite values.", code="non-finite-values")
    low, high = values.min(), values.max()
    return np.asarray(np.rint((values - low) * 255 / (high - low or 1)), np.uint8)


def _single_channel(array: NDArray[Any], path: Path, *, tolerance: int) -> NDArray[Any]:
    if array.ndim == 2 or array.shape[2] < 3:
        return np.asarray(array if array.ndim == 2 else array[:, :, 0])
    colour = array[:, :, :3]
    spread = colour.max(axis=2).astype(np.int64) - colour.min(axis=2)
    if int(spread.max()) > tolerance:
        worst = np.argmax(spread)
        shown = ", ".join(str(v) for v in colour.reshape(-1, 3)[worst])
        raise UserError(
            f"{path}: not a binary mask: its channels differ (one pixel is R, G, B = {shown}).",
            code="mask-channels-differ",
        )
    return np.asarray(colour[:, :, 0])


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
            f"{path}: not a binary mask: its maximum value is {maximum}; a JPEG mask must contain 0 and 255.",
            code="mask-not-binary",
        )
    if grey_fraction > JPEG_MAX_GREY:
        raise UserError(
            f"{path}: not a binary mask: {grey_fraction:.0%} of its pixels are between 64 and 191.",
            code="mask-not-binary",
        )
    return np.asarray(grey > 127)
