"""The command promise-compare: printed output, JSON, invalid input."""

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
    assert printed.err.startswith("warning: ")
    assert "prompts" in printed.err
    written = json.loads(out.read_text())
    assert [r["metric"] for r in written["results"]] == ["native_dice", "reference_iou"]
    for result in written["results"]:
        low, high = result["interval"]
        assert f"B − A {result['difference']:+.4f}  [{low:+.4f}, {high:+.4f}]" in printed.out
        assert f"p {result['p']:.2g} (" in printed.out
        assert len(result["gained"]) <= 2
    assert written["results"][0]["gained"][0]["name"] in printed.out
    assert "auto prompts" in printed.out
    assert "oracle prompts" in printed.out


def test_equal_evaluations_have_no_p_value(write_evaluation: Write, tmp_path: Path, capsys) -> None:
    a = write_evaluation(tmp_path / "a")
    assert main([str(a), str(a)]) == 0
    assert "Wilcoxon signed-rank p – (" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "facts"),
    [
        (["absent"], ("absent",)),
        (["a", "--top", "-1"], ("--top must be at least 0",)),
        (["a", "--metric", "dice"], ("metric", "'dice'")),
        (["a", "--json", "a/summary.json"], ("a/summary.json", "--overwrite")),
    ],
)
def test_invalid_input_is_status_1(
    arguments, facts, write_evaluation: Write, tmp_path: Path, capsys, monkeypatch
) -> None:
    monkeypatch.chdir(tmp_path)
    write_evaluation(tmp_path / "a")
    before = (tmp_path / "a/summary.json").read_bytes()
    assert main(["a", *arguments]) == 1
    printed = capsys.readouterr()
    assert printed.out == ""
    assert printed.err.startswith("promise-compare: ")
    assert all(fact in printed.err for fact in facts)
    assert (tmp_path / "a/summary.json").read_bytes() == before
