"""promise-compare from outside: what it prints, what it writes, how it fails."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from promise.cli.compare import main

Write = Callable[..., Path]


def test_it_prints_and_writes_the_same_numbers(write_evaluation: Write, tmp_path: Path, capsys) -> None:
    a = write_evaluation(tmp_path / "a/eval")
    b = write_evaluation(tmp_path / "b/eval", better=0.1, seed=1, prompts="oracle", prompt_source="gt")
    out = tmp_path / "new/compared.json"
    arguments = [str(a.parent), str(b), "--metric", "native_dice", "reference_iou", "--top", "2", "--json", str(out)]
    assert main(arguments) == 0
    printed = capsys.readouterr()
    assert printed.err.startswith("warning: the prompts come from different origins")
    written = json.loads(out.read_text())
    assert [r["metric"] for r in written["results"]] == ["native_dice", "reference_iou"]
    for result in written["results"]:
        low, high = result["interval"]
        assert f"B − A {result['difference']:+.4f}  [{low:+.4f}, {high:+.4f}]" in printed.out
        assert f"p {result['p']:.2g} (two-sided, 12 of 12 differences not 0)" in printed.out
        assert len(result["gained"]) <= 2
    assert written["results"][0]["gained"][0]["name"] in printed.out
    assert "auto prompts" in printed.out
    assert "oracle prompts" in printed.out


def test_all_equal_is_said(write_evaluation: Write, tmp_path: Path, capsys) -> None:
    a = write_evaluation(tmp_path / "a")
    assert main([str(a), str(a)]) == 0
    assert "p – (all differences are 0: nothing to test)" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("given", "words"),
    [
        (["absent"], "no results at"),
        (["a", "--top", "-1"], "--top must be at least 0"),
        (["a", "--metric", "dice"], "unknown metric 'dice'"),
        (["a", "--json", "a/summary.json"], "is there already"),
    ],
)
def test_a_mistake_is_one_clear_line(
    given, words, write_evaluation: Write, tmp_path: Path, capsys, monkeypatch
) -> None:
    monkeypatch.chdir(tmp_path)
    write_evaluation(tmp_path / "a")
    before = (tmp_path / "a/summary.json").read_bytes()
    assert main(["a", *given]) == 1
    printed = capsys.readouterr()
    assert printed.out == ""
    assert printed.err.startswith("promise-compare: ")
    assert words in printed.err
    assert (tmp_path / "a/summary.json").read_bytes() == before
