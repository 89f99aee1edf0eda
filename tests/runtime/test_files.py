"""Atomic files and folders; the files of a run folder."""

from __future__ import annotations

import json
import os
import stat
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from promise.runtime.errors import ExistingRunError
from promise.runtime.files import atomic_path, check_output_dir, staged, write_json, write_text


def test_a_file_appears_when_it_is_complete(tmp_path: Path) -> None:
    path = tmp_path / "a/b/c.txt"
    with atomic_path(path) as temporary:
        assert temporary.parent == path.parent
        assert temporary.suffix == ".txt"
        temporary.write_text("new")
        assert not path.exists()
    assert path.read_text() == "new"
    assert list(path.parent.iterdir()) == [path]


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt])
def test_a_failure_leaves_an_existing_file_unchanged(error: type[BaseException], tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    write_text(path, "old")

    def fail() -> None:
        with atomic_path(path) as temporary:
            temporary.write_text("half")
            raise error

    with pytest.raises(error):
        fail()
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.skipif(os.name == "nt", reason="POSIX permissions")
def test_permissions_follow_the_umask(tmp_path: Path) -> None:
    before = os.umask(0o027)
    try:
        write_text(tmp_path / "a.txt", "x")
    finally:
        os.umask(before)
    assert stat.S_IMODE((tmp_path / "a.txt").stat().st_mode) == 0o640


def test_json_has_null_for_nan(tmp_path: Path) -> None:
    write_json(
        tmp_path / "a.json", {"a": float("nan"), "b": [1.5, float("nan")], "c": (Path("x"), "ä"), 3: {"d": None}}
    )
    text = (tmp_path / "a.json").read_text(encoding="utf-8")
    assert json.loads(text) == {"a": None, "b": [1.5, None], "c": ["x", "ä"], "3": {"d": None}}
    assert "NaN" not in text


def test_staged_files_appear_together(tmp_path: Path) -> None:
    folder = tmp_path / "new"
    with staged(folder, replaced=("old.txt",), last="list.json") as stage:
        for name in ("list.json", "b.txt"):
            (stage / name).write_text(name)
        assert not (folder / "b.txt").exists()
    assert sorted(path.name for path in folder.iterdir()) == ["b.txt", "list.json"]
    (folder / "old.txt").write_text("of an earlier kind")
    (folder / ".unfinished-killed").mkdir()
    with staged(folder, replaced=("old.txt", "b.txt"), last="list.json") as stage:
        assert (folder / "old.txt").exists()
        (stage / "list.json").write_text("new")
    assert [path.name for path in folder.iterdir()] == ["list.json"]
    assert (folder / "list.json").read_text() == "new"


def test_a_failure_while_staging_leaves_existing_files_unchanged(tmp_path: Path) -> None:
    def stage_half(folder: Path) -> None:
        with staged(folder, replaced=("kept.txt",), last="list.json") as stage:
            (stage / "half.txt").write_text("half")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        stage_half(tmp_path / "a" / "b")
    assert list(tmp_path.iterdir()) == []
    (tmp_path / "kept.txt").write_text("kept")
    with pytest.raises(KeyboardInterrupt):
        stage_half(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["kept.txt"]


def test_output_folder_with_results_is_rejected(tmp_path: Path, user_error: Callable[..., Any]) -> None:
    folder = tmp_path / "out"
    assert check_output_dir(folder, ["a.csv"], overwrite=False) == folder
    assert not folder.exists()
    write_text(folder / "a.csv", "x")
    with user_error("existing-output") as caught:
        check_output_dir(folder, ["a.csv", "b.csv"], overwrite=False)
    assert isinstance(caught.value, ExistingRunError)
    assert all(fact in str(caught.value) for fact in (str(folder), "a.csv", "--overwrite", "--output"))
    assert "b.csv" not in str(caught.value)
    assert check_output_dir(folder, ["a.csv"], overwrite=True) == folder
    with user_error("output-is-a-file") as caught:
        check_output_dir(folder / "a.csv", ["a.csv"], overwrite=True)
    assert str(folder / "a.csv") in str(caught.value)
