"""On-disk store of encoder features.

A *space* is a folder of entries that were computed in the same way: same weights, preprocessing and precision. Its name
is the hash of this description, so features of different SAMs are never mixed.

An *entry* holds one image (with mask and view) and is named by the hash of their content. It has one file for embedding
and mask and another for the taps; nets without a prompter read and write only the first. Taps at half the resolution
and the image itself, which some prompters read, have files of their own. Files are written atomically: any number of
processes can fill a space, and a killed process loses only the entry that it was writing.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import shutil
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import safetensors
import torch
from safetensors.torch import save_file
from torch import Tensor

from promise.runtime.files import atomic_path, write_json
from promise.runtime.reading import expand_home
from promise.types import Encoded

HOME_VARIABLE = "PROMISE_FEATURES"
FORMAT = 1  # version of the file format, part of the description of a space
DESCRIPTION = "space.json"
READ_AHEAD = 2**17  # bytes
EMBEDDING = ".embedding.safetensors"
IMAGE = ".image.safetensors"
TAPS = {1: ".taps.safetensors", 2: ".taps-half.safetensors"}  # by the prompter's tap_pooling


def cache_folder(folder: str | Path | None = None) -> Path | None:
    """Return the folder of all spaces; ``None`` if the user has no home folder and no other folder is set.

    Args:
        folder: the folder; default: ``$PROMISE_FEATURES``, else ``promise/features`` in the cache folder of the user.
    """
    if folder:
        return expand_home(folder)
    return _default_folder()


def _default_folder() -> Path | None:
    configured = os.environ.get(HOME_VARIABLE)
    if configured:
        return expand_home(configured)
    home = os.environ.get("XDG_CACHE_HOME")
    try:
        return (Path(home) if home else Path.home() / ".cache") / "promise" / "features"
    except RuntimeError:  # no HOME, and no entry in the system's table of users
        return None


@dataclass(frozen=True)
class Entry:
    """Features and mask of one image, memory-mapped."""

    embedding: Tensor  # (256, E, E), channels-last in memory
    taps: tuple[Tensor, ...]  # each (C, e, e), channels-last, shallow to deep; () when the space is read without them
    mask: Tensor  # (1, S, S) float32, 0 or 1
    image: Tensor | None = None  # (3, 4E, 4E), channels-last, if the space is read with images

    def map(self, change: Callable[[Tensor], Tensor]) -> Entry:
        """Return an entry with a function applied to every map, and the mask unchanged."""
        image = None if self.image is None else change(self.image)
        return replace(self, embedding=change(self.embedding), taps=tuple(map(change, self.taps)), image=image)

    def as_batch(self) -> Encoded:
        """The features as a batch of one."""
        image = None if self.image is None else self.image[None]
        return Encoded(self.embedding[None], tuple(tap[None] for tap in self.taps), image=image)


class CorruptEntry(Exception):
    """A file of an entry is missing, truncated, or differs from its checksum."""


class FeatureSpace:
    """Entries that were computed in the same way."""

    def __init__(
        self, home: Path, description: Mapping[str, Any], *, taps: bool, tap_pooling: int = 1, image: bool = False
    ) -> None:
        """Open a space. Nothing is written before the first entry.

        Args:
            home: folder of all spaces.
            description: everything besides the image that determines its features: weights of SAM, preprocessing,
                precision. JSON values only.
            taps: whether entries are read and written with taps.
            tap_pooling: that of the net: 1, or 2 for taps at half the resolution.
            image: whether entries are read and written with images.
        """
        self.description = {"format": FORMAT, **description}
        text = json.dumps(self.description, sort_keys=True)
        self.folder = home / hashlib.sha256(text.encode()).hexdigest()[:16]
        self.taps = TAPS[tap_pooling] if taps else None
        self.image = image
        self.suffixes = (EMBEDDING, *((self.taps,) if self.taps else ()), *((IMAGE,) if image else ()))

    def missing(self, keys: Iterable[str]) -> list[str]:
        """Return the keys whose entry does not exist, without duplicates."""
        return [key for key in dict.fromkeys(keys) if not all(path.is_file() for path in self.paths(key))]

    def paths(self, key: str) -> tuple[Path, ...]:
        """Files of one entry."""
        return tuple(self._path(key, suffix) for suffix in self.suffixes)

    def put(self, key: str, encoded: Encoded, mask: Tensor) -> None:
        """Write one entry.

        Args:
            key: result of :func:`entry_key`.
            encoded: features of one image, with batch axis.
            mask: (1, S, S), 0 or 1.
        """
        if not (self.folder / DESCRIPTION).is_file():
            write_json(self.folder / DESCRIPTION, self.description)
        if self.taps:
            # Before the embedding, so that an entry with an embedding is complete.
            _write(
                self._path(key, self.taps), {f"tap{i}": tap[0].permute(1, 2, 0) for i, tap in enumerate(encoded.taps)}
            )
        if self.image:
            assert encoded.image is not None
            _write(self._path(key, IMAGE), {"image": encoded.image[0].permute(1, 2, 0)})
        embedding = encoded.embedding[0].permute(1, 2, 0)  # (E, E, C), the order in memory
        bits = torch.from_numpy(np.packbits(mask.numpy().astype(bool)))
        side = torch.tensor(mask.shape[-2:])
        _write(self._path(key, EMBEDDING), {"embedding": embedding, "mask": bits, "mask_size": side})

    def get(self, key: str) -> Entry:
        """Read one entry, memory-mapped. Checksums are compared by :func:`find_corruption` only.

        Raises:
            CorruptEntry: a file is truncated or missing.
        """
        parts: dict[str, Tensor] = {}
        for path in self.paths(key):
            parts.update(_read(path, check=False))
        height, width = parts["mask_size"].tolist()
        bits = np.unpackbits(parts["mask"].numpy(), count=height * width)
        count = sum(name.startswith("tap") for name in parts)
        taps = tuple(parts[f"tap{i}"].permute(2, 0, 1) for i in range(count))
        mask = torch.from_numpy(bits).view(1, height, width).to(torch.float32)
        image = parts["image"].permute(2, 0, 1) if self.image else None
        return Entry(parts["embedding"].permute(2, 0, 1), taps, mask, image)

    def prefetch(self, key: str) -> None:
        """Let the system read an entry into memory in the background; no effect where this is not supported."""
        if not hasattr(os, "posix_fadvise"):
            return
        for path in self.paths(key):
            with contextlib.suppress(OSError), path.open("rb") as file:
                size = os.fstat(file.fileno()).st_size
                for start in range(0, size, READ_AHEAD):  # the system limits the size of one request
                    os.posix_fadvise(file.fileno(), start, READ_AHEAD, os.POSIX_FADV_WILLNEED)

    def _path(self, key: str, suffix: str) -> Path:
        return self.folder / key[:2] / f"{key}{suffix}"


def entry_key(*parts: object) -> str:
    """Return 32 hexadecimal digits that identify an entry in its space.

    Args:
        parts: content hashes of image and mask, and the view; JSON values.
    """
    return hashlib.blake2b(json.dumps(parts, default=str).encode(), digest_size=16).hexdigest()


def _write(path: Path, tensors: dict[str, Tensor]) -> None:
    tensors = {name: tensor.cpu().contiguous() for name, tensor in tensors.items()}
    with atomic_path(path) as temporary:
        save_file(tensors, temporary, metadata={"crc32": _checksum(tensors)})


def find_corruption(path: Path) -> str | None:
    """Read a whole file and compare its checksum. Return a description of the fault, or ``None``."""
    try:
        _read(path, check=True)
    except CorruptEntry as error:
        return str(error)
    return None


def _read(path: Path, *, check: bool) -> dict[str, Tensor]:
    try:
        with safetensors.safe_open(path, framework="pt") as file:
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
            expected = (file.metadata() or {}).get("crc32")
    except (OSError, safetensors.SafetensorError) as error:
        raise CorruptEntry(f"{path}: {error}") from error
    if check and _checksum(tensors) != expected:
        raise CorruptEntry(f"{path}: the checksum is wrong")
    return tensors


def _checksum(tensors: Mapping[str, Tensor]) -> str:
    total = 0
    for name in sorted(tensors):
        total = zlib.crc32(tensors[name].reshape(-1).view(torch.uint8).numpy().data, zlib.crc32(name.encode(), total))
    return f"{total:08x}"


def free_bytes(folder: Path) -> int:
    """Free space in bytes on the disk of a folder, which may not exist yet."""
    return shutil.disk_usage(next(p for p in (folder, *folder.absolute().parents) if p.exists())).free


# --- maintenance ----------------------------------------------------------------------------------


@dataclass(frozen=True)
class SpaceInfo:
    """Summary of one space."""

    folder: Path
    description: dict[str, Any]
    entries: int
    size: int  # bytes
    used: float  # Unix time of the last write


def list_spaces(home: Path) -> list[SpaceInfo]:
    """Return all spaces in a folder, the most recently written first."""
    found = []
    for path in home.glob(f"*/{DESCRIPTION}"):
        stats = [(file, file.stat()) for file in files(path.parent)]
        description = json.loads(path.read_text(encoding="utf-8"))
        entries = sum(file.name.endswith(EMBEDDING) for file, _ in stats)
        used = max((s.st_mtime for _, s in stats), default=path.stat().st_mtime)
        found.append(SpaceInfo(path.parent, description, entries, sum(s.st_size for _, s in stats), used))
    return sorted(found, key=lambda s: -s.used)


def remove_space(space: SpaceInfo) -> None:
    """Remove a space with all its entries; the description is removed last."""
    for path in files(space.folder):
        path.unlink(missing_ok=True)
    shutil.rmtree(space.folder, ignore_errors=True)


def files(folder: Path) -> Iterator[Path]:
    """Files of all entries in the folder of a space."""
    return (path for suffix in (EMBEDDING, *TAPS.values(), IMAGE) for path in sorted(folder.glob(f"??/*{suffix}")))
