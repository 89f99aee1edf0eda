from __future__ import annotations

import pickle
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from promise.data.transforms.recipes import (
    IMAGENET_MEAN,
    IMAGENET_STD,
    PLAIN,
    RECIPES,
    build_transform,
    geometric_steps,
    photometric_steps,
    plain_recipe,
    recipe_code,
)
from promise.data.transforms.steps import ResizedCrop

SIZE = 96
GEOMETRY = {f"{r}-{i}": s for r in RECIPES for i, s in enumerate(geometric_steps(r))}
PHOTOMETRY = {s.change.__name__: s for s in photometric_steps("train2_color")}


def blob(height: int = SIZE, width: int = SIZE) -> Tensor:
    """(1, H, W) uint8, 0 or 1: two shapes without symmetry."""
    y, x = torch.meshgrid(torch.arange(height) / height, torch.arange(width) / width, indexing="ij")
    pattern = ((x - 0.4) ** 2 + 2 * (y - 0.6) ** 2 < 0.06) | ((x > 0.6) & (x < 0.9) & (y > 0.1) & (y < 0.3))
    return pattern.to(torch.uint8)[None]


def noise(height: int = SIZE, width: int = SIZE) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    return torch.randint(0, 256, (3, height, width), generator=generator, dtype=torch.uint8)


def iou(first: Tensor, second: Tensor) -> float:
    return float((first & second).sum() / (first | second).sum())


def test_the_recipes_are_those_of_the_reference_implementation() -> None:
    assert set(RECIPES) == {
        "basic_color",
        "basic_gray",
        "basic_color_nonorm",
        "train1_color",
        "train2_color",
    }
    first, second = RECIPES["train1_color"], RECIPES["train2_color"]
    assert [c.p for c in first.geometry + first.photometry] == [0.25, 0.25, 0.25, 0.25, 0.25, 0.1]
    assert [c.p for c in second.geometry + second.photometry] == [0.25] * 7 + [0.1]
    assert [type(s).__name__ for s in geometric_steps("train1_color")] == ["ResizedCrop", "ShiftScaleRotate"]
    kinds = [type(s).__name__ for s in geometric_steps("train2_color")]
    assert kinds == ["ResizedCrop", "Flip", "Flip", "ShiftScaleRotate"]
    assert geometric_steps("train1_color")[-1].degrees == 10
    assert geometric_steps("train2_color")[-1].degrees == 45
    assert set(PHOTOMETRY) - {s.change.__name__ for s in photometric_steps("train1_color")} == {
        "clahe",
        "sharpen",
    }


@pytest.mark.parametrize("step", GEOMETRY.values(), ids=GEOMETRY)
def test_image_and_mask_stay_aligned(step: object) -> None:
    mask = blob()
    moved = 0
    for seed in range(20):
        torch.manual_seed(seed)
        image_after, mask_after = step(mask.expand(3, -1, -1) * 255, mask)
        assert image_after.shape == (3, SIZE, SIZE)
        assert image_after.dtype == mask_after.dtype == torch.uint8
        assert set(mask_after.unique().tolist()) == {0, 1}
        assert iou(image_after[1] > 127, mask_after[0] == 1) > 0.97
        moved += not torch.equal(mask_after, mask)
    assert moved >= 5  # at 96 pixels a crop may be less than a pixel


@pytest.mark.parametrize("recipe", ["train1_color", "train2_color"])
@pytest.mark.parametrize("shape", [(96, 96), (60, 140), (200, 150)])
def test_whole_recipe_keeps_them_aligned(recipe: str, shape: tuple[int, int]) -> None:
    transform = build_transform(recipe, image_size=SIZE, pixels="minmax")
    mask = blob(*shape)
    overlaps = []
    for seed in range(30):
        torch.manual_seed(seed)
        image_after, mask_after = transform(mask.expand(3, -1, -1) * 200 + 20, mask)
        overlaps.append(iou(image_after[1] > 0.5, mask_after[0] == 1))
    assert np.median(overlaps) > 0.97
    assert min(overlaps) > 0.8  # dropout and noise touch the image only


def test_rotation_fills_with_reflection() -> None:
    step = geometric_steps("train2_color")[-1]
    white = torch.full((3, SIZE, SIZE), 255, dtype=torch.uint8)
    full = torch.ones((1, SIZE, SIZE), dtype=torch.uint8)
    torch.manual_seed(0)
    image, mask = step(white, full)
    assert image.min() == 255
    assert mask.min() == 1


def test_crop_never_pads_and_keeps_the_full_size() -> None:
    white = torch.full((3, SIZE, SIZE), 255, dtype=torch.uint8)
    for seed in range(20):
        torch.manual_seed(seed)
        image, _ = ResizedCrop()(white, blob())
        assert image.shape == (3, SIZE, SIZE)
        assert image.min() == 255


@pytest.mark.parametrize("step", PHOTOMETRY.values(), ids=PHOTOMETRY)
def test_photometry_leaves_the_mask_and_changes_the_image(step: object) -> None:
    image, mask = noise(), blob()
    before = image.clone()
    changed = 0
    for seed in range(5):
        torch.manual_seed(seed)
        image_after, mask_after = step(image, mask)
        assert mask_after is mask
        assert image_after.shape == image.shape
        assert image_after.dtype == torch.uint8
        assert torch.equal(image, before)  # not in place
        changed += not torch.equal(image_after, image)
    assert changed == 5


def test_photometric_strengths() -> None:
    grey = torch.full((3, SIZE, SIZE), 128, dtype=torch.uint8)
    for name in ("box_blur", "gaussian_blur", "median_blur", "motion_blur", "sharpen"):
        torch.manual_seed(0)
        assert torch.equal(PHOTOMETRY[name](grey, blob())[0], grey), name  # flat areas stay
    torch.manual_seed(0)
    values = [int(PHOTOMETRY["brightness_contrast"](grey, blob())[0][0, 0, 0]) for _ in range(200)]
    assert 128 * 0.9 - 25.5 - 1 <= min(values) < 105
    assert 151 < max(values) <= 128 * 1.1 + 25.5 + 1
    stds = [float(PHOTOMETRY["gaussian_noise"](grey, blob())[0].float().std()) for _ in range(50)]
    assert 3 < min(stds) < 4.2
    assert 6 < max(stds) < 7.3


def test_dropout_makes_eight_black_squares() -> None:
    white = torch.full((3, SIZE, SIZE), 255, dtype=torch.uint8)
    counts = []
    for seed in range(20):
        torch.manual_seed(seed)
        black = PHOTOMETRY["coarse_dropout"](white, blob())[0].eq(0)
        assert torch.equal(black[0], black[2])
        counts.append(int(black[0].sum()))
    assert max(counts) == 8 * 64
    assert min(counts) > 4 * 64  # squares may overlap


@pytest.mark.parametrize("recipe", RECIPES)
@pytest.mark.parametrize("pixels", ["imagenet", "minmax"])
def test_shapes_types_and_ranges(recipe: str, pixels: str) -> None:
    transform = build_transform(recipe, image_size=64, pixels=pixels)
    own = {"basic_gray": (-1, 1), "basic_color_nonorm": (0, 1)}
    low, high = own.get(recipe, (0, 1) if pixels == "minmax" else (-2.2, 2.7))
    for seed in range(10):
        torch.manual_seed(seed)
        image, mask = transform(noise(50, 80), blob(50, 80))
        assert image.shape == (3, 64, 64)
        assert mask.shape == (1, 64, 64)
        assert image.dtype == mask.dtype == torch.float32
        assert image.is_contiguous()
        assert image.min() >= low
        assert image.max() <= high
        assert set(mask.unique().tolist()) == {0, 1}


@pytest.mark.parametrize("recipe", RECIPES)
def test_determinism(recipe: str) -> None:
    transform = build_transform(recipe, image_size=64, pixels="imagenet")
    assert transform.deterministic == (recipe in ("basic_color", "basic_gray", "basic_color_nonorm"))
    assert transform.deterministic != RECIPES[recipe].augments
    results = []
    for seed in (0, 0, 1, 2, 3):
        torch.manual_seed(seed)
        np.random.seed(seed + 100 * len(results))  # noqa: NPY002 (numpy's generator must not matter)
        results.append(transform(noise(), blob()))
    for first, second in zip(results[0], results[1], strict=True):
        assert torch.equal(first, second)
    varied = any(not torch.equal(results[0][0], other[0]) for other in results[2:])
    assert varied != transform.deterministic


def test_imagenet_values() -> None:
    transform = build_transform("basic_color", image_size=32, pixels="imagenet")
    image, _ = transform(torch.full((3, 40, 50), 51, dtype=torch.uint8), blob(40, 50))
    expected = [(0.2 - m) / s for m, s in zip(IMAGENET_MEAN, IMAGENET_STD, strict=True)]
    torch.testing.assert_close(image.mean((1, 2)), torch.tensor(expected))


def test_normalisation_of_gray_and_unnormalized() -> None:
    flat = torch.full((3, 32, 32), 51, dtype=torch.uint8)
    for recipe, expected in (("basic_gray", -0.6), ("basic_color_nonorm", 0.2), ("gray", -0.6), ("unnormalized", 0.2)):
        for pixels in ("imagenet", "minmax"):
            image, _ = build_transform(recipe, image_size=32, pixels=pixels)(flat, blob(32, 32))
            torch.testing.assert_close(image, torch.full((3, 32, 32), expected))


def test_minmax_scales_the_range_of_each_image() -> None:
    transform = build_transform("basic_color", image_size=32, pixels="minmax")
    source = torch.full((3, 32, 32), 100, dtype=torch.uint8)
    source[0, :16], source[2, 16:] = 60, 180
    image, _ = transform(source, blob(32, 32))
    assert (image.min(), image.max()) == (0, 1)
    torch.testing.assert_close(image[1], torch.full((32, 32), 40 / 120))
    constant, _ = transform(torch.full((3, 32, 32), 99, dtype=torch.uint8), blob(32, 32))
    assert torch.equal(constant, torch.zeros(3, 32, 32))


def test_input_is_not_changed() -> None:
    image, mask = noise(32, 32), blob(32, 32)
    copies = image.clone(), mask.clone()
    for recipe in RECIPES:
        for seed in range(10):
            torch.manual_seed(seed)
            build_transform(recipe, image_size=32, pixels="imagenet")(image, mask)
    assert torch.equal(image, copies[0])
    assert torch.equal(mask, copies[1])


def test_resize_squashes_without_shifting_the_mask() -> None:
    mask = torch.zeros((1, 400, 800), dtype=torch.uint8)
    mask[:, 100:300, 200:600] = 1
    transform = build_transform("basic_color", image_size=100, pixels="imagenet")
    _, resized = transform(mask.expand(3, -1, -1), mask)
    assert torch.equal(resized, torch.nn.functional.pad(torch.ones(1, 50, 50), (25, 25, 25, 25)))


def test_transforms_can_be_pickled() -> None:
    transform = build_transform("train2_color", image_size=32, pixels="minmax")
    assert pickle.loads(pickle.dumps(transform)) == transform


NAMES = {
    "none": "basic_color",
    "gray": "basic_gray",
    "unnormalized": "basic_color_nonorm",
    "light": "train1_color",
    "strong": "train2_color",
}


def test_readable_names_are_aliases_of_codes() -> None:
    assert {recipe.name: code for code, recipe in RECIPES.items()} == NAMES
    assert list(NAMES) == [recipe.name for recipe in RECIPES.values()]
    for name, code in NAMES.items():
        assert recipe_code(name) == recipe_code(code) == code
        assert plain_recipe(name) == plain_recipe(code)
        assert build_transform(name, image_size=32, pixels="minmax") == build_transform(
            code, image_size=32, pixels="minmax"
        )
        assert geometric_steps(name) == geometric_steps(code)
        assert photometric_steps(name) == photometric_steps(code)


def test_the_plain_recipe_keeps_the_normalisation() -> None:
    assert PLAIN == plain_recipe(None) == "basic_color"
    assert [plain_recipe(name) for name in NAMES] == [
        "basic_color",
        "basic_gray",
        "basic_color_nonorm",
        "basic_color",
        "basic_color",
    ]


def test_unknown_names(user_error: Callable[..., Any]) -> None:
    with user_error("unknown-recipe") as caught:
        build_transform("strnog", image_size=32, pixels="imagenet")
    assert "'strnog'" in str(caught.value)
    assert "'strong'?" in str(caught.value)
    assert "none, gray, unnormalized, light, strong" in str(caught.value)
    for look_up in (recipe_code, plain_recipe, geometric_steps, photometric_steps):
        with user_error("unknown-recipe"):
            look_up("x")
    with user_error("unknown-pixel-normalisation") as caught:
        build_transform("basic_color", image_size=32, pixels="min-max")
    assert "'minmax'?" in str(caught.value)
