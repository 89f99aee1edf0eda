"""One writer per folder."""

from __future__ import annotations

import os
import signal
from pathlib import Path

from promise.runtime.files import LOCK, remove_leftovers, write_text
from promise.runtime.lock import exclusive


def test_a_second_process_is_refused_until_the_first_one_dies(tmp_path: Path, user_error, hold_folder) -> None:
    folder = tmp_path / "run"
    holder = hold_folder(folder)
    for _ in range(2):  # a refused attempt does not release the lock
        with user_error("folder-in-use") as caught, exclusive(folder):
            pass
    assert all(fact in str(caught.value) for fact in (str(folder), f"process {holder.pid}", "--output"))
    holder.send_signal(signal.SIGKILL)
    holder.wait()
    assert (folder / LOCK).exists()
    with exclusive(folder):
        write_text(folder / "a.txt", "x")
    assert [path.name for path in folder.iterdir()] == ["a.txt"]


def test_the_lock_is_not_shared_within_a_process_nor_inherited(tmp_path: Path, user_error, hold_folder) -> None:
    with exclusive(tmp_path):
        with user_error("folder-in-use"), exclusive(tmp_path):
            pass
        pid = os.fork()  # as a worker of a loader, which may outlive its parent
        if pid == 0:
            signal.pause()
    hold_folder(tmp_path)  # fails if the child still holds the lock
    os.kill(pid, signal.SIGKILL)
    os.waitpid(pid, 0)


def test_a_folder_that_stays_empty_is_removed(tmp_path: Path) -> None:
    with exclusive(tmp_path / "a/b"):
        assert (tmp_path / "a/b").is_dir()
    assert list(tmp_path.iterdir()) == []


def test_processes_of_one_launch_share_the_folder(tmp_path: Path, hold_folder, monkeypatch) -> None:
    hold_folder(tmp_path)
    monkeypatch.setenv("RANK", "1")
    with exclusive(tmp_path):
        write_text(tmp_path / "a.txt", "x")
    assert {path.name for path in tmp_path.iterdir()} == {LOCK, "a.txt"}  # the lock of the first process


def test_leftovers_are_removed_except_those_of_a_live_writer(tmp_path: Path, hold_folder) -> None:
    for name in (".promise-x.png", "old/.promise-x.png", "live/.promise-x.png", "live/kept.png"):
        write_text(tmp_path / name, "half")
    hold_folder(tmp_path / "live")
    remove_leftovers(tmp_path)
    left = {path.relative_to(tmp_path).as_posix() for path in tmp_path.rglob("*") if path.is_file()}
    assert left == {f"live/{LOCK}", "live/.promise-x.png", "live/kept.png"}
