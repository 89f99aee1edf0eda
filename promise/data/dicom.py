"""How a DICOM file becomes a picture of 8 bits, as a viewer shows it; knows no other format, no torch.

Needs the extra ``[dicom]``.
"""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from promise.runtime.errors import UserError

DICOM_EXTENSIONS = (".dcm", ".dicom")
_FAR = 1e9  # beyond every stored value


def is_dicom(path: Path) -> bool:
    """Whether a file says that it is DICOM: by its suffix, or by its first bytes."""
    if path.suffix.lower() in DICOM_EXTENSIONS:
        return True
    try:
        with path.open("rb") as stream:
            return stream.read(132)[128:] == b"DICM"
    except OSError:
        return False


def require_pydicom() -> None:
    """Refuse where DICOM cannot be read.

    Raises:
        UserError: pydicom is not installed.
    """
    if find_spec("pydicom") is None:
        raise UserError("DICOM files need the package pydicom: pip install 'promise-sam[dicom]'.")


def read_dicom(path: Path) -> NDArray[np.uint8]:
    """The picture of a DICOM file as (H, W, 3) uint8 RGB.

    Grey values are rescaled and cut by the file's own first window, or VOI table; without one from their minimum to
    their maximum. MONOCHROME1 is inverted, so that more is brighter; palettes and YBR become RGB.

    Raises:
        UserError: pydicom is missing, no picture in it, several of them, or a compression that cannot be read.
    """
    require_pydicom()
    from pydicom.pixels import apply_color_lut, pixel_array

    data = _open(path)
    frames = int(data.get("NumberOfFrames", 1) or 1)
    if frames > 1:
        raise UserError(f"{path}: a series of {frames} pictures in one file; one a file is expected.")
    try:
        pixels = pixel_array(data)
        kind = str(data.PhotometricInterpretation)
        if kind == "PALETTE COLOR":
            return _to_eight_bits(apply_color_lut(pixels, data))
        if int(data.SamplesPerPixel) > 1:
            return _to_eight_bits(pixels[:, :, :3], highest=2 ** int(data.BitsStored) - 1)
        grey = _window(pixels, data)
    except Exception as error:  # decoders raise a dozen kinds
        raise UserError(f"{path}: its picture cannot be decoded ({' '.join(str(error).split())}).") from error
    return np.repeat((255 - grey if kind == "MONOCHROME1" else grey)[:, :, None], 3, axis=2)


def read_dicom_size(path: Path) -> tuple[int, int]:
    """(height, width) from the header alone; same errors as reading."""
    require_pydicom()
    data = _open(path, header=True)
    return int(data.Rows), int(data.Columns)


def _open(path: Path, *, header: bool = False) -> Any:
    from pydicom import dcmread

    if not path.is_file():
        raise UserError(f"{path}: no such file.")
    try:
        data = dcmread(path, stop_before_pixels=header)
    except Exception as error:
        raise UserError(f"{path}: not a DICOM file, or damaged ({' '.join(str(error).split())}).") from error
    if "Rows" not in data or "Columns" not in data:
        raise UserError(f"{path}: a DICOM file without a picture.")
    return data


def _window(pixels: NDArray[Any], data: Any) -> NDArray[np.uint8]:
    from pydicom.pixels import apply_modality_lut, apply_voi_lut, apply_windowing

    values = apply_modality_lut(pixels, data)
    if data.get("VOILUTSequence"):
        bits = int(data.VOILUTSequence[0].LUTDescriptor[2])
        return _to_eight_bits(apply_voi_lut(values, data), lowest=0, highest=2**bits - 1)
    if data.get("WindowWidth") is None or data.get("WindowCenter") is None:
        return _to_eight_bits(values)
    # Two values beside the picture's own tell what the window's lower and upper end become.
    with np.errstate(over="ignore"):
        shown = apply_windowing(np.append(values.astype(np.float64), (-_FAR, _FAR)), data)
    return _to_eight_bits(shown[:-2].reshape(values.shape), lowest=shown[-2], highest=shown[-1])


def _to_eight_bits(
    values: NDArray[Any], *, lowest: float | None = None, highest: float | None = None
) -> NDArray[np.uint8]:
    if values.dtype == np.uint8 and lowest is None and highest in (None, 255):
        return np.ascontiguousarray(values)
    found = values.astype(np.float64)
    low = float(found.min()) if lowest is None and highest is None else float(lowest or 0)
    high = float(found.max()) if highest is None else float(highest)
    return np.asarray(np.rint(np.clip((found - low) / (high - low or 1), 0, 1) * 255), np.uint8)
