from __future__ import annotations

from pathlib import Path

import pytest

from promise.data.records import read_column, read_records
from promise.runtime.errors import MissingFileError, UserError


def write(tmp_path: Path, text: str) -> Path:
    path = tmp_path / "t.csv"
    path.write_bytes(text.encode())
    return path


def test_lines_positions_and_no_notes(tmp_path: Path) -> None:
    records = read_records(write(tmp_path, "B,a,c\n1, 2 ,3\n4,5,6\n"), ["a", "b"])
    assert records.rows == ((2, ["1", "2", "3"]), (3, ["4", "5", "6"]))
    assert records.positions == (1, 0)
    assert records.notes == ()


def test_every_tolerance_is_noted_once(tmp_path: Path) -> None:
    records = read_records(write(tmp_path, "\ufeffa;b\r\n\r\n1;2\r\n;\r\n\r\n"), ["a", "b"])
    assert records.rows == ((3, ["1", "2"]),)
    assert records.notes == (
        "the file starts with a byte-order mark, which is skipped",
        "the columns are separated by semicolons",
        "3 blank lines are skipped (line 2)",
    )


def test_one_column(tmp_path: Path) -> None:
    path = write(tmp_path, "\ufeffname,Patient\na,7\nb,\nc\nd,8\n")
    assert read_column(path, "patient") == {2: "7", 5: "8"}
    with pytest.raises(UserError, match=r"unknown column in t\.csv: 'patent'\. Did you mean 'Patient'"):
        read_column(path, "patent")


def test_what_is_no_table(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"is empty. Its first line should be: a,b"):
        read_records(write(tmp_path, "\ufeff \n"), ["a", "b"])
    with pytest.raises(UserError, match="has a header and no rows"):
        read_records(write(tmp_path, "a,b\n\n"), ["a", "b"])
    with pytest.raises(MissingFileError, match="no such file"):
        read_column(tmp_path / "absent.csv", "a")
