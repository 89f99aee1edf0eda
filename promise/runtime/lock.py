"""One writer per folder: a lock that ends with its process."""

from __future__ import annotations

import errno
import logging
import os
import socket
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from promise.runtime.errors import UserError
from promise.runtime.files import LOCK, writing

log = logging.getLogger(__name__)

_held: set[Path] = set()  # folders that this process has locked


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
