"""Find the files that a CSV or a list names, below a data root or beside the CSV; image files are not opened.

CSVs are copied between machines, and folders are renamed. Each tolerance is tried only if the literal path does not
exist, and each tolerance that was needed is reported to the caller.
"""

from __future__ import annotations

import os
import posixpath
import re
import unicodedata
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from promise.data.images import EXTENSIONS
from promise.runtime.errors import UserError
from promise.runtime.reading import exists, is_folder, list_folder

SEGMENTATION_SUFFIX = "_segmentation"
_SIZE_SUFFIX = re.compile(r"_\d+$")
_LOST_SEPARATOR = re.compile(r"^(?P<folder>.+?)(?P<name>ISIC_\d{7}.*)$")
_MASK_FOLDER = re.compile(r"mask|truth|segm|label|annot", re.IGNORECASE)

Parts = tuple[str, ...]


@dataclass(frozen=True)
class ListedPath:
    """A path as written in a CSV or list; parsed in the same way on every operating system."""

    text: str

    @cached_property
    def normal(self) -> str:
        """The path with forward slashes, without ``.`` or inner ``..``."""
        return posixpath.normpath(self.text.replace("\\", "/"))

    @property
    def absolute(self) -> bool:
        """Whether the path starts with a root or a drive letter."""
        return self.normal.startswith("/") or bool(re.match(r"[A-Za-z]:/", self.normal))

    @cached_property
    def plain(self) -> Parts:
        """Folder names and file name, without root, drive letter or ``..``."""
        return tuple(p for p in self.normal.split("/") if p not in ("", ".", "..") and p[-1] != ":")

    @cached_property
    def parts(self) -> Parts:
        """As :attr:`plain`, but with the separator before the file name that some CSVs of ISIC omit."""
        found = _LOST_SEPARATOR.match(self.plain[-1]) if self.plain else None
        return (*self.plain[:-1], found["folder"], found["name"]) if found else self.plain


def composed(text: str) -> str:
    """Text in Unicode's composed form (NFC). Archives of a Mac contain names in the decomposed form."""
    return unicodedata.normalize("NFC", text)


def stem(parts: Parts) -> str:
    """File name without extension."""
    return posixpath.splitext(parts[-1])[0] if parts else ""


def shortest_names(paths: Sequence[Parts]) -> list[str]:
    """Names made of the last n parts of each path, with the smallest n for which all names differ.

    The extension is part of the names only if they are not unique without it. Equal paths have equal names.
    """
    stems = [(*p[:-1], stem(p)) for p in paths]
    deepest = max((len(p) for p in paths), default=1)
    for candidates in (stems, paths):
        for depth in range(1, deepest + 1):
            names = ["/".join(p[-depth:]) for p in candidates]
            if len(set(names)) == len(names):
                return names
    return ["/".join(p) for p in paths]


@dataclass(frozen=True)
class LocatedFile:
    """A file, and the tolerances that were needed to find it."""

    path: Path
    tolerances: tuple[tuple[str, str], ...] = ()  # (kind, example), both for people


class Locator:
    """Finds files below a folder; each folder is listed once.

    Args:
        base: the data root, or the folder of the CSV.
        reroot: also search for shorter and shorter suffixes of a path below ``base``, and in ``base`` itself; no path
            leads out of ``base``, except through a link in it.
    """

    def __init__(self, base: Path, *, reroot: bool) -> None:
        self.base = base
        self.reroot = reroot
        self._listings: dict[Path, dict[str, dict[str, str]]] = {}
        self._composed: dict[Path, dict[str, str]] = {}
        self._folders: dict[Parts, list[tuple[Path, str]]] = {}
        self._below: list[Path] | None = None

    def find(self, listed: ListedPath, *, role: str, exclude: Path | None = None) -> LocatedFile | None:
        """Find the file of a path; ``None`` if there is none.

        Args:
            listed: the path as written.
            role: ``"image"`` or ``"mask"``; the name of a mask may end in ``_segmentation``.
            exclude: a file that is not a candidate (the image, when its mask is searched).
        """
        readings = [listed.plain] if listed.plain else []
        if listed.parts != listed.plain:
            readings.append(listed.parts)
        for parts in readings:
            for written, renamed in self._candidates(listed, parts):
                folder = self._present(written)
                located = self._in_folder(folder, parts[-1], role, exclude)
                if located is not None:
                    tolerances = list(located.tolerances)
                    if folder != written:
                        tolerances.append(("in a folder whose name has another Unicode form", folder.name))
                    if renamed:
                        tolerances.append(("under a folder without the size suffix", renamed))
                    if parts is not listed.plain:
                        tolerances.append(("after restoring a missing separator", "/".join(parts[-2:])))
                    return LocatedFile(located.path, tuple(tolerances))
        if self.reroot and readings and readings[-1][-1].startswith("ISIC_"):
            return self._find_isic(readings[-1][-1], role, exclude)
        return None

    def _candidates(self, listed: ListedPath, parts: Parts) -> Iterator[tuple[Path, str]]:
        """Folders that may contain the file, the most literal first, with "old → new" for a renamed folder."""
        if not (self.reroot and (listed.absolute or listed.normal.startswith(".."))):
            parent = Path(posixpath.dirname(listed.normal))
            folder = self.base / parent / Path(*parts[len(listed.plain) - 1 : -1])
            yield folder, ""
            short = _SIZE_SUFFIX.sub("", folder.name)
            if short not in ("", folder.name):
                yield folder.parent / short, f"{folder.name} → {short}"
        if self.reroot:
            yield from self._rerooted(parts[:-1])

    def _rerooted(self, folders: Parts) -> list[tuple[Path, str]]:
        """Existing folders ``base/suffix`` for every suffix of ``folders``, longest first, then ``base``."""
        if folders not in self._folders:
            found = []
            for start in range(len(folders) + 1):
                suffix = folders[start:]
                short = tuple(_SIZE_SUFFIX.sub("", part) or part for part in suffix)
                renamed = ", ".join(f"{old} → {new}" for old, new in zip(suffix, short, strict=True) if old != new)
                for parts, note in ((suffix, ""), (short, renamed)):
                    folder = self.base.joinpath(*parts)
                    if (parts is suffix or renamed) and is_folder(self._present(folder)):
                        found.append((folder, note))
            self._folders[folders] = found
        return self._folders[folders]

    def _present(self, folder: Path) -> Path:
        """The folder, or the one below ``base`` whose name is the same text in another Unicode form."""
        if str(folder).isascii() or not folder.is_relative_to(self.base) or is_folder(folder):
            return folder
        found = self.base
        for part in folder.relative_to(self.base).parts:
            same = [] if exists(found / part) or not is_folder(found) else _entries(found)
            found = next((path for path in same if composed(path.name) == composed(part)), found / part)
        return found

    def _names(self, folder: Path) -> dict[str, dict[str, str]]:
        """stem → extension → file name, for the files in ``folder``; empty if the folder does not exist."""
        if folder not in self._listings:
            listing: dict[str, dict[str, str]] = {}
            try:
                with os.scandir(folder) as entries:
                    for entry in entries:
                        stem, extension = os.path.splitext(entry.name)  # noqa: PTH122 (a name, not a path)
                        if not entry.is_dir():
                            listing.setdefault(stem, {})[extension] = entry.name
            except (OSError, ValueError):  # ValueError: a zero byte in the name
                listing = {}
            self._listings[folder] = listing
        return self._listings[folder]

    def _in_folder(self, folder: Path, name: str, role: str, exclude: Path | None) -> LocatedFile | None:
        names = self._names(folder)
        stem, extension = posixpath.splitext(name)
        for candidate in _stems(stem, role):
            same = candidate if candidate in names else self._other_form(folder, candidate)
            for found in _by_preference(names.get(same, {}), extension):
                path = folder / found
                if path == exclude:
                    continue
                tolerances = []
                if path.suffix != extension:
                    tolerances.append(("with a different extension", f"{extension} → {path.suffix}"))
                if same != candidate:
                    tolerances.append(("under another Unicode form", found))
                if candidate != stem:
                    with_or_without = "with" if len(candidate) > len(stem) else "without"
                    tolerances.append((f"{with_or_without} the suffix {SEGMENTATION_SUFFIX}", found))
                return LocatedFile(path, tuple(tolerances))
        return None

    def _other_form(self, folder: Path, stem: str) -> str:
        """The stem in the folder that is the same text in another Unicode form; else ``stem``."""
        if stem.isascii():
            return stem
        if folder not in self._composed:
            self._composed[folder] = {composed(name): name for name in self._names(folder)}
        return self._composed[folder].get(composed(stem), stem)

    def _find_isic(self, name: str, role: str, exclude: Path | None) -> LocatedFile | None:
        """Search all folders up to two levels below ``base``: ISIC numbers are unique across data sets.

        Masks are searched only in folders whose name suggests masks, images only in the others. Several candidates
        count as not found.
        """
        hits: list[Path] = []
        for folder in self._folders_below():
            if bool(_MASK_FOLDER.search(folder.name)) == (role == "mask"):
                located = self._in_folder(folder, name, role, exclude)
                hits += [located.path] if located is not None else []
        if len(hits) != 1:
            return None
        return LocatedFile(hits[0], (("by its ISIC number", hits[0].parent.name),))

    def _folders_below(self) -> Sequence[Path]:
        if self._below is None:
            first = [p for p in _entries(self.base) if is_folder(p)]
            second = [p for folder in first for p in _entries(folder) if is_folder(p)]
            self._below = first + second
        return self._below


def _entries(folder: Path) -> list[Path]:
    """What a folder contains, sorted; nothing, if it may not be read: its files count as missing."""
    try:
        return list_folder(folder)
    except UserError:
        return []


def _stems(stem: str, role: str) -> list[str]:
    if role == "image":
        return [stem]
    if stem.endswith(SEGMENTATION_SUFFIX):
        return [stem, stem.removesuffix(SEGMENTATION_SUFFIX)]
    return [stem, stem + SEGMENTATION_SUFFIX]


def _by_preference(by_extension: dict[str, str], preferred: str) -> list[str]:
    """File names: the preferred extension first, then the image formats in the order of ``EXTENSIONS``."""
    others = [e for e in by_extension if e != preferred and e.lower() in EXTENSIONS]
    others.sort(key=lambda e: (EXTENSIONS.index(e.lower()), e))
    return [by_extension[e] for e in ([preferred] if preferred in by_extension else []) + others]
