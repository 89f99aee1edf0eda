"""Whether the pictures of the docs are kept small, and its commands are ours."""

from __future__ import annotations

import importlib.util
import re
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
from PIL import Image

SCRIPT = Path(__file__).parents[2] / "docs/make_pictures.py"


@pytest.fixture
def script(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    spec = importlib.util.spec_from_file_location("make_pictures", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    monkeypatch.setattr(module, "PICTURES", tmp_path)
    return module


def test_a_large_picture_is_made_smaller_until_it_is_small_enough(
    script: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert script.LIMIT == 150_000
    monkeypatch.setattr(script, "LIMIT", 15_000)
    noise = np.random.default_rng(0).integers(0, 255, (150, 180, 3), np.uint8)  # which hardly gets smaller
    script.save(Image.fromarray(noise), "noise")
    assert 7_500 < (tmp_path / "noise.webp").stat().st_size < script.LIMIT
    width, height = Image.open(tmp_path / "noise.webp").size
    assert width < 180
    assert width / height == pytest.approx(1.2, abs=0.02)


def test_a_small_picture_keeps_its_size(script: ModuleType, tmp_path: Path) -> None:
    script.save(Image.new("RGB", (600, 500), "teal"), "plain")
    assert Image.open(tmp_path / "plain.webp").size == (600, 500)


def test_pictures_stand_row_by_row(script: ModuleType, tmp_path: Path) -> None:
    colours = ["red", "green", "blue", "white"]
    for colour in colours:
        Image.new("RGB", (40, 40), colour).save(tmp_path / f"{colour}.png")
    sheet = script.side_by_side([tmp_path / f"{colour}.png" for colour in colours], side=10)
    assert sheet.size == (30, 20)
    seen = [sheet.getpixel(at) for at in ((5, 5), (15, 5), (25, 5), (5, 15), (15, 15))]
    assert seen == [(255, 0, 0), (0, 128, 0), (0, 0, 255), (255, 255, 255), (0, 0, 0)]


def test_without_a_quickstart_it_says_what_to_run(
    script: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(script, "RUN", tmp_path / "nothing")
    with pytest.raises(SystemExit, match=r"overlays is missing: run bash scripts/quickstart\.sh first"):
        script.main()


def test_its_commands_understand_its_flags(script: ModuleType) -> None:
    text = SCRIPT.read_text(encoding="utf-8")
    calls = [re.findall(r'"([^"]*)"', call) for call in re.findall(r'\bcommand\((".+)\)\n', text)]
    assert {name for name, *_ in calls} == {"eval", "validate", "report"}
    for name, *words in calls:
        flags = {flag for action in _parser(name)._actions for flag in action.option_strings}
        assert {word for word in words if word.startswith("--")} <= flags


def _parser(name: str):
    return importlib.import_module(f"promise.cli.{name}").make_parser()
