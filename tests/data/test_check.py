from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from PIL import Image

from promise.data.check import check_files
from promise.data.table import read_table
from promise.runtime.errors import UserError

MakeTable = Callable[..., Path]


def test_good_files_pass(pairs: Path, make_table: MakeTable) -> None:
    path = make_table([f"images/{s}.png,train,masks/{s}.png" for s in "abcdef"])
    rows = read_table(path).rows
    assert check_files(rows, csv_path=path, level="full", progress=False) == []
    assert check_files(rows, csv_path=path, level="header", progress=False) == []


def test_bad_files_are_told_at_once(pairs: Path, make_table: MakeTable) -> None:
    path = make_table([f"images/{s}.png,train,masks/{s}.png" for s in "abcdef"])
    rows = read_table(path).rows
    (pairs / "images/a.png").unlink()
    (pairs / "images/b.png").write_bytes(b"")
    content = (pairs / "images/c.png").read_bytes()
    (pairs / "images/c.png").write_bytes(content[: len(content) // 2])
    Image.new("L", (30, 24)).save(pairs / "masks/d.png")
    Image.new("L", (32, 24), 90).save(pairs / "masks/e.png")
    with pytest.raises(UserError) as caught:
        check_files(rows, csv_path=path, level="full", progress=False)
    lines = str(caught.value).splitlines()
    assert lines[0] == "polyp.csv: 5 of 6 rows have files that cannot be used:"
    for line, number, words in (
        (lines[1], 2, "no such file"),
        (lines[2], 3, "the file is empty (0 bytes)"),
        (lines[3], 4, "truncated or damaged"),
        (lines[4], 5, "is 32×24 pixels but mask"),
        (lines[5], 6, "it holds 1 value (90)"),
    ):
        assert line.startswith(f"  line {number}: ")
        assert words in line
    with pytest.raises(UserError) as caught:
        check_files(rows, csv_path=path, level="header", progress=False)
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
