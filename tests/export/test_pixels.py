"""Pixels of the graph are identical to those of the loader."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from promise.data.transforms.recipes import build_transform
from promise.export.pixels import Pixels, integer_weights

SIZES = [(64, 64), (128, 192), (64, 200), (211, 64), (1, 1), (3, 500), (77, 61), (300, 401), (640, 31)]


@pytest.mark.parametrize("size", SIZES, ids=str)
@pytest.mark.parametrize(
    ("recipe", "pixels"), [("basic_color", "imagenet"), ("basic_color", "minmax"), ("basic_gray", "minmax")]
)
def test_pixels_equal_those_of_the_loader(size: tuple[int, int], recipe: str, pixels: str) -> None:
    rng = np.random.default_rng(sum(size))
    noise = torch.from_numpy(rng.integers(0, 256, (*size, 3), np.uint8))
    for image in (noise, noise // 255 * 255, torch.full_like(noise, 7)):
        transform = build_transform(recipe, image_size=64, pixels=pixels)
        expected, _ = transform(image.permute(2, 0, 1), torch.zeros(1, *size, dtype=torch.uint8))
        found = Pixels(side=64, pixels=transform.pixels)(image)[0]
        if torch.backends.cpu.get_cpu_capability() in ("AVX2", "AVX512"):
            assert torch.equal(found, expected)
        else:  # torchvision uses floating point there
            level = 1 / 255 / 0.224 if pixels == "imagenet" or recipe == "basic_gray" else 1 / 200
            torch.testing.assert_close(found, expected, rtol=0, atol=2 * level)


def test_weights_are_whole_numbers_that_sum_to_one() -> None:
    for width in (2, 50, 64, 65, 1000, 4001):
        weights, bits = integer_weights(torch.arange(width, dtype=torch.float64), 64)
        assert torch.equal(weights, weights.round())
        assert weights.min() >= 0
        assert weights.max() < 2**15
        total = weights.sum(dim=1) / 2**bits
        assert (total - 1).abs().max() < 0.01
