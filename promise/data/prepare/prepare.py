"""Prepare raw downloads: square images, binary masks and split CSVs. Needs no torch.

Each file is written atomically, and each finished pair is recorded in ``frames.part``, from which interrupted runs
resume. The CSVs are written last: if they exist, the preparation is complete.
"""

from __future__ import annotations

import csv
import dataclasses
import errno
import io
import json
import os
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
from promise.data.prepare.assignment import Assigned, Splitting, assign
from promise.data.prepare.frame import Frame, content_frame, read_frames, whole_frame, write_frames
from promise.data.prepare.layouts import ImageSet, Pair, summarise_items
from promise.data.table import COLUMNS
from promise.runtime.errors import SHOWN, ExistingRunError, UserError, WriteError, raise_all, shorten
from promise.runtime.files import remove_leftovers, write_text, writing
from promise.runtime.lock import exclusive
from promise.runtime.progress import progress_bar
from promise.runtime.settings import MAX_WORKERS
from promise.runtime.workers import default_workers, ordered_map

JOURNAL = "frames.part"  # JSON lines: the settings, then one line per finished pair
FRAMES = "frames.csv"
NAMING_HINT = (
    "--mask-suffix, --mask-prefix and --image-suffix define how masks are named; by default, common names are tried."
)
MAX_SIZE = 8192  # of a prepared image, in pixels
SKIP_HINT = "--skip-unpaired leaves these files out."
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
class Prepared:
    """What was written."""

    tables: dict[Path, dict[str, int]]  # CSV → number of rows of each split
    notes: tuple[str, ...]
    made: int  # images prepared in this run
    kept: int  # images prepared in an earlier, interrupted run


@dataclass(frozen=True)
class _Job:
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
    job: _Job
    frame: Frame | None = None  # None: failed
    empty: bool = False
    cut: bool = False  # foreground outside the crop
    turned: bool = False  # image and mask have different EXIF orientations
    error: UserError | None = None


def prepare(sets: Sequence[ImageSet], output: Path, *, options: PrepareOptions, splitting: Splitting) -> Prepared:
    """Split the sets and write ``images/``, ``masks/``, the split CSVs and ``frames.csv`` below ``output``.

    One set is written as ``split.csv``. Several sets are written as ``train.csv``, with the train and val rows of all
    sets, and one CSV per set with its test rows.

    Args:
        sets: results of :func:`promise.data.prepare.layouts.find_sets`.
        output: the output folder.
        options: how images are prepared.
        splitting: how pairs are split.

    Raises:
        ExistingRunError: the folder contains results (``existing-output``), an unfinished run with other settings
            (``unfinished-run``) or other images (``foreign-folder``).
        UserError: values out of range (``invalid-size``, ``invalid-workers``), faults of the sets
            (``duplicate-set``, ``no-pairs``, ``duplicate-base-name``, ``unpaired-files``) or of the split (see
            :func:`promise.data.prepare.assignment.assign`), or pairs that cannot be prepared (``pairs-not-prepared``,
            with the errors of all pairs). Finished pairs are kept, and the next run resumes. With ``in_place``, pairs
            that cannot be used as they are (``pairs-not-usable``, with the errors of all pairs); nothing is written.
    """
    _check_options(options)
    notes = _check_pairs(sets, skip=options.skip_unpaired)
    rows, split_notes = assign(sets, splitting)
    with exclusive(output):
        return _prepare(rows, len(sets) > 1, output, options, [*notes, *split_notes])


def _prepare(
    rows: Sequence[Assigned], several: bool, output: Path, options: PrepareOptions, notes: list[str]
) -> Prepared:
    plan = _plan(rows, several=several)
    if options.in_place:
        _forbid_existing(output, [*plan, FRAMES, JOURNAL], overwrite=options.overwrite)
        notes += _check_files(rows, options)
        paths = {row: (_relative(row.pair.image, output), _relative(row.pair.mask, output)) for row in rows}
        return Prepared(_write_tables(output, plan, paths), tuple(notes), made=0, kept=0)
    jobs = [_job(row, several=several) for row in rows]
    finished = _start(output, [*plan, FRAMES], options)
    frames, mask_notes, kept = _prepare_pairs(jobs, output, finished, options)
    paths = {job.row: (job.image.as_posix(), job.mask.as_posix()) for job in jobs}
    write_frames(output / FRAMES, {job.image.as_posix(): frames[job.image.as_posix()] for job in jobs})
    tables = _write_tables(output, plan, paths)
    (output / JOURNAL).unlink()
    return Prepared(tables, (*notes, *mask_notes), made=len(jobs) - kept, kept=kept)


def _check_options(options: PrepareOptions) -> None:
    errors = []
    if not 16 <= options.size <= MAX_SIZE:
        message = f"--size must be at least 16 and at most {MAX_SIZE}; got {options.size}."
        errors.append(UserError(message, code="invalid-size"))
    if not 1 <= options.workers <= MAX_WORKERS:
        message = f"--workers must be at least 1 and at most {MAX_WORKERS}; got {options.workers}."
        errors.append(UserError(message, code="invalid-workers"))
    raise_all(errors)


def _check_pairs(sets: Sequence[ImageSet], *, skip: bool) -> list[str]:
    """Check names and pairs; returns notes about files that are left out."""
    names = Counter(one.name for one in sets)
    errors = [
        UserError(f"{count} sets have the name {name}; prepare them separately.", code="duplicate-set")
        for name, count in names.items()
        if count > 1
    ]
    errors += [UserError(f"{one.name}: no image has a mask.", code="no-pairs") for one in sets if not one.pairs]
    for one in sets:
        images: dict[str, list[str]] = {}
        for pair in one.pairs:
            images.setdefault(pair.name.lower(), []).append(str(pair.image))
        repeated = [" and ".join(paths) for paths in images.values() if len(paths) > 1]
        texts = summarise_items(f"{one.name}: images with the same base name", repeated)
        errors += [UserError(text, code="duplicate-base-name") for text in texts]
    unpaired = [text for one in sets for text in one.unpaired]
    if unpaired and not skip:
        hint = NAMING_HINT if any(not one.pairs for one in sets) else SKIP_HINT
        unpaired[-1] += f"\n{hint}"
        errors += [UserError(text, code="unpaired-files") for text in unpaired]
    raise_all(errors, separator="\n")
    return [f"left out: {text}" for text in unpaired]


# --- split CSVs -----------------------------------------------------------------------------------


def _plan(rows: Sequence[Assigned], *, several: bool) -> dict[str, list[Assigned]]:
    """CSV → rows."""
    if not several:
        return {"split.csv": list(rows)}
    plan: dict[str, list[Assigned]] = {}
    for row in rows:
        plan.setdefault("train.csv" if row.split != "test" else f"{row.set_name}.csv", []).append(row)
    return plan


def _write_tables(
    output: Path, plan: dict[str, list[Assigned]], paths: dict[Assigned, tuple[str, str]]
) -> dict[Path, dict[str, int]]:
    grouped = any(row.group for rows in plan.values() for row in rows)
    tables = {}
    for name, rows in plan.items():
        text = io.StringIO()
        writer = csv.writer(text, lineterminator="\n")
        writer.writerow([*COLUMNS, *(["group"] if grouped else [])])
        for row in rows:
            image, mask = paths[row]
            writer.writerow([image, row.split, mask, *([row.group] if grouped else [])])
        write_text(output / name, text.getvalue())
        tables[output / name] = dict(Counter(row.split for row in rows))
    return tables


def _relative(path: Path, output: Path) -> str:
    try:
        return Path(os.path.relpath(path.resolve(), output.resolve())).as_posix()
    except ValueError:  # on Windows, a path on another drive
        return path.resolve().as_posix()


# --- output folder --------------------------------------------------------------------------------


def _forbid_existing(output: Path, names: Sequence[str], *, overwrite: bool) -> None:
    existing = [name for name in names if (output / name).exists()]
    if existing and not overwrite:
        raise ExistingRunError(
            f"{output} already contains {', '.join(existing)}; --overwrite replaces them.", code="existing-output"
        )


def _start(output: Path, names: Sequence[str], options: PrepareOptions) -> dict[str, dict[str, Any]]:
    """Start or resume a preparation; returns image → entry of the journal, for finished pairs."""
    settings = {"size": options.size, "crop_border": options.crop_border}
    journal = output / JOURNAL
    if options.overwrite:
        _clear(output, names)
    _forbid_existing(output, names, overwrite=False)
    if journal.exists():
        entries = _read_journal(journal)
        if entries and entries[0] == settings:
            remove_leftovers(output)
            return {entry["image"]: entry for entry in entries[1:]}
        raise ExistingRunError(
            f"{output} contains an unfinished preparation with other settings. Use the same settings to resume it, or "
            "--overwrite to start again.",
            code="unfinished-run",
        )
    folders = [name for name in ("images", "masks") if (output / name).exists()]
    if folders:
        raise ExistingRunError(
            f"{output} contains {' and '.join(folders)} that promise-prepare did not write; choose another folder.",
            code="foreign-folder",
        )
    write_text(journal, json.dumps(settings) + "\n")
    return {}


def _read_journal(journal: Path) -> list[dict[str, Any]]:
    """The complete lines; an interrupted run may leave an incomplete line, whose pair is prepared again."""
    entries = []
    for line in journal.read_text(encoding="utf-8").splitlines():
        try:
            entries.append(json.loads(line))
        except ValueError:
            continue
    return entries


def _clear(output: Path, names: Sequence[str]) -> None:
    """Remove the files of an earlier preparation; other files are kept."""
    images: list[str] = []
    if (output / FRAMES).exists():
        images += read_frames(output / FRAMES)
    if (output / JOURNAL).exists():
        images += [entry["image"] for entry in _read_journal(output / JOURNAL)[1:]]
    for name in names:
        (output / name).unlink(missing_ok=True)
    for name in images:
        for path in (output / name, output / _mask_name(name)):
            if output.resolve() in path.resolve().parents:
                path.unlink(missing_ok=True)
    for folder in sorted((p for kind in ("images", "masks") for p in (output / kind).rglob("*/")), reverse=True):
        _remove_empty(folder)
    for kind in ("images", "masks"):
        _remove_empty(output / kind)
    (output / JOURNAL).unlink(missing_ok=True)


def _remove_empty(folder: Path) -> None:
    if folder.is_dir() and not any(folder.iterdir()):
        folder.rmdir()


def _mask_name(image: str) -> str:
    return "masks" + image.removeprefix("images")


# --- images and masks -----------------------------------------------------------------------------


def _job(row: Assigned, *, several: bool) -> _Job:
    inner = Path(row.set_name, f"{row.pair.name}.png") if several else Path(f"{row.pair.name}.png")
    return _Job(row, "images" / inner, "masks" / inner)


def _prepare_pairs(
    jobs: Sequence[_Job], output: Path, finished: dict[str, dict[str, Any]], options: PrepareOptions
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


def _describe_flags(counts: Counter[str]) -> list[str]:
    """Notes about the pairs that have a flag."""
    return [f"{number} mask{'s have' if number != 1 else ' has'} {_FLAGS[flag]}" for flag, number in counts.items()]


def _check_files(rows: Sequence[Assigned], options: PrepareOptions) -> list[str]:
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


def _is_unchanged(job: _Job, entry: dict[str, Any], output: Path) -> bool:
    try:
        same = {key: entry.get(key) for key in ("image", "sources")} == job.entry()
    except OSError:  # a source is missing now; reported when it is read
        return False
    return same and (output / job.image).is_file() and (output / job.mask).is_file()


def _worker(output: Path, options: PrepareOptions) -> Callable[[_Job], _Outcome]:
    def work(job: _Job) -> _Outcome:
        try:
            return _prepare_pair(job, output, options)
        except UserError as error:
            if isinstance(error, WriteError) and error.errno != errno.ENAMETOOLONG:
                raise  # a full disk fails for every pair
            return _Outcome(job, error=error)

    return work


def _prepare_pair(job: _Job, output: Path, options: PrepareOptions) -> _Outcome:
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
