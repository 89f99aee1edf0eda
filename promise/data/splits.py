"""Who goes to train, val and test: published lists, shares with a seed, groups that stay together; opens no picture.

Names are those of pictures without extension. A group is what must not straddle two splits: a patient, a video.
"""

from __future__ import annotations

import json
import posixpath
import random
import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from promise.runtime.errors import MissingFileError, UserError, unknown_name

SPLITS = ("train", "val", "test")
_EXTENSION = re.compile(r"\.(png|jpe?g|tiff?|bmp)$", re.IGNORECASE)

Split = dict[str, str]  # name → train, val or test
Groups = Mapping[str, str]  # name → group; a name without one is alone


# --- groups ---------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Grouping:
    """How to tell a picture's group; one of the three is set."""

    column: str | None = None  # of the CSV
    pattern: re.Pattern[str] | None = None  # its first bracket, else what it matches, found in the name
    table: Mapping[str, str] | None = None  # name → group
    source: str = ""  # as the user wrote it

    def of(self, names: Iterable[str], columns: Mapping[str, str] | None = None) -> dict[str, str]:
        """The group of each name that has one.

        Args:
            names: without extension; folders before them are tried and then left out.
            columns: name → value of the CSV's column, where :attr:`column` is set.

        Raises:
            UserError: not one name has a group.
        """
        names = list(names)
        found = {name: group for name in names if (group := self._group(name, columns or {}))}
        if names and not found:
            raise UserError(f"--group {self.source}: not one of {len(names)} names has a group ({names[0]}, …).")
        return found

    def _group(self, name: str, columns: Mapping[str, str]) -> str | None:
        if self.column is not None:
            return columns.get(name)
        if self.table is not None:
            return self.table.get(name, self.table.get(posixpath.basename(name)))
        assert self.pattern is not None
        match = self.pattern.search(name)
        return None if match is None else match[1 if self.pattern.groups else 0]


def read_grouping(text: str) -> Grouping:
    """What ``--group`` says: ``re:PATTERN``, a JSON file (frame → group, or group → frames), else a column.

    Raises:
        MissingFileError: no such JSON.
        UserError: no regular expression, no such JSON table.
    """
    if text.startswith("re:"):
        try:
            return Grouping(pattern=re.compile(text[3:]), source=text)
        except re.error as error:
            raise UserError(f"--group {text}: not a regular expression ({error}).") from error
    if not text.lower().endswith(".json"):
        return Grouping(column=text, source=text)
    value = _read_json(Path(text), "--group")
    table: dict[str, str] = {}
    if isinstance(value, dict):
        for key, item in value.items():
            frames = item if isinstance(item, list) else [key]
            group = key if isinstance(item, list) else item
            table.update({without_extension(str(frame)): str(group) for frame in frames})
    if not table:
        raise UserError(f"--group {text}: wants an object, frame → group or group → list of frames.")
    return Grouping(table=table, source=text)


def straddling(groups: Groups, split: Mapping[str, str]) -> dict[str, dict[str, int]]:
    """The groups with pictures in more than one split: group → split → pictures."""
    counts: dict[str, Counter[str]] = {}
    for name, group in groups.items():
        if name in split:
            counts.setdefault(group, Counter())[split[name]] += 1
    return {group: dict(counted) for group, counted in counts.items() if len(counted) > 1}


# --- published lists ------------------------------------------------------------------------------


def read_split_file(path: str | Path) -> dict[str | None, Split]:
    """A published split: ``{"train": [names], "test": [names]}``, or that for each of several sets.

    Returns:
        set → name → split; the set is None where the file names none.

    Raises:
        MissingFileError: no such file.
        UserError: another form; a split that is none of train, val, test; a name in two splits.
    """
    path = Path(path)
    value = _read_json(path, "--split-file")
    if not isinstance(value, dict) or not value:
        raise UserError(f"{path}: wants an object, split → list of names, or set → split → list of names.")
    if all(isinstance(item, list) for item in value.values()):
        return {None: _split(path, value)}
    if all(isinstance(item, dict) for item in value.values()):
        return {name: _split(path, item) for name, item in value.items()}
    raise UserError(f"{path}: wants lists of names for train, val and test, or an object of such lists a set.")


def _split(path: Path, lists: Mapping[str, Any]) -> Split:
    split: Split = {}
    twice = []
    for written, names in lists.items():
        label = {"validation": "val", "valid": "val"}.get(written.lower(), written.lower())
        if label not in SPLITS:
            raise unknown_name(f"split in {path}:", label, SPLITS)
        if not isinstance(names, list):
            raise UserError(f"{path}: {label} is no list of names.")
        for name in (without_extension(str(n)) for n in names):
            if split.setdefault(name, label) != label:
                twice.append(name)
    if twice:
        raise UserError(f"{path}: {len(twice)} names stand in two splits: {', '.join(twice[:5])}.")
    return split


def without_extension(name: str) -> str:
    """A picture's name; dots that begin no picture format stay."""
    return _EXTENSION.sub("", name.strip().replace("\\", "/"))


def _read_json(path: Path, flag: str) -> Any:
    if not path.is_file():
        raise MissingFileError(f"{flag} {path}: no such file.")
    try:
        return json.loads(path.read_text(encoding="utf-8-sig"))
    except ValueError as error:
        raise UserError(f"{flag} {path}: not JSON ({error}).") from error


# --- shares ---------------------------------------------------------------------------------------


def check_shares(shares: Sequence[float]) -> None:
    """Three shares of train, val and test, none below 0, that add up to 1.

    Raises:
        UserError: else.
    """
    if len(shares) != 3 or not all(share >= 0 for share in shares) or abs(sum(shares) - 1) > 1e-6:
        shown = " ".join(f"{share:g}" for share in shares)
        raise UserError(f"--fractions wants the shares of train, val and test, adding up to 1; got {shown}.")


def draw_split(names: Iterable[str], groups: Groups, shares: Sequence[float], *, seed: int) -> Split:
    """Split by chance, groups whole: the largest group first, each to the split that lacks most.

    Args:
        names: their order does not matter.
        groups: name → group; may hold others.
        shares: of train, val, test.
        seed: the same, the same split.

    Raises:
        UserError: fewer groups than splits.
    """
    members = _members(names, groups)
    wanted = [i for i, share in enumerate(shares) if share > 0]
    if len(members) < len(wanted):
        shown = f"{len(members)} group{'s' * (len(members) != 1)} cannot fill {len(wanted)} splits"
        raise UserError(f"{shown}; leave out a split by giving it the share 0 in --fractions.")
    order = sorted(members)
    random.Random(seed).shuffle(order)
    order.sort(key=lambda group: -len(members[group]))
    total = sum(len(m) for m in members.values())
    lacks = [share * total for share in shares]
    split: Split = {}
    empty = set(wanted)
    for number, group in enumerate(order):
        open_to = empty if len(order) - number <= len(empty) else wanted
        best = max(sorted(open_to), key=lambda i: lacks[i])
        empty.discard(best)
        lacks[best] -= len(members[group])
        split.update(dict.fromkeys(members[group], SPLITS[best]))
    return split


def hold_out(names: Sequence[str], groups: Groups, share: float, *, seed: int) -> tuple[list[str], list[str]]:
    """Shuffle, and set whole groups aside until ``share`` of the names is reached.

    Returns:
        (kept, set aside), each in shuffled order.

    Raises:
        UserError: nothing would be kept.
    """
    rng = random.Random(seed)
    members = _members(names, groups)
    order = sorted(members)
    rng.shuffle(order)
    aside: set[str] = set()
    for group in order:
        if len(aside) >= share * len(names):
            break
        aside.update(members[group])
    if names and len(aside) == len(names):
        raise UserError(f"a validation share of {share:g} by whole groups would leave no training picture.")
    mixed = rng.sample(list(names), len(names))
    return [name for name in mixed if name not in aside], [name for name in mixed if name in aside]


def _members(names: Iterable[str], groups: Groups) -> dict[str, list[str]]:
    members: dict[str, list[str]] = {}
    for name in sorted(names):
        members.setdefault(str(groups.get(name, f"alone {name}")), []).append(name)
    return members
