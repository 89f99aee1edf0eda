"""Resolve files, folders, patterns, CSVs and lists to images with unique names, and read them. Needs no torch."""

from __future__ import annotations

import glob
import os
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from promise.data.dicom import DICOM_EXTENSIONS, is_dicom, read_dicom, read_dicom_size
from promise.data.images import EXTENSIONS, read_image, read_size
from promise.data.locate import ListedPath, Locator, Parts, shortest_names, stem
from promise.data.records import LineFault, list_line_faults, read_column
from promise.runtime.errors import UserError, raise_all
from promise.runtime.reading import as_path, exists, expand_home, is_folder, read_bytes, require_file

COLUMNS = ("image_name", "image", "path", "filename", "file")  # of a CSV; the first one that exists is used
LISTS = (".txt", ".lst")


@dataclass(frozen=True)
class Input:
    """One image."""

    name: str  # unique among the inputs; forward slashes; the extension only if names are ambiguous without it
    path: Path


def read_input(path: str | Path, content: bytes | None = None) -> NDArray[np.uint8]:
    """Read an image file, including DICOM, as (H, W, 3) uint8 RGB. With ``content``, its bytes, it is not opened.

    Raises the errors of :func:`promise.data.images.read_image` and :func:`promise.data.dicom.read_dicom`.
    """
    path = as_path(path, "the image")
    return read_dicom(path, content) if is_dicom(path, content) else read_image(path, content)


def input_size(path: Path, content: bytes | None = None) -> tuple[int, int]:
    """(width, height) in pixels of an image file, including DICOM, read from the header; as :func:`read_input`."""
    height, width = read_dicom_size(path, content) if is_dicom(path, content) else read_size(path, content)
    return width, height


def list_inputs(
    sources: Sequence[str],
    *,
    data_root: str | None = None,
    split: str | None = None,
    recursive: bool = False,
    leave_out: Path | None = None,
) -> list[Input]:
    """List the images of ``sources``, each once, in the order of the sources; images of a folder are sorted by name.

    Args:
        sources: files, folders, patterns such as ``scans/*.png``, CSVs with a column ``image_name``, or text files
            with one path per line.
        data_root: folder that paths in CSVs and lists are re-rooted onto; default: the folder of the CSV or list.
        split: for CSVs with a column ``train_type``: use only the rows of this split.
        recursive: include the images of subfolders.
        leave_out: a folder whose files are excluded, such as the output folder.

    Returns:
        The images. Images of a folder are named by their path in the folder; other images by as many parts of their
        paths as are needed to make the names unique.

    Raises:
        UserError: the errors of all sources: missing files or folders (``missing-file``, ``missing-images``), sources
            without images (``no-images``, ``no-rows-of-split``), CSVs or lists that cannot be read.
    """
    errors: list[UserError] = []
    named: list[list[tuple[str, Path]]] = []
    files: list[tuple[Parts, Path]] = []
    for text in sources:
        try:
            path = expand_home(text)
            if is_folder(path):
                named.append(_name_folder(_in_folder(path, recursive, leave_out)))
            elif path.suffix.lower() == ".csv":
                named.append(_name_files(_in_csv(path, data_root, split)))
            elif path.suffix.lower() in LISTS:
                named.append(_name_files(_in_list(path, data_root)))
            else:
                files += _matching(path)
        except UserError as error:
            errors.append(error)
    raise_all(errors)
    return _unique([*named, _name_files(files)])


def _in_folder(folder: Path, recursive: bool, leave_out: Path | None) -> list[tuple[Parts, Path]]:
    def images(*, below: bool) -> list[Path]:
        return sorted(p for p in _walk(folder, below) if _is_image_file(p) and not _is_inside(p, leave_out))

    found = images(below=recursive)
    if not found:
        below = 0 if recursive else len(images(below=True))
        hint = f"; its subfolders contain {below} (--recursive includes them)" if below else ""
        raise UserError(f"{folder}: the folder contains no PNG, JPEG, TIFF, BMP or DICOM file{hint}.", code="no-images")
    return [(path.relative_to(folder).parts, path) for path in found]


def _walk(folder: Path, below: bool) -> Iterator[Path]:
    """The files of a folder and, with ``below``, of its subfolders, also linked ones; hidden folders are left out."""

    def report(error: OSError) -> None:
        raise UserError(f"{error.filename} cannot be listed ({error.strerror}).", code="unreadable-folder") from error

    root = folder.resolve()
    entered: set[Path] = set()

    def is_new(path: Path) -> bool:
        """Whether a subfolder is not walked anyway: links may form a loop."""
        target = path.resolve()
        return not (path.is_symlink() and (target in entered or target.is_relative_to(root)))

    for parent, folders, names in os.walk(folder, followlinks=True, onerror=report):
        yield from (Path(parent, name) for name in names)
        entered.add(Path(parent).resolve())
        folders[:] = [name for name in folders if below and name[0] != "." and is_new(Path(parent, name))]


def _is_image_file(path: Path) -> bool:
    """Whether a path has the extension of an image, or is DICOM without extension; hidden files are not images.

    A broken link or a named pipe with the extension of an image is listed too: it is reported when it is read.
    """
    if path.name.startswith(".") or is_folder(path):
        return False
    return path.suffix.lower() in (*EXTENSIONS, *DICOM_EXTENSIONS) or (not path.suffix and is_dicom(path))


def _is_inside(path: Path, folder: Path | None) -> bool:
    return folder is not None and path.resolve().is_relative_to(folder.resolve())


def _matching(path: Path) -> list[tuple[Parts, Path]]:
    """A single file, or the image files that match a pattern."""
    try:
        require_file(path)
    except UserError:
        if not glob.has_magic(str(path)):
            raise
    else:
        return [(path.parts, path)]
    matches = [Path(text) for text in sorted(glob.glob(str(path), recursive=True))]  # noqa: PTH207 (absolute ones too)
    images = [match for match in matches if _is_image_file(match)]
    if not images:
        raise UserError(f"{path}: no image file matches this pattern.", code="no-images")
    return [(image.parts, image) for image in images]


def _in_csv(path: Path, data_root: str | None, split: str | None) -> list[tuple[Parts, Path]]:
    texts: dict[int, str] | None = None
    for column in COLUMNS:
        try:
            texts = read_column(path, column)
            break
        except UserError as error:
            if error.code != "unknown-column":
                raise
    if texts is None:
        raise UserError(
            f"{path}: the header contains none of the columns {', '.join(COLUMNS)}.", code="missing-columns"
        )
    if split is not None:
        splits = read_column(path, "train_type")
        texts = {line: text for line, text in texts.items() if splits.get(line, "").lower() == split}
        if not texts:
            raise UserError(f"{path}: no row has train_type {split!r}. Choose with --split.", code="no-rows-of-split")
    return _find(path, texts, data_root)


def _in_list(path: Path, data_root: str | None) -> list[tuple[Parts, Path]]:
    try:
        lines = enumerate(read_bytes(path).decode("utf-8-sig").splitlines(), start=1)
    except UnicodeDecodeError as error:
        raise UserError(f"{path} is not UTF-8 text (byte {error.start}).", code="not-utf8") from error
    texts = {line: text.strip() for line, text in lines if text.strip() and not text.lstrip().startswith("#")}
    if not texts:
        raise UserError(f"{path}: the list contains no path.", code="no-images")
    return _find(path, texts, data_root)


def _find(path: Path, texts: dict[int, str], data_root: str | None) -> list[tuple[Parts, Path]]:
    """Find the files that the lines of a CSV or list name."""
    locator = Locator(path.parent if data_root is None else Path(data_root), reroot=data_root is not None)
    found: list[tuple[Parts, Path]] = []
    missing: list[LineFault] = []
    for line, text in texts.items():
        listed, plain = ListedPath(text), Path(text)
        located = None if plain.is_absolute() and data_root is None else locator.find(listed, role="image")
        if located is not None:
            found.append((listed.parts, located.path))
        elif data_root is None and plain.is_absolute() and exists(plain):
            found.append((listed.parts, plain))
        else:
            missing.append(LineFault(line, "missing-file", text))
    if missing:
        base = f"--data-root ({data_root})" if data_root else f"the folder of the file ({path.parent})"
        hint = "Is it the right folder?" if data_root else "Is --data-root missing?"
        verb = "are" if len(missing) != 1 else "is"
        head = f"{path.name}: {len(missing)} of {len(texts)} images {verb} missing:"
        raise UserError(
            f"{list_line_faults(head, missing)}\nPaths are relative to {base}. {hint}",
            code="missing-images",
            errors=[fault.error for fault in missing],
        )
    return found


def _name_folder(found: list[tuple[Parts, Path]]) -> list[tuple[str, Path]]:
    """Name images by their path in the folder, so that outputs have the same structure."""
    short = ["/".join((*parts[:-1], stem(parts))) for parts, _ in found]
    seen = Counter(short)
    whole = ["/".join(parts) for parts, _ in found]
    names = [long if seen[name] > 1 else name for name, long in zip(short, whole, strict=True)]
    return list(zip(names, (path for _, path in found), strict=True))


def _name_files(found: list[tuple[Parts, Path]]) -> list[tuple[str, Path]]:
    """Name images by as many parts of their paths as are needed to make the names unique."""
    once = {_identity(path): (parts, path) for parts, path in reversed(found)}
    kept = [once[key] for key in dict.fromkeys(_identity(path) for _, path in found)]
    names = shortest_names([ListedPath("/".join(parts)).plain for parts, _ in kept])
    return [(name, path) for name, (_, path) in zip(names, kept, strict=True)]


def _unique(sources: Sequence[Sequence[tuple[str, Path]]]) -> list[Input]:
    """Keep each file once; if names of two sources collide, all files are named by their full paths."""
    once: dict[Path, Input] = {}
    for name, path in (item for source in sources for item in source):
        once.setdefault(_identity(path), Input(name, path))
    if len({one.name.casefold() for one in once.values()}) == len(once):
        return list(once.values())
    names = shortest_names([path.parts[1:] for path in once])
    return [Input(name, one.path) for name, one in zip(names, once.values(), strict=True)]


def _identity(path: Path) -> Path:
    """Path without links in its folders. Two links to one file are two images, each with a mask of its own name."""
    return path.parent.resolve() / path.name
