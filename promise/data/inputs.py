"""Which images does a user mean by files, folders, patterns, CSVs and lists, and what are their outputs called?

Opens no picture until asked to read one; knows no torch, no model.
"""

from __future__ import annotations

import glob
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from promise.data.dicom import DICOM_EXTENSIONS, is_dicom, read_dicom, read_dicom_size
from promise.data.images import EXTENSIONS, read_image, read_size
from promise.data.locate import Locator, Parts, Written, shortest_names, stem
from promise.data.records import read_column
from promise.runtime.errors import SHOWN, UserError

COLUMNS = ("image_name", "image", "path", "filename", "file")  # of a CSV; the first that it has
LISTS = (".txt", ".lst")


@dataclass(frozen=True)
class Input:
    """One image."""

    name: str  # unique among the inputs; forward slashes, no extension unless that tells two apart
    path: Path


def read_picture(path: str | Path) -> NDArray[np.uint8]:
    """A picture file, DICOM too, as (H, W, 3) uint8 RGB; see :func:`promise.data.images.read_image`."""
    return read_dicom(Path(path)) if is_dicom(Path(path)) else read_image(path)


def picture_size(path: Path) -> tuple[int, int]:
    """(width, height) from the header alone."""
    height, width = read_dicom_size(path) if is_dicom(path) else read_size(path)
    return width, height


def list_inputs(
    given: Sequence[str],
    *,
    data_root: str | None = None,
    split: str | None = None,
    recursive: bool = False,
    leave_out: Path | None = None,
) -> list[Input]:
    """The images that are meant, each once, in the order given; those of a folder in the order of their names.

    Args:
        given: files, folders, patterns such as ``scans/*.png``, CSVs with a column ``image_name``, or text files with a
            path a line.
        data_root: folder that paths in CSVs and lists are re-rooted onto; default: the CSV's own.
        split: of CSVs with a column ``train_type``, only these rows.
        recursive: also what lies in folders below.
        leave_out: a folder whose files are none of them: the output's.

    Returns:
        The images. Those of a folder are named by their path in it; others by as much of their paths as tells them
        apart.

    Raises:
        UserError: files that are missing, folders without images, CSVs that cannot be read; all told at once.
    """
    faults: list[str] = []
    sources: list[list[tuple[str, Path]]] = []
    files: list[tuple[Parts, Path]] = []
    for text in given:
        path = Path(text).expanduser()
        try:
            if path.is_dir():
                sources.append(_name_folder(_in_folder(path, recursive, leave_out)))
            elif path.suffix.lower() == ".csv":
                sources.append(_name_files(_in_csv(path, data_root, split)))
            elif path.suffix.lower() in LISTS:
                sources.append(_name_files(_in_list(path, data_root)))
            else:
                files += _matching(path)
        except UserError as error:
            faults.append(str(error))
    if faults:
        raise UserError("\n  ".join(faults))
    return _unique([*sources, _name_files(files)])


def _in_folder(folder: Path, recursive: bool, leave_out: Path | None) -> list[tuple[Parts, Path]]:
    def pictures(found: Iterator[Path]) -> list[Path]:
        return sorted(p for p in found if _looks_like_a_picture(p) and not _lies_in(p, leave_out))

    chosen = pictures(folder.rglob("*") if recursive else folder.iterdir())
    if not chosen:
        deeper = 0 if recursive else len(pictures(folder.rglob("*")))
        hint = f" (there are {deeper} in folders below: --recursive)" if deeper else ""
        raise UserError(f"{folder}: no PNG, JPEG, TIFF, BMP or DICOM file in this folder{hint}.")
    return [(path.relative_to(folder).parts, path) for path in chosen]


def _looks_like_a_picture(path: Path) -> bool:
    if path.name.startswith(".") or not path.is_file():
        return False
    return path.suffix.lower() in (*EXTENSIONS, *DICOM_EXTENSIONS) or (not path.suffix and is_dicom(path))


def _lies_in(path: Path, folder: Path | None) -> bool:
    return folder is not None and path.resolve().is_relative_to(folder.resolve())


def _matching(path: Path) -> list[tuple[Parts, Path]]:
    """A file, or those that a pattern matches."""
    if path.is_file():
        return [(path.parts, path)]
    if not glob.has_magic(str(path)):
        raise UserError(f"{path}: no such file or folder.")
    found = [Path(text) for text in sorted(glob.glob(str(path), recursive=True))]  # noqa: PTH207 (absolute ones too)
    chosen = [one for one in found if _looks_like_a_picture(one)]
    if not chosen:
        raise UserError(f"{path}: no picture matches this pattern.")
    return [(one.parts, one) for one in chosen]


def _in_csv(path: Path, data_root: str | None, split: str | None) -> list[tuple[Parts, Path]]:
    texts: dict[int, str] | None = None
    for column in COLUMNS:
        try:
            texts = read_column(path, column)
            break
        except UserError as error:
            if "unknown column" not in str(error):
                raise
    if texts is None:
        raise UserError(f"{path}: the header has none of the columns {', '.join(COLUMNS)}.")
    if split is not None:
        rows = read_column(path, "train_type")
        texts = {line: text for line, text in texts.items() if rows.get(line, "").lower() == split}
        if not texts:
            raise UserError(f"{path}: no row has train_type {split!r}. Choose with --split.")
    return _find(path, texts, data_root)


def _in_list(path: Path, data_root: str | None) -> list[tuple[Parts, Path]]:
    if not path.is_file():
        raise UserError(f"{path}: no such file.")
    try:
        lines = enumerate(path.read_text(encoding="utf-8-sig").splitlines(), start=1)
    except UnicodeDecodeError as error:
        raise UserError(f"{path} is not UTF-8 text (byte {error.start}).") from error
    texts = {line: text.strip() for line, text in lines if text.strip() and not text.lstrip().startswith("#")}
    if not texts:
        raise UserError(f"{path} names no image.")
    return _find(path, texts, data_root)


def _find(path: Path, texts: dict[int, str], data_root: str | None) -> list[tuple[Parts, Path]]:
    """The files that a CSV's or a list's lines name."""
    locator = Locator(path.parent if data_root is None else Path(data_root), reroot=data_root is not None)
    found, missing = [], []
    for line, text in texts.items():
        written = Written(text)
        plain = Path(text)
        hit = None if plain.is_absolute() and data_root is None else locator.find(written, role="image")
        if hit is not None:
            found.append((written.parts, hit.path))
        elif plain.is_absolute() and plain.is_file():
            found.append((written.parts, plain))
        else:
            missing.append(f"  line {line}: {text}")
    if missing:
        more = [f"  … and {len(missing) - SHOWN} more"] if len(missing) > SHOWN else []
        base = f"--data-root ({data_root})" if data_root else f"the file's folder ({path.parent}); set --data-root?"
        head = f"{path.name}: {len(missing)} of {len(texts)} images are missing:"
        raise UserError("\n".join([head, *missing[:SHOWN], *more, f"Paths are taken relative to {base}"]))
    return found


def _name_folder(found: list[tuple[Parts, Path]]) -> list[tuple[str, Path]]:
    """By the whole path in the folder, so that outputs mirror it."""
    short = ["/".join((*parts[:-1], stem(parts))) for parts, _ in found]
    seen = Counter(short)
    whole = ["/".join(parts) for parts, _ in found]
    names = [long if seen[name] > 1 else name for name, long in zip(short, whole, strict=True)]
    return list(zip(names, (path for _, path in found), strict=True))


def _name_files(found: list[tuple[Parts, Path]]) -> list[tuple[str, Path]]:
    """By as many parts of the paths as tell them apart."""
    once = {path.resolve(): (parts, path) for parts, path in reversed(found)}
    kept = [once[key] for key in dict.fromkeys(path.resolve() for _, path in found)]
    names = shortest_names([Written("/".join(parts)).plain for parts, _ in kept])
    return [(name, path) for name, (_, path) in zip(names, kept, strict=True)]


def _unique(sources: Sequence[Sequence[tuple[str, Path]]]) -> list[Input]:
    """Every file once; where names of two sources meet, all are named by their whole paths."""
    once: dict[Path, Input] = {}
    for name, path in (item for source in sources for item in source):
        once.setdefault(path.resolve(), Input(name, path))
    if len({one.name.casefold() for one in once.values()}) == len(once):
        return list(once.values())
    names = shortest_names([path.parts[1:] for path in once])
    return [Input(name, one.path) for name, one in zip(names, once.values(), strict=True)]
