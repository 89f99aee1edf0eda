"""What is refused before it is read."""

from __future__ import annotations

import os
import socket
from pathlib import Path

import promise
from promise.runtime.files import write_text
from promise.runtime.reading import expand_home, require_file, require_size


def test_only_regular_files_are_read(tmp_path: Path, user_error) -> None:
    os.mkfifo(tmp_path / "fifo")
    (tmp_path / "broken").symlink_to("/nowhere/annex/a.png")
    (tmp_path / "loop").symlink_to("loop")
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(str(tmp_path / "socket"))
    faults = {
        tmp_path: ("not-a-file", "a folder"),
        tmp_path / "fifo": ("not-a-file", "a named pipe"),
        tmp_path / "socket": ("not-a-file", "a socket"),
        Path("/dev/zero"): ("not-a-file", "a device"),
        tmp_path / "broken": ("missing-file", "a link to /nowhere/annex/a.png"),
        tmp_path / "loop": ("invalid-path", "symbolic links"),
        tmp_path / ("a" * 300): ("invalid-path", "too long"),
        tmp_path / "nul\0": ("invalid-path", "null"),
        tmp_path / "missing": ("missing-file", "no such file"),
    }
    for path, (code, text) in faults.items():
        with user_error(code) as caught:
            require_file(path)
        assert text in str(caught.value)
    write_text(tmp_path / "file", "x")
    (tmp_path / "link").symlink_to("file")
    require_file(tmp_path / "link")


def test_the_largest_image_is_settable(user_error, monkeypatch) -> None:
    require_size("a.png", 13_500, 13_500)
    with user_error("image-too-large") as caught:
        require_size("a.png", 30_000, 20_000)
    assert all(fact in str(caught.value) for fact in ("20000 × 30000", "268,435,456", "PROMISE_MAX_PIXELS"))
    monkeypatch.setenv("PROMISE_MAX_PIXELS", "600000000")
    require_size("a.png", 30_000, 20_000)
    monkeypatch.setenv("PROMISE_MAX_PIXELS", "-1")
    with user_error("invalid-max-pixels"):
        require_size("a.png", 1, 1)


def test_an_unknown_home_folder_is_one_message(user_error, monkeypatch) -> None:
    monkeypatch.setenv("HOME", "/home/me")
    assert expand_home("~/a.png") == Path("/home/me/a.png")
    assert expand_home("a/~b.png") == Path("a/~b.png")
    with user_error("no-home") as caught:
        expand_home("~no-such-user/a.png")
    assert "~no-such-user/a.png" in str(caught.value)


def test_home_folders_are_expanded_in_one_place() -> None:
    package = Path(promise.__file__).parent
    found = {path.name for path in package.rglob("*.py") if ".expanduser(" in path.read_text(encoding="utf-8")}
    assert found == {"reading.py"}
