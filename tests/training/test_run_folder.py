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


def test_a_run_stopped_in_the_first_saving_can_be_started_again(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path)
    for name in ("config.yaml", "environment.json", "best.safetensors", "last.safetensors"):
        write_text(folder.path / name, "x")
    folder.check(resume=False, overwrite=False)
    with pytest.raises(MissingFileError, match="Start it again without --resume"):
        folder.check(resume=True, overwrite=False)


def test_a_run_without_its_state_is_never_sent_in_a_circle(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path)
    for name in ("config.yaml", "best.safetensors", "log.csv"):
        write_text(folder.path / name, "x")
    for resume in (False, True):
        with pytest.raises(ExistingRunError) as caught:
            folder.check(resume=resume, overwrite=False)
        assert "--overwrite" in str(caught.value)
        assert "--resume" not in str(caught.value)
    folder.check(resume=False, overwrite=True)


def test_a_run_without_its_settings_is_not_resumed(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path)
    write_text(folder.state, "x")
    with pytest.raises(ExistingRunError, match=r"config\.yaml.*--overwrite"):
        folder.check(resume=True, overwrite=False)
    folder.check(resume=False, overwrite=True)


def test_the_settings_of_a_state_are_read_back(tmp_path: Path, user_error) -> None:
    folder = RunFolder(tmp_path)
    folder.save_state(Progress(), {"settings": '{"lr": 0.1}'})
    assert folder.load_settings() == {"lr": 0.1}
    folder.save_state(Progress(), {"learned": {}})  # of an earlier version
    assert folder.load_settings() == {}
    folder.state.write_bytes(folder.state.read_bytes()[:100])
    for read in (folder.load_settings, folder.load_state):
        with user_error("damaged-state"):
            read()
