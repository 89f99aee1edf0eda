"""Prompts files: prompts of images as JSON, in pixels of the image files, with checks on reading.

``(0, 0)`` is the centre of the first pixel. See :mod:`promise.prompts.entry` for the entries of images.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from promise.prompts.entry import entry_version, parse_prompts, prompts_to_dict
from promise.prompts.sets import ImagePrompts
from promise.runtime.errors import SHOWN, MissingFileError, UserError
from promise.runtime.files import write_text
from promise.runtime.reading import parse_json, require_file

# Version 2 adds ``mask`` and ``mask_index``, version 3 adds ``lesions`` and ``fuse``. The lowest version that holds the
# prompts is written.
VERSIONS = (1, 2, 3)
FRAME = "image pixels, (0, 0) is the centre of the first pixel"


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
    version = max(map(entry_version, prompts), default=VERSIONS[0])
    head = f'{{"version": {version}, "frame": {json.dumps(FRAME)}, "source": {json.dumps(source)}, "draws": [\n'
    return head + ",\n".join(texts) + "\n]}\n"


class PromptFile:
    """A prompts file. The entries of images are checked by :meth:`select`."""

    def __init__(self, path: Path) -> None:
        """Read the file.

        Raises:
            MissingFileError: the file does not exist.
            UserError: the file is not JSON, not a prompts file, or of an unknown version.
        """
        missing = f"no prompts file at {path}. Check the path (file:… or --prompts-from)."
        require_file(path, MissingFileError(missing, code="missing-prompts-file"))
        try:
            content = parse_json(path.read_text(encoding="utf-8"))
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
            known = f"{', '.join(map(str, VERSIONS[:-1]))} and {VERSIONS[-1]}"
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
                are reported together, with the image and, of several, the lesion.
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
