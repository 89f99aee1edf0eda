"""Transform an image and its mask into the input of a net, by named augmentation recipes."""

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
    recipe_code,
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
    "recipe_code",
]
