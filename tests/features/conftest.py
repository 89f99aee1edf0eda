"""Shared by the tests of cached features: rows of the synthetic set, a feature space, an encoder that copies pixels."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from torch import Tensor

from promise.data.dataset import SegmentationDataset
from promise.data.table import read_table
from promise.data.transforms.recipes import build_transform
from promise.features.store import FeatureSpace
from promise.types import Encoded


@pytest.fixture
def dataset(phantoms: Path) -> Callable[..., SegmentationDataset]:
    """A function that builds the training rows under a recipe."""

    def dataset(recipe: str = "basic_color") -> SegmentationDataset:
        transform = build_transform(recipe, image_size=64, pixels="imagenet")
        return SegmentationDataset(read_table(phantoms).split("train"), transform, seed=3)

    return dataset


@pytest.fixture
def space(tmp_path: Path) -> FeatureSpace:
    """An empty space with taps."""
    return FeatureSpace(tmp_path, {"made": "by a test"}, taps=True)


class PixelEncoder:
    """Replaces a net: the features are the pixels, so that errors are visible. Counts images; fails on demand."""

    def __init__(self, fail_at: int | None = None) -> None:
        self.seen = 0
        self.fail_at = fail_at

    def __call__(self, image: Tensor) -> Encoded:
        if self.fail_at is not None and self.seen >= self.fail_at:
            raise KeyboardInterrupt
        self.seen += len(image)
        return Encoded(image, (image[:, :1],))


@pytest.fixture
def encoder() -> type[PixelEncoder]:
    """The class of encoders that copy pixels."""
    return PixelEncoder
