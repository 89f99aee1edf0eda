"""Atomic writing of files and folders: text, JSON, CSV, and sets of files that are replaced together."""

from __future__ import annotations

import csv
import json
import math
import os
import shutil
import tempfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from promise.runtime.errors import ExistingRunError

_FILE_PREFIX = ".promise-"  # of temporary files
_FOLDER_PREFIX = ".unfinished-"  # of temporary folders


def remove_leftovers(folder: Path) -> None:
    """Remove temporary files of killed processes from a folder and its subfolders."""
    for path in folder.rglob(f"{_FILE_PREFIX}*"):
        path.unlink(missing_ok=True)


@contextmanager
def atomic_path(path: Path) -> Iterator[Path]:
    """Yield a temporary path in the folder of ``path``, and rename it to ``path`` on success.

    An exception leaves an existing file unchanged. The temporary name has the suffix of ``path``, because some writers
    choose the format by it. Missing folders are created.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=f"{_FILE_PREFIX}{path.stem}-", suffix=path.suffix)
    os.close(handle)
    temporary = Path(name)
    try:
        yield temporary
        with temporary.open("rb") as stream:
            os.fsync(stream.fileno())
        temporary.chmod(0o666 & ~_umask())
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


@contextmanager
def staged(folder: Path, *, replaced: Sequence[str], last: str) -> Iterator[Path]:
    """Yield a temporary folder inside ``folder``, and move its files to ``folder`` on success.

    An exception leaves existing files unchanged and removes folders that this function created.

    Args:
        folder: destination; created if missing.
        replaced: names of earlier files to remove, whether or not a new file replaces them.
        last: name of the file that is moved last and whose old version is removed first. If it exists, the set of files
            is complete.
    """
    created = [path for path in (folder, *folder.parents) if not path.exists()]
    folder.mkdir(parents=True, exist_ok=True)
    for leftover in folder.glob(f"{_FOLDER_PREFIX}*"):  # of a killed process
        shutil.rmtree(leftover, ignore_errors=True)
    stage = Path(tempfile.mkdtemp(dir=folder, prefix=_FOLDER_PREFIX))
    try:
        yield stage
        for name in (last, *replaced):
            (folder / name).unlink(missing_ok=True)
        for path in sorted(stage.iterdir(), key=lambda path: path.name == last):
            path.replace(folder / path.name)
        created = []
    finally:
        shutil.rmtree(stage, ignore_errors=True)
        for path in created:
            path.rmdir()


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


def write_text(path: Path, text: str) -> None:
    """Write UTF-8 text atomically."""
    with atomic_path(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def write_lines(path: Path, lines: Iterable[Mapping[str, Any]]) -> None:
    """Write rows with the same keys as CSV, atomically. Without rows the file is empty."""
    with atomic_path(path) as temporary, temporary.open("w", encoding="utf-8", newline="") as stream:
        writer: csv.DictWriter[str] | None = None
        for line in lines:
            if writer is None:
                writer = csv.DictWriter(stream, fieldnames=list(line), lineterminator="\n")
                writer.writeheader()
            writer.writerow(line)


def write_json(path: Path, value: Any) -> None:
    """Write indented JSON atomically. NaN is written as ``null``, other unknown types as their text."""
    write_text(path, json.dumps(_plain(value), indent=2, allow_nan=False, default=str) + "\n")


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    if isinstance(value, float) and math.isnan(value):
        return None
    return value


def check_output_dir(folder: Path, names: Sequence[str], *, overwrite: bool) -> Path:
    """Return ``folder`` if results may be written to it. Nothing is created or removed.

    Args:
        folder: output folder; it may be missing.
        names: files that the command writes.
        overwrite: whether existing files may be replaced.

    Raises:
        ExistingRunError: the path is a file, or one of the named files exists and ``overwrite`` is false.
    """
    if folder.exists() and not folder.is_dir():
        raise ExistingRunError(
            f"{folder} is a file, not a folder. Choose another folder with --output.", code="output-is-a-file"
        )
    present = [name for name in names if (folder / name).exists()]
    if present and not overwrite:
        raise ExistingRunError(
            f"{folder} already holds results ({', '.join(present)}). Replace them with --overwrite, or choose another "
            "folder with --output.",
            code="existing-output",
        )
    return folder
