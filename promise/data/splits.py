"""Assign images to train, val and test: published lists, random fractions, groups that stay in one split.

Images are identified by their names without extension. A group is what must be in one split, such as a patient or a
video. Image files are not opened.
"""

from __future__ import annotations

import posixpath
import random
import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from promise.runtime.errors import MissingFileError, UserError, unknown_name
from promise.runtime.reading import parse_json, require_file
from promise.runtime.settings import SPLITS

_ALIASES = {"validation": "val", "valid": "val"}  # of a split, in published lists
_EXTENSION = re.compile(r"\.(png|jpe?g|tiff?|bmp)$", re.IGNORECASE)  # a test compares it with images.EXTENSIONS

Split = dict[str, str]  # name → train, val or test
Groups = Mapping[str, str]  # name → group; a name without group is a group of its own


# --- groups ---------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Grouping:
    """How the group of an image is determined; exactly one of the first three fields is set."""

    column: str | None = None  # a column of the CSV
    pattern: re.Pattern[str] | None = None  # searched in the name; the group is its first capture, else the match
    table: Mapping[str, str] | None = None  # name → group
    source: str = ""  # as the user wrote it, for messages

    def of(self, names: Iterable[str], columns: Mapping[str, str] | None = None) -> dict[str, str]:
        """The group of each name that has one.

        Args:
            names: names without extension. For a :attr:`table`, a name in a folder is looked up with the folder,
                then without it.
            columns: name → value of the column of the CSV; required if :attr:`column` is set.

        Raises:
            UserError: no name has a group (``no-group``).
        """
        names = list(names)
        found = {name: group for name in names if (group := self._group(name, columns or {}))}
        if names and not found:
            raise UserError(
                f"--group {self.source}: none of {len(names)} names has a group ({names[0]}, …).", code="no-group"
            )
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
    """Parse the value of ``--group``: ``re:PATTERN``, a JSON file (frame → group, or group → frames), or a column.

    Raises:
        MissingFileError: the JSON file does not exist.
        UserError: invalid regular expression (``invalid-pattern``), JSON (``invalid-json``) or table
            (``invalid-group-table``).
    """
    if text.startswith("re:"):
        try:
            return Grouping(pattern=re.compile(text[3:]), source=text)
        except re.error as error:
            raise UserError(f"--group {text}: invalid regular expression ({error}).", code="invalid-pattern") from error
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
        raise UserError(
            f"--group {text}: expected a JSON object, frame → group or group → list of frames.",
            code="invalid-group-table",
        )
    return Grouping(table=table, source=text)


def divided_groups(groups: Groups, split: Mapping[str, str]) -> dict[str, dict[str, int]]:
    """The groups with images in more than one split: group → split → number of images."""
    counts: dict[str, Counter[str]] = {}
    for name, group in groups.items():
        if name in split:
            counts.setdefault(group, Counter())[split[name]] += 1
    return {group: dict(counted) for group, counted in counts.items() if len(counted) > 1}


# --- published lists ------------------------------------------------------------------------------


def read_split_file(path: str | Path) -> dict[str | None, Split]:
    """Read a published split: ``{"train": [names], "test": [names]}``, or one such object per set.

    Returns:
        set → name → split; the key is ``None`` if the file names no sets.

    Raises:
        MissingFileError: the file does not exist.
        UserError: invalid JSON (``invalid-json``), another structure (``invalid-split-file``), a split other than
            train, val and test (``unknown-split``), or names in two splits (``name-in-two-splits``).
    """
    path = Path(path)
    value = _read_json(path, "--split-file")
    if not isinstance(value, dict) or not value:
        raise UserError(
            f"{path}: expected a JSON object, split → list of names, or set → split → list of names.",
            code="invalid-split-file",
        )
    if all(isinstance(item, list) for item in value.values()):
        return {None: _split(path, value)}
    if all(isinstance(item, dict) for item in value.values()):
        return {name: _split(path, item) for name, item in value.items()}
    raise UserError(
        f"{path}: expected lists of names for train, val and test, or one object of such lists per set.",
        code="invalid-split-file",
    )


def _split(path: Path, lists: Mapping[str, Any]) -> Split:
    split: Split = {}
    repeated = []
    for key, names in lists.items():
        label = _ALIASES.get(key.lower(), key.lower())
        if label not in SPLITS:
            error = unknown_name("split", label, SPLITS)
            raise UserError(f"{path}: {error}", code=error.code)
        if not isinstance(names, list):
            raise UserError(f"{path}: {label} is not a list of names.", code="invalid-split-file")
        for name in (without_extension(str(n)) for n in names):
            if split.setdefault(name, label) != label:
                repeated.append(name)
    if repeated:
        number = f"{len(repeated)} name{'s are' if len(repeated) != 1 else ' is'}"
        raise UserError(f"{path}: {number} in two splits: {', '.join(repeated[:5])}.", code="name-in-two-splits")
    return split


def without_extension(name: str) -> str:
    """The name of an image without the extension of an image format, with forward slashes; other dots are kept."""
    return _EXTENSION.sub("", name.strip().replace("\\", "/"))


def _read_json(path: Path, flag: str) -> Any:
    require_file(path, MissingFileError(f"{flag} {path}: no such file."))
    try:
        return parse_json(path.read_text(encoding="utf-8-sig"))
    except ValueError as error:
        raise UserError(f"{flag} {path}: invalid JSON ({error}).", code="invalid-json") from error


# --- fractions ------------------------------------------------------------------------------------


def check_fractions(fractions: Sequence[float]) -> None:
    """Check the fractions of train, val and test: three values of at least 0 that add up to 1.

    Raises:
        UserError: ``invalid-fractions``.
    """
    if len(fractions) != 3 or not all(value >= 0 for value in fractions) or abs(sum(fractions) - 1) > 1e-6:
        shown = " ".join(f"{value:g}" for value in fractions)
        raise UserError(
            f"--fractions must be three fractions (train, val, test) that add up to 1; got {shown}.",
            code="invalid-fractions",
        )


def draw_split(names: Iterable[str], groups: Groups, fractions: Sequence[float], *, seed: int) -> Split:
    """Draw a random split that keeps groups together.

    Groups are shuffled, then assigned in order of decreasing size, each to the split that lacks most images.

    Args:
        names: names of the images, in any order.
        groups: name → group; other names are ignored.
        fractions: fractions of train, val and test.
        seed: seed of the shuffle; the same seed gives the same split.

    Raises:
        UserError: there are fewer groups than splits (``too-few-groups``).
    """
    members = _members(names, groups)
    targets = [i for i, fraction in enumerate(fractions) if fraction > 0]
    if len(members) < len(targets):
        counts = f"{len(members)} group{'s' * (len(members) != 1)} cannot fill {len(targets)} splits"
        raise UserError(f"{counts}; omit a split by setting its fraction to 0 in --fractions.", code="too-few-groups")
    order = sorted(members)
    random.Random(seed).shuffle(order)
    order.sort(key=lambda group: -len(members[group]))
    total = sum(len(m) for m in members.values())
    lacking = [fraction * total for fraction in fractions]  # images that each split still lacks
    split: Split = {}
    empty = set(targets)
    for number, group in enumerate(order):
        candidates = empty if len(order) - number <= len(empty) else targets
        best = max(sorted(candidates), key=lambda i: lacking[i])
        empty.discard(best)
        lacking[best] -= len(members[group])
        split.update(dict.fromkeys(members[group], SPLITS[best]))
    return split


def hold_out(names: Sequence[str], groups: Groups, fraction: float, *, seed: int) -> tuple[list[str], list[str]]:
    """Hold out random groups until at least ``fraction`` of the names is held out.

    Returns:
        (kept, held out), each in shuffled order.

    Raises:
        UserError: no name would be kept (``no-training-images``).
    """
    rng = random.Random(seed)
    members = _members(names, groups)
    order = sorted(members)
    rng.shuffle(order)
    held_out: set[str] = set()
    for group in order:
        if len(held_out) >= fraction * len(names):
            break
        held_out.update(members[group])
    if names and len(held_out) == len(names):
        raise UserError(
            f"cannot hold out {fraction:g} of the training images: groups are not divided, and no training image would "
            "remain. Use a smaller fraction or smaller groups.",
            code="no-training-images",
        )
    shuffled = rng.sample(list(names), len(names))
    return [name for name in shuffled if name not in held_out], [name for name in shuffled if name in held_out]


def _members(names: Iterable[str], groups: Groups) -> dict[str, list[str]]:
    members: dict[str, list[str]] = {}
    for name in sorted(names):
        members.setdefault(str(groups.get(name, f"alone {name}")), []).append(name)
    return members
