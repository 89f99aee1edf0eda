"""How the bytes of an upload become a picture, within limits; knows no nets and no HTTP.

They lie in a temporary file while they are decoded and nowhere afterwards.
"""

from __future__ import annotations

import tempfile
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from promise.data.inputs import picture_size, read_picture
from promise.runtime.errors import UserError


class TooLargeError(UserError):
    """An upload beyond the limits."""


@dataclass(frozen=True)
class Limits:
    """What an upload may be at most."""

    megabytes: float = 32  # of the file
    megapixels: float = 25  # of the picture

    @property
    def bytes(self) -> int:
        """Of the file."""
        return int(self.megabytes * 2**20)

    def check_bytes(self, count: int) -> None:
        """Refuse a file of more bytes.

        Raises:
            TooLargeError: with the limit.
        """
        if count > self.bytes:
            raise TooLargeError(
                f"The file is larger than {self.megabytes:g} MB, the most that this server takes "
                "(--max-megabytes of promise-app)."
            )

    def check_pixels(self, width: int, height: int) -> None:
        """Refuse a picture of more pixels.

        Raises:
            TooLargeError: with its size and the limit.
        """
        if height * width > self.megapixels * 1e6:
            raise TooLargeError(f"The picture has {width} × {height} pixels, {self.most_pixels}")

    @property
    def most_pixels(self) -> str:
        """The limit of the pixels in words."""
        return f"more than the {self.megapixels:g} million that this server takes (--max-megapixels of promise-app)."


def base_name(name: str) -> str:
    """The last part of a file's name as another machine spells it, without what would be no name here."""
    last = PurePosixPath(name.replace("\\", "/")).name
    return "".join(c for c in last if c.isprintable() and c not in '<>:"|?*')[-120:].lstrip(".") or "image"


def read_upload(content: bytes, name: str, limits: Limits) -> NDArray[np.uint8]:
    """Decode an uploaded file.

    Args:
        content: the file's bytes: PNG, JPEG, TIFF, BMP, or DICOM where pydicom is installed.
        name: as :func:`base_name` gives it; its suffix may help to tell the format.
        limits: the pixels are counted in the header, before anything is decoded.

    Returns:
        (H, W, 3) uint8 RGB.

    Raises:
        TooLargeError: beyond the limits.
        UserError: no picture that can be read; the text says why.
    """
    limits.check_bytes(len(content))
    with tempfile.TemporaryDirectory(prefix="promise-app-") as folder:
        path = Path(folder) / f"upload{Path(name).suffix}"
        path.write_bytes(content)
        try:
            limits.check_pixels(*picture_size(path))
            return read_picture(path)
        except UserError as error:
            if isinstance(error.__cause__, Image.DecompressionBombError):
                raise TooLargeError(f"The picture has {limits.most_pixels}") from error
            if isinstance(error, TooLargeError):
                raise
            raise UserError(str(error).replace(str(path), name)) from error
