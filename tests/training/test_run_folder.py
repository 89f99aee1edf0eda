"""The files of a run folder."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from promise.runtime.errors import ExistingRunError, MissingFileError
from promise.runtime.files import write_text
from promise.training.run_folder import OURS, Progress, RunFolder


def test_run_folder_check_and_clear(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path / "run")
    folder.check(resume=False, overwrite=False)
    assert not folder.path.exists()
    with pytest.raises(MissingFileError, match="--resume"):
        folder.check(resume=True, overwrite=False)
    folder.clear()
    for name in (*OURS, "notes.txt"):
        write_text(folder.path / name, "x")
    with pytest.raises(ExistingRunError, match=r"run.*--resume.*--overwrite"):
        folder.check(resume=False, overwrite=False)
    folder.check(resume=True, overwrite=False)
    folder.check(resume=False, overwrite=True)
    folder.clear()
    assert [p.name for p in folder.path.rglob("*") if p.is_file()] == ["notes.txt"]


def test_state_and_environment_are_read_back(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path)
    progress = Progress(2, [{"epoch": 1, "val_iou": None}], 1, 0.5, 1)
    folder.save_state(progress, {"learned": {}, "sam_sha256": "ab"})
    assert folder.load_state() == (progress, {"learned": {}, "sam_sha256": "ab"})
    folder.write_environment(seed=3, device="cpu")
    folder.write_environment(device="cuda")
    assert json.loads(folder.environment.read_text()) == {"seed": 3, "device": "cuda"}
