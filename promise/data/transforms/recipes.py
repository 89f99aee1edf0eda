"""Augmentation recipes: resize, augment and normalise an image and its mask for a net.

Recipes are rows of one table. All random numbers come from the global CPU generator of torch, which the caller seeds;
the same seed gives the same sample.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from promise.data.transforms.steps import (
    Flip,
    Photometric,
    Pixels,
    ResizedCrop,
    ShiftScaleRotate,
    Step,
    box_blur,
    brightness_contrast,
    clahe,
    coarse_dropout,
    gaussian_blur,
    gaussian_noise,
    jpeg,
    median_blur,
    motion_blur,
    pick,
    resize,
    sharpen,
    uniform,
)
from promise.runtime.errors import unknown_name

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)


@dataclass(frozen=True)
class Chance:
    """Apply, with probability ``p``, one of ``choices``, each with the same probability."""

    p: float
    choices: tuple[Step, ...]

    def __call__(self, image: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
        """Apply one step, or return the pair unchanged."""
        if uniform(0, 1) >= self.p:
            return image, mask
        return self.choices[pick(len(self.choices))](image, mask)


@dataclass(frozen=True)
class Recipe:
    """A named augmentation: geometric steps, then photometric steps, then normalisation of the pixels."""

    code: str  # name in the reference implementation; stored in files and in the keys of caches
    name: str  # readable name; accepted wherever the code is
    geometry: tuple[Chance, ...] = ()
    photometry: tuple[Chance, ...] = ()
    pixels: str | None = None  # normalisation, see `normalise`; None: that of the backbone

    @property
    def augments(self) -> bool:
        """Whether the recipe draws random augmentations."""
        return bool(self.geometry or self.photometry)


def _photometry(*artefacts: Callable[[Pixels], Pixels]) -> tuple[Chance, ...]:
    blurs = (box_blur, gaussian_blur, median_blur, motion_blur)
    return (
        Chance(0.25, tuple(Photometric(b) for b in blurs)),
        Chance(0.25, (Photometric(brightness_contrast),)),
        Chance(0.25, tuple(Photometric(a) for a in artefacts)),
        Chance(0.1, (Photometric(coarse_dropout),)),
    )


# Increased whenever a recipe produces different pixels than before, which invalidates cached features.
PIXELS_VERSION = 1

_TABLE = (
    Recipe("basic_color", "none"),
    Recipe("basic_gray", "gray", pixels="half"),
    Recipe("basic_color_nonorm", "unnormalized", pixels="none"),
    Recipe(
        "train1_color",
        "light",
        geometry=(Chance(0.25, (ResizedCrop(),)), Chance(0.25, (ShiftScaleRotate(10),))),
        photometry=_photometry(jpeg, gaussian_noise),
    ),
    Recipe(
        "train2_color",
        "strong",
        geometry=(
            Chance(0.25, (ResizedCrop(),)),
            Chance(0.25, (Flip(horizontal=True),)),
            Chance(0.25, (Flip(horizontal=False),)),
            Chance(0.25, (ShiftScaleRotate(45),)),
        ),
        photometry=_photometry(jpeg, gaussian_noise, clahe, sharpen),
    ),
)
RECIPES: dict[str, Recipe] = {recipe.code: recipe for recipe in _TABLE}
_BY_NAME: dict[str, Recipe] = {recipe.name: recipe for recipe in _TABLE}
PLAIN = _BY_NAME["none"].code  # the recipe without augmentation and with the normalisation of the backbone


def _recipe(name: str) -> Recipe:
    recipe = RECIPES.get(name) or _BY_NAME.get(name)
    if recipe is None:
        raise unknown_name("recipe", name, _BY_NAME)
    return recipe


def recipe_code(name: str) -> str:
    """The code of a recipe, which is what files and caches store.

    Args:
        name: a readable name (``none``, ``gray``, ``unnormalized``, ``light``, ``strong``) or a code.

    Raises:
        UserError: ``unknown-recipe``; the text lists the readable names.
    """
    return _recipe(name).code


def plain_recipe(augment: str | None) -> str:
    """The code of the recipe for rows that are not trained on: no augmentation, the same normalisation of pixels.

    Args:
        augment: the training recipe, a readable name or a code; ``None``: unknown.

    Raises:
        UserError: ``unknown-recipe``.
    """
    if augment is None:
        return PLAIN
    recipe = _recipe(augment)
    return PLAIN if recipe.augments else recipe.code


def _scaled(image: Tensor, mean: tuple[float, ...], std: tuple[float, ...]) -> Tensor:
    """Scale [0, 255] to [0, 1], subtract ``mean`` and divide by ``std``, per channel; in place."""
    shape = (-1, 1, 1)
    return image.div_(255).sub_(torch.tensor(mean).view(shape)).div_(torch.tensor(std).view(shape))


def normalise(image: Tensor, pixels: str) -> Tensor:
    """Normalise an image to float32.

    Args:
        image: (3, S, S) uint8, resized and augmented.
        pixels: ``"imagenet"`` (mean and standard deviation of ImageNet on [0, 1]), ``"minmax"`` (minimum and maximum
            of the image scaled to [0, 1]), ``"half"`` (mean and standard deviation 0.5) or ``"none"`` ([0, 1]).

    Returns:
        (3, S, S) float32.
    """
    values = image.to(torch.float32, memory_format=torch.contiguous_format, copy=True)
    if pixels == "minmax":
        # A constant image becomes zeros, not NaN.
        low, high = values.min(), values.max()
        return values.sub_(low).div_((high - low).clamp_(min=1))
    if pixels == "none":
        return values.div_(255)
    if pixels == "half":
        return _scaled(values, (0.5,) * 3, (0.5,) * 3)
    return _scaled(values, IMAGENET_MEAN, IMAGENET_STD)


@dataclass(frozen=True)
class Transform:
    """Resizes, applies the steps and normalises. Created by :func:`build_transform`."""

    image_size: int  # side S in pixels
    steps: tuple[Step, ...]
    pixels: str  # see normalise

    @property
    def deterministic(self) -> bool:
        """Whether the output depends only on the input, so that features can be cached."""
        return not self.steps

    def __call__(self, image: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
        """Transform one sample.

        Args:
            image: (3, H, W) uint8 RGB.
            mask: (1, H, W) uint8, 0 or 1.

        Returns:
            image (3, S, S) float32, normalised, and mask (1, S, S) float32, 0 or 1.
        """
        image, mask = resize(image, mask, self.image_size)
        for step in self.steps:
            image, mask = step(image, mask)
        return normalise(image, self.pixels), mask.to(torch.float32, memory_format=torch.contiguous_format)


def geometric_steps(recipe: str) -> tuple[Step, ...]:
    """All geometric steps of a recipe, without their probabilities, to test or display them one by one."""
    return tuple(step for chance in _recipe(recipe).geometry for step in chance.choices)


def photometric_steps(recipe: str) -> tuple[Step, ...]:
    """All photometric steps of a recipe, without their probabilities."""
    return tuple(step for chance in _recipe(recipe).photometry for step in chance.choices)


def build_transform(recipe: str, *, image_size: int, pixels: str) -> Transform:
    """The transform of a recipe.

    Args:
        recipe: a readable name or a code; see :func:`recipe_code`.
        image_size: side S of the input of the net, pixels.
        pixels: the normalisation of the backbone, ``"imagenet"`` or ``"minmax"``, see :func:`normalise`. The recipes
            ``gray`` and ``unnormalized`` have their own normalisation and ignore it.

    Raises:
        UserError: ``unknown-recipe`` or ``unknown-pixel-normalisation``.
    """
    found = _recipe(recipe)
    if pixels not in ("imagenet", "minmax"):
        raise unknown_name("pixel normalisation", pixels, ("imagenet", "minmax"))
    return Transform(image_size, found.geometry + found.photometry, found.pixels or pixels)
