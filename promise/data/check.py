"""Check that the image and mask files of a table can be read; all faults are reported together. Needs no torch."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from promise.data.images import read_image, read_size
from promise.data.masks import describe_turn, read_mask, size_mismatch
from promise.data.records import LineFault, list_line_faults
from promise.data.table import Row
from promise.runtime.errors import UserError, list_faults
from promise.runtime.progress import progress_bar
from promise.runtime.workers import default_workers, ordered_map

_Result = TypeVar("_Result")


@dataclass(frozen=True)
class PairCheck:
    """The result for one image and its mask."""

    errors: tuple[UserError, ...] = ()
    empty_mask: bool = False
    turn: str | None = None  # a warning about different EXIF orientations of image and mask


def check_files(rows: Sequence[Row], *, csv_path: str | Path, level: str, progress: bool) -> list[str]:
    """Open every image and mask of ``rows``.

    Args:
        rows: rows of a table.
        csv_path: the CSV that the messages name.
        level: ``"full"`` decodes all pixels. ``"header"`` reads only the sizes and detects neither truncated files nor
            masks that are not binary.
        progress: show a progress bar on stderr.

    Returns:
        Warnings: masks with another EXIF orientation than their image, and masks without foreground (never at
        ``"header"``).

    Raises:
        UserError: ``unusable-files``, with the errors of all rows: missing, empty or corrupted files, files that are
            not images, images and masks of different size, masks that are not binary.
    """
    check = check_pixels if level == "full" else _check_header
    found = ordered_map(lambda row: check(row.image, row.mask), rows, workers=default_workers())
    results = list(progress_bar(found, total=len(rows), name="checking files", unit="file", quiet=not progress))
    pairs = list(zip(rows, results, strict=True))
    faults = [LineFault(row.line, error.code, str(error)) for row, result in pairs for error in result.errors]
    name = Path(csv_path).name
    if faults:
        number = len({fault.line for fault in faults})
        head = f"{name}: {number} of {len(rows)} rows {'have files' if number != 1 else 'has a file'}"
        raise UserError(
            list_line_faults(f"{head} that cannot be used:", faults),
            code="unusable-files",
            errors=[fault.error for fault in faults],
        )
    empty = [(row.line, str(row.mask)) for row, result in pairs if result.empty_mask]
    turned = [(row.line, result.turn) for row, result in pairs if result.turn is not None]
    warnings = []
    for found_lines, text in ((turned, "another EXIF orientation than the image"), (empty, "no foreground")):
        if found_lines:
            masks = "masks have" if len(found_lines) != 1 else "mask has"
            warnings.append(list_faults(f"{name}: {len(found_lines)} {masks} {text}:", found_lines))
    return warnings


def check_pixels(image: Path, mask: Path) -> PairCheck:
    """Decode an image and its mask; faults are in the result."""
    errors: list[UserError] = []
    pixels = _collect(errors, "image", lambda: read_image(image))
    foreground = _collect(errors, "mask", lambda: read_mask(mask))
    if pixels is not None and foreground is not None and pixels.shape[:2] != foreground.shape:
        errors.append(size_mismatch(image, pixels.shape[:2], mask, foreground.shape))
    turn = None if errors else describe_turn(image, mask)
    return PairCheck(tuple(errors), foreground is not None and not foreground.any(), turn)


def _check_header(image: Path, mask: Path) -> PairCheck:
    errors: list[UserError] = []
    size = _collect(errors, "image", lambda: read_size(image))
    mask_size = _collect(errors, "mask", lambda: read_size(mask))
    if size is not None and mask_size is not None and size != mask_size:
        errors.append(size_mismatch(image, size, mask, mask_size))
    return PairCheck(tuple(errors), turn=None if errors else describe_turn(image, mask))


def _collect(errors: list[UserError], role: str, read: Callable[[], _Result]) -> _Result | None:
    """The result of ``read``; its error, if any, is appended to ``errors``."""
    try:
        return read()
    except UserError as error:
        errors.append(UserError(f"{role} {error}", code=error.code))
        return None
