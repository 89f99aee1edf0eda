"""How a picture or mask file becomes an array, and what to say when it cannot; knows no torch, no table."""

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
JPEG_MIDDLE = 0.25  # a JPEG mask may have this share of its pixels between black and white


def read_image(path: str | Path) -> NDArray[np.uint8]:
    """A picture as (H, W, 3) uint8 RGB.

    PNG, JPEG, TIFF or BMP; grey, RGB, palette or with alpha (dropped). More than 8 bits a channel are
    scaled from the picture's own minimum and maximum to 0–255. EXIF orientation is applied.

    Raises:
        MissingFileError: no such file.
        UserError: empty, truncated or no picture; the text says which.
    """
    return _to_rgb(_decode(Path(path)), path)


def rgb_pixels(picture: NDArray[Any] | Image.Image) -> NDArray[np.uint8]:
    """A picture in memory as :func:`read_image` gives one in a file.

    Args:
        picture: (H, W), (H, W, 1), (H, W, 3) or (H, W, 4) uint8 or uint16; or of PIL.

    Raises:
        UserError: another shape or type, or no pixels.
    """
    if isinstance(picture, Image.Image):
        return _to_rgb(_pil_to_array(ImageOps.exif_transpose(picture)), "the picture")
    channels = picture.shape[2] if picture.ndim == 3 else 1
    if picture.ndim not in (2, 3) or channels not in (1, 3, 4) or picture.dtype not in (np.uint8, np.uint16):
        raise UserError(
            f"an image must be (height, width), (height, width, 3) or (height, width, 4) of uint8 or uint16, not "
            f"{picture.shape} of {picture.dtype}."
        )
    if not picture.size:
        raise UserError(f"an image of {picture.shape} has no pixels.")
    return _to_rgb(picture, "the picture")


def _to_rgb(array: NDArray[Any], origin: str | Path) -> NDArray[np.uint8]:
    if array.dtype != np.uint8:
        array = _to_eight_bits(array, origin)
    if array.ndim == 2:
        array = array[:, :, None]
    if array.shape[2] < 3:  # grey, or grey with alpha
        array = np.repeat(array[:, :, :1], 3, axis=2)
    return np.ascontiguousarray(array[:, :, :3])


def read_mask(path: str | Path) -> NDArray[np.bool_]:
    """A mask as (H, W) bool, True for foreground.

    Values 0 and 1, or 0 and 255, in one channel or in three equal ones; alpha is ignored. A JPEG, whose
    edges are never exact, is cut at > 127.

    Raises:
        MissingFileError: no such file.
        UserError: empty, truncated, no picture, coloured, or with other values; the text says which.
    """
    return read_mask_and_value(path)[0]


def read_mask_and_value(path: str | Path) -> tuple[NDArray[np.bool_], int]:
    """As :func:`read_mask`, and the value that stands for foreground: 1 or 255, or 0 where there is none."""
    path = Path(path)
    array = _decode(path)
    lossy = path.suffix.lower() in (".jpg", ".jpeg")
    grey = _single_channel(array, path, tolerance=32 if lossy else 0)
    if lossy:
        mask = _cut_jpeg(grey, path)
        return mask, 255 if mask.any() else 0
    values = _values(grey)
    if not (np.isin(values, (0, 1)).all() or np.isin(values, (0, 255)).all()):
        shown = ", ".join(f"{v:g}" for v in values[:6]) + (", …" if len(values) > 6 else "")
        raise UserError(
            f"{path}: not a binary mask: it holds {len(values)} value{'s' * (len(values) != 1)} ({shown}); "
            "0 and 1, or 0 and 255, are expected."
        )
    return np.asarray(grey > 0), int(values[-1])


def read_levels(path: str | Path) -> NDArray[np.uint8]:
    """A mask whose edges may be grey, as (H, W) uint8 levels from 0 to 255.

    0 and 1 become 0 and 255, 16 bits are scaled to 8; three channels must be equal, to within what JPEG does to
    them; alpha is ignored.

    Raises:
        MissingFileError: no such file.
        UserError: empty, truncated, no picture or coloured; the text says which.
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
    """Write (H, W) grey values or (H, W, 3) RGB, of 8 or 16 bits, all or nothing."""
    done, data = cv2.imencode(".png", pixels if pixels.ndim == 2 else cv2.cvtColor(pixels, cv2.COLOR_RGB2BGR))
    assert done
    with atomic_path(path) as temporary:
        temporary.write_bytes(np.asarray(data).tobytes())


def content_hash(path: str | Path) -> str:
    """16 hex digits of the file's bytes: the same picture under another name has the same."""
    with Path(path).open("rb") as stream:
        return hashlib.file_digest(stream, "blake2b").hexdigest()[:16]


def read_size(path: str | Path) -> tuple[int, int]:
    """(height, width) from the header alone, EXIF orientation applied; same errors as reading."""
    path = Path(path)
    _require_content(path)
    try:
        with Image.open(path) as image:
            width, height = image.size
            # Asking a PNG without EXIF for its EXIF would decode all of it.
            absent = image.format == "PNG" and "exif" not in image.info
            turned = not absent and image.getexif().get(0x0112, 1) >= 5  # 5–8 swap the sides
    except Exception as error:
        raise _unreadable(path, error) from error
    return (width, height) if turned else (height, width)


def _require_content(path: Path) -> None:
    if not path.is_file():
        raise MissingFileError(f"{path}: no such file.")
    if path.stat().st_size == 0:
        raise UserError(f"{path}: the file is empty (0 bytes).")


def _unreadable(path: Path, error: Exception) -> UserError:
    if isinstance(error, UserError):
        return error
    if isinstance(error, UnidentifiedImageError):
        return UserError(f"{path}: not a picture that can be read (PNG, JPEG, TIFF and BMP are).")
    if isinstance(error, PermissionError):
        return UserError(f"{path}: no permission to read it.")
    return UserError(f"{path}: truncated or damaged ({error}).")


def _decode(path: Path) -> NDArray[Any]:
    """(H, W) or (H, W, C) array in RGB order, of the file's own depth.

    PIL decodes first, because OpenCV fills the rest of a truncated file with grey and says nothing.
    PIL keeps only the high byte of 16-bit colour, so those are then read by OpenCV.
    """
    _require_content(path)
    try:
        with Image.open(io.BytesIO(path.read_bytes())) as image:  # read at once: PIL would ask for every chunk
            frames = getattr(image, "n_frames", 1)
            if image.format == "TIFF" and frames > 1:
                raise UserError(f"{path}: a stack of {frames} pictures; one a file is expected.")
            deep = ";16" in str([tile[3] for tile in image.tile]) and image.mode.startswith("RGB")
            image.load()
            if not deep:
                ImageOps.exif_transpose(image, in_place=True)
                return _pil_to_array(image)
    except UnidentifiedImageError as error:
        if path.suffix.lower() not in (".tif", ".tiff"):
            raise _unreadable(path, error) from error
        return _decode_deep(path, error)  # layouts of TIFF that PIL does not know
    except Exception as error:  # decoders raise a dozen kinds on damaged files
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
    """Min–max of the colour channels to 0–255; a constant picture becomes zeros."""
    colour = array[:, :, :3] if array.ndim == 3 else array
    values = colour.astype(np.float64)
    if not np.isfinite(values).all():
        raise UserError(f"{origin}: holds values that are not finite numbers.")
    low, high = values.min(), values.max()
    return np.asarray(np.rint((values - low) * 255 / (high - low or 1)), np.uint8)


def _single_channel(array: NDArray[Any], path: Path, *, tolerance: int) -> NDArray[Any]:
    if array.ndim == 2 or array.shape[2] < 3:
        return np.asarray(array if array.ndim == 2 else array[:, :, 0])
    colour = array[:, :, :3]
    spread = int(np.max(colour.max(axis=2).astype(np.int64) - colour.min(axis=2)))
    if spread > tolerance:
        worst = np.argmax(colour.max(axis=2).astype(np.int64) - colour.min(axis=2))
        shown = ", ".join(str(v) for v in colour.reshape(-1, 3)[worst])
        raise UserError(f"{path}: not a binary mask: its channels differ (a pixel is R, G, B = {shown}).")
    return np.asarray(colour[:, :, 0])


def _values(grey: NDArray[Any]) -> NDArray[Any]:
    """The distinct values, in order."""
    if grey.dtype == np.uint8:  # five times as fast as sorting
        return np.flatnonzero(cv2.calcHist([grey], [0], None, [256], [0, 256]))
    return np.unique(grey)


def _cut_jpeg(grey: NDArray[Any], path: Path) -> NDArray[np.bool_]:
    """> 127, unless the values say that this is no black-and-white picture."""
    brightest = int(grey.max())
    middle = float(((grey > 63) & (grey < 192)).mean())
    if 0 < brightest <= 127:
        raise UserError(
            f"{path}: not a black-and-white mask: its brightest value is {brightest}; a JPEG mask wants 0 and 255."
        )
    if middle > JPEG_MIDDLE:
        raise UserError(f"{path}: not a black-and-white mask: {middle:.0%} of its pixels lie between 64 and 191.")
    return np.asarray(grey > 127)
