"""Which split each found pair gets, set by set, and what is doubtful about it; opens no picture."""

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
    check_shares,
    draw_split,
    hold_out,
    read_grouping,
    read_split_file,
    straddling,
    without_extension,
)
from promise.runtime.errors import UserError

SHARES = (0.8, 0.1, 0.1)  # of train, val and test where neither a list nor a layout says


@dataclass(frozen=True)
class Splitting:
    """How pairs are split; a published list goes before shares, shares before what the layout says."""

    split_file: Path | None = None
    fractions: tuple[float, ...] | None = None
    val_share: float = 0.0  # of each set's training pictures, set aside for validation
    groups: tuple[str, ...] = ()  # SPEC or SET=SPEC
    train_rows: int = 0  # keep so many training pictures, all sets in proportion; 0: all
    seed: int = 0


@dataclass(frozen=True)
class Assigned:
    """A pair, its split, and its group where there is one."""

    set_name: str
    pair: Pair
    split: str
    group: str = ""


def assign(sets: Sequence[ImageSet], splitting: Splitting) -> tuple[list[Assigned], list[str]]:
    """Split every set.

    Returns:
        The pairs that are in a split, and sentences on what was left out, drawn, or is doubtful.

    Raises:
        UserError: values out of range; names of the list that are not there; too few groups.
    """
    if splitting.fractions is not None:
        check_shares(splitting.fractions)
    if not 0 <= splitting.val_share < 1 or splitting.train_rows < 0:
        raise UserError("--val-share wants a share from 0 to below 1, --train-rows a number of at least 0.")
    published = _published(sets, splitting.split_file)
    notes: list[str] = []
    per_set: list[tuple[ImageSet, Split, dict[str, str]]] = []
    for one in sets:
        groups = _groups(one, sets, splitting.groups)
        split = _split(one, published.get(one.name), groups, splitting, notes)
        cut = straddling(groups, split)
        if cut:
            shown = ", ".join(f"{g} ({_counts(c)})" for g, c in sorted(cut.items())[:5])
            notes.append(f"{one.name}: the given split cuts {len(cut)} groups in two: {shown}{', …' * (len(cut) > 5)}")
        per_set.append((one, split, groups))
    total = sum(label == "train" for _, split, _ in per_set for label in split.values())
    rows = []
    for one, split, groups in per_set:
        rows += _rows(one, split, groups, splitting, total)
    return rows, notes


def _rows(one: ImageSet, split: Split, groups: dict[str, str], splitting: Splitting, total: int) -> list[Assigned]:
    train = [name for name, label in split.items() if label == "train"]
    kept, aside = train, [name for name, label in split.items() if label == "val"]
    if splitting.val_share and train:
        kept, drawn = hold_out(train, groups, splitting.val_share, seed=splitting.seed)
        aside = [*aside, *drawn]
    if splitting.train_rows and kept:
        keep = min(len(kept), round(splitting.train_rows * len(train) / total))
        # Drawn, since the first of a set are often from one source.
        rng = random.Random(splitting.seed)
        aside = rng.sample(aside, min(len(aside), max(1, round(keep / len(kept) * len(aside)))))
        kept = rng.sample(kept, keep)
    test = [name for name, label in split.items() if label == "test"]
    by_name = {pair.name: pair for pair in one.pairs}
    labelled = [*((n, "train") for n in kept), *((n, "val") for n in aside), *((n, "test") for n in test)]
    return [Assigned(one.name, by_name[name], label, groups.get(name, "")) for name, label in labelled]


def _split(
    one: ImageSet, published: Split | None, groups: dict[str, str], splitting: Splitting, notes: list[str]
) -> Split:
    names = [pair.name for pair in one.pairs]
    if published is not None:
        spare = len(set(names) - published.keys())
        if spare:
            notes.append(f"{one.name}: {spare} of {len(names)} pairs stand in no list of the split file; left out")
        return published
    given = {pair.name: pair.split for pair in one.pairs if pair.split}
    if splitting.fractions is None and len(given) == len(names):
        return given
    shares = splitting.fractions or SHARES
    split = draw_split(names, groups, shares, seed=splitting.seed)
    shown = " ".join(f"{share:g}" for share in shares)
    notes.append(f"{one.name}: train, val and test drawn with the shares {shown} and seed {splitting.seed}")
    return {name: split[name] for name in names}


def _plain(name: str) -> str:
    return re.sub(r"[^a-z0-9]", "", name.lower())


def _published(sets: Sequence[ImageSet], path: Path | None) -> dict[str, Split]:
    """set name → its list, for the sets that the file has."""
    if path is None:
        return {}
    lists = read_split_file(path)
    if None in lists:
        if len(sets) > 1:
            raise UserError(f"{path}: names no sets, but {len(sets)} are prepared; prepare them one by one.")
        found = {sets[0].name: lists[None]}
    else:
        known = {_plain(key): one.name for one in sets for key in one.keys}
        found = {known[_plain(key or "")]: split for key, split in lists.items() if _plain(key or "") in known}
        without = [one.name for one in sets if one.name not in found]
        if without:
            shown = ", ".join(str(key) for key in lists)
            raise UserError(f"{path}: has no list for {', '.join(without)}; it has them for {shown}.")
    faults = []
    for one in sets:
        named = {without_extension(pair.name): pair.name for pair in one.pairs}
        absent = sorted(found[one.name].keys() - named.keys())
        if absent:
            more = ", …" * (len(absent) > 5)
            faults.append(f"{path}: {len(absent)} names are not in {one.name}: {', '.join(absent[:5])}{more}")
        found[one.name] = {named[name]: label for name, label in found[one.name].items() if name in named}
    if faults:
        raise UserError("\n".join(faults))
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
                return {}  # a table for one of several sets
            return grouping.of(names, _columns(one, grouping))
        if named is None:
            raise UserError(
                f"--group {spec}: with several, each is SET=…; the sets are {', '.join(s.name for s in sets)}."
            )
    return {}


def _columns(one: ImageSet, grouping: Grouping) -> dict[str, str]:
    if grouping.column is None:
        return {}
    if one.csv is None:
        raise UserError(
            f"--group {grouping.source}: a column needs the layout csv; for {one.name} give a JSON file or re:PATTERN."
        )
    values = read_column(one.csv, grouping.column)
    return {pair.name: values[pair.line] for pair in one.pairs if pair.line in values}


def _counts(counts: dict[str, int]) -> str:
    return ", ".join(f"{number} {split}" for split, number in counts.items())
