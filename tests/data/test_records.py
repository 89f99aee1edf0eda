from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from promise.data.records import LineFault, list_line_faults, read_column, read_records
from promise.runtime.errors import MissingFileError


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


def test_one_column(tmp_path: Path, user_error: Callable[..., Any]) -> None:
    path = write(tmp_path, "\ufeffname,Patient\na,7\nb,\nc\nd,8\n")
    assert read_column(path, "patient") == {2: "7", 5: "8"}
    with user_error("unknown-column") as caught:
        read_column(path, "patent")
    assert all(fact in str(caught.value) for fact in ("t.csv", "'patent'", "'Patient'"))


def test_files_that_are_not_tables(tmp_path: Path, user_error: Callable[..., Any]) -> None:
    with user_error("empty-csv") as caught:
        read_records(write(tmp_path, "\ufeff \n"), ["a", "b"])
    assert str(caught.value).endswith("a,b")
    with user_error("no-rows"):
        read_records(write(tmp_path, "a,b\n\n"), ["a", "b"])
    with pytest.raises(MissingFileError) as missing:
        read_column(tmp_path / "absent.csv", "a")
    assert missing.value.code == "missing-file"
    assert "absent.csv" in str(missing.value)
    with user_error("invalid-csv") as caught:
        read_records(write(tmp_path, 'a,b\n"' + "x" * 200_000 + '",2\n'), ["a", "b"])
    assert "t.csv, line " in str(caught.value)


def test_faults_of_lines_become_errors_and_a_list() -> None:
    faults = [LineFault(3, "b", "second"), LineFault(2, "a", "first")]
    assert list_line_faults("head", faults) == "head\n  line 2: first\n  line 3: second"
    assert [(fault.error.code, str(fault.error)) for fault in faults] == [
        ("b", "line 3: second"),
        ("a", "line 2: first"),
    ]
