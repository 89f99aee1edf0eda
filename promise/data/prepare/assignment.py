"""Assign the pairs of each data set to train, val and test; image files are not opened."""

from __future__ import annotations

import random
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from promise.data.prepare.layouts import ImageSet, Pair
from promise.data.records import read_column
from promise.data.splits import (
    Grouping,
    Split,
    check_fractions,
    divided_groups,
    draw_split,
    hold_out,
    read_grouping,
    read_split_file,
    without_extension,
)
from promise.runtime.errors import UserError, raise_all

FRACTIONS = (0.8, 0.1, 0.1)  # of train, val and test, if neither a split file nor the layout defines the splits
EXAMPLES = 5  # names or groups in a message


@dataclass(frozen=True)
class Splitting:
    """How pairs are split: by a published list, else by fractions, else by the layout."""

    split_file: Path | None = None
    fractions: tuple[float, ...] | None = None
    val_share: float = 0.0  # fraction of each set's training images that is held out for validation
    groups: tuple[str, ...] = ()  # values of --group: SPEC or SET=SPEC
    train_rows: int = 0  # number of training images to keep, from all sets in proportion; 0: all
    seed: int = 0


@dataclass(frozen=True)
class Assigned:
    """A pair, its split and its group."""

    set_name: str
    pair: Pair
    split: str
    group: str = ""  # empty: no group


def assign(sets: Sequence[ImageSet], splitting: Splitting) -> tuple[list[Assigned], list[str]]:
    """Split every set.

    Returns:
        The pairs that belong to a split, and notes: pairs that are left out, splits that are drawn at random, groups
        that a published split divides.

    Raises:
        UserError: values out of range (``invalid-fractions``, ``invalid-val-share``, ``invalid-train-rows``); a split
            file that does not match the sets (``sets-not-named``, ``set-not-listed``, ``unknown-image-names``); groups
            that cannot be resolved (see :mod:`promise.data.splits`).
    """
    _check_ranges(splitting)
    published = _published(sets, splitting.split_file)
    notes: list[str] = []
    per_set: list[tuple[ImageSet, Split, dict[str, str]]] = []
    for one in sets:
        groups = _groups(one, sets, splitting.groups)
        split = _split(one, published.get(one.name), groups, splitting, notes)
        divided = sorted(divided_groups(groups, split).items())
        if divided:
            shown = _shorten([f"{group} ({_counts(counts)})" for group, counts in divided])
            number = f"{len(divided)} group{'s' * (len(divided) != 1)}"
            notes.append(f"{one.name}: the predefined split divides {number} between splits: {shown}")
        per_set.append((one, split, groups))
    total = sum(label == "train" for _, split, _ in per_set for label in split.values())
    rows = []
    for one, split, groups in per_set:
        rows += _rows(one, split, groups, splitting, total)
    return rows, notes


def _check_ranges(splitting: Splitting) -> None:
    if splitting.fractions is not None:
        check_fractions(splitting.fractions)
    errors = []
    if not 0 <= splitting.val_share < 1:
        errors.append(
            UserError(
                f"--val-share must be at least 0 and below 1; got {splitting.val_share:g}.", code="invalid-val-share"
            )
        )
    if splitting.train_rows < 0:
        errors.append(
            UserError(f"--train-rows must be at least 0; got {splitting.train_rows}.", code="invalid-train-rows")
        )
    raise_all(errors)


def _shorten(items: Sequence[str]) -> str:
    return ", ".join(items[:EXAMPLES]) + ", …" * (len(items) > EXAMPLES)


def _rows(one: ImageSet, split: Split, groups: dict[str, str], splitting: Splitting, total: int) -> list[Assigned]:
    train = [name for name, label in split.items() if label == "train"]
    kept, val = train, [name for name, label in split.items() if label == "val"]
    if splitting.val_share and train:
        kept, held_out = hold_out(train, groups, splitting.val_share, seed=splitting.seed)
        val = [*val, *held_out]
    if splitting.train_rows and kept:
        target = min(len(kept), round(splitting.train_rows * len(train) / total))
        # Drawn at random, since the first images of a set are often from one source.
        rng = random.Random(splitting.seed)
        val = rng.sample(val, min(len(val), max(1, round(target / len(kept) * len(val)))))
        kept = rng.sample(kept, target)
    test = [name for name, label in split.items() if label == "test"]
    by_name = {pair.name: pair for pair in one.pairs}
    labelled = [*((n, "train") for n in kept), *((n, "val") for n in val), *((n, "test") for n in test)]
    return [Assigned(one.name, by_name[name], label, groups.get(name, "")) for name, label in labelled]


def _split(
    one: ImageSet, published: Split | None, groups: dict[str, str], splitting: Splitting, notes: list[str]
) -> Split:
    names = [pair.name for pair in one.pairs]
    if published is not None:
        unlisted = len(set(names) - published.keys())
        if unlisted:
            notes.append(f"{one.name}: left out {unlisted} of {len(names)} pairs that the split file does not list")
        return published
    predefined = {pair.name: pair.split for pair in one.pairs if pair.split}
    if splitting.fractions is None and len(predefined) == len(names):
        return predefined
    fractions = splitting.fractions or FRACTIONS
    split = draw_split(names, groups, fractions, seed=splitting.seed)
    shown = " ".join(f"{fraction:g}" for fraction in fractions)
    notes.append(f"{one.name}: train, val and test are drawn with the fractions {shown} and seed {splitting.seed}")
    return {name: split[name] for name in names}


def _plain(name: str) -> str:
    return re.sub(r"[^a-z0-9]", "", name.lower())


def _published(sets: Sequence[ImageSet], path: Path | None) -> dict[str, Split]:
    """set name → split, for the sets in the split file."""
    if path is None:
        return {}
    lists = read_split_file(path)
    if None in lists:
        if len(sets) > 1:
            raise UserError(
                f"{path}: the file names no sets, but {len(sets)} sets are prepared. Prepare them one by one.",
                code="sets-not-named",
            )
        found = {sets[0].name: lists[None]}
    else:
        known = {_plain(key): one.name for one in sets for key in one.keys}
        found = {known[_plain(key or "")]: split for key, split in lists.items() if _plain(key or "") in known}
        unlisted = [one.name for one in sets if one.name not in found]
        if unlisted:
            listed = ", ".join(str(key) for key in lists)
            raise UserError(
                f"{path}: no list for {', '.join(unlisted)}; the file has lists for {listed}.", code="set-not-listed"
            )
    errors = []
    for one in sets:
        names = {without_extension(pair.name): pair.name for pair in one.pairs}
        unknown = sorted(found[one.name].keys() - names.keys())
        if unknown:
            number = f"{len(unknown)} name{'s are' if len(unknown) != 1 else ' is'}"
            text = f"{path}: {number} not in {one.name}: {_shorten(unknown)}"
            errors.append(UserError(text, code="unknown-image-names"))
        found[one.name] = {names[name]: label for name, label in found[one.name].items() if name in names}
    raise_all(errors, separator="\n")
    return found


def _groups(one: ImageSet, sets: Sequence[ImageSet], specs: Sequence[str]) -> dict[str, str]:
    known = {_plain(key): s.name for s in sets for key in s.keys}
    for spec in specs:
        key, equals, text = spec.partition("=")
        named = known.get(_plain(key)) if equals else None
        if named == one.name or (named is None and len(specs) == 1):
            grouping = read_grouping(text if named else spec)
            names = [pair.name for pair in one.pairs]
            if named is None and len(sets) > 1 and grouping.table is not None and not set(names) & set(grouping.table):
                return {}  # the table belongs to another set
            return grouping.of(names, _columns(one, grouping))
        if named is None:
            raise UserError(
                f"--group {spec}: if --group is repeated, each value must be SET=HOW; "
                f"the sets are {', '.join(s.name for s in sets)}.",
                code="group-without-set",
            )
    return {}


def _columns(one: ImageSet, grouping: Grouping) -> dict[str, str]:
    if grouping.column is None:
        return {}
    if one.csv is None:
        raise UserError(
            f"--group {grouping.source}: a column requires the layout csv; for {one.name}, use a JSON file or "
            "re:PATTERN.",
            code="group-column-without-csv",
        )
    values = read_column(one.csv, grouping.column)
    return {pair.name: values[pair.line] for pair in one.pairs if pair.line in values}


def _counts(counts: dict[str, int]) -> str:
    return ", ".join(f"{number} {split}" for split, number in counts.items())
