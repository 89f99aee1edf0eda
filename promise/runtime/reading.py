"""Checks of what is read: paths, kinds of files, sizes of images, JSON from any source."""

from __future__ import annotations

import json
import os
import stat
from pathlib import Path
from typing import Any

from promise.runtime.errors import MissingFileError, UserError

PIXELS_VARIABLE = "PROMISE_MAX_PIXELS"
MAX_PIXELS = 2**28  # of an image that is decoded
_KINDS = {
    stat.S_IFDIR: "a folder",
    stat.S_IFIFO: "a named pipe",
    stat.S_IFSOCK: "a socket",
    stat.S_IFCHR: "a device",
    stat.S_IFBLK: "a device",
}


def require_file(path: Path, missing: UserError | None = None) -> None:
    """Check that a path is a regular file or a link to one. It is not opened: a named pipe would wait for ever.

    Args:
        path: the path.
        missing: raised if there is nothing at the path; default: a ``MissingFileError``.

    Raises:
        MissingFileError: there is no such file, or it is a link whose target is missing (``missing-file``).
        UserError: a folder, named pipe, socket or device (``not-a-file``), or the name cannot be looked up
            (``permission-denied``, ``invalid-path``).
    """
    try:
        mode = path.stat().st_mode
    except (FileNotFoundError, NotADirectoryError) as error:
        if path.is_symlink():
            raise MissingFileError(f"{path}: a link to {path.readlink()}, which does not exist.") from error
        raise missing or MissingFileError(f"{path}: no such file.") from error
    except PermissionError as error:
        raise UserError(f"{path}: permission denied.", code="permission-denied") from error
    except (OSError, ValueError) as error:  # a loop of links, a name that is too long or contains a zero byte
        raise UserError(f"{path}: {getattr(error, 'strerror', None) or error}.", code="invalid-path") from error
    if not stat.S_ISREG(mode):
        kind = _KINDS.get(stat.S_IFMT(mode), "a special file")
        raise UserError(f"{path}: {kind}, not a file.", code="not-a-file")


def exists(path: Path) -> bool:
    """Whether there is something at a path, if only a broken link. ``Path.exists`` raises errors for names that are too
    long and for folders that cannot be entered."""
    return os.path.lexists(path)


def is_folder(path: Path) -> bool:
    """Whether a path is a folder. ``Path.is_dir`` raises errors as ``Path.exists``."""
    return os.path.isdir(path)  # noqa: PTH112


def list_folder(path: Path) -> list[Path]:
    """What a folder contains, sorted.

    Raises:
        UserError: it cannot be listed (``unreadable-folder``).
    """
    try:
        return sorted(path.iterdir())
    except OSError as error:
        raise UserError(f"{path} cannot be listed ({error.strerror}).", code="unreadable-folder") from error


def require_size(path: str | Path, height: int, width: int) -> None:
    """Check the size of an image, known from its header, before its pixels are decoded.

    The largest number of pixels is :data:`MAX_PIXELS`, or the environment variable ``PROMISE_MAX_PIXELS``.

    Raises:
        UserError: the image has more pixels (``image-too-large``), or the variable is not a positive number
            (``invalid-max-pixels``).
    """
    text = os.environ.get(PIXELS_VARIABLE, str(MAX_PIXELS))
    if not text.isdecimal() or len(text) > 18 or int(text) < 1:
        raise UserError(f"{PIXELS_VARIABLE} must be a positive number, not {text!r}.", code="invalid-max-pixels")
    if height * width > int(text):
        raise UserError(
            f"{path}: {width} × {height} pixels are more than the {int(text):,} that are read. Reduce or divide the "
            f"image, or set {PIXELS_VARIABLE}.",
            code="image-too-large",
        )


def read_bytes(path: Path) -> bytes:
    """The content of a regular file.

    Raises:
        UserError: as :func:`require_file`, or the file cannot be read (``unreadable-file``).
    """
    require_file(path)
    try:
        return path.read_bytes()
    except OSError as error:
        raise UserError(f"{path} cannot be read ({error.strerror}).", code="unreadable-file") from error


def as_path(value: object, name: str) -> Path:
    """Convert an argument of the Python API to a path.

    Args:
        value: a text or a ``pathlib.Path``.
        name: what the path denotes, for the message, such as ``"the checkpoint"``.

    Raises:
        UserError: it is neither, such as ``None`` or bytes (``not-a-path``).
    """
    text = os.fspath(value) if isinstance(value, str | os.PathLike) else None
    if not isinstance(text, str):
        raise UserError(
            f"{name} must be a path, as text or pathlib.Path, not {type(value).__name__}.", code="not-a-path"
        )
    return Path(text)


def expand_home(path: str | Path) -> Path:
    """A path whose leading ``~`` is replaced by the home folder of the user.

    Raises:
        UserError: there is no such user, or the user has no home folder (``no-home``).
    """
    try:
        return Path(path).expanduser()
    except RuntimeError as error:
        raise UserError(
            f"{path}: the home folder is unknown. Write the path without ~, or set HOME.", code="no-home"
        ) from error


def parse_json(text: str | bytes) -> Any:
    """Parse JSON from an untrusted source.

    Raises:
        ValueError: every fault: no JSON, no UTF-8, a number with thousands of digits, objects nested too deeply.
    """
    try:
        return json.loads(text)
    except RecursionError:
        raise ValueError("lists or objects are nested too deeply") from None
