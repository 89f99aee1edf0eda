"""Atomic files and folders; the files of a run folder."""

from __future__ import annotations

import errno
import json
import os
import stat
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch

from promise.runtime.errors import ExistingRunError, WriteError
from promise.runtime.files import atomic_path, check_output_dir, staged, write_json, write_text
from promise.runtime.lock import exclusive
from promise.runtime.reading import as_path, parse_json

WRITERS: dict[str, Callable[[Path], object]] = {
    "text": lambda path: path.write_bytes(bytes(10**5)),
    "safetensors": lambda path: safetensors.torch.save_file({"a": torch.zeros(10**5)}, path),
    "torch": lambda path: torch.save({"a": torch.zeros(10**5)}, path),
}


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
    with exclusive(folder), staged(folder, replaced=("old.txt",), last="list.json") as stage:
        for name in ("list.json", "b.txt"):
            (stage / name).write_text(name)
        assert not (folder / "b.txt").exists()
    assert sorted(path.name for path in folder.iterdir()) == ["b.txt", "list.json"]
    (folder / "old.txt").write_text("of an earlier kind")
    (folder / ".unfinished-killed").mkdir()
    with exclusive(folder), staged(folder, replaced=("old.txt", "b.txt"), last="list.json") as stage:
        assert (folder / "old.txt").exists()
        (stage / "list.json").write_text("new")
    assert [path.name for path in folder.iterdir()] == ["list.json"]
    assert (folder / "list.json").read_text() == "new"


def test_a_failure_while_staging_leaves_existing_files_unchanged(tmp_path: Path) -> None:
    def stage_half(folder: Path) -> None:
        with exclusive(folder), staged(folder, replaced=("kept.txt",), last="list.json") as stage:
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


@pytest.mark.parametrize("value", [b"a", None, 3, ["a"]])
def test_only_texts_and_paths_are_paths(value: object, user_error) -> None:
    with user_error("not-a-path") as caught:
        as_path(value, "the image")
    assert str(caught.value).startswith("the image must be a path")
    assert as_path("a/b", "it") == as_path(Path("a/b"), "it") == Path("a/b")


@pytest.mark.parametrize("text", ["", "{", b"\xff", "9" * 5000, "[" * 100_000, '{"a":' * 100_000])
def test_every_fault_of_json_is_a_value_error(text: str | bytes) -> None:
    with pytest.raises(ValueError, match=r"\S"):
        parse_json(text)
    assert parse_json('{"a": [1]}') == {"a": [1]}


# --- failures to write ----------------------------------------------------------------------------


@pytest.mark.parametrize("writer", WRITERS)
def test_a_full_disk_is_one_error_whichever_library_writes(writer, tmp_path: Path, user_error, limit_file_size) -> None:
    path = tmp_path / "a.bin"
    write_text(path, "old")
    limit_file_size(20_000)
    with user_error("output-not-writable") as caught, atomic_path(path) as temporary:
        WRITERS[writer](temporary)
    assert isinstance(caught.value, WriteError)
    assert caught.value.errno in (errno.EFBIG, errno.ENOSPC)
    assert str(path) in str(caught.value)
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


def test_a_name_of_255_bytes_can_be_written(tmp_path: Path, user_error) -> None:
    path = tmp_path / ("病" * 83 + "aa.txt")
    assert len(os.fsencode(path.name)) == 255
    write_text(path, "x")
    assert path.read_text() == "x"
    with user_error("output-not-writable") as caught:
        write_text(path.with_name("a" + path.name), "x")
    assert caught.value.errno == errno.ENAMETOOLONG


def test_a_path_below_a_file_is_one_error(tmp_path: Path, user_error) -> None:
    write_text(tmp_path / "a", "x")
    with user_error("output-not-writable"):
        write_text(tmp_path / "a/b.txt", "x")
