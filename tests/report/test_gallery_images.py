"""Embedded images equal their files, and together they fit the budget."""

from __future__ import annotations

import base64
import io
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from promise.report.gallery_images import STEPS, embed


@pytest.fixture
def noise(tmp_path: Path) -> list[tuple[Path, dict[str, object]]]:
    """Eight images of noise, which no encoder can compress."""
    for i in range(8):
        values = np.random.default_rng(i).integers(0, 255, (500, 700, 3), np.uint8)
        Image.fromarray(values).save(tmp_path / f"{i}.png")
    entry = {"dataset": "a", "kind": "best", "dice": 0.9, "iou": 0.8}
    return [(tmp_path, {**entry, "name": f"n{i}", "picture": f"{i}.png"}) for i in range(8)]


def decode(source: str) -> Image.Image:
    head, data = source.split(",")
    assert head == "data:image/jpeg;base64"
    return Image.open(io.BytesIO(base64.b64decode(data)))


def test_an_embedded_image_equals_its_file(tmp_path: Path) -> None:
    image = np.zeros((200, 300, 3), np.uint8)
    image[:, :150] = (200, 30, 30)
    Image.fromarray(image).save(tmp_path / "a.png")
    [[found]] = embed([(tmp_path, {"name": "a", "kind": "worst", "dice": 0.25, "iou": None, "picture": "a.png"})])
    assert (found.name, found.kind, found.scores, found.width, found.height) == ("a", "worst", "Dice 0.250", 300, 200)
    assert np.abs(np.asarray(decode(found.source), int) - image).mean() < 3


def test_all_images_shrink_until_they_fit(noise: list) -> None:
    sizes = []
    for budget in (10_000_000, 800_000, 200_000):
        images = [image for [image] in embed(noise, budget=budget)]
        assert sum(len(base64.b64decode(p.source.split(",")[1])) for p in images) <= budget
        assert len({p.width for p in images}) == 1
        sizes.append(images[0].width)
    assert sizes[0] == STEPS[0][0] > sizes[1] > sizes[2]


def test_the_last_images_are_omitted_where_no_size_fits(noise: list) -> None:
    found = embed(noise, budget=20_000)
    kept = [len(images) for images in found]
    assert kept == sorted(kept, reverse=True)
    assert 0 < sum(kept) < 8
    assert sum(len(base64.b64decode(p.source.split(",")[1])) for [p] in found[: sum(kept)]) <= 20_000
