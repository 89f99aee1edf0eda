"""What one augmentation step does to a picture and its mask; knows no recipe and no probability.

Steps are plain picklable objects ``(image, mask) -> (image, mask)`` on uint8 tensors (3, S, S) and
(1, S, S), so that worker processes can carry them. All randomness comes from torch's global CPU
generator. Where a recipe names an operation but not its strength, the strength is the usual one and
stands here as a default.
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
    """One draw from [low, high)."""
    return float(torch.empty(()).uniform_(low, high))


def pick(count: int) -> int:
    """One draw from 0 … count - 1."""
    return int(torch.randint(count, ()))


def _to_array(tensor: Tensor) -> Pixels:
    """(C, H, W) tensor to a contiguous (H, W, C) array, as OpenCV wants it."""
    array: Pixels = tensor.permute(1, 2, 0).contiguous().numpy()
    return array


def _to_tensor(array: Pixels) -> Tensor:
    """(H, W, C) or (H, W) array to a (C, H, W) tensor."""
    return torch.from_numpy(array if array.ndim == 3 else array[:, :, None]).permute(2, 0, 1)


# --- geometry: image and mask move together -------------------------------------------------------


def resize(image: Tensor, mask: Tensor, size: int) -> tuple[Tensor, Tensor]:
    """Squash both to size × size: bilinear with antialias, and nearest-exact (no half-pixel shift)."""
    if image.shape[-2:] != (size, size):
        image = F.resize(image, [size, size], InterpolationMode.BILINEAR, antialias=True)
    if mask.shape[-2:] != (size, size):
        mask = F.resize(mask, [size, size], InterpolationMode.NEAREST_EXACT)
    return image, mask


@dataclass(frozen=True)
class ResizedCrop:
    """Cut a window of 0.95–1.05 of the area and aspect, and bring it back to the full size.

    A window larger than the picture cannot be cut. As in the original's library it is drawn again, up
    to ten times, and then the largest central window is taken: the upper half of the range means "keep
    (nearly) everything", never "pad".
    """

    scale: tuple[float, float] = (0.95, 1.05)
    ratio: tuple[float, float] = (0.95, 1.05)

    def __call__(self, image: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
        """Image and mask cut by the same window; sizes unchanged."""
        window = RandomResizedCrop.get_params(image, list(self.scale), list(self.ratio))
        top, left, height, width = (int(v) for v in window)
        area = (..., slice(top, top + height), slice(left, left + width))
        return resize(image[area], mask[area], image.shape[-1])


@dataclass(frozen=True)
class Flip:
    """Mirror left-right (``horizontal``) or top-bottom."""

    horizontal: bool

    def __call__(self, image: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
        """Both mirrored."""
        axis = -1 if self.horizontal else -2
        return image.flip(axis), mask.flip(axis)


@dataclass(frozen=True)
class ShiftScaleRotate:
    """One affine move; what comes in from outside is the picture's own reflection, in the mask too.

    Reflection without repeating the border pixel is what the original's library does by default.
    """

    degrees: float
    shift: float = 0.0625  # of the side
    scale: float = 0.05

    def __call__(self, image: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
        """Both moved by the same matrix: image bilinear, mask nearest."""
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


# --- photometry: the mask stays as it is ----------------------------------------------------------


@dataclass(frozen=True)
class Photometric:
    """A step that changes pixels in place: applies ``change`` to the (S, S, 3) uint8 array."""

    change: Callable[[Pixels], Pixels]

    def __call__(self, image: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
        """The changed image and the same mask."""
        return _to_tensor(np.ascontiguousarray(self.change(_to_array(image)))), mask


def _kernel_size() -> int:
    return (3, 5)[pick(2)]


def box_blur(image: Pixels) -> Pixels:
    """Mean over 3×3 or 5×5."""
    size = _kernel_size()
    return np.asarray(cv2.blur(image, (size, size)))


def gaussian_blur(image: Pixels) -> Pixels:
    """Gaussian of 3×3 or 5×5, sigma from the size by OpenCV's rule."""
    size = _kernel_size()
    return np.asarray(cv2.GaussianBlur(image, (size, size), 0))


def median_blur(image: Pixels) -> Pixels:
    """Median over 3×3 or 5×5."""
    return np.asarray(cv2.medianBlur(image, _kernel_size()))


def motion_blur(image: Pixels) -> Pixels:
    """Mean along a line of random direction through a 3×3 or 5×5 window."""
    size = _kernel_size()
    angle, half = uniform(0, float(np.pi)), (size - 1) / 2
    dx, dy = half * np.cos(angle), half * np.sin(angle)
    start, end = (round(half - dx), round(half - dy)), (round(half + dx), round(half + dy))
    line = np.asarray(cv2.line(np.zeros((size, size), np.uint8), start, end, (1,)), np.float32)
    return np.asarray(cv2.filter2D(image, -1, line / line.sum()))


def brightness_contrast(image: Pixels) -> Pixels:
    """Contrast × (1 ± 0.1) about black, then brightness ± 0.1 of the full range."""
    table = np.arange(256) * (1 + uniform(-0.1, 0.1)) + 255 * uniform(-0.1, 0.1)
    return np.asarray(cv2.LUT(image, np.clip(np.rint(table), 0, 255).astype(np.uint8)))


def jpeg(image: Pixels) -> Pixels:
    """JPEG there and back, quality 80–100."""
    options = (cv2.IMWRITE_JPEG_QUALITY, 80 + pick(21))
    # OpenCV takes BGR for granted; in RGB order the wrong channels would lose their detail.
    done, data = cv2.imencode(".jpg", cv2.cvtColor(image, cv2.COLOR_RGB2BGR), options)
    assert done
    return np.asarray(cv2.cvtColor(np.asarray(cv2.imdecode(data, cv2.IMREAD_COLOR)), cv2.COLOR_BGR2RGB))


def gaussian_noise(image: Pixels) -> Pixels:
    """Gaussian noise for each pixel and channel, variance 10–50 grey levels squared."""
    noise = torch.randn(image.shape) * uniform(10, 50) ** 0.5
    noisy: Pixels = noise.add_(torch.from_numpy(image)).round_().clamp_(0, 255).to(torch.uint8).numpy()
    return noisy


def clahe(image: Pixels) -> Pixels:
    """Contrast-limited histogram equalisation of the lightness: clip limit 1–4, 8×8 tiles."""
    lab = np.asarray(cv2.cvtColor(image, cv2.COLOR_RGB2LAB))
    equalise = cv2.createCLAHE(clipLimit=uniform(1, 4), tileGridSize=(8, 8))
    lab[:, :, 0] = equalise.apply(np.ascontiguousarray(lab[:, :, 0]))
    return np.asarray(cv2.cvtColor(lab, cv2.COLOR_LAB2RGB))


def sharpen(image: Pixels) -> Pixels:
    """Blend 20–50 % of a 3×3 sharpening into the image; the mean brightness stays."""
    alpha = uniform(0.2, 0.5)
    kernel = np.full((3, 3), -alpha, np.float32)
    kernel[1, 1] = 1 + 8 * alpha
    return np.asarray(cv2.filter2D(image, -1, kernel))


def coarse_dropout(image: Pixels) -> Pixels:
    """Black out 8 squares of 8×8 pixels, wherever they fall."""
    image = image.copy()
    for _ in range(8):
        top, left = pick(max(1, image.shape[0] - 7)), pick(max(1, image.shape[1] - 7))
        image[top : top + 8, left : left + 8] = 0
    return image
