"""Whether the site is built without a warning, holds every page, and asks nothing of the network."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PAGES = sorted((ROOT / "docs").glob("*.md"))


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    pytest.importorskip("material", reason="needs the [docs] extra")
    pytest.importorskip("mkdocstrings", reason="needs the [docs] extra")
    folder = tmp_path_factory.mktemp("site")
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--quiet", "--site-dir", str(folder)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False, timeout=240)
    assert done.returncode == 0, done.stderr
    return folder


def test_every_page_is_there_and_in_the_contents(site: Path) -> None:
    start = (site / "index.html").read_text(encoding="utf-8")
    for page in PAGES:
        assert (site / f"{page.stem}.html").is_file()
        assert f'href="{page.stem}.html"' in start or page.stem == "index", page.stem


def test_the_notebook_is_built_and_linked_but_not_in_the_contents(site: Path) -> None:
    start = (site / "index.html").read_text(encoding="utf-8")
    results = (site / "results.html").read_text(encoding="utf-8")
    pages = sorted((ROOT / "docs/notebook").glob("*.md"))
    assert {"README", "experiments", "performance"} <= {page.stem for page in pages}
    for page in pages:
        name = "index" if page.stem == "README" else page.stem
        assert (site / f"notebook/{name}.html").is_file()
        assert f'href="notebook/{name}.html"' not in start
    for name in ("experiments", "performance"):
        assert f'href="notebook/{name}.html"' in results


def test_nothing_comes_from_elsewhere(site: Path) -> None:
    pattern = re.compile(r'<(?:script|link|img|iframe|source)\b[^>]*\b(?:src|href)="((?:https?:)?//[^"]+)"')
    for page in site.rglob("*.html"):
        assert pattern.findall(page.read_text(encoding="utf-8")) == [], page.name
    for style in site.rglob("*.css"):
        assert not re.search(r"@import|url\((?:https?:)?//", style.read_text(encoding="utf-8")), style.name


def test_the_docstrings_are_in_the_reference(site: Path) -> None:
    text = (site / "api.html").read_text(encoding="utf-8")
    for name in ("promise.models.registry.build_net", "promise.types.Points", "promise.training.losses.reference"):
        assert f'id="{name}"' in text
    assert "Assemble a net on a frozen SAM." in text
    assert not re.search(r":(class|func|meth|data):", text)


def test_pictures_are_small_and_used() -> None:
    pictures = sorted((ROOT / "docs/pictures").glob("*"))
    text = "".join(page.read_text(encoding="utf-8") for page in PAGES)
    for picture in pictures:
        assert picture.stat().st_size < 150_000, picture.name
        assert f"](pictures/{picture.name})" in text, picture.name
