"""The command promise-phantom: numbers of images, invalid input."""

from __future__ import annotations

from pathlib import Path

import pytest

from promise.cli.phantom import main


def test_images_are_split_in_proportion(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--output", str(tmp_path), "--count", "17", "--size", "32", "--fractions", "14", "1", "2"]) == 0
    assert capsys.readouterr().out == f"{tmp_path / 'split.csv'}\n"
    splits = [line.split(",")[1] for line in (tmp_path / "split.csv").read_text().splitlines()[1:]]
    assert [splits.count(split) for split in ("train", "val", "test")] == [14, 1, 2]


@pytest.mark.parametrize(
    ("arguments", "facts"),
    [
        (["--count", "0"], ("--count must be at least 1",)),
        (["--count", "0", "--size", "8"], ("--count must be at least 1", "--size must be at least 32")),
        (["--fractions", "0", "0", "0"], ("train",)),
        (["--size", "1000000"], ("--size must be at least 32 and at most 8192",)),
    ],
)
def test_invalid_input(
    arguments: list[str], facts: tuple[str, ...], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["--output", str(tmp_path / "set"), *arguments]) == 1
    error = capsys.readouterr().err
    assert error.startswith("promise-phantom: ")
    assert all(fact in error for fact in facts)
    assert not (tmp_path / "set").exists()
