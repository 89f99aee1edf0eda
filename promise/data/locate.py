"""Where a file that a split CSV names really lies on this machine; opens no picture, knows no CSV.

CSVs travel between machines and their folders get renamed on the way. Each tolerance is tried only when
the plain reading fails, and each one that was needed is told to the caller.
"""

from __future__ import annotations

import os
import posixpath
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from promise.data.images import EXTENSIONS

SEGMENTATION_SUFFIX = "_segmentation"
_SIZE_SUFFIX = re.compile(r"_\d+$")
_LOST_SEPARATOR = re.compile(r"^(?P<folder>.+?)(?P<name>ISIC_\d{7}.*)$")
_MASK_FOLDER = re.compile(r"mask|truth|segm|label|annot", re.IGNORECASE)

Parts = tuple[str, ...]


@dataclass(frozen=True)
class Written:
    """A path as a CSV cell says it, read the same on every machine."""

    text: str

    @cached_property
    def normal(self) -> str:
        """With forward slashes and without ``.`` or inner ``..``."""
        return posixpath.normpath(self.text.replace("\\", "/"))

    @property
    def absolute(self) -> bool:
        """Whether it starts at a root or a drive letter."""
        return self.normal.startswith("/") or bool(re.match(r"[A-Za-z]:/", self.normal))

    @cached_property
    def plain(self) -> Parts:
        """Folder names and file name, without roots, drives or ``..``."""
        return tuple(p for p in self.normal.split("/") if p not in ("", ".", "..") and p[-1] != ":")

    @cached_property
    def parts(self) -> Parts:
        """The same, with the separator that ISIC's paths have lost before the file name put back."""
        found = _LOST_SEPARATOR.match(self.plain[-1]) if self.plain else None
        return (*self.plain[:-1], found["folder"], found["name"]) if found else self.plain


def stem(parts: Parts) -> str:
    """File name without extension."""
    return posixpath.splitext(parts[-1])[0] if parts else ""


def shortest_names(paths: Sequence[Parts]) -> list[str]:
    """The shortest common number of trailing parts that tells all paths apart; without extension where that can be.

    Paths that are equal keep equal names.
    """
    stems = [(*p[:-1], stem(p)) for p in paths]
    deepest = max((len(p) for p in paths), default=1)
    for choice in (stems, paths):
        for depth in range(1, deepest + 1):
            names = ["/".join(p[-depth:]) for p in choice]
            if len(set(names)) == len(names):
                return names
    return ["/".join(p) for p in paths]


@dataclass(frozen=True)
class Found:
    """A file, and which tolerances it took: (kind, example) pairs."""

    path: Path
    tolerances: tuple[tuple[str, str], ...] = ()


class Locator:
    """Finds files below ``base``; lists each folder once.

    Args:
        base: the data root, or the CSV's folder.
        reroot: also look for ever shorter ends of a path below ``base``, and in ``base`` itself.
    """

    def __init__(self, base: Path, *, reroot: bool) -> None:
        self.base = base
        self.reroot = reroot
        self._listings: dict[Path, dict[str, dict[str, str]]] = {}
        self._folders: dict[Parts, list[tuple[Path, str]]] = {}
        self._below: list[Path] | None = None

    def find(self, written: Written, *, role: str, exclude: Path | None = None) -> Found | None:
        """The file meant by ``written``, or None.

        Args:
            written: the CSV's path.
            role: ``"image"`` or ``"mask"``; a mask may add ``_segmentation`` to its name.
            exclude: a file that it cannot be (the image, when the mask is looked for).
        """
        readings = [written.plain] if written.plain else []
        if written.parts != written.plain:
            readings.append(written.parts)
        for parts in readings:
            for folder, renamed in self._candidates(written, parts):
                hit = self._in_folder(folder, parts[-1], role, exclude)
                if hit is not None:
                    told = list(hit.tolerances)
                    if renamed:
                        told.append(("under a folder without the size suffix", renamed))
                    if parts is not written.plain:
                        told.append(("after putting back a lost separator", "/".join(parts[-2:])))
                    return Found(hit.path, tuple(told))
        if self.reroot and readings and readings[-1][-1].startswith("ISIC_"):
            return self._find_isic(readings[-1][-1], role, exclude)
        return None

    def _candidates(self, written: Written, parts: Parts) -> Iterator[tuple[Path, str]]:
        """Folders that may hold the file, the most literal first, with "old → new" when renamed."""
        if not (written.absolute and self.reroot):
            parent = Path(posixpath.dirname(written.normal))
            folder = self.base / parent / Path(*parts[len(written.plain) - 1 : -1])
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
                    if (parts is suffix or renamed) and folder.is_dir():
                        found.append((folder, note))
            self._folders[folders] = found
        return self._folders[folders]

    def _names(self, folder: Path) -> dict[str, dict[str, str]]:
        """stem → extension → file name, of the files in ``folder``; empty when there is no such folder."""
        if folder not in self._listings:
            listing: dict[str, dict[str, str]] = {}
            try:
                with os.scandir(folder) as entries:
                    for entry in entries:
                        stem, extension = os.path.splitext(entry.name)  # noqa: PTH122 (a name, not a path)
                        if not entry.is_dir():
                            listing.setdefault(stem, {})[extension] = entry.name
            except OSError:
                listing = {}
            self._listings[folder] = listing
        return self._listings[folder]

    def _in_folder(self, folder: Path, name: str, role: str, exclude: Path | None) -> Found | None:
        names = self._names(folder)
        stem, extension = posixpath.splitext(name)
        for candidate in _stems(stem, role):
            for found in _by_preference(names.get(candidate, {}), extension):
                path = folder / found
                if path == exclude:
                    continue
                told = []
                if path.suffix != extension:
                    told.append(("with another extension", f"{extension} → {path.suffix}"))
                if candidate != stem:
                    with_or_without = "with" if len(candidate) > len(stem) else "without"
                    told.append((f"{with_or_without} the suffix {SEGMENTATION_SUFFIX}", found))
                return Found(path, tuple(told))
        return None

    def _find_isic(self, name: str, role: str, exclude: Path | None) -> Found | None:
        """ISIC numbers are unique worldwide: any folder up to two levels below ``base`` will do.

        Folders that look like masks hold masks and nothing else. Two candidates are none.
        """
        hits: list[Path] = []
        for folder in self._folders_below():
            if bool(_MASK_FOLDER.search(folder.name)) == (role == "mask"):
                hit = self._in_folder(folder, name, role, exclude)
                hits += [hit.path] if hit is not None else []
        if len(hits) != 1:
            return None
        return Found(hits[0], (("by its ISIC number", hits[0].parent.name),))

    def _folders_below(self) -> Sequence[Path]:
        if self._below is None:
            first = sorted(p for p in self.base.iterdir() if p.is_dir())
            second = [p for folder in first for p in sorted(folder.iterdir()) if p.is_dir()]
            self._below = first + second
        return self._below


def _stems(stem: str, role: str) -> list[str]:
    if role == "image":
        return [stem]
    if stem.endswith(SEGMENTATION_SUFFIX):
        return [stem, stem.removesuffix(SEGMENTATION_SUFFIX)]
    return [stem, stem + SEGMENTATION_SUFFIX]


def _by_preference(by_extension: dict[str, str], wanted: str) -> list[str]:
    """File names: the wanted extension first, then the picture formats in a fixed order."""
    others = [e for e in by_extension if e != wanted and e.lower() in EXTENSIONS]
    others.sort(key=lambda e: (EXTENSIONS.index(e.lower()), e))
    return [by_extension[e] for e in ([wanted] if wanted in by_extension else []) + others]
