"""Prompts as a JSON file in the images' own pixels: written, read again, checked; knows no torch, models or tables.

``(0, 0)`` is the centre of the first pixel, in the image's frame as in the net's; a coordinate that goes to the file
and back is the same float32.
"""

from __future__ import annotations

import base64
import json
import math
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from promise.runtime.errors import SHOWN, MissingFileError, UserError
from promise.runtime.files import write_text

VERSIONS = (1, 2)  # that are read; 2 adds mask and mask_index, and is written where an image has one of them
LARGEST_MASK = 2**22  # pixels of a mask prompt
FRAME = "image pixels, (0, 0) is the centre of the first pixel"


@dataclass(frozen=True)
class ImagePrompts:
    """What one image is prompted with, in its own pixels."""

    size: tuple[int, int]  # width, height
    xy: np.ndarray  # (P, 2) float64
    label: np.ndarray  # (P,) int64, 1 foreground, 0 background
    box: np.ndarray | None = None  # (4,) float64 x0, y0, x1, y1
    mask: np.ndarray | None = None  # (h, w) float32 logits: SAM's mask prompt, in the decoder's own frame
    mask_index: int = 0  # which of SAM's three multimask masks was asked for

    @staticmethod
    def of(
        xy: np.ndarray,
        label: np.ndarray,
        box: np.ndarray | None,
        *,
        side: int,
        size: tuple[int, int],
        mask: np.ndarray | None = None,
        mask_index: int = 0,
    ) -> ImagePrompts:
        """Bring prompts from the net's input, a square of ``side`` pixels, to an image of ``size`` (width, height)."""
        scale = np.asarray(size, np.float64) / side
        return ImagePrompts(
            size,
            (np.asarray(xy, np.float64) + 0.5) * scale - 0.5,
            np.asarray(label, np.int64),
            None if box is None else (np.asarray(box, np.float64) + 0.5) * np.tile(scale, 2) - 0.5,
            mask,
            mask_index,
        )

    def at(self, side: int) -> tuple[np.ndarray, np.ndarray, np.ndarray | None]:
        """Points (P, 2) float32, labels (P,) and box (4,) float32 or ``None`` in a net's input of ``side`` pixels."""
        scale = side / np.asarray(self.size, np.float64)

        def bring(corners: np.ndarray) -> np.ndarray:
            """Rounded where float64 is no longer exact, so that float32 is: 0 comes back as 0."""
            return np.round((corners + 0.5) * scale - 0.5, 9).astype(np.float32)

        box = None if self.box is None else bring(self.box.reshape(2, 2)).reshape(4)
        return bring(self.xy), self.label, box


@dataclass(frozen=True)
class Draw:
    """One draw of prompts for every image."""

    seed: int | None  # None where nothing is drawn
    images: Mapping[str, Mapping[str, ImagePrompts]]  # data set → image's name → prompts


def write_prompts(
    path: Path, source: str, draws: Sequence[Draw], *, beside: Mapping[str, Mapping[str, Any]] | None = None
) -> None:
    """Write every draw, all or nothing; arguments as :func:`prompts_text`."""
    write_text(path, prompts_text(source, draws, beside=beside))


def prompts_text(source: str, draws: Sequence[Draw], *, beside: Mapping[str, Mapping[str, Any]] | None = None) -> str:
    """What a prompts file holds: every draw, a line an image.

    Args:
        source: where the prompts come from.
        draws: of prompts.
        beside: image's name → what else is told of it; readers pass over it.
    """
    more = beside or {}
    texts = []
    for draw in draws:
        datasets = [
            f"    {json.dumps(name)}: {{\n"
            + ",\n".join(
                f"     {json.dumps(image)}: {json.dumps({**plain_prompts(p), **more.get(image, {})})}"
                for image, p in images.items()
            )
            + "\n    }"
            for name, images in draw.images.items()
        ]
        texts.append(f'  {{"seed": {json.dumps(draw.seed)}, "images": {{\n' + ",\n".join(datasets) + "\n  }}")
    version = VERSIONS[any(_needs_second(p) for d in draws for images in d.images.values() for p in images.values())]
    head = f'{{"version": {version}, "frame": {json.dumps(FRAME)}, "source": {json.dumps(source)}, "draws": [\n'
    return head + ",\n".join(texts) + "\n]}\n"


def plain_prompts(prompts: ImagePrompts) -> dict[str, Any]:
    """As the file holds them."""
    written = {
        "size": list(prompts.size),
        "points": prompts.xy.tolist(),
        "labels": prompts.label.tolist(),
        "box": None if prompts.box is None else prompts.box.tolist(),
    }
    if prompts.mask is not None:
        packed = zlib.compress(np.ascontiguousarray(prompts.mask, "<f4").tobytes())
        written["mask"] = {"shape": list(prompts.mask.shape), "zlib_base64_float32": base64.b64encode(packed).decode()}
    if prompts.mask_index:
        written["mask_index"] = prompts.mask_index
    return written


def from_plain(values: Mapping[str, Any]) -> ImagePrompts:
    """Prompts that :func:`plain_prompts` wrote and nobody has changed since."""
    width, height = values["size"]
    return ImagePrompts(
        (width, height),
        np.array(values["points"], np.float64).reshape(-1, 2),
        np.array(values["labels"], np.int64),
        None if values["box"] is None else np.array(values["box"], np.float64),
        None if values.get("mask") is None else _unpack_mask(values["mask"]),
        values.get("mask_index", 0),
    )


def _needs_second(prompts: ImagePrompts) -> bool:
    return prompts.mask is not None or prompts.mask_index != 0


class PromptFile:
    """A prompts file, as written: nothing but its outline has been looked at."""

    def __init__(self, path: Path) -> None:
        """Read the file.

        Raises:
            MissingFileError: no such file.
            UserError: no JSON, or no prompts file of this version.
        """
        if not path.is_file():
            raise MissingFileError(f"no prompts at {path}. Is the path behind file: right?")
        try:
            content = json.loads(path.read_text(encoding="utf-8"))
        except ValueError as error:  # of JSON and of UTF-8
            raise UserError(f"{path} is not JSON ({error}).") from error
        draws = content.get("draws") if isinstance(content, dict) else None
        if not (
            isinstance(draws, list)
            and draws
            and all(isinstance(draw, dict) and isinstance(draw.get("images"), dict) for draw in draws)
        ):
            raise UserError(
                f"{path} is no prompts file: it wants a list 'draws' whose members hold 'images', as the prompts.json "
                "that promise-eval writes."
            )
        if content.get("version") not in VERSIONS:
            known = " and ".join(map(str, VERSIONS))
            raise UserError(f"{path} has version {content.get('version')!r}; versions {known} can be read.")
        self.path = path
        self.source = str(content.get("source", "unknown"))
        self._draws: list[dict[str, Any]] = draws

    @property
    def seeds(self) -> tuple[int | None, ...]:
        """The draws' seeds."""
        return tuple(draw["seed"] if isinstance(draw.get("seed"), int) else None for draw in self._draws)

    def choose(self, wanted: Mapping[str, Mapping[str, tuple[int, int]]], *, side: int) -> list[Draw]:
        """The prompts of the wanted images, checked.

        Args:
            wanted: data set → image's name → the image's (width, height). Where one data set is wanted and the file
                holds one, its name does not matter.
            side: of the net's input; points may lie one of its pixels outside the image, as a net's own may.

        Raises:
            UserError: images that are missing, sizes that differ, wrong shapes, points outside; all at once.
        """
        faults: list[str] = []
        draws = []
        for number, (draw, seed) in enumerate(zip(self._draws, self.seeds, strict=True)):
            where = f"draw {number}, " if len(self._draws) > 1 else ""
            found: dict[str, dict[str, ImagePrompts]] = {}
            for dataset, sizes in wanted.items():
                given = draw["images"]
                alone = len(wanted) == len(given) == 1
                images = next(iter(given.values())) if alone else given.get(dataset)
                if not isinstance(images, dict):
                    faults.append(f"{where}data set {dataset} is missing (there are {', '.join(given) or 'none'})")
                    continue
                found[dataset] = {}
                for name, size in sizes.items():
                    one, words = check_prompts(images[name], size, side) if name in images else (None, ["is missing"])
                    faults += [f"{where}{dataset}, {name}: {w}" for w in words]
                    if one is not None:
                        found[dataset][name] = one
            draws.append(Draw(seed, found))
        if faults:
            more = len(faults) - SHOWN
            lines = [f"  {words}" for words in faults[:SHOWN]] + [f"  … and {more} more"] * (more > 0)
            head = f"{self.path}: {len(faults)} fault{'s' * (len(faults) != 1)} in the prompts of the scored images:"
            raise UserError("\n".join([head, *lines]))
        return draws


def check_prompts(given: Any, size: tuple[int, int], side: int) -> tuple[ImagePrompts | None, list[str]]:
    """One image's prompts, and what is wrong with them.

    Args:
        given: a mapping with ``size``, ``points``, ``labels`` and ``box``; what else it holds is not looked at.
        size: (width, height) of the image.
        side: of the net's input; see :meth:`PromptFile.choose`.
    """
    if not isinstance(given, dict):
        return None, ["wants size, points, labels and box"]
    points, labels, box = given.get("points"), given.get("labels"), given.get("box")
    faults = []
    if given.get("size") != list(size):
        faults.append(f"its size is {given.get('size')}, the image's [{size[0]}, {size[1]}]")
    xy = _numbers(points, 2)
    if xy is None:
        faults.append("points must be a list of [x, y]")
    if not isinstance(labels, list) or not all(label in (0, 1) for label in labels):
        faults.append("labels must be a list of 1 (foreground) and 0 (background)")
    elif xy is not None and len(labels) != len(xy):
        faults.append(f"{len(xy)} points and {len(labels)} labels")
    corners = None if box is None else _numbers([box], 4)
    if box is not None and (corners is None or (corners[0, :2] > corners[0, 2:]).any()):
        faults.append("box must be [x0, y0, x1, y1] with x0 ≤ x1 and y0 ≤ y1, or null")
        corners = None
    for what, places in (("point", xy), ("box corner", None if corners is None else corners.reshape(2, 2))):
        faults += [] if places is None else _outside(what, places, size, side)
    mask = _mask(given.get("mask"), faults)
    index = given.get("mask_index", 0)
    if type(index) is not int or index not in range(3):
        faults.append(f"mask_index must be 0, 1 or 2, not {index!r}")
    if faults or xy is None or labels is None:
        return None, faults
    box_of = None if corners is None else corners[0]
    return ImagePrompts(size, xy, np.array(labels, np.int64), box_of, mask, index), []


def _mask(given: Any, faults: list[str]) -> np.ndarray | None:
    """(h, w) float32 logits as :func:`plain_prompts` packs them; a fault is appended where they cannot be."""
    if given is None:
        return None
    try:
        mask = _unpack_mask(given)
    except (TypeError, KeyError, ValueError, OverflowError, zlib.error):
        faults.append("mask must be an object with shape [h, w] and zlib_base64_float32, as promise-predict writes it")
        return None
    if not np.isfinite(mask).all():
        faults.append("mask must hold finite logits")
        return None
    return mask


def _unpack_mask(given: Any) -> np.ndarray:
    height, width = (int(side) for side in given["shape"])
    if not 0 < height * width <= LARGEST_MASK:
        raise ValueError("the shape of a mask prompt is out of range")
    packed = base64.b64decode(given["zlib_base64_float32"], validate=True)
    raw = zlib.decompressobj().decompress(packed, 4 * height * width + 1)  # never more than the shape says
    return np.frombuffer(raw, "<f4").reshape(height, width).astype(np.float32)


def _numbers(given: Any, width: int) -> np.ndarray | None:
    """(N, width) float64 of a list of lists of finite numbers; anything else: ``None``."""
    if not isinstance(given, list):
        return None
    for row in given:
        if not isinstance(row, list) or len(row) != width:
            return None
        if not all(isinstance(v, int | float) and not isinstance(v, bool) and math.isfinite(v) for v in row):
            return None
    return np.array(given, np.float64).reshape(len(given), width)


def _outside(what: str, places: np.ndarray, size: tuple[int, int], side: int) -> list[str]:
    edge = np.asarray(size, np.float64)
    slack = edge / side + 1e-6
    away = ((places < -0.5 - slack) | (places > edge - 0.5 + slack)).any(axis=1)
    return [
        f"{what} ({x:g}, {y:g}) lies outside the image of {size[0]} × {size[1]} pixels"
        for x, y in places[away].tolist()
    ]
