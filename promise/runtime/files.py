"""Writing of files and folders: atomic, with errors of one line; sets of files that are replaced together."""

from __future__ import annotations

import csv
import errno
import hashlib
import json
import math
import os
import re
import shutil
import tempfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from promise.runtime.errors import ExistingRunError, UserError, WriteError

LOCK = ".promise.lock"  # file that locks a folder; see promise.runtime.lock
_FILE_PREFIX = ".promise-"  # of temporary files
_FOLDER_PREFIX = ".unfinished-"  # of temporary folders
_LONGEST_SUFFIX = 16  # a longer one is no file format
_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


def remove_leftovers(folder: Path) -> None:
    """Remove temporary files of killed processes from a folder and its subfolders.

    Subfolders with a lock are skipped: another process may be writing into them.
    """
    for path, folders, names in os.walk(folder):
        folders[:] = [name for name in folders if not (Path(path) / name / LOCK).exists()]
        for name in names:
            if name.startswith(_FILE_PREFIX):
                (Path(path) / name).unlink(missing_ok=True)


@contextmanager
def writing(path: Path, *, advice: str | None = None) -> Iterator[None]:
    """Convert a failure to write, whichever library raises it, into an error of one line.

    Args:
        path: what is written; named in the message.
        advice: the next move; default: it follows from the reason.

    Raises:
        WriteError: the disk is full, the folder is not writable, or the name is too long.
    """
    try:
        yield
    except UserError:
        raise
    except Exception as error:
        fault = _write_fault(error)
        if fault is None:
            raise
        number, reason = fault
        if advice is None:
            advice = "Free space on this disk, or choose another" if number in _FULL else "Choose another folder"
            advice += " with --output."
        raise WriteError(f"{path} cannot be written ({reason}). {advice}", number=number) from error


def require_writable(path: Path) -> None:
    """Check that a file can be written, before expensive work; nothing is left behind.

    Raises:
        WriteError: its folder, or the closest one that exists, cannot be written to.
    """
    with writing(path):
        folder = next(parent for parent in path.absolute().parents if parent.exists())
        with tempfile.TemporaryFile(dir=folder, prefix=_FILE_PREFIX) as probe:
            probe.write(b"x")


def _write_fault(error: Exception) -> tuple[int, str] | None:
    """errno and text of a failure to write; ``None`` for other errors."""
    if isinstance(error, OSError):
        return error.errno or 0, error.strerror or str(error)
    coded = re.search(r"(?:\(os error |Os \{ code: )(\d+)", str(error))  # safetensors, also 0.4
    if coded is not None:
        return int(coded[1]), os.strerror(int(coded[1]))
    if isinstance(error, RuntimeError) and "inline_container" in str(error):  # torch.save, which hides the reason
        return errno.ENOSPC, "the file is incomplete; the disk may be full"
    return None


@contextmanager
def atomic_path(path: Path) -> Iterator[Path]:
    """Yield a temporary path in the folder of ``path``, and rename it to ``path`` on success.

    An exception leaves an existing file unchanged. The temporary name has the suffix of ``path``, because some writers
    choose the format by it; it is short, so that a name of 255 bytes can be written. Missing folders are created.

    Raises:
        WriteError: the file cannot be written, whichever library wrote it.
    """
    suffix = path.suffix if len(path.suffix) <= _LONGEST_SUFFIX else ""
    with writing(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(dir=path.parent, prefix=_FILE_PREFIX, suffix=suffix)
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

    An exception leaves existing files unchanged. The caller makes sure that no other process writes into ``folder``;
    see :func:`promise.runtime.lock.exclusive`.

    Args:
        folder: destination, which exists.
        replaced: names of earlier files to remove, whether or not a new file replaces them.
        last: name of the file that is moved last and whose old version is removed first. If it exists, the set of files
            is complete.
    """
    with writing(folder):
        for leftover in folder.glob(f"{_FOLDER_PREFIX}*"):  # of a killed process
            shutil.rmtree(leftover, ignore_errors=True)
        stage = Path(tempfile.mkdtemp(dir=folder, prefix=_FOLDER_PREFIX))
        try:
            yield stage
            for name in (last, *replaced):
                (folder / name).unlink(missing_ok=True)
            for path in sorted(stage.iterdir(), key=lambda path: path.name == last):
                path.replace(folder / path.name)
        finally:
            shutil.rmtree(stage, ignore_errors=True)


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


def write_text(path: Path, text: str) -> None:
    """Write UTF-8 text atomically; names of files that are not UTF-8 keep their bytes."""
    with atomic_path(path) as temporary:
        temporary.write_text(text, encoding="utf-8", errors="surrogateescape")


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


def short_name(name: str, longest: int) -> str:
    """A file name of at most ``longest`` bytes: of a longer one the beginning, and a hash of the whole name."""
    if len(os.fsencode(name)) <= longest:
        return name
    digest = hashlib.blake2b(os.fsencode(name), digest_size=8).hexdigest()
    return f"{os.fsencode(name)[: longest - 17].decode(errors='ignore')}-{digest}"


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
