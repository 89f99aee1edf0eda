"""Whether the files of a table can be used: opens each one and tells every fault at once; no torch."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from promise.data.images import read_image, read_mask, read_size
from promise.data.table import Row, tell_sizes
from promise.runtime.errors import UserError, list_faults
from promise.runtime.progress import progress_bar
from promise.runtime.workers import default_workers, ordered_map


@dataclass(frozen=True)
class _Finding:
    faults: tuple[str, ...] = ()
    empty_mask: bool = False


def check_files(rows: Sequence[Row], *, csv_path: str | Path, level: str, progress: bool) -> list[str]:
    """Open every image and mask of ``rows``.

    Args:
        rows: of a table.
        csv_path: named in the messages.
        level: ``"full"`` decodes every pixel; ``"header"`` only reads the sizes, and cannot see a
            truncated file or a mask that is not binary.
        progress: a bar on stderr.

    Returns:
        Warnings: masks without any foreground (never at ``"header"``).

    Raises:
        UserError: files that are missing, empty, truncated or no pictures, images and masks of different
            size, masks that are not binary; all at once, with their lines.
    """
    inspect = _inspect_fully if level == "full" else _inspect_header
    found = ordered_map(inspect, rows, workers=default_workers())
    findings = list(progress_bar(found, total=len(rows), name="checking files", unit="file", quiet=not progress))
    pairs = list(zip(rows, findings, strict=True))
    faults = [(row.line, words) for row, finding in pairs for words in finding.faults]
    name = Path(csv_path).name
    if faults:
        number = len({line for line, _ in faults})
        head = f"{name}: {number} of {len(rows)} rows {'have files' if number != 1 else 'has a file'}"
        raise UserError(list_faults(f"{head} that cannot be used:", faults))
    empty = [(row.line, str(row.mask)) for row, finding in pairs if finding.empty_mask]
    if not empty:
        return []
    words = "masks have" if len(empty) != 1 else "mask has"
    return [list_faults(f"{name}: {len(empty)} {words} no foreground:", empty)]


def _inspect_fully(row: Row) -> _Finding:
    faults = []
    image_size = mask_size = None
    empty = False
    try:
        image_size = read_image(row.image).shape[:2]
    except UserError as error:
        faults.append(f"image {error}")
    try:
        mask = read_mask(row.mask)
        mask_size, empty = mask.shape, not mask.any()
    except UserError as error:
        faults.append(f"mask {error}")
    return _Finding((*faults, *_compare(row, image_size, mask_size)), empty)


def _inspect_header(row: Row) -> _Finding:
    faults = []
    sizes: list[tuple[int, int] | None] = []
    for role, path in (("image", row.image), ("mask", row.mask)):
        try:
            sizes.append(read_size(path))
        except UserError as error:
            sizes.append(None)
            faults.append(f"{role} {error}")
    return _Finding((*faults, *_compare(row, sizes[0], sizes[1])))


def _compare(row: Row, image: tuple[int, ...] | None, mask: tuple[int, ...] | None) -> tuple[str, ...]:
    return () if image is None or mask is None or image == mask else (tell_sizes(row, image, mask),)
