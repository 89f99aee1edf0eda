"""Masks of prepared pictures brought back to the original frames, file by file; knows no sets and no model."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from promise.data.images import EXTENSIONS, read_levels, write_png
from promise.data.prepare.frame import Frame, read_frames
from promise.runtime.errors import ExistingRunError, MissingFileError, UserError
from promise.runtime.progress import progress_bar
from promise.runtime.workers import default_workers, ordered_map

SHOWN = 20  # faults told in full


def restore_masks(
    folder: Path, frames_path: Path, output: Path, *, overwrite: bool, workers: int | None = None, quiet: bool = False
) -> list[Path]:
    """Write each mask or grey map of ``folder`` in its original's size.

    Args:
        folder: pictures named as the prepared ones, in their subfolders or not; of any square size.
        frames_path: ``frames.csv`` of the preparation.
        output: for PNGs with the same names and grey values.
        overwrite: replace what is there.
        workers: threads.
        quiet: no progress bar.

    Returns:
        The files written. Pictures without a mask in ``folder`` are left out.

    Raises:
        MissingFileError: no such folder or record.
        ExistingRunError: files that would be replaced.
        UserError: nothing fits, or files that cannot be used, all told at once.
    """
    if not folder.is_dir():
        raise MissingFileError(f"--restore {folder}: no such folder.")
    frames = read_frames(frames_path)
    jobs = _match(folder, frames, output)
    if not jobs:
        raise UserError(f"--restore {folder}: holds no picture of {frames_path} ({next(iter(frames), 'empty')}, …).")
    there = [target for _, target, _ in jobs if target.exists()]
    if there and not overwrite:
        raise ExistingRunError(f"{len(there)} files are there already ({there[0]}, …); --overwrite replaces them.")
    done = ordered_map(_restore, jobs, workers=workers or default_workers())
    faults = [
        fault for fault in progress_bar(done, total=len(jobs), name="restoring", unit="mask", quiet=quiet) if fault
    ]
    if faults:
        more = [f"  … and {len(faults) - SHOWN} more"] if len(faults) > SHOWN else []
        head = f"{len(faults)} of {len(jobs)} masks cannot be restored; the others are:"
        raise UserError("\n".join([head, *(f"  {fault}" for fault in faults[:SHOWN]), *more]))
    return [target for _, target, _ in jobs]


_Job = tuple[Path, Path, Frame]  # mask, where it goes, its frame


def _match(folder: Path, frames: Mapping[str, Frame], output: Path) -> list[_Job]:
    jobs = []
    for name, frame in frames.items():
        inner = Path(name).relative_to("images") if name.startswith("images/") else Path(name)
        places = [folder / place.with_suffix(end) for place in (inner, Path(inner.name)) for end in EXTENSIONS]
        found = next((path for path in places if path.is_file()), None)
        if found is not None:
            jobs.append((found, output / inner.with_suffix(".png"), frame))
    return jobs


def _restore(job: _Job) -> str | None:
    """Write one; returns what is wrong with it."""
    source, target, frame = job
    try:
        whole = frame.restore(read_levels(source))
    except UserError as error:
        return str(error) if str(source) in str(error) else f"{source}: {error}"
    write_png(target, whole)
    return None
