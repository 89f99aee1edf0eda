"""DICOM as a viewer shows it: windowed, rescaled, the right way round."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from promise.data.dicom import is_dicom, read_dicom, read_dicom_size, require_pydicom
from promise.data.inputs import picture_size, read_picture
from promise.runtime.errors import UserError


def write(path: Path, pixels: np.ndarray, kind: str = "MONOCHROME2", **other: Any) -> Path:
    pydicom = pytest.importorskip("pydicom", reason="needs the [dicom] extra")
    from pydicom.uid import ExplicitVRLittleEndian, SecondaryCaptureImageStorage, generate_uid

    meta = pydicom.dataset.FileMetaDataset()
    meta.TransferSyntaxUID = ExplicitVRLittleEndian
    meta.MediaStorageSOPClassUID = SecondaryCaptureImageStorage
    meta.MediaStorageSOPInstanceUID = generate_uid()
    data = pydicom.dataset.FileDataset(str(path), {}, file_meta=meta, preamble=b"\0" * 128)
    data.SOPClassUID, data.SOPInstanceUID = meta.MediaStorageSOPClassUID, meta.MediaStorageSOPInstanceUID
    data.Rows, data.Columns = pixels.shape[-3:-1] if kind in ("RGB", "YBR_FULL") else pixels.shape[-2:]
    data.PhotometricInterpretation = kind
    data.SamplesPerPixel = 3 if kind in ("RGB", "YBR_FULL") else 1
    if data.SamplesPerPixel == 3:
        data.PlanarConfiguration = 0
    data.BitsAllocated = data.BitsStored = 8 * pixels.dtype.itemsize
    data.HighBit = data.BitsStored - 1
    data.PixelRepresentation = int(pixels.dtype.kind == "i")
    data.PixelData = pixels.tobytes()
    for name, value in other.items():
        setattr(data, name, value)
    data.save_as(path)
    return path


CT = np.array([[-2000, 0, 960], [1023, 1024, 1064], [1104, 1424, 3000]], np.int16)  # minus 1024: Hounsfield units


def test_the_window_of_the_file_is_used(tmp_path) -> None:
    path = write(tmp_path / "ct.dcm", CT, RescaleSlope=1, RescaleIntercept=-1024, WindowCenter=40, WindowWidth=400)
    found = read_dicom(path)
    assert (found.shape, found.dtype) == ((3, 3, 3), np.uint8)
    assert (found[:, :, 0] == found[:, :, 2]).all()
    # DICOM PS3.3 C.11.2.1.2: ((x - (c - 0.5)) / (w - 1) + 0.5) of the range, cut at its ends
    expected = np.clip((CT - 1024.0 - 39.5) / 399 + 0.5, 0, 1) * 255
    np.testing.assert_allclose(found[:, :, 0], expected, atol=0.51)
    assert found[0, 0, 0] == 0
    assert found[2, 2, 0] == 255
    assert 0 < found[1, 2, 0] < 255


def test_of_several_windows_the_first_is_used(tmp_path) -> None:
    one = {"RescaleSlope": 2, "RescaleIntercept": -1024}
    first = write(tmp_path / "a.dcm", CT, WindowCenter=40, WindowWidth=400, **one)
    both = write(tmp_path / "b.dcm", CT, WindowCenter=[40, 500], WindowWidth=[400, 2000], **one)
    assert np.array_equal(read_dicom(first), read_dicom(both))


def test_without_a_window_the_whole_range_is_shown(tmp_path) -> None:
    values = np.array([[100, 200], [300, 500]], np.uint16)
    assert read_dicom(write(tmp_path / "a.dcm", values))[:, :, 0].tolist() == [[0, 64], [128, 255]]


def test_more_is_brighter_whatever_the_file_says(tmp_path) -> None:
    values = np.array([[0, 10], [200, 255]], np.uint8)
    plain, inverted = (read_dicom(write(tmp_path / f"{k}.dcm", values, k)) for k in ("MONOCHROME2", "MONOCHROME1"))
    assert plain[:, :, 0].tolist() == values.tolist()
    assert np.array_equal(inverted, 255 - plain)


def test_colour_stays(tmp_path) -> None:
    values = np.random.default_rng(0).integers(0, 255, (5, 4, 3), np.uint8)
    assert np.array_equal(read_dicom(write(tmp_path / "rgb.dcm", values, "RGB")), values)
    grey = np.dstack((values[:, :, 0], np.full((5, 4), 128), np.full((5, 4), 128))).astype(np.uint8)
    found = read_dicom(write(tmp_path / "ybr.dcm", grey, "YBR_FULL"))
    np.testing.assert_allclose(found, np.repeat(values[:, :, :1], 3, axis=2), atol=1)


def test_a_file_is_known_by_its_bytes_too(tmp_path) -> None:
    values = np.arange(12, dtype=np.uint8).reshape(3, 4)
    path = write(tmp_path / "IM0001", values)
    assert is_dicom(path)
    assert picture_size(path) == (4, 3)
    assert read_dicom_size(path) == (3, 4)
    assert np.array_equal(read_picture(path), read_dicom(path))
    (tmp_path / "a.png").write_bytes(b"x" * 200)
    assert not is_dicom(tmp_path / "a.png")
    assert not is_dicom(tmp_path / "nowhere")


def test_what_is_no_single_picture_is_told(tmp_path) -> None:
    stack = write(tmp_path / "stack.dcm", np.zeros((3, 4, 5), np.uint8), NumberOfFrames=3)
    with pytest.raises(UserError, match=r"stack\.dcm: a series of 3 pictures in one file"):
        read_dicom(stack)
    (tmp_path / "junk.dcm").write_bytes(b"junk" * 100)
    with pytest.raises(UserError, match=r"junk\.dcm: not a DICOM file"):
        read_dicom(tmp_path / "junk.dcm")
    short = write(tmp_path / "short.dcm", np.zeros((4, 5), np.uint8), Rows=400)
    with pytest.raises(UserError, match=r"short\.dcm: its picture cannot be decoded"):
        read_dicom(short)
    with pytest.raises(UserError, match="no such file"):
        read_dicom(tmp_path / "nowhere.dcm")


def test_without_pydicom_one_clear_error(monkeypatch) -> None:
    monkeypatch.setattr("promise.data.dicom.find_spec", lambda _name: None)
    monkeypatch.delitem(sys.modules, "pydicom", raising=False)
    with pytest.raises(UserError, match=r"DICOM files need the package pydicom: pip install 'promise-sam\[dicom\]'"):
        require_pydicom()
