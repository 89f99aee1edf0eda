"""How a picture and its mask become a net's input: resize, augment, normalise; knows no CSV and no model.

The named recipes stand in one table. All randomness comes from torch's global CPU generator: whoever
calls seeds it, and the same seed gives the same sample.
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
    """With probability ``p``, one of ``choices``, each as likely as the other."""

    p: float
    choices: tuple[Step, ...]

    def __call__(self, image: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
        """The pair, changed by one step or left alone."""
        if uniform(0, 1) >= self.p:
            return image, mask
        return self.choices[pick(len(self.choices))](image, mask)


@dataclass(frozen=True)
class Recipe:
    """The named augmentations: geometry first, then photometry, then how pixels are normalised."""

    geometry: tuple[Chance, ...] = ()
    photometry: tuple[Chance, ...] = ()
    pixels: str | None = None  # None: as the backbone wants it


def _photometry(*artefacts: Callable[[Pixels], Pixels]) -> tuple[Chance, ...]:
    blurs = (box_blur, gaussian_blur, median_blur, motion_blur)
    return (
        Chance(0.25, tuple(Photometric(b) for b in blurs)),
        Chance(0.25, (Photometric(brightness_contrast),)),
        Chance(0.25, tuple(Photometric(a) for a in artefacts)),
        Chance(0.1, (Photometric(coarse_dropout),)),
    )


# Counted up when any recipe gives other pixels than before, so that cached features of the old ones are not used.
PIXELS_VERSION = 1

RECIPES: dict[str, Recipe] = {
    "basic_color": Recipe(),
    "basic_gray": Recipe(pixels="half"),
    "basic_color_nonorm": Recipe(pixels="none"),
    "train1_color": Recipe(
        geometry=(Chance(0.25, (ResizedCrop(),)), Chance(0.25, (ShiftScaleRotate(10),))),
        photometry=_photometry(jpeg, gaussian_noise),
    ),
    "train2_color": Recipe(
        geometry=(
            Chance(0.25, (ResizedCrop(),)),
            Chance(0.25, (Flip(horizontal=True),)),
            Chance(0.25, (Flip(horizontal=False),)),
            Chance(0.25, (ShiftScaleRotate(45),)),
        ),
        photometry=_photometry(jpeg, gaussian_noise, clahe, sharpen),
    ),
}


def _scaled(image: Tensor, mean: tuple[float, ...], std: tuple[float, ...]) -> Tensor:
    """[0, 255] to [0, 1], minus mean, over std, channel by channel."""
    shape = (-1, 1, 1)
    return image.div_(255).sub_(torch.tensor(mean).view(shape)).div_(torch.tensor(std).view(shape))


def normalise(image: Tensor, pixels: str) -> Tensor:
    """(3, S, S) uint8 to float32.

    Args:
        image: as it is resized and augmented.
        pixels: ``"imagenet"``, ``"minmax"``, ``"half"`` or ``"none"``; see :func:`build_transform`.
    """
    values = image.to(torch.float32, memory_format=torch.contiguous_format, copy=True)
    if pixels == "minmax":
        # A constant image has no range: it becomes zeros, not NaN.
        low, high = values.min(), values.max()
        return values.sub_(low).div_((high - low).clamp_(min=1))
    if pixels == "none":
        return values.div_(255)
    if pixels == "half":
        return _scaled(values, (0.5,) * 3, (0.5,) * 3)
    return _scaled(values, IMAGENET_MEAN, IMAGENET_STD)


@dataclass(frozen=True)
class Transform:
    """Resize, then the steps, then normalisation. Made by :func:`build_transform`."""

    image_size: int
    steps: tuple[Step, ...]
    pixels: str

    @property
    def deterministic(self) -> bool:
        """Whether the same input always gives the same output, so that its features may be cached."""
        return not self.steps

    def __call__(self, image: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
        """One sample.

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


def _recipe(name: str) -> Recipe:
    if name not in RECIPES:
        raise unknown_name("augmentation recipe", name, RECIPES)
    return RECIPES[name]


def plain_recipe(augment: str | None) -> str:
    """The recipe of rows that are only looked at, beside a training recipe: the same pixels, no augmentation."""
    if augment is None:
        return "basic_color"
    recipe = _recipe(augment)
    return "basic_color" if recipe.geometry or recipe.photometry else augment


def geometric_steps(recipe: str) -> tuple[Step, ...]:
    """Every geometric step of a recipe, each applied always: for tests, and to look at them one by one."""
    return tuple(step for chance in _recipe(recipe).geometry for step in chance.choices)


def photometric_steps(recipe: str) -> tuple[Step, ...]:
    """Every photometric step of a recipe, each applied always."""
    return tuple(step for chance in _recipe(recipe).photometry for step in chance.choices)


def build_transform(recipe: str, *, image_size: int, pixels: str) -> Transform:
    """The transform of a named recipe.

    Args:
        recipe: a key of :data:`RECIPES`.
        image_size: side S of the net's input, pixels.
        pixels: what the backbone wants: ``"imagenet"`` (mean and std on [0, 1]) or ``"minmax"`` (each
            image scaled to [0, 1] after augmentation). ``basic_gray`` (mean and std 0.5) and
            ``basic_color_nonorm`` ([0, 1]) keep their own whatever this says.

    Raises:
        UserError: for an unknown recipe or pixel normalisation.
    """
    found = _recipe(recipe)
    if pixels not in ("imagenet", "minmax"):
        raise unknown_name("pixel normalisation", pixels, ("imagenet", "minmax"))
    return Transform(image_size, found.geometry + found.photometry, found.pixels or pixels)
