"""From raw downloads to images, masks and split CSVs: the recipe; knows no torch and no model.

Every pair is written whole or not at all and then noted in ``frames.part``; a run that was stopped goes on from
there. The CSVs come last: where they stand, all is done.
"""

from __future__ import annotations

import csv
import dataclasses
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

from promise.data.images import read_image, read_levels, read_mask, write_png
from promise.data.prepare.assignment import Assigned, Splitting, assign
from promise.data.prepare.frame import Frame, content_frame, read_frames, whole_frame, write_frames
from promise.data.prepare.layouts import ImageSet, Pair, told_shortly
from promise.data.table import COLUMNS
from promise.runtime.errors import ExistingRunError, UserError
from promise.runtime.files import remove_leftovers, write_text
from promise.runtime.progress import progress_bar
from promise.runtime.workers import default_workers, ordered_map

JOURNAL = "frames.part"  # its first line are the settings, then a line a pair
FRAMES = "frames.csv"
SHOWN = 20  # faults told in full
HOW_NAMED = (
    "--mask-suffix, --mask-prefix and --image-suffix say how a mask is called; without them the usual names are tried."
)
SKIP_UNPAIRED = "--skip-unpaired leaves out what has no partner."


@dataclass(frozen=True)
class Recipe:
    """What is done to each picture."""

    size: int = 1024  # side of the prepared squares, pixels
    crop_border: bool = True  # cut off the dark border
    in_place: bool = False  # write only CSVs, which name the files where they lie
    skip_unpaired: bool = False  # leave out images without mask and masks without image
    overwrite: bool = False
    workers: int = dataclasses.field(default_factory=default_workers)
    quiet: bool = False  # no progress bar


@dataclass(frozen=True)
class Prepared:
    """What was written."""

    tables: dict[Path, dict[str, int]]  # CSV → rows of each split
    notes: tuple[str, ...]
    made: int  # pictures made now
    kept: int  # pictures of an earlier run that was stopped


@dataclass(frozen=True)
class _Job:
    row: Assigned
    image: Path
    mask: Path

    def entry(self) -> dict[str, Any]:
        """What must be the same for a picture to be taken over."""
        sources = (self.row.pair.image, self.row.pair.mask)
        stamps = [[str(p.resolve()), p.stat().st_size, p.stat().st_mtime_ns] for p in sources]
        return {"image": self.image.as_posix(), "sources": stamps}


@dataclass(frozen=True)
class _Outcome:
    job: _Job
    frame: Frame | None = None
    fault: str = ""
    empty: bool = False
    cut: bool = False  # foreground outside of the crop


def prepare(sets: Sequence[ImageSet], output: Path, *, recipe: Recipe, splitting: Splitting) -> Prepared:
    """Split the sets and write ``images/``, ``masks/``, the split CSVs and ``frames.csv`` below ``output``.

    One set becomes ``split.csv``; several become ``train.csv`` with everybody's train and val rows, and a CSV a
    set with its test rows.

    Raises:
        ExistingRunError: the folder holds results, or an unfinished run with other settings.
        UserError: faults of the sets, the split or the files, all told at once. What could be made stays, and the
            next run goes on from it.
    """
    if recipe.size < 16 or recipe.workers < 1:
        raise UserError("--size must be at least 16 and --workers at least 1.")
    notes = _pairing(sets, skip=recipe.skip_unpaired)
    rows, told = assign(sets, splitting)
    notes += told
    plan = _plan(rows, several=len(sets) > 1)
    if recipe.in_place:
        _forbid_existing(output, [*plan, FRAMES, JOURNAL], overwrite=recipe.overwrite)
        written = {row: (_relative(row.pair.image, output), _relative(row.pair.mask, output)) for row in rows}
        return Prepared(_write_tables(output, plan, written), tuple(notes), made=0, kept=0)
    jobs = [_job(row, several=len(sets) > 1) for row in rows]
    done = _start(output, [*plan, FRAMES], recipe)
    frames, more, kept = _make(jobs, output, done, recipe)
    written = {job.row: (job.image.as_posix(), job.mask.as_posix()) for job in jobs}
    write_frames(output / FRAMES, {job.image.as_posix(): frames[job.image.as_posix()] for job in jobs})
    tables = _write_tables(output, plan, written)
    (output / JOURNAL).unlink()
    return Prepared(tables, (*notes, *more), made=len(jobs) - kept, kept=kept)


def _pairing(sets: Sequence[ImageSet], *, skip: bool) -> list[str]:
    names = Counter(one.name for one in sets)
    faults = [f"{count} sets are called {name}; prepare them apart." for name, count in names.items() if count > 1]
    faults += [f"{one.name}: holds no image with a mask." for one in sets if not one.pairs]
    for one in sets:
        images: dict[str, list[str]] = {}
        for pair in one.pairs:
            images.setdefault(pair.name.lower(), []).append(str(pair.image))
        twice = [" and ".join(paths) for paths in images.values() if len(paths) > 1]
        faults += told_shortly(f"{one.name}: base names that stand for two images", twice)
    lonely = [fault for one in sets for fault in one.faults]
    if lonely and not skip:
        faults += [*lonely, HOW_NAMED if any(not one.pairs for one in sets) else SKIP_UNPAIRED]
    if faults:
        raise UserError("\n".join(faults))
    return [f"left out: {fault}" for fault in lonely]


# --- the CSVs -------------------------------------------------------------------------------------


def _plan(rows: Sequence[Assigned], *, several: bool) -> dict[str, list[Assigned]]:
    """file name → its rows."""
    if not several:
        return {"split.csv": list(rows)}
    plan: dict[str, list[Assigned]] = {}
    for row in rows:
        plan.setdefault("train.csv" if row.split != "test" else f"{row.set_name}.csv", []).append(row)
    return plan


def _write_tables(
    output: Path, plan: dict[str, list[Assigned]], written: dict[Assigned, tuple[str, str]]
) -> dict[Path, dict[str, int]]:
    grouped = any(row.group for rows in plan.values() for row in rows)
    tables = {}
    for name, rows in plan.items():
        text = io.StringIO()
        writer = csv.writer(text, lineterminator="\n")
        writer.writerow([*COLUMNS, *(["group"] if grouped else [])])
        for row in rows:
            image, mask = written[row]
            writer.writerow([image, row.split, mask, *([row.group] if grouped else [])])
        write_text(output / name, text.getvalue())
        tables[output / name] = dict(Counter(row.split for row in rows))
    return tables


def _relative(path: Path, output: Path) -> str:
    try:
        return Path(os.path.relpath(path.resolve(), output.resolve())).as_posix()
    except ValueError:  # another drive of Windows
        return path.resolve().as_posix()


# --- starting and going on ------------------------------------------------------------------------


def _forbid_existing(output: Path, names: Sequence[str], *, overwrite: bool) -> None:
    there = [name for name in names if (output / name).exists()]
    if there and not overwrite:
        raise ExistingRunError(f"{output} holds {', '.join(there)} already; --overwrite replaces them.")


def _start(output: Path, names: Sequence[str], recipe: Recipe) -> dict[str, dict[str, Any]]:
    """Begin or go on; returns image name → line of the journal."""
    settings = {"size": recipe.size, "crop_border": recipe.crop_border}
    journal = output / JOURNAL
    if recipe.overwrite:
        _clear(output, names)
    _forbid_existing(output, names, overwrite=False)
    if journal.exists():
        entries = _read_journal(journal)
        if entries and entries[0] == settings:
            remove_leftovers(output)
            return {entry["image"]: entry for entry in entries[1:]}
        raise ExistingRunError(
            f"{output} holds an unfinished preparation with other settings; give those, or --overwrite to start anew."
        )
    folders = [name for name in ("images", "masks") if (output / name).exists()]
    if folders:
        raise ExistingRunError(f"{output} holds {' and '.join(folders)} of something else; choose another folder.")
    write_text(journal, json.dumps(settings) + "\n")
    return {}


def _read_journal(journal: Path) -> list[dict[str, Any]]:
    """Its whole lines: a kill may have left half a line, whose picture is made again."""
    entries = []
    for line in journal.read_text(encoding="utf-8").splitlines():
        try:
            entries.append(json.loads(line))
        except ValueError:
            continue
    return entries


def _clear(output: Path, names: Sequence[str]) -> None:
    """Remove what an earlier preparation wrote, and nothing else."""
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


# --- pictures -------------------------------------------------------------------------------------


def _job(row: Assigned, *, several: bool) -> _Job:
    inner = Path(row.set_name, f"{row.pair.name}.png") if several else Path(f"{row.pair.name}.png")
    return _Job(row, "images" / inner, "masks" / inner)


def _make(
    jobs: Sequence[_Job], output: Path, done: dict[str, dict[str, Any]], recipe: Recipe
) -> tuple[dict[str, Frame], list[str], int]:
    """Make what is not done yet; returns image name → frame, notes, and how many were there."""
    frames: dict[str, Frame] = {}
    left = []
    counted: Counter[str] = Counter()
    for job in jobs:
        entry = done.get(job.image.as_posix())
        if entry is not None and _is_done(job, entry, output):
            frames[entry["image"]] = Frame(**entry["frame"])
            counted.update(key for key in ("empty", "cut") if entry[key])
        else:
            left.append(job)
    kept = len(jobs) - len(left)
    faults = []
    with (
        (output / JOURNAL).open("a", encoding="utf-8") as journal,
        progress_bar(total=len(jobs), name="preparing", unit="image", quiet=recipe.quiet) as bar,
    ):
        bar.update(kept)
        for outcome in ordered_map(_worker(output, recipe), left, workers=recipe.workers):
            bar.update(1)
            if outcome.frame is None:
                faults.append(outcome.fault)
                continue
            flags = {"empty": outcome.empty, "cut": outcome.cut}
            counted.update(key for key, value in flags.items() if value)
            entry = {**outcome.job.entry(), "frame": dataclasses.asdict(outcome.frame), **flags}
            journal.write(json.dumps(entry) + "\n")
            journal.flush()
            frames[entry["image"]] = outcome.frame
    if faults:
        more = [f"  … and {len(faults) - SHOWN} more"] if len(faults) > SHOWN else []
        head = f"{len(faults)} of {len(jobs)} pairs cannot be prepared; the others are, and the next run goes on:"
        raise UserError("\n".join([head, *(f"  {fault}" for fault in faults[:SHOWN]), *more]))
    texts = {"empty": "have no foreground", "cut": "have foreground outside of the crop, which is lost"}
    return frames, [f"{number} masks {texts[key]}" for key, number in counted.items()], kept


def _is_done(job: _Job, entry: dict[str, Any], output: Path) -> bool:
    same = {key: entry.get(key) for key in ("image", "sources")} == job.entry()
    return same and (output / job.image).is_file() and (output / job.mask).is_file()


def _worker(output: Path, recipe: Recipe) -> Callable[[_Job], _Outcome]:
    def work(job: _Job) -> _Outcome:
        try:
            return _prepare_pair(job, output, recipe)
        except UserError as error:
            return _Outcome(job, fault=str(error))

    return work


def _prepare_pair(job: _Job, output: Path, recipe: Recipe) -> _Outcome:
    pair = job.row.pair
    image, levels = read_image(pair.image), _read_levels(pair)
    height, width = levels.shape
    if image.shape[:2] != levels.shape:
        raise UserError(
            f"{pair.image} is {image.shape[1]}×{image.shape[0]} but its mask {pair.mask} is {width}×{height}."
        )
    frame = (
        content_frame(image, size=recipe.size) if recipe.crop_border else whole_frame(width, height, size=recipe.size)
    )
    inside = int((levels[frame.top : frame.bottom, frame.left : frame.right] > 127).sum())
    mask = frame.prepare_mask(levels)
    write_png(output / job.mask, mask * np.uint8(255))
    write_png(output / job.image, frame.prepare(image))
    return _Outcome(job, frame, empty=not mask.any(), cut=int((levels > 127).sum()) > inside)


def _read_levels(pair: Pair) -> NDArray[np.uint8]:
    try:
        return read_levels(pair.mask)
    except UserError as error:
        try:
            read_mask(pair.image)
        except UserError:
            raise error from None
        raise UserError(f"{error} Its image {pair.image} is one: are images and masks swapped?") from None
