from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
import pytest

from promise.cli.prepare import main
from promise.data.images import read_mask


@pytest.fixture
def prepared(phantoms: Path, tmp_path: Path) -> Path:
    """The phantoms, twice as large as their frames."""
    flags = ["--size", "128", "--quiet", "--output", str(tmp_path / "prepared")]
    assert main([f"folder={phantoms.parent}", *flags]) == 0
    return tmp_path / "prepared"


def restore(prepared: Path, folder: Path, output: Path, *flags: str) -> int:
    frames = str(prepared / "frames.csv")
    return main(["--restore", str(folder), "--frames", frames, "--output", str(output), "--quiet", *flags])


def test_prepared_masks_come_back_exactly(
    phantoms: Path, prepared: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert restore(prepared, prepared / "masks", tmp_path / "back") == 0
    assert capsys.readouterr().out.endswith("back: 12 masks in their original frames\n")
    for path in (phantoms.parent / "masks").iterdir():
        assert np.array_equal(read_mask(tmp_path / "back" / path.name), read_mask(path))
    assert restore(prepared, prepared / "masks", tmp_path / "back") == 1
    assert "12 files are there already" in capsys.readouterr().err
    assert restore(prepared, prepared / "masks", tmp_path / "back", "--overwrite") == 0


def test_grey_values_of_another_size_and_format_stay(prepared: Path, tmp_path: Path) -> None:
    (tmp_path / "maps").mkdir()
    cv2.imwrite(str(tmp_path / "maps/phantom_0003.bmp"), np.full((32, 32), 77, np.uint8))
    assert restore(prepared, tmp_path / "maps", tmp_path / "back") == 0
    (only,) = (tmp_path / "back").iterdir()
    values = np.unique(cv2.imread(str(only), cv2.IMREAD_UNCHANGED))
    assert only.name == "phantom_0003.png"
    assert set(values.tolist()) <= {0, 77}
    assert 77 in values


def test_faults_are_told_at_once(prepared: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    masks = prepared / "masks"
    cv2.imwrite(str(masks / "phantom_0001.png"), np.zeros((5, 9), np.uint8))
    (masks / "phantom_0002.png").write_bytes(b"")
    assert restore(prepared, masks, tmp_path / "back") == 1
    told = capsys.readouterr().err.splitlines()
    assert told[0] == "promise-prepare: 2 of 12 masks cannot be restored; the others are:"
    assert f"{masks}/phantom_0001.png: a prepared mask is square and has one channel; this one is 9×5." in told[1]
    assert f"{masks}/phantom_0002.png: the file is empty" in told[2]
    assert len(list((tmp_path / "back").iterdir())) == 10


def test_nothing_to_restore_is_told(prepared: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert restore(prepared, tmp_path / "absent", tmp_path / "back") == 1
    assert "no such folder" in capsys.readouterr().err
    assert restore(prepared, tmp_path, tmp_path / "back") == 1
    assert "holds no picture of" in capsys.readouterr().err
    with pytest.raises(SystemExit) as caught:
        main(["--restore", str(tmp_path), "--output", str(tmp_path / "back")])
    assert caught.value.code == 2
