from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest

from promise.cli.prepare import main
from promise.data.masks import read_mask
from promise.data.prepare.restore import restore_masks
from promise.runtime.errors import ExistingRunError


@pytest.fixture
def prepared(phantoms: Path, tmp_path: Path) -> Path:
    """The phantoms, enlarged by a factor of two."""
    flags = ["--size", "128", "--quiet", "--output", str(tmp_path / "prepared")]
    assert main([f"folder={phantoms.parent}", *flags]) == 0
    return tmp_path / "prepared"


def restore(prepared: Path, folder: Path, output: Path, *flags: str) -> int:
    frames = str(prepared / "frames.csv")
    return main(["--restore", str(folder), "--frames", frames, "--output", str(output), "--quiet", *flags])


def test_prepared_masks_are_restored_exactly(
    phantoms: Path, prepared: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert restore(prepared, prepared / "masks", tmp_path / "back") == 0
    assert "back: 12 masks" in capsys.readouterr().out
    for path in (phantoms.parent / "masks").iterdir():
        assert np.array_equal(read_mask(tmp_path / "back" / path.name), read_mask(path))
    assert restore(prepared, prepared / "masks", tmp_path / "back") == 1
    message = capsys.readouterr().err
    assert "12 files" in message
    assert "--overwrite" in message
    assert restore(prepared, prepared / "masks", tmp_path / "back", "--overwrite") == 0


def test_grey_values_of_another_size_and_format_are_kept(prepared: Path, tmp_path: Path) -> None:
    (tmp_path / "maps").mkdir()
    cv2.imwrite(str(tmp_path / "maps/phantom_0003.bmp"), np.full((32, 32), 77, np.uint8))
    assert restore(prepared, tmp_path / "maps", tmp_path / "back") == 0
    (only,) = (tmp_path / "back").iterdir()
    values = np.unique(cv2.imread(str(only), cv2.IMREAD_UNCHANGED))
    assert only.name == "phantom_0003.png"
    assert set(values.tolist()) <= {0, 77}
    assert 77 in values


def test_all_errors_are_reported(prepared: Path, tmp_path: Path, user_error: Callable[..., Any]) -> None:
    masks = prepared / "masks"
    cv2.imwrite(str(masks / "phantom_0001.png"), np.zeros((5, 9), np.uint8))
    (masks / "phantom_0002.png").write_bytes(b"")
    with user_error() as caught:
        restore_masks(masks, prepared / "frames.csv", tmp_path / "back", overwrite=False, quiet=True)
    assert caught.value.code == "masks-not-restored"
    assert caught.value.codes == ("mask-not-square", "empty-file")
    head, first, second = str(caught.value).splitlines()
    assert head.startswith("2 of 12 masks ")
    assert f"{masks}/phantom_0001.png: " in first
    assert "9×5" in first
    assert f"{masks}/phantom_0002.png: " in second
    assert len(list((tmp_path / "back").iterdir())) == 10


def test_nothing_to_restore(prepared: Path, tmp_path: Path, user_error: Callable[..., Any]) -> None:
    frames, output = prepared / "frames.csv", tmp_path / "back"
    with user_error("missing-folder") as caught:
        restore_masks(tmp_path / "absent", frames, output, overwrite=False, quiet=True)
    assert f"--restore {tmp_path / 'absent'}" in str(caught.value)
    with user_error("no-masks-to-restore") as caught:
        restore_masks(tmp_path, frames, output, overwrite=False, quiet=True)
    assert str(frames) in str(caught.value)
    (tmp_path / "frames.csv").write_text("name\n")
    with user_error("not-frames-csv"):
        restore_masks(tmp_path, tmp_path / "frames.csv", output, overwrite=False, quiet=True)
    assert restore(prepared, tmp_path / "absent", output) == 1  # the command has the exit status of the error
    with pytest.raises(SystemExit) as usage:
        main(["--restore", str(tmp_path), "--output", str(output)])
    assert usage.value.code == 2


def test_files_are_not_replaced(prepared: Path, tmp_path: Path) -> None:
    for overwrite in (False, True):
        restore_masks(prepared / "masks", prepared / "frames.csv", tmp_path, overwrite=overwrite, quiet=True)
    with pytest.raises(ExistingRunError) as caught:
        restore_masks(prepared / "masks", prepared / "frames.csv", tmp_path, overwrite=False, quiet=True)
    assert caught.value.code == "existing-output"
