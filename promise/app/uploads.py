"""Uploads: decode the bytes of a file to an image, within limits. Nothing is written to a disk."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path, PurePosixPath

import numpy as np
from numpy.typing import NDArray

from promise.data.inputs import input_size, read_input
from promise.runtime.errors import UserError


class TooLargeError(UserError):
    """An upload or a request exceeds a limit."""


@dataclass(frozen=True)
class Limits:
    """Limits of an upload."""

    megabytes: float = 32  # of the file
    megapixels: float = 25  # of the image

    @property
    def bytes(self) -> int:
        """Largest size of the file in bytes."""
        return int(self.megabytes * 2**20)

    def check_bytes(self, count: int) -> None:
        """Check the size of a file.

        Raises:
            TooLargeError: the file is too large (``file-too-large``).
        """
        if count > self.bytes:
            raise TooLargeError(
                f"The file is larger than {self.megabytes:g} MB, the limit of this server (--max-megabytes of "
                "promise-app).",
                code="file-too-large",
            )

    def check_pixels(self, width: int, height: int) -> None:
        """Check the number of pixels of an image.

        Raises:
            TooLargeError: there are too many pixels (``image-too-large``).
        """
        if height * width > self.megapixels * 1e6:
            raise self.too_many_pixels(f"{width} × {height}")

    def too_many_pixels(self, count: str) -> TooLargeError:
        """The error for an image with too many pixels."""
        return TooLargeError(
            f"The image has {count} pixels; the limit of this server is {self.megapixels:g} million (--max-megapixels "
            "of promise-app).",
            code="image-too-large",
        )


def base_name(name: str) -> str:
    """The last component of a file name of any operating system, without characters that are not allowed in names."""
    last = PurePosixPath(name.replace("\\", "/")).name
    return "".join(c for c in last if c.isprintable() and c not in '<>:"|?*')[-120:].lstrip(".") or "image"


def read_upload(content: bytes, name: str, limits: Limits) -> NDArray[np.uint8]:
    """Decode an uploaded file.

    Args:
        content: the bytes of a PNG, JPEG, TIFF or BMP file, or of a DICOM file if pydicom is installed.
        name: file name without folders, see :func:`base_name`; its suffix may identify the format.
        limits: limits of the upload. The number of pixels is read from the header before the image is decoded.

    Returns:
        (H, W, 3) uint8 RGB.

    Raises:
        TooLargeError: the upload exceeds the limits.
        UserError: the file is not an image that can be read.
    """
    limits.check_bytes(len(content))
    path = Path(name)  # in messages only
    try:
        limits.check_pixels(*input_size(path, content))
        return read_input(path, content)
    except UserError as error:
        if error.code == "image-too-large" and not isinstance(error, TooLargeError):  # beyond the limit of all readers
            raise limits.too_many_pixels("too many") from error
        raise
