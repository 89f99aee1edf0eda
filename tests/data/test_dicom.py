"""DICOM files are displayed as in a viewer: rescaled, windowed, not inverted."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from promise.data.dicom import is_dicom, read_dicom, read_dicom_size, require_pydicom
from promise.data.inputs import input_size, read_input
from promise.runtime.errors import MissingFileError


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


def test_the_first_of_several_windows_is_used(tmp_path) -> None:
    one = {"RescaleSlope": 2, "RescaleIntercept": -1024}
    first = write(tmp_path / "a.dcm", CT, WindowCenter=40, WindowWidth=400, **one)
    both = write(tmp_path / "b.dcm", CT, WindowCenter=[40, 500], WindowWidth=[400, 2000], **one)
    assert np.array_equal(read_dicom(first), read_dicom(both))


def test_without_a_window_the_whole_range_is_shown(tmp_path) -> None:
    values = np.array([[100, 200], [300, 500]], np.uint16)
    assert read_dicom(write(tmp_path / "a.dcm", values))[:, :, 0].tolist() == [[0, 64], [128, 255]]


def test_larger_values_are_brighter_in_both_interpretations(tmp_path) -> None:
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


def test_dicom_is_detected_by_its_first_bytes(tmp_path) -> None:
    values = np.arange(12, dtype=np.uint8).reshape(3, 4)
    path = write(tmp_path / "IM0001", values)
    assert is_dicom(path)
    assert input_size(path) == (4, 3)
    assert read_dicom_size(path) == (3, 4)
    assert np.array_equal(read_input(path), read_dicom(path))
    (tmp_path / "a.png").write_bytes(b"x" * 200)
    assert not is_dicom(tmp_path / "a.png")
    assert not is_dicom(tmp_path / "nowhere")


def test_files_without_a_single_image(tmp_path, user_error) -> None:
    stack = write(tmp_path / "stack.dcm", np.zeros((3, 4, 5), np.uint8), NumberOfFrames=3)
    with user_error("multi-frame-dicom") as caught:
        read_dicom(stack)
    assert "stack.dcm" in str(caught.value)
    assert "3 images" in str(caught.value)
    (tmp_path / "junk.dcm").write_bytes(b"junk" * 100)
    with user_error("not-dicom") as caught:
        read_dicom(tmp_path / "junk.dcm")
    assert "junk.dcm" in str(caught.value)
    short = write(tmp_path / "short.dcm", np.zeros((4, 5), np.uint8), Rows=400)
    with user_error("dicom-not-decodable") as caught:
        read_dicom(short)
    assert "short.dcm" in str(caught.value)
    with user_error("missing-file") as caught:
        read_dicom(tmp_path / "nowhere.dcm")
    assert isinstance(caught.value, MissingFileError)
    assert "nowhere.dcm" in str(caught.value)


def test_a_missing_package_is_reported_with_the_command_that_installs_it(monkeypatch, user_error) -> None:
    monkeypatch.setattr("promise.data.dicom.find_spec", lambda _name: None)
    monkeypatch.delitem(sys.modules, "pydicom", raising=False)
    with user_error("missing-pydicom") as caught:
        require_pydicom()
    assert "pip install 'promise-sam[dicom]'" in str(caught.value)


@pytest.mark.parametrize("name", ["Rows", "Columns", "NumberOfFrames"])
def test_a_damaged_header_is_one_message(name: str, tmp_path, user_error) -> None:
    values: list[Any] = [[4, 4], -3] if name == "NumberOfFrames" else [[4, 4], 0]
    for value in values:
        path = write(tmp_path / "a.dcm", np.zeros((4, 5), np.uint8), **{name: value})
        with user_error("not-dicom") as caught:
            read_dicom(path)
        assert name in str(caught.value)


def test_a_header_of_an_unknown_type_is_one_message(tmp_path, user_error) -> None:
    path = write(tmp_path / "a.dcm", np.zeros((4, 5), np.uint8))
    columns = b"\x28\x00\x11\x00US"  # tag and type of Columns
    assert path.read_bytes().count(columns) == 1
    path.write_bytes(path.read_bytes().replace(columns, columns[:4] + b"S\x02"))
    for read in (read_dicom, read_dicom_size):
        with user_error("not-dicom"):
            read(path)


def test_pixels_of_another_shape_are_refused(tmp_path, user_error, monkeypatch) -> None:
    path = write(tmp_path / "a.dcm", np.zeros((4, 5), np.uint8))
    monkeypatch.setattr("pydicom.pixels.pixel_array", lambda _data: np.zeros((2, 4, 5), np.uint8))
    with user_error("dicom-not-decodable") as caught:
        read_dicom(path)
    assert "(2, 4, 5)" in str(caught.value)
