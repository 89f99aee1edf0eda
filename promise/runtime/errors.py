"""The errors a user can cause; knows nothing else of the package.

The commands turn these into one clear message and exit status 1; every other exception is a fault of
ours and keeps its traceback.
"""

from __future__ import annotations

import difflib
from collections.abc import Callable, Iterable
from typing import Any


class UserError(ValueError):
    """Something the user gave cannot be used. The text says what, where and the next move."""


class MissingFileError(UserError, FileNotFoundError):
    """A file or folder that the user named is not there."""

    def __str__(self) -> str:
        return ValueError.__str__(self)


class ExistingRunError(UserError, FileExistsError):
    """A folder that would be written to already holds results."""

    def __str__(self) -> str:
        return ValueError.__str__(self)


def unknown_name(kind: str, name: str, known: Iterable[str]) -> UserError:
    """The error for a name that stands in no table: lists the known ones and the nearest.

    Args:
        kind: what the name should have been, e.g. ``"net"``.
        name: what was given.
        known: the names of the table.
    """
    names = list(known)
    folded = {n.lower(): n for n in names}
    near = difflib.get_close_matches(name.lower(), folded, n=1, cutoff=0.5)
    hint = f" Did you mean {folded[near[0]]!r}?" if near else ""
    return UserError(f"unknown {kind} {name!r}.{hint} Known: {', '.join(names)}.")


def all_of(*works: Callable[[], Any]) -> list[Any]:
    """What each of ``works`` returns; all are tried before their ``UserError``s are told, as one."""
    results, errors = [], []
    for work in works:
        try:
            results.append(work())
        except UserError as error:
            errors.append(error)
    if len(errors) == 1:
        raise errors[0]
    if errors:
        raise UserError("\n  ".join(map(str, errors)))
    return results


SHOWN = 20  # faults told in full


def list_faults(head: str, faults: list[tuple[int, str]]) -> str:
    """``head`` and a line for each fault, at most :data:`SHOWN` of them."""
    lines = [f"  line {line}: {words}" for line, words in sorted(faults)[:SHOWN]]
    more = len(faults) - SHOWN
    return "\n".join([head, *lines, *([f"  … and {more} more"] if more > 0 else [])])
