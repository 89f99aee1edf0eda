"""The command promise-validate."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import cv2
import numpy as np
import pytest
from PIL import Image

from promise.cli.validate import main
from promise.data.phantom import make_phantoms


@pytest.fixture
def data(tmp_path: Path) -> Path:
    return make_phantoms(tmp_path / "data", count=8, size=64, seed=5, splits=(0.5, 0.25, 0.25))


def test_a_clean_set_is_status_0(data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([str(data), "--strict", "--picture", str(tmp_path / "p.png"), "--json", str(tmp_path / "j.json")]) == 0
    out = capsys.readouterr().out.splitlines()
    assert out[-1] == "8 rows: 0 faults, 0 warnings, 0 notes"
    assert [line.split()[:4] for line in out[2:5]] == [
        ["split.csv", "train", "4", "64×64"],
        ["split.csv", "val", "2", "64×64"],
        ["split.csv", "test", "2", "64×64"],
    ]
    written = json.loads((tmp_path / "j.json").read_text())
    assert written["counts"] == {"fault": 0, "warning": 0, "note": 0}
    assert written["findings"] == []
    assert [row["rows"] for row in written["splits"]] == [4, 2, 2]
    with Image.open(tmp_path / "p.png") as chart:
        colours = {colour for _, colour in chart.convert("RGB").getcolors(1 << 20)}
    assert {(68, 119, 170), (204, 187, 68), (238, 102, 119)} <= colours  # one bar per split


def test_a_warning_is_status_1_with_strict_only(data: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = data.parent / "masks/phantom_0001.png"
    cv2.imwrite(str(path), np.zeros((64, 64), np.uint8))
    assert main([str(data), "--quiet"]) == 0
    assert f"warning  split.csv line 3: mask {path} " in capsys.readouterr().out
    assert main([str(data), "--quiet", "--strict"]) == 1


def test_a_fault_is_status_1(data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    shutil.copy(data.parent / "images/phantom_0001.png", data.parent / "images/phantom_0007.png")
    assert main(["--split-csv", str(data), "--json", str(tmp_path / "j.json")]) == 1
    (line,) = [line for line in capsys.readouterr().out.splitlines() if line.startswith("fault")]
    assert line.startswith("fault    split.csv line 9: ")
    assert "phantom_0007.png (test)" in line
    (finding,) = json.loads((tmp_path / "j.json").read_text())["findings"]
    assert (finding["level"], finding["kind"], finding["line"]) == ("fault", "copy", 9)


def test_many_findings_of_a_kind_are_shortened(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = make_phantoms(tmp_path, count=25, size=32, seed=1)
    for mask in (tmp_path / "masks").iterdir():
        cv2.imwrite(str(mask), np.zeros((32, 32), np.uint8))
    main([str(path), "--quiet"])
    out = capsys.readouterr().out
    assert sum(line.startswith("warning  split.csv line ") for line in out.splitlines()) == 20
    assert "warning  … and 5 more of kind 'empty'; --json lists all" in out


def test_missing_csvs_are_faults(data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([str(tmp_path / "a.csv"), str(data), str(tmp_path / "b.csv"), "--quiet"]) == 1
    assert "8 rows: 2 faults, 0 warnings, 0 notes" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "fact"),
    [
        (["--data-root", "{tmp}/absent"], "{tmp}/absent"),
        (["--group", "patient"], "'patient'"),
        (["--group", "re:("], "re:("),
    ],
)
def test_invalid_input_is_one_line_and_status_1(
    arguments: list[str], fact: str, data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([str(data), "--quiet", *(a.format(tmp=tmp_path) for a in arguments)]) == 1
    printed = capsys.readouterr()
    assert printed.out == ""
    assert fact.format(tmp=tmp_path) in printed.err
    assert printed.err.startswith("promise-validate: ")
    assert printed.err.count("\n") == 1


def test_bad_usage_is_status_2(data: Path) -> None:
    for arguments in ([], [str(data), "--workers", "0"], [str(data), "--nonsense"]):
        with pytest.raises(SystemExit) as caught:
            main(arguments)
        assert caught.value.code == 2


def test_a_report_that_cannot_be_written_is_known_before_the_files_are_read(phantoms, tmp_path, capsys) -> None:
    (tmp_path / "file").touch()
    for flag in ("--json", "--picture"):
        assert main([str(phantoms), flag, str(tmp_path / "file/report.png")]) == 1
        captured = capsys.readouterr()
        assert captured.out == ""
        assert len(captured.err.splitlines()) == 1
        assert "cannot be written" in captured.err
