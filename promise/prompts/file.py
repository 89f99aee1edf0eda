"""Prompts files: prompts of images as JSON, in pixels of the image files, with checks on reading.

``(0, 0)`` is the centre of the first pixel, in the frame of the image and in that of the net's input. A float32
coordinate that is written and read again is unchanged, bit for bit.
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

# Version 2 adds ``mask`` and ``mask_index``. It is written only where an image has one of them.
VERSIONS = (1, 2)
LARGEST_MASK = 2**22  # values of a mask prompt
MASKS = 3  # SAM's multimask output
FRAME = "image pixels, (0, 0) is the centre of the first pixel"


@dataclass(frozen=True)
class ImagePrompts:
    """The prompts of one image, in pixels of the image."""

    size: tuple[int, int]  # width, height
    xy: np.ndarray  # (P, 2) float64
    label: np.ndarray  # (P,) int64, 1 foreground, 0 background
    box: np.ndarray | None = None  # (4,) float64 x0, y0, x1, y1
    mask: np.ndarray | None = None  # (h, w) float32 logits: SAM's mask prompt, in the decoder's own frame
    mask_index: int = 0  # which of SAM's three multimask masks is used

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
        """Convert prompts from a square net input of ``side`` pixels to an image of ``size`` (width, height)."""
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
        """Points (P, 2) float32, labels (P,) and box (4,) float32 or ``None`` in a net input of ``side`` pixels."""
        scale = side / np.asarray(self.size, np.float64)

        def convert(corners: np.ndarray) -> np.ndarray:
            """Round away the error of float64, so that the float32 result is exact: 0 is read back as 0."""
            return np.round((corners + 0.5) * scale - 0.5, 9).astype(np.float32)

        box = None if self.box is None else convert(self.box.reshape(2, 2)).reshape(4)
        return convert(self.xy), self.label, box


@dataclass(frozen=True)
class Draw:
    """One draw of prompts for every image."""

    seed: int | None  # None where the prompts are not random
    images: Mapping[str, Mapping[str, ImagePrompts]]  # data set → image name → prompts


def write_prompts(
    path: Path, source: str, draws: Sequence[Draw], *, extra: Mapping[str, Mapping[str, Any]] | None = None
) -> None:
    """Write a prompts file atomically. Arguments as in :func:`prompts_text`."""
    write_text(path, prompts_text(source, draws, extra=extra))


def prompts_text(source: str, draws: Sequence[Draw], *, extra: Mapping[str, Mapping[str, Any]] | None = None) -> str:
    """The content of a prompts file, one line per image and draw.

    Args:
        source: where the prompts come from, such as ``auto``, ``gt`` or ``clicks``.
        draws: the draws of prompts.
        extra: image name → further keys of its entry. Readers ignore them.
    """
    more = extra or {}
    texts = []
    for draw in draws:
        datasets = [
            f"    {json.dumps(name)}: {{\n"
            + ",\n".join(
                f"     {json.dumps(image)}: {json.dumps({**prompts_to_dict(p), **more.get(image, {})})}"
                for image, p in images.items()
            )
            + "\n    }"
            for name, images in draw.images.items()
        ]
        texts.append(f'  {{"seed": {json.dumps(draw.seed)}, "images": {{\n' + ",\n".join(datasets) + "\n  }}")
    prompts = [p for draw in draws for images in draw.images.values() for p in images.values()]
    version = VERSIONS[any(p.mask is not None or p.mask_index != 0 for p in prompts)]
    head = f'{{"version": {version}, "frame": {json.dumps(FRAME)}, "source": {json.dumps(source)}, "draws": [\n'
    return head + ",\n".join(texts) + "\n]}\n"


def prompts_to_dict(prompts: ImagePrompts) -> dict[str, Any]:
    """The entry of one image in a prompts file."""
    entry = {
        "size": list(prompts.size),
        "points": prompts.xy.tolist(),
        "labels": prompts.label.tolist(),
        "box": None if prompts.box is None else prompts.box.tolist(),
    }
    if prompts.mask is not None:
        packed = zlib.compress(np.ascontiguousarray(prompts.mask, "<f4").tobytes())
        entry["mask"] = {"shape": list(prompts.mask.shape), "zlib_base64_float32": base64.b64encode(packed).decode()}
    if prompts.mask_index:
        entry["mask_index"] = prompts.mask_index
    return entry


def prompts_from_dict(entry: Mapping[str, Any]) -> ImagePrompts:
    """The prompts of an entry that :func:`prompts_to_dict` wrote; entries that users may edit need
    :func:`parse_prompts`."""
    width, height = entry["size"]
    return ImagePrompts(
        (width, height),
        np.array(entry["points"], np.float64).reshape(-1, 2),
        np.array(entry["labels"], np.int64),
        None if entry["box"] is None else np.array(entry["box"], np.float64),
        None if entry.get("mask") is None else _unpack_mask(entry["mask"]),
        entry.get("mask_index", 0),
    )


class PromptFile:
    """A prompts file. The entries of images are checked by :meth:`select`."""

    def __init__(self, path: Path) -> None:
        """Read the file.

        Raises:
            MissingFileError: the file does not exist.
            UserError: the file is not JSON, not a prompts file, or of an unknown version.
        """
        if not path.is_file():
            raise MissingFileError(
                f"no prompts file at {path}. Check the path (file:… or --prompts-from).", code="missing-prompts-file"
            )
        try:
            content = json.loads(path.read_text(encoding="utf-8"))
        except ValueError as error:  # of JSON and of UTF-8
            raise UserError(f"{path} is not JSON ({error}).", code="invalid-json") from error
        draws = content.get("draws") if isinstance(content, dict) else None
        if not (
            isinstance(draws, list)
            and draws
            and all(isinstance(draw, dict) and isinstance(draw.get("images"), dict) for draw in draws)
        ):
            raise UserError(
                f"{path} is not a prompts file: a list 'draws' is required whose members contain 'images', as in the "
                "prompts.json that promise-eval writes.",
                code="invalid-prompts-file",
            )
        if content.get("version") not in VERSIONS:
            known = " and ".join(map(str, VERSIONS))
            raise UserError(
                f"{path} has version {content.get('version')!r}; versions {known} are supported.",
                code="unsupported-prompts-version",
            )
        self.path = path
        self.source = str(content.get("source", "unknown"))
        self._draws: list[dict[str, Any]] = draws

    @property
    def seeds(self) -> tuple[int | None, ...]:
        """The seed of each draw; ``None`` where the prompts are not random."""
        return tuple(draw["seed"] if isinstance(draw.get("seed"), int) else None for draw in self._draws)

    def select(
        self, sizes: Mapping[str, Mapping[str, tuple[int, int]]], *, side: int, mask_side: int | None = None
    ) -> list[Draw]:
        """Select and check the prompts of some images.

        Args:
            sizes: data set → image name → (width, height) of the image. If this names one data set and the file
                contains one, their names may differ.
            side: side of the net's input. Points may be up to one of its pixels outside the image, as the points that
                a net places may be.
            mask_side: side of the net's mask prompts, 4E; ``None``: masks may have any shape.

        Raises:
            UserError: images that are missing, sizes that differ, wrong shapes, points outside the image; all faults
                are reported together.
        """
        errors: list[UserError] = []
        draws = []
        for number, (draw, seed) in enumerate(zip(self._draws, self.seeds, strict=True)):
            where = f"draw {number}, " if len(self._draws) > 1 else ""
            datasets = draw["images"]
            single = len(sizes) == len(datasets) == 1
            found: dict[str, dict[str, ImagePrompts]] = {}
            for dataset, expected in sizes.items():
                images = next(iter(datasets.values())) if single else datasets.get(dataset)
                if not isinstance(images, dict):
                    message = f"{where}data set {dataset} is missing (found: {', '.join(datasets) or 'none'})"
                    errors.append(UserError(message, code="missing-dataset"))
                    continue
                found[dataset], faults = _select_images(images, expected, side, mask_side)
                errors += [UserError(f"{where}{dataset}, {fault}", code=fault.code) for fault in faults]
            draws.append(Draw(seed, found))
        if errors:
            more = len(errors) - SHOWN
            lines = [f"  {error}" for error in errors[:SHOWN]] + [f"  … and {more} more"] * (more > 0)
            head = f"{self.path}: {len(errors)} fault{'s' * (len(errors) != 1)} in the prompts of the selected images:"
            raise UserError("\n".join([head, *lines]), code="invalid-prompts", errors=errors)
        return draws


def _select_images(
    images: Mapping[str, Any], sizes: Mapping[str, tuple[int, int]], side: int, mask_side: int | None
) -> tuple[dict[str, ImagePrompts], list[UserError]]:
    """The valid prompts of one data set, and the faults of the others."""
    found: dict[str, ImagePrompts] = {}
    errors: list[UserError] = []
    for name, size in sizes.items():
        if name not in images:
            errors.append(UserError(f"{name}: is missing", code="missing-prompts"))
            continue
        prompts, faults = parse_prompts(images[name], size, side, mask_side)
        errors += [UserError(f"{name}: {fault}", code=fault.code) for fault in faults]
        if prompts is not None:
            found[name] = prompts
    return found, errors


def parse_prompts(
    entry: Any, size: tuple[int, int], side: int, mask_side: int | None = None
) -> tuple[ImagePrompts | None, list[UserError]]:
    """Check the prompts of one image.

    Args:
        entry: a mapping with ``size``, ``points``, ``labels`` and ``box``, optionally ``mask`` and ``mask_index``, as
            in a prompts file; other keys are ignored.
        size: (width, height) of the image.
        side: side of the net's input; see :meth:`PromptFile.select`.
        mask_side: side of the net's mask prompts; ``None``: a mask may have any shape.

    Returns:
        The prompts, or ``None`` if there are faults; and all faults, each with a code.
    """
    if not isinstance(entry, dict):
        return None, [UserError("an object with size, points, labels and box is required", code="invalid-entry")]
    errors: list[UserError] = []
    if entry.get("size") != list(size):
        message = f"its size is {entry.get('size')}, the image's [{size[0]}, {size[1]}]"
        errors.append(UserError(message, code="image-size-mismatch"))
    xy, label = _parse_points(entry.get("points"), entry.get("labels"), errors)
    box = _parse_box(entry.get("box"), errors)
    errors += _find_outside("point", xy, size, side)
    errors += [] if box is None else _find_outside("box corner", box.reshape(2, 2), size, side)
    mask = None
    try:
        mask = None if entry.get("mask") is None else _unpack_mask(entry["mask"], mask_side)
    except UserError as error:
        errors.append(error)
    index = entry.get("mask_index", 0)
    if type(index) is not int or index not in range(MASKS):
        errors.append(UserError(f"mask_index must be 0, 1 or 2, not {index!r}", code="invalid-mask-index"))
    return (None, errors) if errors else (ImagePrompts(size, xy, label, box, mask, index), [])


def _parse_points(points: Any, labels: Any, errors: list[UserError]) -> tuple[np.ndarray, np.ndarray]:
    """(P, 2) float64 and (P,) int64; faults are appended to ``errors``, and invalid parts become empty arrays."""
    xy = _numbers(points, 2)
    label = np.zeros(0, np.int64)
    if xy is None:
        errors.append(UserError("points must be a list of [x, y]", code="invalid-points"))
    if not isinstance(labels, list) or not all(one in (0, 1) for one in labels):
        message = "labels must be a list of 1 (foreground) and 0 (background)"
        errors.append(UserError(message, code="invalid-labels"))
    elif xy is not None and len(labels) != len(xy):
        errors.append(UserError(f"{len(xy)} points and {len(labels)} labels", code="label-count-mismatch"))
    else:
        label = np.array(labels, np.int64)
    return np.zeros((0, 2)) if xy is None else xy, label


def _parse_box(box: Any, errors: list[UserError]) -> np.ndarray | None:
    """(4,) float64; a fault is appended to ``errors``."""
    corners = None if box is None else _numbers([box], 4)
    if box is not None and (corners is None or (corners[0, :2] > corners[0, 2:]).any()):
        message = "box must be [x0, y0, x1, y1] with x0 ≤ x1 and y0 ≤ y1, or null"
        errors.append(UserError(message, code="invalid-box"))
        return None
    return None if corners is None else corners[0]


def _unpack_mask(packed: Any, side: int | None = None) -> np.ndarray:
    """(h, w) float32 logits of the object that :func:`prompts_to_dict` writes.

    Raises:
        UserError: the object cannot be decoded, does not hold h × w finite values, or has another side than ``side``.
    """
    shape = packed.get("shape") if isinstance(packed, dict) else None
    text = packed.get("zlib_base64_float32") if isinstance(packed, dict) else None
    if not (
        isinstance(text, str)
        and isinstance(shape, list)
        and len(shape) == 2
        and all(type(length) is int and length > 0 for length in shape)
    ):
        raise UserError(
            "mask must be an object with shape [h, w] and zlib_base64_float32, as promise-predict writes it",
            code="invalid-mask",
        )
    height, width = shape
    if side is not None and shape != [side, side]:
        raise UserError(f"mask has the shape {shape}; the net requires [{side}, {side}]", code="mask-shape-mismatch")
    size = 4 * height * width  # bytes
    if height * width > LARGEST_MASK:
        raise UserError(
            f"mask has the shape {shape}; at most {LARGEST_MASK} values are accepted", code="mask-too-large"
        )
    try:
        compressed = base64.b64decode(text, validate=True)
        content = zlib.decompressobj().decompress(compressed, size + 1)  # a bomb is cut off after one byte too many
    except (ValueError, zlib.error) as error:
        raise UserError(f"mask cannot be decoded ({error})", code="invalid-mask-encoding") from error
    if len(content) != size:
        found = f"more than {size}" if len(content) > size else len(content)
        raise UserError(f"mask contains {found} bytes; its shape {shape} requires {size}", code="mask-length-mismatch")
    mask = np.frombuffer(content, "<f4").reshape(height, width).astype(np.float32)
    if not np.isfinite(mask).all():
        raise UserError("mask must contain finite logits", code="mask-not-finite")
    return mask


def _numbers(rows: Any, width: int) -> np.ndarray | None:
    """(N, width) float64 of a list of lists of finite numbers; ``None`` for anything else."""
    if not isinstance(rows, list):
        return None
    for row in rows:
        if not isinstance(row, list) or len(row) != width:
            return None
        if not all(isinstance(v, int | float) and not isinstance(v, bool) and math.isfinite(v) for v in row):
            return None
    return np.array(rows, np.float64).reshape(len(rows), width)


def _find_outside(kind: str, xy: np.ndarray, size: tuple[int, int], side: int) -> list[UserError]:
    edge = np.asarray(size, np.float64)
    slack = edge / side + 1e-6
    outside = ((xy < -0.5 - slack) | (xy > edge - 0.5 + slack)).any(axis=1)
    return [
        UserError(
            f"{kind} ({x:g}, {y:g}) is outside the image of {size[0]} × {size[1]} pixels",
            code="prompt-outside-image",
        )
        for x, y in xy[outside].tolist()
    ]
