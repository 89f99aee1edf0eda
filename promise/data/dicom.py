"""Read DICOM files as 8-bit images, windowed as in a viewer. Needs the extra ``[dicom]``, but no torch."""

from __future__ import annotations

import io
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from promise.runtime.errors import UserError
from promise.runtime.reading import require_file, require_size

DICOM_EXTENSIONS = (".dcm", ".dicom")
_OUTSIDE = 1e9  # larger than any stored value


def is_dicom(path: Path, content: bytes | None = None) -> bool:
    """Whether a file is DICOM, by its suffix or by its first bytes; False if it cannot be opened.

    With ``content``, the bytes of the file, it is not opened. Only regular files are opened: a named pipe would wait
    for ever.
    """
    if path.suffix.lower() in DICOM_EXTENSIONS:
        return True
    if content is not None:
        return content[128:132] == b"DICM"
    try:
        require_file(path)
        with path.open("rb") as stream:
            return stream.read(132)[128:] == b"DICM"
    except (OSError, UserError):
        return False


def require_pydicom() -> None:
    """Check that pydicom is installed.

    Raises:
        UserError: ``missing-pydicom``.
    """
    if find_spec("pydicom") is None:
        raise UserError(
            "DICOM files need the package pydicom: pip install 'promise-sam[dicom]'.", code="missing-pydicom"
        )


def read_dicom(path: Path, content: bytes | None = None) -> NDArray[np.uint8]:
    """Read the image of a DICOM file as (H, W, 3) uint8 RGB. With ``content``, its bytes, the file is not opened.

    Grey values are rescaled (modality LUT) and mapped to 0–255 by the first window or VOI LUT of the file, or from
    their minimum to their maximum if the file has neither (DICOM PS3.3 C.11.2). MONOCHROME1 is inverted, so that
    larger values are brighter; palettes and YBR are converted to RGB.

    Raises:
        MissingFileError: the file does not exist (``missing-file``).
        UserError: pydicom is not installed (``missing-pydicom``), the file is not DICOM (``not-dicom``), contains no
            image (``dicom-without-image``) or several (``multi-frame-dicom``), or cannot be decoded
            (``dicom-not-decodable``).
    """
    require_pydicom()
    from pydicom.pixels import apply_color_lut, pixel_array

    data = _open(path, content)
    frames = _whole_number(data, "NumberOfFrames", path, default=1)
    if frames > 1:
        raise UserError(
            f"{path}: the file contains {frames} images; expected one image per file.", code="multi-frame-dicom"
        )
    try:
        pixels = pixel_array(data)
        colours = (3,) if int(data.SamplesPerPixel) > 1 else ()
        if pixels.shape != (int(data.Rows), int(data.Columns), *colours):
            raise ValueError(f"its pixels have the shape {pixels.shape}")
        kind = str(data.PhotometricInterpretation)
        if kind == "PALETTE COLOR":
            return _to_eight_bits(apply_color_lut(pixels, data))
        if colours:
            return _to_eight_bits(pixels, highest=2 ** int(data.BitsStored) - 1)
        grey = _window(pixels, data)
    except Exception as error:  # decoders raise many types of exceptions
        raise UserError(
            f"{path}: the image cannot be decoded ({' '.join(str(error).split())}).", code="dicom-not-decodable"
        ) from error
    return np.repeat((255 - grey if kind == "MONOCHROME1" else grey)[:, :, None], 3, axis=2)


def read_dicom_size(path: Path, content: bytes | None = None) -> tuple[int, int]:
    """(height, width) in pixels, read from the header; same errors as :func:`read_dicom`."""
    require_pydicom()
    data = _open(path, content, header=True)
    return _whole_number(data, "Rows", path), _whole_number(data, "Columns", path)


def _whole_number(data: Any, name: str, path: Path, *, default: int = 0) -> int:
    """A positive number of the header, which may hold several values or none in a damaged file."""
    try:
        number = int((data[name].value if name in data else None) or default)
    except Exception as error:  # pydicom converts values when they are read
        raise UserError(f"{path}: the DICOM header is damaged ({name}).", code="not-dicom") from error
    if number < 1:
        raise UserError(f"{path}: the DICOM header is damaged ({name} is {number}).", code="not-dicom")
    return number


def _open(path: Path, content: bytes | None, *, header: bool = False) -> Any:
    from pydicom import dcmread

    if content is None:
        require_file(path)
    try:
        data = dcmread(path if content is None else io.BytesIO(content), stop_before_pixels=header)
    except Exception as error:
        raise UserError(
            f"{path}: not a DICOM file, or corrupted ({' '.join(str(error).split())}).", code="not-dicom"
        ) from error
    if "Rows" not in data or "Columns" not in data:
        raise UserError(f"{path}: the DICOM file contains no image.", code="dicom-without-image")
    require_size(path, _whole_number(data, "Rows", path), _whole_number(data, "Columns", path))
    return data


def _window(pixels: NDArray[Any], data: Any) -> NDArray[np.uint8]:
    from pydicom.pixels import apply_modality_lut, apply_voi_lut, apply_windowing

    values = apply_modality_lut(pixels, data)
    if data.get("VOILUTSequence"):
        bits = int(data.VOILUTSequence[0].LUTDescriptor[2])
        return _to_eight_bits(apply_voi_lut(values, data), lowest=0, highest=2**bits - 1)
    if data.get("WindowWidth") is None or data.get("WindowCenter") is None:
        return _to_eight_bits(values)
    # Two additional values show what the lower and upper end of the window are mapped to.
    with np.errstate(over="ignore"):
        shown = apply_windowing(np.append(values.astype(np.float64), (-_OUTSIDE, _OUTSIDE)), data)
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
