"""The folder of a preparation: which pairs are finished, and the removal of earlier results.

Each finished pair is recorded in ``frames.part``, from which interrupted runs resume.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from promise.data.prepare.frame import read_frames
from promise.runtime.errors import ExistingRunError
from promise.runtime.files import remove_leftovers, write_text

JOURNAL = "frames.part"  # JSON lines: the settings, then one line per finished pair
FRAMES = "frames.csv"


def forbid_existing(output: Path, names: Sequence[str], *, overwrite: bool) -> None:
    """Raise an :class:`ExistingRunError` (``existing-output``) if a file exists that would be overwritten."""
    existing = [name for name in names if (output / name).exists()]
    if existing and not overwrite:
        raise ExistingRunError(
            f"{output} already contains {', '.join(existing)}; --overwrite replaces them.", code="existing-output"
        )


def start(
    output: Path, names: Sequence[str], *, settings: dict[str, Any], overwrite: bool
) -> dict[str, dict[str, Any]]:
    """Start or resume a preparation; returns image → entry of the journal, for finished pairs.

    Args:
        output: the output folder.
        names: files that a finished preparation has.
        settings: those that the finished pairs must have been prepared with.
        overwrite: remove the files of an earlier preparation first.

    Raises:
        ExistingRunError: the folder contains results (``existing-output``), an unfinished run with other settings
            (``unfinished-run``) or other images (``foreign-folder``).
    """
    journal = output / JOURNAL
    if overwrite:
        _clear(output, names)
    forbid_existing(output, names, overwrite=False)
    if journal.exists():
        entries = _read_journal(journal)
        if entries and entries[0] == settings:
            remove_leftovers(output)
            return {entry["image"]: entry for entry in entries[1:]}
        raise ExistingRunError(
            f"{output} contains an unfinished preparation with other settings. Use the same settings to resume it, or "
            "--overwrite to start again.",
            code="unfinished-run",
        )
    folders = [name for name in ("images", "masks") if (output / name).exists()]
    if folders:
        raise ExistingRunError(
            f"{output} contains {' and '.join(folders)} that promise-prepare did not write; choose another folder.",
            code="foreign-folder",
        )
    write_text(journal, json.dumps(settings) + "\n")
    return {}


def _read_journal(journal: Path) -> list[dict[str, Any]]:
    """The complete lines; an interrupted run may leave an incomplete line, whose pair is prepared again."""
    entries = []
    for line in journal.read_text(encoding="utf-8").splitlines():
        try:
            entries.append(json.loads(line))
        except ValueError:
            continue
    return entries


def _clear(output: Path, names: Sequence[str]) -> None:
    """Remove the files of an earlier preparation; other files are kept."""
    images: list[str] = []
    if (output / FRAMES).exists():
        images += read_frames(output / FRAMES)
    if (output / JOURNAL).exists():
        images += [entry["image"] for entry in _read_journal(output / JOURNAL)[1:]]
    for name in names:
        (output / name).unlink(missing_ok=True)
    for name in images:
        for path in (output / name, output / _mask_name(name)):
            if output.resolve() in path.resolve().parents:
                path.unlink(missing_ok=True)
    for folder in sorted((p for kind in ("images", "masks") for p in (output / kind).rglob("*/")), reverse=True):
        _remove_empty(folder)
    for kind in ("images", "masks"):
        _remove_empty(output / kind)
    (output / JOURNAL).unlink(missing_ok=True)


def _remove_empty(folder: Path) -> None:
    if folder.is_dir() and not any(folder.iterdir()):
        folder.rmdir()


def _mask_name(image: str) -> str:
    return "masks" + image.removeprefix("images")
