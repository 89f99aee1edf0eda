"""What the frozen encoder said of an image, kept on disk; takes an ``encode`` callable, knows no model.

A *space* is a folder of entries that were made the same way: by the same weights, preprocessing, precision. Its name is
the hash of that description, so features of another SAM cannot be mistaken for this one's. An entry is one image
(and mask, and view), named by the hash of their content. It is one file for the embedding and the mask, another for
the taps: a net without a prompter reads, and makes, the first alone. Files are written whole or not at all, so that any
number of processes may fill a space, and a kill costs the entry that was being made.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import shutil
import zlib
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import safetensors
import torch
from safetensors.torch import save_file
from torch import Tensor

from promise.runtime.files import atomic_path, write_json
from promise.types import Encoded

HOME_VARIABLE = "PROMISE_FEATURES"
FORMAT = 1  # of the files; another number is another space
DESCRIPTION = "space.json"
READ_AHEAD = 2**17  # bytes
EMBEDDING, TAPS = ".embedding.safetensors", ".taps.safetensors"


def cache_folder(given: str | Path | None = None) -> Path:
    """The folder of all spaces: the given one, ``$PROMISE_FEATURES``, or ``promise/features`` in the user's cache."""
    if given:
        return Path(given).expanduser()
    return _default_folder()


def _default_folder() -> Path:
    named = os.environ.get(HOME_VARIABLE)
    if named:
        return Path(named).expanduser()
    home = os.environ.get("XDG_CACHE_HOME")
    return (Path(home) if home else Path.home() / ".cache") / "promise" / "features"


@dataclass(frozen=True)
class Entry:
    """One image's features and its mask, as they lie on the disk."""

    embedding: Tensor  # (256, E, E), channels-last in memory
    taps: tuple[Tensor, ...]  # each (C, E, E), channels-last, shallow to deep; () when the space is read without them
    mask: Tensor  # (1, S, S) float32, 0 or 1


class DamagedEntry(Exception):
    """An entry's file is there but does not hold what was written."""


class FeatureSpace:
    """Entries that were made the same way."""

    def __init__(self, home: Path, description: Mapping[str, Any], *, taps: bool) -> None:
        """Open a space; nothing is written before the first entry.

        Args:
            home: folder of all spaces.
            description: everything that decides an image's features besides the image: SAM's weights,
                preprocessing, precision. Plain values only.
            taps: whether entries are read and made with taps.
        """
        self.description = {"format": FORMAT, **description}
        text = json.dumps(self.description, sort_keys=True)
        self.folder = home / hashlib.sha256(text.encode()).hexdigest()[:16]
        self.suffixes = (EMBEDDING, TAPS) if taps else (EMBEDDING,)

    def missing(self, keys: Iterable[str]) -> list[str]:
        """The keys, each once, whose entry is not there."""
        wanted = dict.fromkeys(keys)
        return [key for key in wanted if not all(path.is_file() for path in self.paths(key))]

    def paths(self, key: str) -> tuple[Path, ...]:
        """The files of one entry."""
        return tuple(self._path(key, suffix) for suffix in self.suffixes)

    def put(self, key: str, encoded: Encoded, mask: Tensor) -> None:
        """Write one entry.

        Args:
            key: of :func:`entry_key`.
            encoded: features of a batch of one.
            mask: (1, S, S), 0 or 1.
        """
        if not (self.folder / DESCRIPTION).is_file():
            write_json(self.folder / DESCRIPTION, self.description)
        if TAPS in self.suffixes:
            # First, so that whoever finds the embedding finds the taps.
            _write(self._path(key, TAPS), {f"tap{i}": tap[0].permute(1, 2, 0) for i, tap in enumerate(encoded.taps)})
        embedding = encoded.embedding[0].permute(1, 2, 0)  # (E, E, C), as it lies in memory
        bits = torch.from_numpy(np.packbits(mask.numpy().astype(bool)))
        side = torch.tensor(mask.shape[-2:])
        _write(self._path(key, EMBEDDING), {"embedding": embedding, "mask": bits, "mask_size": side})

    def get(self, key: str) -> Entry:
        """Read one entry, mapped into memory; :func:`find_corruption` is what compares checksums.

        Raises:
            DamagedEntry: cut short, or gone.
        """
        parts: dict[str, Tensor] = {}
        for path in self.paths(key):
            parts.update(_read(path, check=False))
        height, width = parts["mask_size"].tolist()
        bits = np.unpackbits(parts["mask"].numpy(), count=height * width)
        taps = tuple(parts[f"tap{i}"].permute(2, 0, 1) for i in range(len(parts) - 3))
        mask = torch.from_numpy(bits).view(1, height, width).to(torch.float32)
        return Entry(parts["embedding"].permute(2, 0, 1), taps, mask)

    def prefetch(self, key: str) -> None:
        """Ask the system to bring an entry into memory beside what is being computed; where it cannot, nothing."""
        if not hasattr(os, "posix_fadvise"):
            return
        for path in self.paths(key):
            with contextlib.suppress(OSError), path.open("rb") as file:
                size = os.fstat(file.fileno()).st_size
                for start in range(0, size, READ_AHEAD):  # the system caps what one call asks for
                    os.posix_fadvise(file.fileno(), start, READ_AHEAD, os.POSIX_FADV_WILLNEED)

    def _path(self, key: str, suffix: str) -> Path:
        return self.folder / key[:2] / f"{key}{suffix}"


def entry_key(*parts: object) -> str:
    """32 hex digits of what tells one entry of a space from another: content of image and mask, view."""
    return hashlib.blake2b(json.dumps(parts, default=str).encode(), digest_size=16).hexdigest()


def _write(path: Path, tensors: dict[str, Tensor]) -> None:
    tensors = {name: tensor.cpu().contiguous() for name, tensor in tensors.items()}
    with atomic_path(path) as temporary:
        save_file(tensors, temporary, metadata={"crc32": _checksum(tensors)})


def find_corruption(path: Path) -> str | None:
    """Read all of a file and compare it with its checksum: what is wrong with it, or ``None``."""
    try:
        _read(path, check=True)
    except DamagedEntry as error:
        return str(error)
    return None


def _read(path: Path, *, check: bool) -> dict[str, Tensor]:
    try:
        with safetensors.safe_open(path, framework="pt") as file:
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
            wanted = (file.metadata() or {}).get("crc32")
    except (OSError, safetensors.SafetensorError) as error:
        raise DamagedEntry(f"{path}: {error}") from error
    if check and _checksum(tensors) != wanted:
        raise DamagedEntry(f"{path}: its bytes are not those that were written")
    return tensors


def _checksum(tensors: Mapping[str, Tensor]) -> str:
    total = 0
    for name in sorted(tensors):
        total = zlib.crc32(tensors[name].reshape(-1).view(torch.uint8).numpy().data, zlib.crc32(name.encode(), total))
    return f"{total:08x}"


def free_bytes(folder: Path) -> int:
    """Free bytes on the disk of a folder that need not exist yet."""
    return shutil.disk_usage(next(p for p in (folder, *folder.absolute().parents) if p.exists())).free


# --- looking after the folder ---------------------------------------------------------------------


@dataclass(frozen=True)
class SpaceInfo:
    """What lies in one space."""

    folder: Path
    description: dict[str, Any]
    entries: int
    size: int  # bytes
    used: float  # seconds since the epoch: when an entry was last written


def list_spaces(home: Path) -> list[SpaceInfo]:
    """Every space below a folder, the most lately written first."""
    found = []
    for path in home.glob(f"*/{DESCRIPTION}"):
        stats = [(file, file.stat()) for file in files(path.parent)]
        description = json.loads(path.read_text(encoding="utf-8"))
        entries = sum(file.name.endswith(EMBEDDING) for file, _ in stats)
        used = max((s.st_mtime for _, s in stats), default=path.stat().st_mtime)
        found.append(SpaceInfo(path.parent, description, entries, sum(s.st_size for _, s in stats), used))
    return sorted(found, key=lambda s: -s.used)


def remove_space(space: SpaceInfo) -> None:
    """Remove a space with all its entries; its description goes last."""
    for path in files(space.folder):
        path.unlink(missing_ok=True)
    shutil.rmtree(space.folder, ignore_errors=True)


def files(folder: Path) -> Iterator[Path]:
    """Every entry's files in a space's folder."""
    return (path for suffix in (EMBEDDING, TAPS) for path in sorted(folder.glob(f"??/*{suffix}")))
