"""Files that are whole or not there, written to a temporary name and renamed; knows no formats but JSON and CSV."""

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

_MARK = ".promise-"  # every temporary name starts with it
_STAGE = ".unfinished-"  # and that of a folder of files that are to appear together


def remove_leftovers(folder: Path) -> None:
    """Remove temporary files that a killed process left in a folder and below it."""
    for path in folder.rglob(f"{_MARK}*"):
        path.unlink(missing_ok=True)


@contextmanager
def atomic_path(path: Path) -> Iterator[Path]:
    """Give a temporary path beside ``path`` and rename it on success; on failure what was there stays.

    The temporary name keeps the suffix, since some writers choose their format by it.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=f"{_MARK}{path.stem}-", suffix=path.suffix)
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
    """Give a folder inside ``folder`` whose files move up when all went well; on failure what was there stays.

    A folder that was not there before is not there after a failure either.

    Args:
        folder: where the files shall be; made when absent.
        replaced: names of earlier files that go, whether new ones take their place or not.
        last: moves last, and an older one goes first: where it stands, the others are all of its kind.
    """
    made = [path for path in (folder, *folder.parents) if not path.exists()]
    folder.mkdir(parents=True, exist_ok=True)
    for leftover in folder.glob(f"{_STAGE}*"):  # of a killed process
        shutil.rmtree(leftover, ignore_errors=True)
    stage = Path(tempfile.mkdtemp(dir=folder, prefix=_STAGE))
    try:
        yield stage
        for name in (last, *replaced):
            (folder / name).unlink(missing_ok=True)
        for path in sorted(stage.iterdir(), key=lambda path: path.name == last):
            path.replace(folder / path.name)
        made = []
    finally:
        shutil.rmtree(stage, ignore_errors=True)
        for path in made:
            path.rmdir()


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


def write_text(path: Path, text: str) -> None:
    """Write a UTF-8 text, all or nothing."""
    with atomic_path(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def write_lines(path: Path, lines: Iterable[Mapping[str, Any]]) -> None:
    """Write mappings of the same keys as a CSV, one at a time, all or nothing; without lines an empty file."""
    with atomic_path(path) as temporary, temporary.open("w", encoding="utf-8", newline="") as stream:
        writer: csv.DictWriter[str] | None = None
        for line in lines:
            if writer is None:
                writer = csv.DictWriter(stream, fieldnames=list(line), lineterminator="\n")
                writer.writeheader()
            writer.writerow(line)


def write_json(path: Path, value: Any) -> None:
    """Write JSON with an indent, all or nothing; not-a-number becomes ``null``."""
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
    """A folder for results; refused where it holds some already and may not replace them. Changes nothing.

    Raises:
        ExistingRunError: it holds one of the named files, or is none.
    """
    if folder.exists() and not folder.is_dir():
        raise ExistingRunError(f"{folder} is a file, not a folder. Choose another with --output.")
    present = [name for name in names if (folder / name).exists()]
    if present and not overwrite:
        raise ExistingRunError(
            f"{folder} already holds results ({', '.join(present)}). Replace them by --overwrite, or choose another "
            "folder with --output."
        )
    return folder
