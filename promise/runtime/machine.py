"""What a machine offers and what is wrong with it: processor, memory, disks, console, packages. Needs no torch."""

from __future__ import annotations

import contextlib
import importlib
import locale
import os
import platform
import re
import shutil
import sys
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from importlib import metadata
from pathlib import Path
from typing import Any

from promise.runtime.environment import package_version
from promise.runtime.errors import UserError
from promise.runtime.files import require_writable

DISTRIBUTION = "promise-sam"
LEAST_DISK = LEAST_MEMORY = 2**30  # free bytes, below which a problem is reported
LEAST_SHARED = 2**28  # of /dev/shm
_UNUSED = ("docs", "dev")  # extras that no command needs
_MODULES = {"opencv-python": "cv2", "pillow": "PIL", "pyyaml": "yaml"}  # distribution → module, where names differ
_REQUIREMENT = re.compile(r"(?P<name>[\w.-]+)(?:\[.*?\])?>=(?P<least>[\d.]+)(?:\s*;.*extra\s*==\s*.(?P<extra>\w+).)?")


@dataclass(frozen=True)
class Problem:
    """Something that is wrong, and what to do about it."""

    code: str
    text: str
    fatal: bool = False  # no command can work


@dataclass
class Findings:
    """What was found, by section; values are those of JSON."""

    facts: dict[str, dict[str, Any]] = field(default_factory=dict)
    problems: list[Problem] = field(default_factory=list)

    @property
    def can_run(self) -> bool:
        """Whether no problem prevents all work."""
        return not any(problem.fatal for problem in self.problems)

    def add(self, section: str, probe: Callable[[], Iterator[tuple[str, Any] | Problem]]) -> None:
        """Store the facts and problems that ``probe`` yields; if it fails, those before, and the failure as a problem.

        Machines differ in ways that no probe foresees, and a report of a broken one must not break.
        """
        facts = self.facts.setdefault(section, {})
        try:
            for found in probe():
                if isinstance(found, Problem):
                    self._report(found)
                else:
                    facts[found[0]] = found[1]
        except UserError as error:
            self._report(Problem(error.code, str(error)))
        except Exception as error:
            text = f"{section}: this part of the report failed ({_describe(error)}). Please report it with this output."
            self._report(Problem("incomplete-report", text))

    def _report(self, problem: Problem) -> None:
        if problem not in self.problems:
            self.problems.append(problem)


Probe = Iterator[tuple[str, Any] | Problem]


def probe_packages() -> Probe:
    """Versions of the packages that are required, and of the extras; required ones are imported."""
    try:
        requirements = metadata.requires(DISTRIBUTION) or []
    except metadata.PackageNotFoundError:
        requirements = []
        yield Problem("not-installed", f"{DISTRIBUTION} is not installed: pip install -e '.[lite]' in its folder.")
    for found in filter(None, map(_REQUIREMENT.match, requirements)):
        name, least, extra = found["name"], found["least"], found["extra"]
        if extra in _UNUSED:
            continue
        version = package_version(name)
        if extra is None:
            try:
                module = importlib.import_module(_MODULES.get(name.lower(), name.replace("-", "_")))
            except Exception as error:  # also a library of the system that is missing
                yield name, f"{version or 'not installed'}, cannot be imported"
                advice = f"Install it again: pip install '{name}>={least}'."
                yield Problem("broken-package", f"{name} cannot be imported ({_describe(error)}). {advice}", fatal=True)
                continue
            version = version or getattr(module, "__version__", "unknown")  # of another distribution, as headless ones
        if version is None:
            yield name, f"not installed (extra {extra})"
            continue
        yield name, version
        if _numbers(version) < _numbers(least) and version != "unknown":
            text = f"{name} {version} is older than {least}: pip install --upgrade '{name}>={least}'."
            yield Problem("old-package", text, fatal=extra is None)


def probe_system() -> Probe:
    """Operating system, processor, threads and memory."""
    yield "Python", platform.python_version()
    yield "system", platform.platform()
    yield "processor", _processor() or "unknown"
    cores, limit = _cores()
    yield "cores", cores
    yield "cores allowed by the container", limit
    yield "OMP_NUM_THREADS", os.environ.get("OMP_NUM_THREADS")
    total, free = _memory()
    yield "memory, GiB", _gib(total)
    yield "free memory, GiB", _gib(free)
    if free is not None and free < LEAST_MEMORY:
        text = f"only {_gib(free)} GiB of memory are free. End other programs, and use --batch-size 1 and --workers 0."
        yield Problem("little-memory", text)
    if limit is not None and limit < cores and "OMP_NUM_THREADS" not in os.environ:
        text = f"the container may use {limit:g} of {cores} cores: set OMP_NUM_THREADS={max(1, int(limit))}."
        yield Problem("more-threads-than-cores", text)


def probe_console() -> Probe:
    """Locale, encodings of the console and of file names, and the home folder."""
    console, names = getattr(sys.stdout, "encoding", None), sys.getfilesystemencoding()
    yield "console", console
    yield "file names", names
    if not _is_utf8(names):
        text = "names of files are not read as UTF-8. Set PYTHONUTF8=1, or a locale such as C.UTF-8."
        yield Problem("file-names-not-utf8", text)
    if console is not None and not _is_utf8(console):
        text = "the console does not print UTF-8: other characters appear as escapes. Set PYTHONIOENCODING=utf-8."
        yield Problem("console-not-utf8", text)
    try:
        yield "home", str(Path.home())
    except RuntimeError:  # no HOME, and no entry in the system's table of users
        yield "home", None
        text = "there is no home folder. Set HOME, or PROMISE_CACHE (weights) and PROMISE_FEATURES (features)."
        yield Problem("no-home", text)
    with contextlib.suppress(ValueError):  # a locale that Python does not know
        yield "locale", ".".join(filter(None, locale.getlocale())) or "C"


def probe_folder(name: str, folder: Path, *, advice: str, fatal: bool = False) -> Probe:
    """Whether a folder can be written to, and the free space of its disk; missing folders are not created.

    Args:
        name: what the folder is for.
        folder: the folder.
        advice: the next move if it cannot be used.
        fatal: whether no command can work without it.
    """
    yield f"{name} folder", str(folder)
    try:
        require_writable(folder / "x")
        free = shutil.disk_usage(next(f for f in (folder.absolute(), *folder.absolute().parents) if f.exists())).free
    except (OSError, UserError) as error:
        yield f"{name} folder, free GiB", None
        reason = getattr(error.__cause__ or error, "strerror", None) or error
        yield Problem(f"{name}-not-writable", f"the {name} folder {folder} is not writable ({reason}). {advice}", fatal)
        return
    yield f"{name} folder, free GiB", _gib(free)
    if free < LEAST_DISK:
        text = f"only {_gib(free)} GiB are free on the disk of the {name} folder {folder}. Free space. {advice}"
        yield Problem(f"{name}-disk-full", text)


def probe_temporary() -> Probe:
    """The folder of temporary files and the shared memory of worker processes."""
    try:
        folder = tempfile.gettempdir()
    except OSError:
        yield "temporary folder", None
        text = "no folder of temporary files can be written to. Set TMPDIR to one that can."
        yield Problem("temporary-not-writable", text)
    else:
        yield from probe_folder("temporary", Path(folder), advice="Set TMPDIR to another folder.")
    if sys.platform != "linux":
        return
    try:
        usage = shutil.disk_usage("/dev/shm")
    except OSError:
        yield "/dev/shm, GiB", None
        yield Problem("no-shared-memory", "there is no /dev/shm: use --workers 0.")
        return
    yield "/dev/shm, GiB", _gib(usage.total)
    yield "/dev/shm, free GiB", _gib(usage.free)
    if usage.free < LEAST_SHARED:
        text = f"only {usage.free / 2**20:.0f} MB of /dev/shm are free: use --workers 0, or start the container with "
        yield Problem("little-shared-memory", text + "docker run --shm-size 2g.")


def _describe(error: BaseException) -> str:
    return f"{type(error).__name__}: {' '.join(str(error).split())}"


def _is_utf8(encoding: str) -> bool:
    return encoding.lower().replace("-", "") == "utf8"


def _gib(size: float | None) -> float | None:
    return None if size is None else round(size / 2**30, 1)


def _numbers(version: str) -> tuple[int, ...]:
    return tuple(map(int, [*re.findall(r"\d+", version.partition("+")[0]), 0, 0, 0][:3]))


def _read(path: str) -> str:
    try:
        return Path(path).read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""


def _processor() -> str:
    found = re.search(r"^(?:model name|Model|Hardware)\s*: (.+)$", _read("/proc/cpuinfo"), re.MULTILINE)
    return found[1] if found else platform.processor() or platform.machine()


def _cores() -> tuple[int, float | None]:
    """Cores that this process may use, and the limit of its container, if any."""
    allowed = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    quota, _, period = _read("/sys/fs/cgroup/cpu.max").strip().partition(" ")
    return allowed, int(quota) / int(period) if quota.isdecimal() and period.isdecimal() else None


def _memory() -> tuple[int | None, int | None]:
    """Bytes in total and free, within the limit of the container; ``None`` where the system does not report them."""
    total: int | None = None
    free: int | None = None
    sizes = dict(re.findall(r"^(\w+):\s+(\d+) kB$", _read("/proc/meminfo"), re.MULTILINE))
    if "MemAvailable" in sizes:
        total, free = 1024 * int(sizes["MemTotal"]), 1024 * int(sizes["MemAvailable"])
    else:
        with contextlib.suppress(Exception):  # accelerate requires psutil
            found = importlib.import_module("psutil").virtual_memory()
            total, free = int(found.total), int(found.available)
    limit, used = (_read(f"/sys/fs/cgroup/memory.{name}").strip() for name in ("max", "current"))
    if limit.isdecimal() and used.isdecimal():
        total = min(total or int(limit), int(limit))
        free = min(total if free is None else free, max(0, int(limit) - int(used)))
    return total, free
