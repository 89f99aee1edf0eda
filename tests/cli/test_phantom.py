"""promise-phantom: does it write as many of each kind as it is told?"""

from __future__ import annotations

from pathlib import Path

import pytest

from promise.cli.phantom import main


def test_pictures_are_shared_out_in_proportion(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--output", str(tmp_path), "--count", "17", "--size", "32", "--fractions", "14", "1", "2"]) == 0
    assert capsys.readouterr().out == f"{tmp_path / 'split.csv'}\n"
    kinds = [line.split(",")[1] for line in (tmp_path / "split.csv").read_text().splitlines()[1:]]
    assert [kinds.count(kind) for kind in ("train", "val", "test")] == [14, 1, 2]


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--count", "0"], "--count must be at least 1"),
        (["--fractions", "0", "0", "0"], "train, val and test want finite shares of at least 0, not all of them 0"),
    ],
)
def test_mistakes(arguments: list[str], words: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--output", str(tmp_path / "set"), *arguments]) == 1
    error = capsys.readouterr().err
    assert error.startswith("promise-phantom: ")
    assert words in error
    assert not (tmp_path / "set").exists()
