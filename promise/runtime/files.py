"""Files and folders: atomic writing, one writer per folder, one-line errors for what cannot be written or read."""

from __future__ import annotations

import csv
import errno
import json
import logging
import math
import os
import re
import shutil
import socket
import stat
import sys
import tempfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from promise.runtime.errors import ExistingRunError, MissingFileError, UserError, WriteError

log = logging.getLogger(__name__)

LOCK = ".promise.lock"
PIXELS_VARIABLE = "PROMISE_MAX_PIXELS"
MAX_PIXELS = 2**28  # of an image that is decoded
_FILE_PREFIX = ".promise-"  # of temporary files
_FOLDER_PREFIX = ".unfinished-"  # of temporary folders
_LONGEST_SUFFIX = 16  # a longer one is no file format
_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
_KINDS = {
    stat.S_IFDIR: "a folder",
    stat.S_IFIFO: "a named pipe",
    stat.S_IFSOCK: "a socket",
    stat.S_IFCHR: "a device",
    stat.S_IFBLK: "a device",
}
_held: set[Path] = set()  # folders that this process has locked


def remove_leftovers(folder: Path) -> None:
    """Remove temporary files of killed processes from a folder and its subfolders.

    Subfolders with a lock are skipped: another process may be writing into them.
    """
    for path, folders, names in os.walk(folder):
        folders[:] = [name for name in folders if not (Path(path) / name / LOCK).exists()]
        for name in names:
            if name.startswith(_FILE_PREFIX):
                (Path(path) / name).unlink(missing_ok=True)


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
    coded = re.search(r"\(os error (\d+)\)", str(error))  # safetensors
    if coded is not None:
        return int(coded[1]), os.strerror(int(coded[1]))
    if isinstance(error, RuntimeError) and "inline_container" in str(error):  # torch.save, which hides the reason
        return errno.ENOSPC, "the file is incomplete; the disk may be full"
    return None


@contextmanager
def exclusive(folder: Path, *, advice: str = "Choose another folder with --output.") -> Iterator[None]:
    """Be the only process that writes into a folder; it is created if missing, and removed again if it stays empty.

    The lock ends with the process, also with a killed one. It is a POSIX record lock, which NFS passes on to other
    machines and which forked workers do not inherit. Where the disk has no locks, a warning is logged. In a launch of
    several processes only the first one locks: the others write for it.

    Args:
        folder: the folder; the caller checks that it is not a file.
        advice: the next move if the folder cannot be written to.

    Raises:
        UserError: another process writes into the folder (``folder-in-use``).
        WriteError: the folder cannot be written to, or its disk is full.
    """
    if os.environ.get("RANK", "0") != "0":
        yield
        return
    created: list[Path] = []
    handle = None
    try:
        with writing(folder, advice=advice):
            created = [path for path in (folder, *folder.parents) if not path.exists()]
            folder.mkdir(parents=True, exist_ok=True)
            handle, key = _acquire(folder), folder.resolve()
        _held.add(key)
        try:
            yield
        finally:
            _held.discard(key)
            with suppress(OSError):
                (folder / LOCK).unlink()
    finally:
        if handle is not None:
            os.close(handle)
        for path in created:
            with suppress(OSError):  # not empty
                path.rmdir()


def _acquire(folder: Path) -> int:
    """Lock a folder; returns the descriptor of the lock file."""
    path = folder / LOCK
    while True:
        # Not opened twice by one process: closing the second descriptor would release the lock.
        if folder.resolve() in _held:
            raise _in_use(folder, "this process")
        handle = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
        try:
            if not _try_lock(handle, folder):
                raise _in_use(folder, os.read(handle, 200).decode(errors="replace") or "another process")
            if not path.exists() or not os.path.samestat(os.fstat(handle), path.stat()):
                os.close(handle)  # removed in the meantime by the process that held the lock
                continue
        except BaseException:
            os.close(handle)
            raise
        try:
            os.ftruncate(handle, 0)
            os.write(handle, f"{Path(sys.argv[0]).name}, process {os.getpid()} on {socket.gethostname()}".encode())
            os.fsync(handle)
        except BaseException:
            path.unlink()
            os.close(handle)
            raise
        return handle


def _in_use(folder: Path, holder: str) -> UserError:
    return UserError(
        f"{folder} is in use by {holder}. Wait until it has ended, or choose another folder with --output.",
        code="folder-in-use",
    )


def _try_lock(handle: int, folder: Path) -> bool:
    """Whether the lock file could be locked, or its disk has no locks."""
    try:
        if sys.platform == "win32":
            import msvcrt

            os.lseek(handle, 2**20, os.SEEK_SET)  # a locked byte cannot be read, and the first ones name the process
            msvcrt.locking(handle, msvcrt.LK_NBLCK, 1)
            os.lseek(handle, 0, os.SEEK_SET)
        else:
            import fcntl

            fcntl.lockf(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        if error.errno in (errno.EACCES, errno.EAGAIN, errno.EDEADLK):
            return False
        log.warning(
            "%s: its disk has no locks (%s). Make sure that no other process writes into it.", folder, error.strerror
        )
    return True


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

    An exception leaves existing files unchanged and removes folders that this function created. Meanwhile no other
    process may write into ``folder``; see :func:`exclusive`.

    Args:
        folder: destination; created if missing.
        replaced: names of earlier files to remove, whether or not a new file replaces them.
        last: name of the file that is moved last and whose old version is removed first. If it exists, the set of files
            is complete.
    """
    with exclusive(folder), writing(folder):
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


def parse_json(text: str | bytes) -> Any:
    """Parse JSON from an untrusted source.

    Raises:
        ValueError: every fault: no JSON, no UTF-8, a number with thousands of digits, objects nested too deeply.
    """
    try:
        return json.loads(text)
    except RecursionError:
        raise ValueError("lists or objects are nested too deeply") from None
