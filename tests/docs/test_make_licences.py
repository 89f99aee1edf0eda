"""Whether the page of licences names every package that pyproject.toml requires."""

from __future__ import annotations

import importlib.util
import re
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def script() -> Any:
    spec = importlib.util.spec_from_file_location("make_licences", ROOT / "docs/make_licences.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_every_requirement_has_a_licence(script: Any) -> None:
    text = script.PAGE.read_text(encoding="utf-8")
    rows = {row[0]: row[1:] for row in re.findall(r"^\| `(.+?)` \| (.+?) \| (.+?) \| (.*?) ?\|$", text, re.MULTILINE)}
    required = script.requirements()
    assert {"torch", "pyyaml", "mkdocstrings", "hypothesis"} <= set(required)
    for name, group in required.items():
        assert name in rows, f"{name} is missing: run docs/make_licences.py"
        assert rows[name][1] != "not stated", name
        assert rows[name][2] == group, name


def test_licences_are_read_from_metadata(script: Any) -> None:
    found = {name: script.licence(data) for name, data in script.installed().items()}
    assert "promise-sam" not in found
    assert "MPL-2.0" in found["hypothesis"]
    assert found["numpy"].startswith("BSD-3-Clause")
    assert found["segment-anything"] == "Apache-2.0"  # its metadata state none


def test_the_lowest_versions_are_those_of_the_package() -> None:
    """constraints/lowest.txt pins the lower bound of every requirement, except those of tests and documentation."""
    import tomllib

    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    extras = [texts for name, texts in project["optional-dependencies"].items() if name not in ("docs", "dev")]
    bounds = dict(text.split(">=") for text in sum(extras, project["dependencies"]))
    lines = (ROOT / "constraints/lowest.txt").read_text(encoding="utf-8").splitlines()
    pins = dict(line.split("==") for line in lines if not line.startswith("#"))
    assert pins.keys() == bounds.keys()
    for name, bound in bounds.items():
        assert pins[name] == bound or pins[name].startswith(f"{bound}."), name
