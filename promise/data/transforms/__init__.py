"""From a picture and its mask to a net's input, by named recipes; knows no CSV and no model."""

from promise.data.transforms.recipes import (
    IMAGENET_MEAN,
    IMAGENET_STD,
    PIXELS_VERSION,
    RECIPES,
    Transform,
    build_transform,
    geometric_steps,
    normalise,
    photometric_steps,
    plain_recipe,
)

__all__ = [
    "IMAGENET_MEAN",
    "IMAGENET_STD",
    "PIXELS_VERSION",
    "RECIPES",
    "Transform",
    "build_transform",
    "geometric_steps",
    "normalise",
    "photometric_steps",
    "plain_recipe",
]
