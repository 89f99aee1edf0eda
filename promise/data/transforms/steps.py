"""Single augmentation steps for an image and its mask.

A step is a picklable callable ``(image, mask) -> (image, mask)`` on uint8 tensors (3, S, S) and (1, S, S). All random
numbers come from the global CPU generator of torch. Where the recipes of the reference implementation name an operation
without its strength, the default of this module is the usual strength of that operation.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import cv2
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torchvision.transforms import RandomResizedCrop
from torchvision.transforms.v2 import InterpolationMode
from torchvision.transforms.v2 import functional as F

Step = Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]
Pixels = NDArray[Any]


def uniform(low: float, high: float) -> float:
    """A random number from [low, high)."""
    return float(torch.empty(()).uniform_(low, high))


def pick(count: int) -> int:
    """A random integer from 0 to count - 1."""
    return int(torch.randint(count, ()))


def _to_array(tensor: Tensor) -> Pixels:
    """(C, H, W) tensor to a contiguous (H, W, C) array, the layout of OpenCV."""
    array: Pixels = tensor.permute(1, 2, 0).contiguous().numpy()
    return array


def _to_tensor(array: Pixels) -> Tensor:
    """(H, W, C) or (H, W) array to a (C, H, W) tensor."""
    return torch.from_numpy(array if array.ndim == 3 else array[:, :, None]).permute(2, 0, 1)


# --- geometric steps: applied to image and mask ---------------------------------------------------


def resize(image: Tensor, mask: Tensor, size: int) -> tuple[Tensor, Tensor]:
    """Resize both to size × size: the image bilinearly with antialiasing, the mask nearest-exact (without shift)."""
    if image.shape[-2:] != (size, size):
        image = F.resize(image, [size, size], InterpolationMode.BILINEAR, antialias=True)
    if mask.shape[-2:] != (size, size):
        mask = F.resize(mask, [size, size], InterpolationMode.NEAREST_EXACT)
    return image, mask


@dataclass(frozen=True)
class ResizedCrop:
    """Crop a random window and resize it to the full size.

    The window has 0.95–1.05 of the area of the image and an aspect ratio of 0.95–1.05. As in the library that the
    reference implementation uses, a window larger than the image is drawn again, up to ten times; then the largest
    central window is used. The image is never padded.
    """

    scale: tuple[float, float] = (0.95, 1.05)
    ratio: tuple[float, float] = (0.95, 1.05)

    def __call__(self, image: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
        """Crop both with the same window; sizes are unchanged."""
        window = RandomResizedCrop.get_params(image, list(self.scale), list(self.ratio))
        top, left, height, width = (int(v) for v in window)
        area = (..., slice(top, top + height), slice(left, left + width))
        return resize(image[area], mask[area], image.shape[-1])


@dataclass(frozen=True)
class Flip:
    """Flip left-right (``horizontal``) or top-bottom."""

    horizontal: bool

    def __call__(self, image: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
        """Flip both."""
        axis = -1 if self.horizontal else -2
        return image.flip(axis), mask.flip(axis)


@dataclass(frozen=True)
class ShiftScaleRotate:
    """A random affine transform; pixels from outside are reflected at the border, in the image and in the mask.

    The reflection does not repeat the border pixel, which is the default of the library that the reference
    implementation uses.
    """

    degrees: float  # largest rotation
    shift: float = 0.0625  # largest shift, as a fraction of the side
    scale: float = 0.05  # the scale factor is 1 ± scale

    def __call__(self, image: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
        """Transform both with the same matrix: the image bilinearly, the mask with the nearest pixel."""
        height, width = image.shape[-2:]
        angle = uniform(-self.degrees, self.degrees)
        factor = 1 + uniform(-self.scale, self.scale)
        matrix = cv2.getRotationMatrix2D(((width - 1) / 2, (height - 1) / 2), angle, factor)
        matrix[0, 2] += width * uniform(-self.shift, self.shift)
        matrix[1, 2] += height * uniform(-self.shift, self.shift)

        def move(tensor: Tensor, flags: int) -> Tensor:
            array = _to_array(tensor)
            moved = cv2.warpAffine(array, matrix, (width, height), flags=flags, borderMode=cv2.BORDER_REFLECT_101)
            return _to_tensor(np.asarray(moved))

        return move(image, cv2.INTER_LINEAR), move(mask, cv2.INTER_NEAREST)


# --- photometric steps: applied to the image only --------------------------------------------------


@dataclass(frozen=True)
class Photometric:
    """A step that applies ``change``, a function of (S, S, 3) uint8 RGB arrays, to the image; the mask is unchanged."""

    change: Callable[[Pixels], Pixels]

    def __call__(self, image: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
        """Change the image; its tensor is not modified in place."""
        return _to_tensor(np.ascontiguousarray(self.change(_to_array(image)))), mask


def _kernel_size() -> int:
    return (3, 5)[pick(2)]


def box_blur(image: Pixels) -> Pixels:
    """Mean filter of 3×3 or 5×5 pixels."""
    size = _kernel_size()
    return np.asarray(cv2.blur(image, (size, size)))


def gaussian_blur(image: Pixels) -> Pixels:
    """Gaussian filter of 3×3 or 5×5 pixels; OpenCV derives sigma from the size."""
    size = _kernel_size()
    return np.asarray(cv2.GaussianBlur(image, (size, size), 0))


def median_blur(image: Pixels) -> Pixels:
    """Median filter of 3×3 or 5×5 pixels."""
    return np.asarray(cv2.medianBlur(image, _kernel_size()))


def motion_blur(image: Pixels) -> Pixels:
    """Mean along a line of random direction in a window of 3×3 or 5×5 pixels."""
    size = _kernel_size()
    angle, half = uniform(0, float(np.pi)), (size - 1) / 2
    dx, dy = half * np.cos(angle), half * np.sin(angle)
    start, end = (round(half - dx), round(half - dy)), (round(half + dx), round(half + dy))
    line = np.asarray(cv2.line(np.zeros((size, size), np.uint8), start, end, (1,)), np.float32)
    return np.asarray(cv2.filter2D(image, -1, line / line.sum()))


def brightness_contrast(image: Pixels) -> Pixels:
    """Multiply by 1 ± 0.1, then add ± 0.1 of the full range."""
    table = np.arange(256) * (1 + uniform(-0.1, 0.1)) + 255 * uniform(-0.1, 0.1)
    return np.asarray(cv2.LUT(image, np.clip(np.rint(table), 0, 255).astype(np.uint8)))


def jpeg(image: Pixels) -> Pixels:
    """Compress as JPEG of quality 80–100 and decompress."""
    options = (cv2.IMWRITE_JPEG_QUALITY, 80 + pick(21))
    # OpenCV expects BGR; in RGB order, JPEG would subsample the wrong chroma.
    encoded, data = cv2.imencode(".jpg", cv2.cvtColor(image, cv2.COLOR_RGB2BGR), options)
    assert encoded
    return np.asarray(cv2.cvtColor(np.asarray(cv2.imdecode(data, cv2.IMREAD_COLOR)), cv2.COLOR_BGR2RGB))


def gaussian_noise(image: Pixels) -> Pixels:
    """Add independent Gaussian noise to each pixel and channel, with a variance of 10–50 squared grey levels."""
    noise = torch.randn(image.shape) * uniform(10, 50) ** 0.5
    noisy: Pixels = noise.add_(torch.from_numpy(image)).round_().clamp_(0, 255).to(torch.uint8).numpy()
    return noisy


def clahe(image: Pixels) -> Pixels:
    """Contrast-limited adaptive histogram equalisation of the lightness: clip limit 1–4, 8×8 tiles."""
    lab = np.asarray(cv2.cvtColor(image, cv2.COLOR_RGB2LAB))
    equalise = cv2.createCLAHE(clipLimit=uniform(1, 4), tileGridSize=(8, 8))
    lab[:, :, 0] = equalise.apply(np.ascontiguousarray(lab[:, :, 0]))
    return np.asarray(cv2.cvtColor(lab, cv2.COLOR_LAB2RGB))


def sharpen(image: Pixels) -> Pixels:
    """Sharpen with a 3×3 kernel of strength 0.2–0.5; the mean brightness is unchanged."""
    alpha = uniform(0.2, 0.5)
    kernel = np.full((3, 3), -alpha, np.float32)
    kernel[1, 1] = 1 + 8 * alpha
    return np.asarray(cv2.filter2D(image, -1, kernel))


def coarse_dropout(image: Pixels) -> Pixels:
    """Set 8 squares of 8×8 pixels at random positions to black."""
    image = image.copy()
    for _ in range(8):
        top, left = pick(max(1, image.shape[0] - 7)), pick(max(1, image.shape[1] - 7))
        image[top : top + 8, left : left + 8] = 0
    return image
