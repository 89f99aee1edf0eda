"""The command promise-report."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from promise.cli.report import main

Write = Callable[..., Path]


def test_a_report_is_written_and_its_path_printed(write_evaluation: Write, tmp_path: Path, capsys) -> None:
    a, b = write_evaluation(tmp_path / "a"), write_evaluation(tmp_path / "b", net="SAM")
    out = tmp_path / "new/page.html"
    assert main([str(a), "--eval", str(b), "--output", str(out)]) == 0
    assert capsys.readouterr().out == f"report: {out}\n"
    text = out.read_text()
    assert text.startswith("<!doctype html>")
    assert "SAM, auto prompts" in text
    assert {path.name for path in out.parent.iterdir()} == {"page.html", "tables.md", "tables.tex"}


def test_invalid_input_is_status_1(write_evaluation: Write, tmp_path: Path, capsys) -> None:
    a = write_evaluation(tmp_path / "a")
    assert main([str(a), "--quiet"]) == 0
    for arguments, facts in (
        ([], ("--eval",)),
        ([str(tmp_path / "absent")], (str(tmp_path / "absent"),)),
        ([str(a)], ("report.html, tables.md, tables.tex", "--overwrite")),
        (["--eval", str(tmp_path)], (str(tmp_path),)),
    ):
        capsys.readouterr()
        assert main(arguments) == 1
        printed = capsys.readouterr()
        assert printed.out == ""
        assert printed.err.startswith("promise-report: ")
        assert all(fact in printed.err for fact in facts)
