"""The pairs of image and mask: cropped, padded to a square, resized and written as PNG, or only checked in place."""

from __future__ import annotations

import dataclasses
import errno
import json
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from promise.data.check import check_pixels
from promise.data.images import read_image, write_png
from promise.data.masks import describe_turn, read_levels, read_mask, size_mismatch
from promise.data.prepare.assignment import Assigned
from promise.data.prepare.frame import Frame, content_frame, whole_frame
from promise.data.prepare.layouts import Pair
from promise.data.prepare.output import JOURNAL
from promise.runtime.errors import SHOWN, UserError, WriteError, shorten
from promise.runtime.files import writing
from promise.runtime.progress import progress_bar
from promise.runtime.workers import default_workers, ordered_map

_FLAGS = {  # of a pair → end of the note about the pairs that have it
    "empty": "no foreground",
    "cut": "foreground outside the crop, which is lost",
    "turned": "another EXIF orientation than the image: do they match?",
}


@dataclass(frozen=True)
class PrepareOptions:
    """How images are prepared."""

    size: int = 1024  # side of the prepared squares, pixels
    crop_border: bool = True  # crop the dark border
    in_place: bool = False  # write only CSVs, which refer to the original files
    skip_unpaired: bool = False  # leave out images without mask and masks without image
    overwrite: bool = False
    workers: int = dataclasses.field(default_factory=default_workers)  # threads
    quiet: bool = False  # no progress bar


@dataclass(frozen=True)
class Job:
    """A pair, and the files to write, relative to the output folder."""

    row: Assigned
    image: Path
    mask: Path

    def entry(self) -> dict[str, Any]:
        """The part of the journal entry that must be unchanged for a finished pair to be kept."""
        sources = (self.row.pair.image, self.row.pair.mask)
        stamps = [[str(p.resolve()), p.stat().st_size, p.stat().st_mtime_ns] for p in sources]
        return {"image": self.image.as_posix(), "sources": stamps}


@dataclass(frozen=True)
class _Outcome:
    """What became of a pair."""

    job: Job
    frame: Frame | None = None  # None: failed
    empty: bool = False
    cut: bool = False  # foreground outside the crop
    turned: bool = False  # image and mask have different EXIF orientations
    error: UserError | None = None


def job_of(row: Assigned, *, several: bool) -> Job:
    """The files of a pair; with several sets, each has a folder of its own."""
    inner = Path(row.set_name, f"{row.pair.name}.png") if several else Path(f"{row.pair.name}.png")
    return Job(row, "images" / inner, "masks" / inner)


def prepare_pairs(
    jobs: Sequence[Job], output: Path, finished: dict[str, dict[str, Any]], options: PrepareOptions
) -> tuple[dict[str, Frame], list[str], int]:
    """Prepare the pairs that are not finished; returns image → frame, notes, and the number of finished pairs."""
    frames: dict[str, Frame] = {}
    todo = []
    counts: Counter[str] = Counter()
    for job in jobs:
        entry = finished.get(job.image.as_posix())
        if entry is not None and _is_unchanged(job, entry, output):
            frames[entry["image"]] = Frame(**entry["frame"])
            counts.update(flag for flag in _FLAGS if entry.get(flag))
        else:
            todo.append(job)
    kept = len(jobs) - len(todo)
    errors = []
    with (
        writing(output / JOURNAL),
        (output / JOURNAL).open("a", encoding="utf-8") as journal,
        progress_bar(total=len(jobs), name="preparing", unit="image", quiet=options.quiet) as bar,
    ):
        bar.update(kept)
        for outcome in ordered_map(_worker(output, options), todo, workers=options.workers):
            bar.update(1)
            if outcome.frame is None:
                errors += [outcome.error] if outcome.error is not None else []
                continue
            flags = {flag: getattr(outcome, flag) for flag in _FLAGS}
            counts.update(flag for flag, value in flags.items() if value)
            entry = {**outcome.job.entry(), "frame": dataclasses.asdict(outcome.frame), **flags}
            journal.write(json.dumps(entry) + "\n")
            journal.flush()
            frames[entry["image"]] = outcome.frame
    if errors:
        more = [f"  … and {len(errors) - SHOWN} more"] if len(errors) > SHOWN else []
        head = f"{len(errors)} of {len(jobs)} pairs cannot be prepared; the others are finished, the next run resumes:"
        text = "\n".join([head, *(f"  {error}" for error in errors[:SHOWN]), *more])
        raise UserError(text, code="pairs-not-prepared", errors=errors)
    return frames, _describe_flags(counts), kept


def check_files(rows: Sequence[Assigned], options: PrepareOptions) -> list[str]:
    """Decode the files that the CSVs will refer to, as a training does; returns notes.

    Raises:
        UserError: files that cannot be used (``pairs-not-usable``), with the errors of all pairs.
    """
    found = ordered_map(lambda row: check_pixels(row.pair.image, row.pair.mask), rows, workers=options.workers)
    checks = list(progress_bar(found, total=len(rows), name="checking", unit="image", quiet=options.quiet))
    errors = [error for check in checks for error in check.errors]
    if errors:
        number = sum(bool(check.errors) for check in checks)
        head = f"{number} of {len(rows)} pairs cannot be used in place; nothing is written:"
        grey = any(error.code == "mask-not-binary" for error in errors)
        hint = ["Without --in-place, masks with grey levels are converted to binary ones."] if grey else []
        text = "\n".join([head, *shorten([f"  {error}" for error in errors]), *hint])
        raise UserError(text, code="pairs-not-usable", errors=errors)
    counts = Counter({"empty": sum(c.empty_mask for c in checks), "turned": sum(c.turn is not None for c in checks)})
    return _describe_flags(+counts)


def _describe_flags(counts: Counter[str]) -> list[str]:
    """Notes about the pairs that have a flag."""
    return [f"{number} mask{'s have' if number != 1 else ' has'} {_FLAGS[flag]}" for flag, number in counts.items()]


def _is_unchanged(job: Job, entry: dict[str, Any], output: Path) -> bool:
    try:
        same = {key: entry.get(key) for key in ("image", "sources")} == job.entry()
    except OSError:  # a source is missing now; reported when it is read
        return False
    return same and (output / job.image).is_file() and (output / job.mask).is_file()


def _worker(output: Path, options: PrepareOptions) -> Callable[[Job], _Outcome]:
    def work(job: Job) -> _Outcome:
        try:
            return _prepare_pair(job, output, options)
        except UserError as error:
            if isinstance(error, WriteError) and error.errno != errno.ENAMETOOLONG:
                raise  # a full disk fails for every pair
            return _Outcome(job, error=error)

    return work


def _prepare_pair(job: Job, output: Path, options: PrepareOptions) -> _Outcome:
    pair = job.row.pair
    image, levels = read_image(pair.image), _read_levels(pair)
    height, width = levels.shape
    if image.shape[:2] != levels.shape:
        raise size_mismatch(pair.image, image.shape[:2], pair.mask, levels.shape)
    size = options.size
    frame = content_frame(image, size=size) if options.crop_border else whole_frame(width, height, size=size)
    foreground = levels > 127
    cropped = foreground[frame.top : frame.bottom, frame.left : frame.right]
    cut = bool(cropped.sum() < foreground.sum())
    mask = frame.prepare_mask(levels)
    if levels.any() and not mask.any() and not cut:
        raise UserError(
            f"mask {pair.mask} has foreground, but its prepared mask of {size} × {size} pixels would be empty: its "
            f"highest level is {levels.max()} of 255 (128 and more are foreground), or its foreground of "
            f"{np.count_nonzero(levels):,} pixels is too small for --size.",
            code="foreground-lost",
        )
    write_png(output / job.mask, mask * np.uint8(255))
    write_png(output / job.image, frame.prepare(image))
    turned = describe_turn(pair.image, pair.mask) is not None
    return _Outcome(job, frame, not mask.any(), cut, turned)


def _read_levels(pair: Pair) -> NDArray[np.uint8]:
    try:
        return read_levels(pair.mask)
    except UserError as error:
        try:
            read_mask(pair.image)
        except UserError:
            raise error from None
        raise UserError(
            f"{error} Its image {pair.image} is a binary mask. Are images and masks swapped?",
            code="images-and-masks-swapped",
        ) from None
