"""Prepare raw downloads: square images, binary masks and split CSVs. Needs no torch.

Each file is written atomically, and each finished pair is recorded in ``frames.part``, from which interrupted runs
resume. The CSVs are written last: if they exist, the preparation is complete.
"""

from __future__ import annotations

import csv
import io
import os
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from promise.data.prepare.assignment import Assigned, Splitting, assign
from promise.data.prepare.frame import write_frames
from promise.data.prepare.layouts import ImageSet, summarise_items
from promise.data.prepare.output import FRAMES, JOURNAL, forbid_existing, start
from promise.data.prepare.pairs import PrepareOptions, check_files, job_of, prepare_pairs
from promise.data.table import COLUMNS
from promise.runtime.errors import UserError, raise_all
from promise.runtime.files import write_text
from promise.runtime.lock import exclusive
from promise.runtime.settings import MAX_WORKERS

NAMING_HINT = (
    "--mask-suffix, --mask-prefix and --image-suffix define how masks are named; by default, common names are tried."
)
MAX_SIZE = 8192  # of a prepared image, in pixels
SKIP_HINT = "--skip-unpaired leaves these files out."


@dataclass(frozen=True)
class Prepared:
    """What was written."""

    tables: dict[Path, dict[str, int]]  # CSV → number of rows of each split
    notes: tuple[str, ...]
    made: int  # images prepared in this run
    kept: int  # images prepared in an earlier, interrupted run


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
        forbid_existing(output, [*plan, FRAMES, JOURNAL], overwrite=options.overwrite)
        notes += check_files(rows, options)
        paths = {row: (_relative(row.pair.image, output), _relative(row.pair.mask, output)) for row in rows}
        return Prepared(_write_tables(output, plan, paths), tuple(notes), made=0, kept=0)
    jobs = [job_of(row, several=several) for row in rows]
    settings = {"size": options.size, "crop_border": options.crop_border}
    finished = start(output, [*plan, FRAMES], settings=settings, overwrite=options.overwrite)
    frames, mask_notes, kept = prepare_pairs(jobs, output, finished, options)
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
