"""A synthetic sample set: endoscopy-like pictures with one or two lesions, their masks and a split CSV.

For trying out every command without any medical data. It knows no torch and no model, and no number
measured on it says anything of real images.
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

Field = NDArray[np.float32]  # (H, W)
Colour = NDArray[np.float32]  # (H, W, 3) RGB in [0, 1]
Generator = np.random.Generator

SPLITS = ("train", "val", "test")


@dataclass(frozen=True)
class _Canvas:
    """Coordinates of every pixel, in units of the shorter side, (0, 0) in the middle."""

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
        """Of the picture, in units of the shorter side squared."""
        return self.x.size / min(self.shape) ** 2


def make_phantoms(
    output: str | Path,
    *,
    count: int,
    size: int | tuple[int, int] = 256,
    seed: int,
    splits: Sequence[float] = (0.7, 0.1, 0.2),
) -> Path:
    """Write ``images/``, ``masks/`` and ``split.csv`` below ``output``; the same settings, the same bytes.

    Picture i depends on (seed, i) and ``size`` only, not on ``count``.

    Args:
        output: folder, made when absent; pictures of the same name are replaced.
        count: pictures, at least 1.
        size: side in pixels of square pictures, or (lowest, highest): each picture draws its height and
            width from that range. At least 32.
        seed: at least 0.
        splits: train, val and test, in proportion.

    Returns:
        The split CSV's path; the CSV is written last.

    Raises:
        UserError: for values out of range.
    """
    output = Path(output)
    low, high = (size, size) if isinstance(size, int) else size
    if count < 1 or low < 32 or high < low or seed < 0:
        raise UserError(
            f"phantoms want a count of at least 1, a size of at least 32 and a seed of at least 0; "
            f"got count {count}, size {size}, seed {seed}."
        )
    lines = ["image_name,train_type,mask_name"]

    def write(index: int) -> str:
        image, mask = make_phantom(seed=seed, index=index, size=(low, high))
        name = f"phantom_{index:04d}.png"
        write_png(output / "images" / name, image)
        write_png(output / "masks" / name, mask * np.uint8(255))
        return name

    assigned = _assign(count, splits)
    with ThreadPoolExecutor() as pool:
        for name, split in zip(pool.map(write, range(count)), assigned, strict=True):
            lines.append(f"images/{name},{split},masks/{name}")
    csv_path = output / "split.csv"
    write_text(csv_path, "\n".join(lines) + "\n")
    return csv_path


def make_phantom(*, seed: int, index: int, size: tuple[int, int]) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
    """Picture ``index`` of a set: image (H, W, 3) uint8 RGB and mask (H, W) uint8, 0 or 1."""
    rng = np.random.default_rng([seed, index])
    low, high = size
    canvas = _Canvas.of(int(rng.integers(low, high + 1)), int(rng.integers(low, high + 1)))
    light = rng.uniform(-0.3, 0.3, 2)
    picture = _mucosa(rng, canvas)
    mask = np.zeros(canvas.shape, bool)
    visible = _field_of_view(rng, canvas)
    brightness = picture.mean(axis=2)
    lumen = brightness < 0.65 * np.median(brightness)
    for share in _lesion_shares(rng):
        outline = _outline(rng, canvas, share, mask | lumen)
        picture = _paint_lesion(rng, canvas, picture, outline, light)
        mask |= outline < 1
    picture = _light(rng, canvas, picture, light)
    picture = _highlights(rng, canvas, picture)
    picture *= visible[:, :, None]
    picture = gaussian_filter(picture, (0.6, 0.6, 0)) + rng.normal(0, 0.008, picture.shape)
    image = np.rint(np.clip(picture, 0, 1) * 255).astype(np.uint8)
    return image, (mask & (visible > 0.5)).astype(np.uint8)


# --- the wall of the organ ------------------------------------------------------------------------


def _noise(rng: Generator, canvas: _Canvas, cells: float) -> Field:
    """Smooth noise of mean 0 and deviation 1, about ``cells`` bumps along the shorter side."""
    height, width = canvas.shape
    step = min(height, width) / cells
    grid = rng.standard_normal((int(height / step) + 4, int(width / step) + 4)).astype(np.float32)
    smooth = np.asarray(cv2.resize(grid, (width, height), interpolation=cv2.INTER_CUBIC), np.float32)
    return np.asarray((smooth - smooth.mean()) / (smooth.std() + 1e-6), np.float32)


def _mucosa(rng: Generator, canvas: _Canvas) -> Colour:
    """Pink wall with folds around a dark lumen, blotches, fine vessels and grain."""
    colour = np.array([rng.uniform(0.72, 0.92), rng.uniform(0.36, 0.54), rng.uniform(0.28, 0.46)])
    angle, away = rng.uniform(0, 2 * np.pi), rng.uniform(0.15, 0.6)
    bend = 0.06 * _noise(rng, canvas, 3)
    distance = np.hypot(canvas.x - away * np.cos(angle), canvas.y - away * np.sin(angle)) + bend
    folds = np.sin(distance * rng.uniform(14, 26) + rng.uniform(0, 6))
    ridges = np.exp(-((1 - folds) ** 2) / 0.35) - 0.5 * np.exp(-((1 + folds) ** 2) / 0.25)
    ridges *= rng.uniform(0.04, 0.16) * np.clip(1.2 - distance, 0, 1)
    lumen = 1 / (1 + np.exp((distance - rng.uniform(0.08, 0.2)) / rng.uniform(0.02, 0.06)))
    shade = (1 + ridges) * (1 - rng.uniform(0.5, 0.85) * lumen)
    shade *= 1 + 0.07 * _noise(rng, canvas, 5) + 0.025 * _noise(rng, canvas, 40)
    picture = np.asarray(shade[:, :, None] * colour, np.float32)
    # Redness varies from place to place, so that colour alone does not find the lesion.
    picture *= 1 + _noise(rng, canvas, 4)[:, :, None] * np.array([0.0, 0.07, 0.06])
    vessels = np.exp(-((_noise(rng, canvas, 9) / 0.05) ** 2)) * (_noise(rng, canvas, 3) > 0.2)
    strength = rng.uniform(0.05, 0.3)
    return np.asarray(picture * (1 - strength * vessels[:, :, None] * np.array([0.3, 1.0, 0.9])), np.float32)


def _light(rng: Generator, canvas: _Canvas, picture: Colour, light: NDArray[Any]) -> Colour:
    """A lamp near the camera: bright around ``light``, falling off outwards."""
    away = (canvas.x - light[0]) ** 2 + (canvas.y - light[1]) ** 2
    fall = rng.uniform(0.75, 1.1) / (1 + rng.uniform(0.4, 1.4) * away)
    return np.asarray(np.clip(picture * fall[:, :, None], 0, 1) ** rng.uniform(0.85, 1.2), np.float32)


def _highlights(rng: Generator, canvas: _Canvas, picture: Colour) -> Colour:
    """Wet spots that mirror the lamp, on wall and lesion alike."""
    field = _noise(rng, canvas, rng.uniform(18, 34)) + 0.8 * _noise(rng, canvas, 4)
    bright = picture.mean(axis=2) / (picture.mean() + 1e-6)
    excess = (field * np.sqrt(bright) - rng.uniform(3.0, 4.2)) / 0.12
    spots = 1 / (1 + np.exp(-np.clip(excess, -40, 40)))
    return np.asarray(picture + (0.97 - picture) * spots[:, :, None], np.float32)


def _field_of_view(rng: Generator, canvas: _Canvas) -> Field:
    """1 inside the endoscope's rounded window, 0 in the black around it."""
    height, width = canvas.shape
    side = min(height, width)
    power = rng.uniform(4, 9)
    reach = rng.uniform(0.98, 1.1)
    edge = np.abs(2 * canvas.x * side / width) ** power + np.abs(2 * canvas.y * side / height) ** power
    return np.asarray(1 / (1 + np.exp((edge ** (1 / power) - reach) * side / 2.5)), np.float32)


# --- lesions --------------------------------------------------------------------------------------


def _lesion_shares(rng: Generator) -> list[float]:
    """Wanted share of the picture's area for each lesion: 2–36 %, small ones as common as large."""
    share = float(np.exp(rng.uniform(np.log(0.02), np.log(0.36))))
    if share < 0.15 and rng.random() < 0.3:
        return [share, float(np.exp(rng.uniform(np.log(0.02), np.log(0.08))))]
    return [share]


def _outline(rng: Generator, canvas: _Canvas, share: float, taken: NDArray[np.bool_]) -> Field:
    """A field that is 0 in a lesion's middle, 1 on its outline and grows outwards.

    The best of some places is taken: within the window, off other lesions and the lumen.
    """
    radius = np.sqrt(share * canvas.area / np.pi)
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
        overlap = int((taken & (field < 1.2)).sum())
        if overlap < fewest:
            best, fewest = field, overlap
    return best


def _paint_lesion(rng: Generator, canvas: _Canvas, picture: Colour, outline: Field, light: NDArray[Any]) -> Colour:
    """Raise a dome under the outline: its own tint and grain, lit from one side, a shadow at its foot."""
    side = min(canvas.shape)
    softness = rng.uniform(0.03, 0.14)
    inside = 1 / (1 + np.exp(np.clip((outline - 1) / softness, -40, 40)))
    height = np.sqrt(np.clip(1 - outline**2, 0, 1)) * rng.uniform(0.06, 0.2)
    slope_y, slope_x = np.gradient(gaussian_filter(height, side / 100), 1 / side)
    away_x, away_y = canvas.x - light[0], canvas.y - light[1]
    relief = -(slope_x * away_x + slope_y * away_y) / (np.hypot(away_x, away_y) + 0.15)
    relief = np.clip(1 - 0.25 * relief, 0.7, 1.25)
    # Redder than the wall, brighter or darker: between the two, and faint to strong.
    bright, dark = np.array((0.12, -0.20, -0.16)), np.array((-0.16, -0.26, -0.28))
    blend = rng.uniform(0, 1)
    tint = (blend * bright + (1 - blend) * dark) * rng.uniform(0.7, 1.6)
    tint = tint + rng.normal(0, 0.04, 3)
    grain = 1 + rng.uniform(0.02, 0.09) * _noise(rng, canvas, rng.uniform(25, 60))
    wall = gaussian_filter(picture, (side / 60, side / 60, 0))  # folds do not show through a lesion
    painted = (0.35 * picture + 0.65 * wall) * (1 + tint) * (grain * relief)[:, :, None]
    foot = np.exp(-(((outline - 1.06) / 0.09) ** 2)) * (1 - inside) * rng.uniform(0.05, 0.4)
    ground = picture * (1 - foot[:, :, None])
    return np.asarray(ground + (painted - ground) * inside[:, :, None], np.float32)


# --- files ----------------------------------------------------------------------------------------


def _assign(count: int, splits: Sequence[float]) -> list[str]:
    """The split of each picture, in order; every share above 0 gets a picture when there are enough."""
    if len(splits) != 3 or not all(0 <= share < float("inf") for share in splits) or sum(splits) == 0:
        shown = " ".join(f"{share:g}" for share in splits)
        raise UserError(f"train, val and test want finite shares of at least 0, not all of them 0; got {shown}.")
    shares = np.asarray(splits, float) / sum(splits)
    wanted = int((shares > 0).sum())
    counts = np.where(shares > 0, 1, 0) if count >= wanted else np.zeros(3, int)
    for _ in range(count - int(counts.sum())):
        counts[np.argmax(shares * count - counts)] += 1
    return [name for name, number in zip(SPLITS, counts, strict=True) for _ in range(number)]
