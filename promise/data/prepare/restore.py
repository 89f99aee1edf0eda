"""Restore masks of prepared images to the size of the original images, file by file."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from promise.data.images import EXTENSIONS, write_png
from promise.data.masks import read_levels
from promise.data.prepare.frame import Frame, read_frames
from promise.runtime.errors import SHOWN, ExistingRunError, MissingFileError, UserError
from promise.runtime.progress import progress_bar
from promise.runtime.workers import default_workers, ordered_map

_Job = tuple[Path, Path, Frame]  # mask, output file, frame


def restore_masks(
    folder: Path, frames_path: Path, output: Path, *, overwrite: bool, workers: int | None = None, quiet: bool = False
) -> list[Path]:
    """Write each mask or grey map of ``folder`` in the size of its original image.

    Args:
        folder: folder of masks, named as the prepared images, with or without their subfolders. Masks are square, of
            any size.
        frames_path: ``frames.csv`` of the preparation.
        output: output folder, for PNGs with the same names and grey values.
        overwrite: replace existing files.
        workers: number of threads; default: one per core, at most 8.
        quiet: show no progress bar.

    Returns:
        The files written. Images without a mask in ``folder`` are skipped.

    Raises:
        MissingFileError: the folder or ``frames.csv`` does not exist.
        ExistingRunError: files would be replaced (``existing-output``).
        UserError: no mask matches (``no-masks-to-restore``), or masks cannot be restored (``masks-not-restored``, with
            the errors of all masks).
    """
    if not folder.is_dir():
        raise MissingFileError(f"--restore {folder}: no such folder.", code="missing-folder")
    frames = read_frames(frames_path)
    jobs = _match(folder, frames, output)
    if not jobs:
        example = next(iter(frames), "empty")
        raise UserError(
            f"--restore {folder}: no mask belongs to an image in {frames_path} ({example}, …).",
            code="no-masks-to-restore",
        )
    existing = [target for _, target, _ in jobs if target.exists()]
    if existing and not overwrite:
        raise ExistingRunError(
            f"{len(existing)} files already exist ({existing[0]}, …); --overwrite replaces them.",
            code="existing-output",
        )
    results = ordered_map(_restore, jobs, workers=workers or default_workers())
    bar = progress_bar(results, total=len(jobs), name="restoring", unit="mask", quiet=quiet)
    errors = [error for error in bar if error is not None]
    if errors:
        more = [f"  … and {len(errors) - SHOWN} more"] if len(errors) > SHOWN else []
        head = f"{len(errors)} of {len(jobs)} masks cannot be restored; the others are written:"
        raise UserError(
            "\n".join([head, *(f"  {error}" for error in errors[:SHOWN]), *more]),
            code="masks-not-restored",
            errors=errors,
        )
    return [target for _, target, _ in jobs]


def _match(folder: Path, frames: Mapping[str, Frame], output: Path) -> list[_Job]:
    jobs = []
    for name, frame in frames.items():
        inner = Path(name).relative_to("images") if name.startswith("images/") else Path(name)
        candidates = [folder / path.with_suffix(end) for path in (inner, Path(inner.name)) for end in EXTENSIONS]
        found = next((path for path in candidates if path.is_file()), None)
        if found is not None:
            jobs.append((found, output / inner.with_suffix(".png"), frame))
    return jobs


def _restore(job: _Job) -> UserError | None:
    """Restore one mask; returns the error, if any."""
    source, target, frame = job
    try:
        restored = frame.restore(read_levels(source))
    except UserError as error:
        named = str(source) in str(error)
        return error if named else UserError(f"{source}: {error}", code=error.code)
    write_png(target, restored)
    return None
