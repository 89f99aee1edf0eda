"""Generate a synthetic data set: endoscopy-like images with one or two lesions, their masks and a split CSV.

The set serves to try the commands without medical data; scores on it do not transfer to real images. Needs no torch.
"""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import gaussian_filter

from promise.data.images import write_png
from promise.runtime.errors import UserError
from promise.runtime.files import write_text
from promise.runtime.lock import exclusive
from promise.runtime.settings import SPLITS

Field = NDArray[np.float32]  # (H, W)
Colour = NDArray[np.float32]  # (H, W, 3) RGB in [0, 1]
Generator = np.random.Generator


@dataclass(frozen=True)
class _Canvas:
    """Coordinates of every pixel, in units of the shorter side; (0, 0) is the centre."""

    x: Field
    y: Field

    @staticmethod
    def of(height: int, width: int) -> _Canvas:
        side = min(height, width)
        y, x = np.mgrid[:height, :width].astype(np.float32)
        return _Canvas((x - (width - 1) / 2) / side, (y - (height - 1) / 2) / side)

    @property
    def shape(self) -> tuple[int, int]:
        return self.x.shape[0], self.x.shape[1]

    @property
    def area(self) -> float:
        """Area of the image, in units of the squared shorter side."""
        return self.x.size / min(self.shape) ** 2


def make_phantoms(
    output: str | Path,
    *,
    count: int,
    size: int | tuple[int, int] = 256,
    seed: int,
    splits: Sequence[float] = (0.7, 0.1, 0.2),
) -> Path:
    """Write ``images/``, ``masks/`` and ``split.csv`` below ``output``; the same settings give the same bytes.

    Image i depends only on (seed, i) and ``size``, not on ``count``.

    Args:
        output: the output folder, created if necessary; images of the same name are replaced.
        count: number of images, at least 1.
        size: side of square images in pixels, or (minimum, maximum): height and width of each image are drawn from
            this range. At least 32.
        seed: at least 0.
        splits: relative sizes of train, val and test.

    Returns:
        The path of the split CSV, which is written last.

    Raises:
        UserError: a value is out of range (``invalid-phantom-settings``, ``invalid-fractions``).
    """
    output = Path(output)
    low, high = (size, size) if isinstance(size, int) else size
    if count < 1 or low < 32 or high < low or seed < 0:
        raise UserError(
            f"phantoms need a count of at least 1, a size of at least 32 and a seed of at least 0; "
            f"got count {count}, size {size}, seed {seed}.",
            code="invalid-phantom-settings",
        )
    lines = ["image_name,train_type,mask_name"]

    def write(index: int) -> str:
        image, mask = make_phantom(seed=seed, index=index, size=(low, high))
        name = f"phantom_{index:04d}.png"
        write_png(output / "images" / name, image)
        write_png(output / "masks" / name, mask * np.uint8(255))
        return name

    assigned = _assign(count, splits)
    with exclusive(output), ThreadPoolExecutor() as pool:
        for name, split in zip(pool.map(write, range(count)), assigned, strict=True):
            lines.append(f"images/{name},{split},masks/{name}")
        csv_path = output / "split.csv"
        write_text(csv_path, "\n".join(lines) + "\n")
    return csv_path


def make_phantom(*, seed: int, index: int, size: tuple[int, int]) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
    """Generate one image of a set.

    Args:
        seed: seed of the set.
        index: number of the image in the set.
        size: (minimum, maximum) of height and width, in pixels.

    Returns:
        The image, (H, W, 3) uint8 RGB, and its mask, (H, W) uint8, 0 or 1.
    """
    rng = np.random.default_rng([seed, index])
    low, high = size
    canvas = _Canvas.of(int(rng.integers(low, high + 1)), int(rng.integers(low, high + 1)))
    light = rng.uniform(-0.3, 0.3, 2)
    colour = _mucosa(rng, canvas)
    mask = np.zeros(canvas.shape, bool)
    visible = _field_of_view(rng, canvas)
    brightness = colour.mean(axis=2)
    lumen = brightness < 0.65 * np.median(brightness)
    for fraction in _lesion_fractions(rng):
        outline = _outline(rng, canvas, fraction, mask | lumen)
        colour = _paint_lesion(rng, canvas, colour, outline, light)
        mask |= outline < 1
    colour = _light(rng, canvas, colour, light)
    colour = _highlights(rng, canvas, colour)
    colour *= visible[:, :, None]
    colour = gaussian_filter(colour, (0.6, 0.6, 0)) + rng.normal(0, 0.008, colour.shape)
    image = np.rint(np.clip(colour, 0, 1) * 255).astype(np.uint8)
    return image, (mask & (visible > 0.5)).astype(np.uint8)


# --- wall of the organ ----------------------------------------------------------------------------


def _noise(rng: Generator, canvas: _Canvas, cells: float) -> Field:
    """Smooth noise of mean 0 and standard deviation 1, with about ``cells`` bumps along the shorter side."""
    height, width = canvas.shape
    step = min(height, width) / cells
    grid = rng.standard_normal((int(height / step) + 4, int(width / step) + 4)).astype(np.float32)
    smooth = np.asarray(cv2.resize(grid, (width, height), interpolation=cv2.INTER_CUBIC), np.float32)
    return np.asarray((smooth - smooth.mean()) / (smooth.std() + 1e-6), np.float32)


def _mucosa(rng: Generator, canvas: _Canvas) -> Colour:
    """Pink wall with folds around a dark lumen, blotches, fine vessels and grain."""
    pink = np.array([rng.uniform(0.72, 0.92), rng.uniform(0.36, 0.54), rng.uniform(0.28, 0.46)])
    angle, away = rng.uniform(0, 2 * np.pi), rng.uniform(0.15, 0.6)
    bend = 0.06 * _noise(rng, canvas, 3)
    distance = np.hypot(canvas.x - away * np.cos(angle), canvas.y - away * np.sin(angle)) + bend
    folds = np.sin(distance * rng.uniform(14, 26) + rng.uniform(0, 6))
    ridges = np.exp(-((1 - folds) ** 2) / 0.35) - 0.5 * np.exp(-((1 + folds) ** 2) / 0.25)
    ridges *= rng.uniform(0.04, 0.16) * np.clip(1.2 - distance, 0, 1)
    lumen = 1 / (1 + np.exp((distance - rng.uniform(0.08, 0.2)) / rng.uniform(0.02, 0.06)))
    shade = (1 + ridges) * (1 - rng.uniform(0.5, 0.85) * lumen)
    shade *= 1 + 0.07 * _noise(rng, canvas, 5) + 0.025 * _noise(rng, canvas, 40)
    colour = np.asarray(shade[:, :, None] * pink, np.float32)
    # The redness varies across the image, so that lesions cannot be found by colour alone.
    colour *= 1 + _noise(rng, canvas, 4)[:, :, None] * np.array([0.0, 0.07, 0.06])
    vessels = np.exp(-((_noise(rng, canvas, 9) / 0.05) ** 2)) * (_noise(rng, canvas, 3) > 0.2)
    strength = rng.uniform(0.05, 0.3)
    return np.asarray(colour * (1 - strength * vessels[:, :, None] * np.array([0.3, 1.0, 0.9])), np.float32)


def _light(rng: Generator, canvas: _Canvas, colour: Colour, light: NDArray[Any]) -> Colour:
    """A lamp near the camera: bright around ``light``, darker outwards."""
    away = (canvas.x - light[0]) ** 2 + (canvas.y - light[1]) ** 2
    fall = rng.uniform(0.75, 1.1) / (1 + rng.uniform(0.4, 1.4) * away)
    return np.asarray(np.clip(colour * fall[:, :, None], 0, 1) ** rng.uniform(0.85, 1.2), np.float32)


def _highlights(rng: Generator, canvas: _Canvas, colour: Colour) -> Colour:
    """Specular highlights on wall and lesions."""
    field = _noise(rng, canvas, rng.uniform(18, 34)) + 0.8 * _noise(rng, canvas, 4)
    bright = colour.mean(axis=2) / (colour.mean() + 1e-6)
    excess = (field * np.sqrt(bright) - rng.uniform(3.0, 4.2)) / 0.12
    spots = 1 / (1 + np.exp(-np.clip(excess, -40, 40)))
    return np.asarray(colour + (0.97 - colour) * spots[:, :, None], np.float32)


def _field_of_view(rng: Generator, canvas: _Canvas) -> Field:
    """1 inside the rounded window of the endoscope, 0 in the black border."""
    height, width = canvas.shape
    side = min(height, width)
    power = rng.uniform(4, 9)
    reach = rng.uniform(0.98, 1.1)
    edge = np.abs(2 * canvas.x * side / width) ** power + np.abs(2 * canvas.y * side / height) ** power
    return np.asarray(1 / (1 + np.exp((edge ** (1 / power) - reach) * side / 2.5)), np.float32)


# --- lesions --------------------------------------------------------------------------------------


def _lesion_fractions(rng: Generator) -> list[float]:
    """The target area of each lesion, as a fraction of the image: log-uniform in 2–36 %."""
    fraction = float(np.exp(rng.uniform(np.log(0.02), np.log(0.36))))
    if fraction < 0.15 and rng.random() < 0.3:
        return [fraction, float(np.exp(rng.uniform(np.log(0.02), np.log(0.08))))]
    return [fraction]


def _outline(rng: Generator, canvas: _Canvas, fraction: float, occupied: NDArray[np.bool_]) -> Field:
    """A field that is 0 at the centre of a lesion, 1 on its outline and larger outside.

    Of six random positions, the one with the least overlap with other lesions and the lumen is selected.
    """
    radius = np.sqrt(fraction * canvas.area / np.pi)
    stretch = np.exp(rng.uniform(-0.3, 0.3))
    angle = rng.uniform(0, np.pi)
    waves = [(k, rng.normal(0, 0.16 / k), rng.uniform(0, 2 * np.pi)) for k in range(2, 8)]
    best, fewest = np.full(canvas.shape, 2, np.float32), np.inf
    for _ in range(6):
        cx = rng.uniform(-0.5, 0.5) * max(0.05, np.ptp(canvas.x) * 0.9 - 2 * radius)
        cy = rng.uniform(-0.5, 0.5) * max(0.05, np.ptp(canvas.y) * 0.9 - 2 * radius)
        dx, dy = canvas.x - cx, canvas.y - cy
        u = (dx * np.cos(angle) + dy * np.sin(angle)) / stretch
        v = (dy * np.cos(angle) - dx * np.sin(angle)) * stretch
        theta = np.arctan2(v, u)
        bumps = sum(size * np.cos(k * theta + phase) for k, size, phase in waves)
        field = np.asarray(np.hypot(u, v) / (radius * (1 + bumps)), np.float32)
        overlap = int((occupied & (field < 1.2)).sum())
        if overlap < fewest:
            best, fewest = field, overlap
    return best


def _paint_lesion(rng: Generator, canvas: _Canvas, colour: Colour, outline: Field, light: NDArray[Any]) -> Colour:
    """Paint a dome inside the outline, with its own tint and grain, shading from one side and a shadow at its edge."""
    side = min(canvas.shape)
    softness = rng.uniform(0.03, 0.14)
    inside = 1 / (1 + np.exp(np.clip((outline - 1) / softness, -40, 40)))
    height = np.sqrt(np.clip(1 - outline**2, 0, 1)) * rng.uniform(0.06, 0.2)
    slope_y, slope_x = np.gradient(gaussian_filter(height, side / 100), 1 / side)
    away_x, away_y = canvas.x - light[0], canvas.y - light[1]
    relief = -(slope_x * away_x + slope_y * away_y) / (np.hypot(away_x, away_y) + 0.15)
    relief = np.clip(1 - 0.25 * relief, 0.7, 1.25)
    # The tint is redder than the wall; brightness and strength vary.
    bright, dark = np.array((0.12, -0.20, -0.16)), np.array((-0.16, -0.26, -0.28))
    blend = rng.uniform(0, 1)
    tint = (blend * bright + (1 - blend) * dark) * rng.uniform(0.7, 1.6)
    tint = tint + rng.normal(0, 0.04, 3)
    grain = 1 + rng.uniform(0.02, 0.09) * _noise(rng, canvas, rng.uniform(25, 60))
    wall = gaussian_filter(colour, (side / 60, side / 60, 0))  # folds are not visible through a lesion
    painted = (0.35 * colour + 0.65 * wall) * (1 + tint) * (grain * relief)[:, :, None]
    shadow = np.exp(-(((outline - 1.06) / 0.09) ** 2)) * (1 - inside) * rng.uniform(0.05, 0.4)
    ground = colour * (1 - shadow[:, :, None])
    return np.asarray(ground + (painted - ground) * inside[:, :, None], np.float32)


# --- files ----------------------------------------------------------------------------------------


def _assign(count: int, splits: Sequence[float]) -> list[str]:
    """The split of each image, in order; every split with a weight above 0 gets an image if there are enough."""
    if len(splits) != 3 or not all(0 <= weight < float("inf") for weight in splits) or sum(splits) == 0:
        shown = " ".join(f"{weight:g}" for weight in splits)
        raise UserError(
            f"the fractions of train, val and test must be finite, at least 0 and not all 0; got {shown}.",
            code="invalid-fractions",
        )
    fractions = np.asarray(splits, float) / sum(splits)
    used = int((fractions > 0).sum())
    counts = np.where(fractions > 0, 1, 0) if count >= used else np.zeros(3, int)
    for _ in range(count - int(counts.sum())):
        counts[np.argmax(fractions * count - counts)] += 1
    return [name for name, number in zip(SPLITS, counts, strict=True) for _ in range(number)]
