"""promise-report from outside."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from promise.cli.report import main

Write = Callable[..., Path]


def test_it_writes_a_page_and_says_where(write_evaluation: Write, tmp_path: Path, capsys) -> None:
    a, b = write_evaluation(tmp_path / "a"), write_evaluation(tmp_path / "b", net="SAM")
    out = tmp_path / "new/page.html"
    assert main([str(a), "--eval", str(b), "--output", str(out)]) == 0
    assert capsys.readouterr().out == f"report: {out}\n"
    text = out.read_text()
    assert text.startswith("<!doctype html>")
    assert "SAM, auto prompts" in text
    assert {path.name for path in out.parent.iterdir()} == {"page.html", "tables.md", "tables.tex"}


def test_a_mistake_is_one_clear_line(write_evaluation: Write, tmp_path: Path, capsys) -> None:
    a = write_evaluation(tmp_path / "a")
    assert main([str(a), "--quiet"]) == 0
    for given, words in (
        ([], "nothing to report. Give a run's folder, or --eval FOLDER"),
        ([str(tmp_path / "absent")], "no folder at"),
        ([str(a)], "already holds report.html, tables.md, tables.tex"),
        (["--eval", str(tmp_path)], "neither"),
    ):
        capsys.readouterr()
        assert main(given) == 1
        printed = capsys.readouterr()
        assert printed.out == ""
        assert printed.err.startswith("promise-report: ")
        assert words in printed.err
