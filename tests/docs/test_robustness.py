"""Whether the table of robustness names tests that exist."""

from __future__ import annotations

import ast
import re
from pathlib import Path

ROOT = Path(__file__).parents[2]
PAGE = ROOT / "docs/robustness.md"


def rows() -> list[list[str]]:
    """The cells of all rows of all tables, without their headers."""
    lines = [line for line in PAGE.read_text(encoding="utf-8").splitlines() if line.startswith("| ")]
    return [[cell.strip() for cell in line.strip("|").split(" | ")] for line in lines if not line.startswith("| input")]


def test_every_row_names_a_test_that_exists() -> None:
    found = rows()
    assert len(found) > 40
    names: dict[str, set[str]] = {}
    for row in found:
        assert len(row) == 3, row
        assert all(row), row
        match = re.fullmatch(r"`(tests/[\w/]+\.py)::(test_\w+)`", row[2])
        assert match, row
        file, name = match.groups()
        if file not in names:
            tree = ast.parse((ROOT / file).read_text(encoding="utf-8"))
            names[file] = {node.name for node in tree.body if isinstance(node, ast.FunctionDef)}
        assert name in names[file], f"{file} has no {name}"


def test_no_case_is_listed_twice() -> None:
    cases = [(row[0], row[2]) for row in rows()]
    assert len(cases) == len(set(cases))
