from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from promise.data.check import check_files
from promise.data.table import read_table

MakeTable = Callable[..., Path]
Errors = Callable[..., Any]


def test_good_files_pass(pairs: Path, make_table: MakeTable) -> None:
    path = make_table([f"images/{s}.png,train,masks/{s}.png" for s in "abcdef"])
    rows = read_table(path).rows
    assert check_files(rows, csv_path=path, level="full", progress=False) == []
    assert check_files(rows, csv_path=path, level="header", progress=False) == []


def test_all_unusable_files_are_reported(pairs: Path, make_table: MakeTable, user_error: Errors) -> None:
    path = make_table([f"images/{s}.png,train,masks/{s}.png" for s in "abcdef"])
    rows = read_table(path).rows
    (pairs / "images/a.png").unlink()
    (pairs / "images/b.png").write_bytes(b"")
    content = (pairs / "images/c.png").read_bytes()
    (pairs / "images/c.png").write_bytes(content[: len(content) // 2])
    Image.new("L", (30, 24)).save(pairs / "masks/d.png")
    Image.new("L", (32, 24), 90).save(pairs / "masks/e.png")
    codes = ("missing-file", "empty-file", "corrupt-image", "image-size-mismatch", "mask-not-binary")
    with user_error(*codes) as caught:
        check_files(rows, csv_path=path, level="full", progress=False)
    assert caught.value.code == "unusable-files"
    assert caught.value.codes == codes  # in the order of the lines
    head, *lines = str(caught.value).splitlines()
    assert head.startswith("polyp.csv: 5 of 6 rows ")
    files = ("images/a.png", "images/b.png", "images/c.png", "masks/d.png", "masks/e.png")
    for line, number, file, fact in zip(
        lines, range(2, 7), files, ("", "0 bytes", "", "32×24 pixels", "1 value (90)"), strict=True
    ):
        assert line.startswith(f"  line {number}: ")
        assert file in line
        assert fact in line
    with user_error("missing-file", "empty-file", "image-size-mismatch") as caught:
        check_files(rows, csv_path=path, level="header", progress=False)
    assert len(caught.value.codes) == 3
    assert str(caught.value).startswith("polyp.csv: 3 of 6 rows")


def test_an_empty_mask_is_a_warning(pairs: Path, make_table: MakeTable) -> None:
    Image.new("L", (32, 24)).save(pairs / "masks/b.png")
    path = make_table([f"images/{s}.png,train,masks/{s}.png" for s in "ab"])
    (warning,) = check_files(read_table(path).rows, csv_path=path, level="full", progress=False)
    assert warning == f"polyp.csv: 1 mask has no foreground:\n  line 3: {pairs}/masks/b.png"


def test_progress_goes_to_stderr(pairs: Path, make_table: MakeTable, capsys: pytest.CaptureFixture[str]) -> None:
    path = make_table(["images/a.png,train,masks/a.png"])
    check_files(read_table(path).rows, csv_path=path, level="header", progress=True)
    out, err = capsys.readouterr()
    assert out == ""
    assert "checking files" in err
