"""The errors a user can cause, each with a code.

The commands print these as one clear message with exit status 1; every other exception is a fault of the package and
keeps its traceback. Programs and tests match ``code``; the text is for people and may change.
"""

from __future__ import annotations

import difflib
from collections.abc import Callable, Iterable, Sequence
from typing import Any


class UserError(ValueError):
    """Something the user gave cannot be used. The text says what, where and the next move."""

    def __init__(self, message: str, *, code: str = "invalid", errors: Sequence[UserError] = ()) -> None:
        """Describe the fault.

        Args:
            message: for people.
            code: for programs, such as ``unknown-name``; it does not change when the message does.
            errors: the single faults, where several are reported at once.
        """
        super().__init__(message)
        self.code = code
        self.errors = tuple(errors)

    @property
    def codes(self) -> tuple[str, ...]:
        """The codes of all faults that are reported at once; of a single one, its own."""
        return tuple(code for error in self.errors for code in error.codes) or (self.code,)


class MissingFileError(UserError, FileNotFoundError):
    """A file or folder that the user named does not exist."""

    def __init__(self, message: str, *, code: str = "missing-file", errors: Sequence[UserError] = ()) -> None:
        super().__init__(message, code=code, errors=errors)

    def __str__(self) -> str:
        return ValueError.__str__(self)


class ExistingRunError(UserError, FileExistsError):
    """A folder that would be written to already holds results."""

    def __init__(self, message: str, *, code: str = "existing-output", errors: Sequence[UserError] = ()) -> None:
        super().__init__(message, code=code, errors=errors)

    def __str__(self) -> str:
        return ValueError.__str__(self)


def unknown_name(kind: str, name: str, known: Iterable[str]) -> UserError:
    """The error for a name that is in no table: lists the known ones and the nearest.

    Args:
        kind: what the name should have been, e.g. ``"net"``.
        name: what was given.
        known: the names of the table.
    """
    names = list(known)
    folded = {n.lower(): n for n in names}
    near = difflib.get_close_matches(name.lower(), folded, n=1, cutoff=0.5)
    hint = f" Did you mean {folded[near[0]]!r}?" if near else ""
    return UserError(
        f"unknown {kind} {name!r}.{hint} Known: {', '.join(names)}.", code=f"unknown-{kind.replace(' ', '-')}"
    )


def all_of(*works: Callable[[], Any]) -> list[Any]:
    """What each of ``works`` returns; all are tried before their ``UserError``s are raised, as one."""
    results: list[Any] = []
    errors: list[UserError] = []
    for work in works:
        try:
            results.append(work())
        except UserError as error:
            errors.append(error)
    raise_all(errors)
    return results


def raise_all(errors: Sequence[UserError], *, separator: str = "\n  ") -> None:
    """Raise several faults as one error; a single one as it is; none: return."""
    if len(errors) == 1:
        raise errors[0]
    if errors:
        raise UserError(separator.join(map(str, errors)), code="several", errors=errors)


SHOWN = 20  # faults listed in full


def list_faults(head: str, faults: list[tuple[int, str]]) -> str:
    """``head`` and a line for each fault, at most :data:`SHOWN` of them."""
    lines = [f"  line {line}: {words}" for line, words in sorted(faults)[:SHOWN]]
    more = len(faults) - SHOWN
    return "\n".join([head, *lines, *([f"  … and {more} more"] if more > 0 else [])])
