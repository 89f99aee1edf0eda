"""Image files: decoding, sizes and orientations, and writing of PNG files."""

from __future__ import annotations

import hashlib
import io
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps, TiffImagePlugin, UnidentifiedImageError

from promise.runtime.errors import UserError, is_out_of_memory
from promise.runtime.files import atomic_path
from promise.runtime.reading import PIXELS_VARIABLE, as_path, require_file, require_size

EXTENSIONS = (".png", ".jpg", ".jpeg", ".tif", ".tiff", ".bmp")
_WIDTH, _HEIGHT, _ORIENTATION = 0x0100, 0x0101, 0x0112  # tags of TIFF and EXIF
_STRIP = 2**22  # pixels that are converted at a time


def read_image(path: str | Path, content: bytes | None = None) -> NDArray[np.uint8]:
    """Read an image file as (H, W, 3) uint8 RGB. With ``content``, its bytes, the file is not opened.

    Supports PNG, JPEG, TIFF and BMP in grey, RGB or palette mode; an alpha channel is dropped. Images with more than
    8 bits per channel are scaled from their own minimum and maximum to 0–255. The EXIF orientation is applied.

    Raises:
        MissingFileError: the file does not exist (``missing-file``).
        UserError: the file is empty (``empty-file``), truncated (``corrupt-image``), not an image (``not-an-image``),
            has several pages or frames (``multi-page-image``), contains NaN or infinity (``non-finite-values``) or is
            too large (``image-too-large``: more pixels than ``PROMISE_MAX_PIXELS``, or than fit into the memory).
    """
    path = as_path(path, "the image")
    with explain_errors(path):
        return _to_rgb(decode(path, content), path)


def rgb_pixels(image: NDArray[Any] | Image.Image) -> NDArray[np.uint8]:
    """Convert an image in memory to (H, W, 3) uint8 RGB, with the same rules as :func:`read_image`.

    Args:
        image: PIL image, or array (H, W), (H, W, 1), (H, W, 3) or (H, W, 4) of uint8 or uint16.

    Raises:
        UserError: unsupported shape or type (``invalid-image-array``), or an array without pixels (``empty-image``).
    """
    if isinstance(image, Image.Image):
        _require_one_frame(image, "the image")
        return _to_rgb(_pil_to_array(ImageOps.exif_transpose(image)), "the image")
    if not isinstance(image, np.ndarray):
        raise UserError(
            f"an image must be a path, a NumPy array, a PIL image or a torch tensor, not {type(image).__name__}.",
            code="invalid-image-array",
        )
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


def read_size(path: str | Path, content: bytes | None = None) -> tuple[int, int]:
    """(height, width) in pixels, read from the header, with EXIF orientation applied.

    With ``content``, the bytes of the file, it is not opened.

    Raises the errors of :func:`read_image`, except those that show only in the pixel data.
    """
    width, height, orientation = read_header(as_path(path, "the image"), content)
    return (width, height) if orientation >= 5 else (height, width)  # orientations 5–8 swap the sides


def read_header(path: Path, content: bytes | None = None) -> tuple[int, int, int]:
    """Width and height as stored, and the EXIF orientation, 1 to 8."""
    require_content(path, content)
    with explain_errors(path):
        try:
            with Image.open(path if content is None else io.BytesIO(content)) as image:
                _require_one_frame(image, path)
                width, height = image.size
                # `getexif` decodes the whole image if a PNG has no EXIF chunk before its pixels.
                no_exif = image.format == "PNG" and "exif" not in image.info
                orientation = 1 if no_exif else image.getexif().get(_ORIENTATION, 1)
        except UnidentifiedImageError:
            if not _is_tiff(path):
                raise
            (width, height), orientation = _tiff_size(path.read_bytes() if content is None else content, path), 1
        require_size(path, height, width)
    return width, height, orientation if orientation in range(1, 9) else 1


def require_content(path: Path, content: bytes | None = None) -> None:
    """Check that an image file exists, is a regular file and is not empty, or its bytes; it is not opened.

    Raises:
        UserError: as :func:`promise.runtime.reading.require_file`, or the file is empty (``empty-file``).
    """
    if content is None:
        require_file(path)
    if (path.stat().st_size if content is None else len(content)) == 0:
        raise UserError(f"{path}: the file is empty (0 bytes).", code="empty-file")


@contextmanager
def explain_errors(path: Path) -> Iterator[None]:
    """Convert every error of a decoder, which raise many types of exceptions for corrupted files."""
    try:
        yield
    except UserError:
        raise
    except Exception as error:
        raise _unreadable(path, error) from error


def _unreadable(path: Path, error: Exception) -> UserError:
    if isinstance(error, UnidentifiedImageError):
        return UserError(f"{path}: not an image file (supported formats: PNG, JPEG, TIFF, BMP).", code="not-an-image")
    if isinstance(error, PermissionError):
        return UserError(f"{path}: permission denied.", code="permission-denied")
    if is_out_of_memory(error):
        return UserError(
            f"{path}: the image does not fit into the memory. Reduce or divide it.", code="image-too-large"
        )
    if isinstance(error, Image.DecompressionBombError):
        return UserError(
            f"{path}: more pixels than PIL.Image.MAX_IMAGE_PIXELS allows, which the commands replace by "
            f"{PIXELS_VARIABLE}.",
            code="image-too-large",
        )
    return UserError(f"{path}: truncated or corrupted ({' '.join(str(error).split())}).", code="corrupt-image")


def decode(path: Path, content: bytes | None = None) -> NDArray[Any]:
    """(H, W) or (H, W, C) array in RGB order, with the bit depth of the file.

    With ``content``, the bytes of the file, it is not opened.

    PIL decodes first, because OpenCV fills the rest of a truncated file with grey without an error.
    PIL keeps only the high byte of 16-bit colour, so OpenCV then reads those files.
    """
    require_content(path, content)
    content = path.read_bytes() if content is None else content  # one read instead of one per chunk
    try:
        with Image.open(io.BytesIO(content)) as image:
            require_size(path, image.height, image.width)
            _require_one_frame(image, path)
            deep = ";16" in str([tile[3] for tile in image.tile]) and image.mode.startswith("RGB")
            image.load()
            if not deep:
                ImageOps.exif_transpose(image, in_place=True)
                return _pil_to_array(image)
    except UnidentifiedImageError:
        if not _is_tiff(path):
            raise
        width, height = _tiff_size(content, path)  # TIFF variants that PIL does not support
        require_size(path, height, width)
    return _decode_deep(content)


def _is_tiff(path: Path) -> bool:
    return path.suffix.lower() in (".tif", ".tiff")


def _tiff_size(content: bytes, path: Path) -> tuple[int, int]:
    """(width, height) of a TIFF, from its first directory, which must be its only one.

    Raises ``UnidentifiedImageError`` if it has none.
    """
    try:
        directory = TiffImagePlugin.ImageFileDirectory_v2(content[:8])
        stream = io.BytesIO(content)
        stream.seek(directory.next)
        directory.load(stream)
        size = int(directory[_WIDTH]), int(directory[_HEIGHT])
    except Exception as error:
        raise UnidentifiedImageError(str(error)) from error
    if directory.next:
        raise _several_images(path, "several")
    return size


def _require_one_frame(image: Image.Image, origin: str | Path) -> None:
    """Refuse the pages of a TIFF and the frames of a GIF, PNG or WebP: which one is meant is not known.

    The further images of an MPO, the JPEG variant of some cameras, are previews of the first one.
    """
    if image.format != "MPO" and getattr(image, "is_animated", False):
        raise _several_images(origin, getattr(image, "n_frames", "several"))


def _several_images(origin: str | Path, count: int | str) -> UserError:
    return UserError(
        f"{origin}: the file contains {count} images (pages or frames); expected one image per file. Save the one that "
        "is meant as a PNG.",
        code="multi-page-image",
    )


def _pil_to_array(image: Image.Image) -> NDArray[Any]:
    """The pixels of an image, strip by strip: PIL copies what it converts several times."""
    if image.mode in ("L", "RGB", "RGBA") or image.mode.startswith(("I", "F")):
        mode = image.mode
    else:
        mode = "L" if image.mode in ("1", "LA", "La") else "RGB"

    def convert(part: Image.Image) -> NDArray[Any]:
        return np.array(part if part.mode == mode else part.convert(mode))

    width, height = image.size
    step = max(1, _STRIP // width)
    if step >= height:
        return convert(image)
    pixel = convert(image.crop((0, 0, 1, 1)))
    array = np.empty((height, width, *pixel.shape[2:]), pixel.dtype)
    for top in range(0, height, step):
        array[top : top + step] = convert(image.crop((0, top, width, min(height, top + step))))
    return array


def _decode_deep(content: bytes) -> NDArray[Any]:
    # From memory: OpenCV's imread cannot open every file name on Windows.
    array = cv2.imdecode(np.frombuffer(content, np.uint8), cv2.IMREAD_UNCHANGED)
    if array is None:
        raise ValueError("OpenCV cannot decode it")
    decoded: NDArray[Any] = np.asarray(array)
    if decoded.ndim == 3 and decoded.shape[2] >= 3:
        decoded = decoded[:, :, [2, 1, 0, *range(3, decoded.shape[2])]]
    return decoded


def _to_eight_bits(array: NDArray[Any], origin: str | Path) -> NDArray[np.uint8]:
    """Scale the minimum and maximum of all colour channels to 0–255; a constant image becomes zeros."""
    colour = array[:, :, :3] if array.ndim == 3 else array
    low, high = float(colour.min()), float(colour.max())  # NaN if any value is
    if not np.isfinite((low, high)).all():
        raise UserError(f"{origin}: contains NaN or infinite values.", code="non-finite-values")
    scaled = np.empty(colour.shape, np.uint8)
    step = max(1, _STRIP // colour.shape[1])  # strips: float64 needs eight times the memory of the result
    for top in range(0, len(colour), step):
        values = colour[top : top + step].astype(np.float64)
        scaled[top : top + step] = np.rint((values - low) * 255 / (high - low or 1))
    return scaled
