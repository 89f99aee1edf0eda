"""Small image files, tables, and the folder of the reference CSVs."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

SHARED = Path(os.environ.get("PROMISE_SHARED", Path(__file__).parents[3] / "shared"))


def _write_pair(folder: Path, stem: str, *, size: tuple[int, int] = (24, 32), seed: int = 0) -> None:
    """Write images/<stem>.png with noise and masks/<stem>.png with a square, both of ``size`` (H, W)."""
    rng = np.random.default_rng(seed)
    mask = np.zeros(size, np.uint8)
    mask[6:18, 8:20] = 255
    for kind, pixels in (("images", rng.integers(0, 256, (*size, 3), np.uint8)), ("masks", mask)):
        (folder / kind).mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels).save(folder / kind / f"{stem}.png")


@pytest.fixture
def write_pair() -> Callable[..., None]:
    return _write_pair


@pytest.fixture
def make_table(tmp_path: Path) -> Callable[[Sequence[str]], Path]:
    """A function that writes a CSV with the usual or another header."""

    def write(lines: Sequence[str], header: str = "image_name,train_type,mask_name") -> Path:
        path = tmp_path / "polyp.csv"
        path.write_text("\n".join([header, *lines]) + "\n", encoding="utf-8")
        return path

    return write


@pytest.fixture
def pairs(tmp_path: Path) -> Path:
    """A folder with images/ and masks/, each with files a … f of 24×32 pixels."""
    for seed, stem in enumerate("abcdef"):
        _write_pair(tmp_path, stem, seed=seed)
    return tmp_path


@pytest.fixture(scope="session")
def shared() -> Path:
    if not (SHARED / "reference_csv").is_dir():
        pytest.skip(f"{SHARED} does not contain the reference CSVs; set PROMISE_SHARED")
    return SHARED
