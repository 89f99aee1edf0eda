"""Errors caused by invalid input. Each has a code that programs can match.

The commands print the message and exit with status 1. Any other exception is a bug and keeps its traceback. Codes are
stable; messages may change between versions.
"""

from __future__ import annotations

import difflib
from collections.abc import Callable, Iterable, Sequence
from typing import Any

SHOWN = 20  # faults that a message lists in full
LONGEST = 300  # characters of a text of a user that a message repeats


class UserError(ValueError):
    """Invalid input: settings, files or data. The message states what is wrong, where, and how to fix it."""

    def __init__(self, message: str, *, code: str = "invalid", errors: Sequence[UserError] = ()) -> None:
        """Create an error.

        Args:
            message: text for the user.
            code: identifier for programs, such as ``unknown-net``. It does not change when the message does.
            errors: the individual errors, if this one reports several.
        """
        super().__init__(message)
        self.code = code
        self.errors = tuple(errors)

    @property
    def codes(self) -> tuple[str, ...]:
        """Codes of all errors that this one reports; its own code if it reports one."""
        return tuple(code for error in self.errors for code in error.codes) or (self.code,)


class MissingFileError(UserError, FileNotFoundError):
    """A file, folder or package is missing."""

    def __init__(self, message: str, *, code: str = "missing-file", errors: Sequence[UserError] = ()) -> None:
        super().__init__(message, code=code, errors=errors)

    def __str__(self) -> str:
        return ValueError.__str__(self)


class ExistingRunError(UserError, FileExistsError):
    """The output folder already contains results."""

    def __init__(self, message: str, *, code: str = "existing-output", errors: Sequence[UserError] = ()) -> None:
        super().__init__(message, code=code, errors=errors)

    def __str__(self) -> str:
        return ValueError.__str__(self)


class WriteError(UserError, OSError):
    """A file cannot be written: no space, no permission, a name that is too long. ``errno`` is the system's, or 0."""

    def __init__(self, message: str, *, code: str = "output-not-writable", number: int = 0) -> None:
        super().__init__(message, code=code)
        self.errno = number

    def __str__(self) -> str:
        return ValueError.__str__(self)


def unknown_name(kind: str, name: str, known: Iterable[str]) -> UserError:
    """Create the error for a name that is not in a table. The message lists the known names and the closest one.

    Args:
        kind: what the name denotes, such as ``"net"``. The code is ``unknown-<kind>``, with hyphens for spaces.
        name: the unknown name.
        known: names in the table.
    """
    names = list(known)
    folded = {n.lower(): n for n in names}
    name = excerpt(name)
    near = difflib.get_close_matches(name.lower(), folded, n=1, cutoff=0.5)
    hint = f" Did you mean {folded[near[0]]!r}?" if near else ""
    return UserError(
        f"unknown {kind} {name!r}.{hint} Known: {', '.join(names)}.", code=f"unknown-{kind.replace(' ', '-')}"
    )


def all_of(*works: Callable[[], Any]) -> list[Any]:
    """Call every function and return the results. If any raise ``UserError``, all of their errors are raised as one."""
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
    """Raise several errors as one, with code ``several``. A single error is raised unchanged; an empty list returns."""
    if len(errors) == 1:
        raise errors[0]
    if errors:
        raise UserError(separator.join(map(str, errors)), code="several", errors=errors)


def excerpt(text: str) -> str:
    """The beginning of a text of a user, as a message shows it: one of thousands of characters hides the message."""
    return text if len(text) <= LONGEST else f"{text[:LONGEST]}…"


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error says that the main memory is full, in Python, torch, oneDNN or OpenCV."""
    # oneDNN reports memory that it cannot have as a primitive that it cannot create.
    texts = ("can't allocate memory", "could not create a primitive", "Insufficient memory")
    return isinstance(error, MemoryError) or any(text in str(error) for text in texts)


def shorten(lines: Sequence[str]) -> list[str]:
    """Return the first :data:`SHOWN` lines, followed by a line with the number of lines left out."""
    more = len(lines) - SHOWN
    return [*lines[:SHOWN], *([f"  … and {more} more"] if more > 0 else [])]


def list_faults(head: str, faults: list[tuple[int, str]]) -> str:
    """Return ``head`` followed by one line per fault ``(line number, text)``, shortened by :func:`shorten`."""
    return "\n".join([head, *shorten([f"  line {line}: {text}" for line, text in sorted(faults)])])
