"""Weight files of backbones: finding, downloading, verifying, reading and hashing them."""

from __future__ import annotations

import hashlib
import http.client
import logging
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from promise.runtime.errors import MissingFileError, UserError
from promise.runtime.reading import expand_home, require_file

log = logging.getLogger(__name__)

CACHE_VARIABLE = "PROMISE_CACHE"
MIRROR_VARIABLE = "PROMISE_WEIGHTS_URL"
FLOATS = (torch.float32, torch.float64, torch.float16, torch.bfloat16)  # loaded where the net has decimal numbers


@dataclass(frozen=True)
class Weights:
    """A published weight file. It is verified by its SHA-256, or by its size if the publisher provides no SHA-256."""

    file_name: str
    url: str | None = None
    sha256: str | None = None  # of the file, hex digits
    size: int | None = None  # bytes
    bundled: Callable[[], str] | None = None  # returns the path of a file that an installed package contains


def weights_setting(value: Path | str | None) -> Path | str | None:
    """Convert ``--sam-checkpoint`` for ``build_net``: ``None`` → ``"auto"``, ``random`` → ``None``, paths unchanged."""
    if value is None:
        return "auto"
    return None if value == "random" else value


def cache_folder() -> Path:
    """Folder of downloaded weights: ``$PROMISE_CACHE``, or ``checkpoints`` in the folder of torch.hub.

    Raises:
        UserError: the user has no home folder (``no-home``).
    """
    # Without a home folder, torch.hub leaves the ~ in the path: a folder of this name would be created.
    return expand_home(os.environ.get(CACHE_VARIABLE) or Path(torch.hub.get_dir()) / "checkpoints")


def local_weights(weights: Weights) -> Path | None:
    """The path of a weight file that is on this machine, bundled or cached; it is not verified."""
    if weights.bundled is not None:
        return Path(weights.bundled())
    path = cache_folder() / weights.file_name
    return path if path.is_file() else None


def find_weights(weights: Weights) -> Path:
    """The local path of a weight file: bundled, cached, or downloaded to the cache; the file is verified.

    ``$PROMISE_WEIGHTS_URL`` is the URL of a mirror: a folder that contains files of the published names.

    Raises:
        MissingFileError: the file is not on this machine and cannot be downloaded; the error contains the URL and the
            expected path (code ``missing-weights``).
        UserError: the file is not the published one (code ``not-the-published-weights``), or there is no home folder
            for the cache (``no-home``).
    """
    path = local_weights(weights)
    if path is None:
        path = cache_folder() / weights.file_name
        _download(weights, path)
    check_weights(path, weights)
    return path


def check_weights(path: Path, weights: Weights) -> None:
    """Raise ``UserError`` unless the SHA-256 of the file, or its size if no SHA-256 is known, is as published."""
    if weights.sha256 is not None:
        found, expected, kind = file_sha256(path), weights.sha256, "SHA-256"
    elif weights.size is not None:
        found, expected, kind = str(path.stat().st_size), str(weights.size), "size"
    else:
        return
    if found != expected:
        raise UserError(
            f"{path} is not the published {weights.file_name}: its {kind} is {found}, not {expected}. "
            "Delete it so that it is downloaded again, or pass your own file with --sam-checkpoint.",
            code="not-the-published-weights",
        )


def _download(weights: Weights, path: Path) -> None:
    mirror = os.environ.get(MIRROR_VARIABLE)
    url = f"{mirror.rstrip('/')}/{weights.file_name}" if mirror else weights.url
    advice = f"Download {weights.url} manually and save it as {path}, or pass a file with --sam-checkpoint."
    if url is None:
        raise MissingFileError(
            f"{path} does not exist, and {weights.file_name} has no download URL. {advice}", code="missing-weights"
        )
    path.parent.mkdir(parents=True, exist_ok=True)
    log.info("downloading %s to %s", url, path)
    try:
        # It writes to a temporary file, checks the hash, then renames: an interrupted download leaves no file.
        torch.hub.download_url_to_file(url, str(path), hash_prefix=weights.sha256)
    except (OSError, RuntimeError, ValueError, http.client.HTTPException) as error:
        raise MissingFileError(
            f"{path} does not exist, and {url} could not be downloaded ({error}). {advice}",
            code="missing-weights",
        ) from error


def file_sha256(path: Path) -> str:
    """SHA-256 of a file's bytes, as hex digits."""
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def read_state_dict(path: Path) -> dict[str, Tensor]:
    """Read the state dict of a ``.pt``/``.pth`` file with ``weights_only=True``.

    ``{"state_dict": …}`` and ``{"model": …}`` are unwrapped, and ``module.`` prefixes are removed.

    Raises:
        MissingFileError: the file does not exist (code ``missing-weights``).
        UserError: the file is damaged or contains objects other than tensors (code ``unreadable-weights``), or it
            contains no state dict (code ``not-a-state-dict``).
    """
    require_file(path, MissingFileError(f"no weight file at {path}. Is the path right?", code="missing-weights"))
    try:
        loaded = torch.load(path, map_location="cpu", weights_only=True, mmap=False)
    except Exception as error:
        raise UserError(
            f"{path} cannot be read as PyTorch weights: it is truncated, of another type, or contains objects other "
            "than tensors, which are not loaded because they could execute arbitrary code.",
            code="unreadable-weights",
        ) from error
    for key in ("state_dict", "model"):
        if isinstance(loaded, dict) and isinstance(loaded.get(key), dict):
            loaded = loaded[key]
    if not isinstance(loaded, dict) or not loaded or not all(isinstance(v, Tensor) for v in loaded.values()):
        raise UserError(f"{path} contains no state dict (a mapping from names to tensors).", code="not-a-state-dict")
    return {str(name).removeprefix("module."): value for name, value in loaded.items()}


def check_values(expected: Mapping[str, Tensor], found: Mapping[str, Tensor], *, origin: str) -> None:
    """Check that the entries of a state dict hold numbers that the net can compute with.

    Args:
        expected: the state dict of the net.
        found: the state dict of the file, with the same names.
        origin: where it comes from, for error messages.

    Raises:
        UserError: integers where the net has decimal numbers, or the reverse (code ``weights-of-another-type``), or
            NaN or infinite values (code ``non-finite-weights``).
    """
    kinds = {
        name: value.dtype
        for name, value in found.items()
        if value.dtype != expected[name].dtype and not (value.dtype in FLOATS and expected[name].dtype in FLOATS)
    }
    if kinds:
        listed = ", ".join(f"{name} ({kind})" for name, kind in list(kinds.items())[:4])
        raise UserError(
            f"{origin}: {len(kinds)} of {len(found)} entries have another data type: {listed}. Quantised checkpoints "
            "are not supported: pass the original file.",
            code="weights-of-another-type",
        )
    infinite = [name for name, value in found.items() if not value.to(expected[name].dtype).isfinite().all()]
    if infinite:
        raise UserError(
            f"{origin}: {len(infinite)} of {len(found)} entries contain NaN or infinite values: "
            f"{', '.join(infinite[:4])}. Pass an intact file, such as the checkpoint of an earlier epoch.",
            code="non-finite-weights",
        )


def state_sha256(state: dict[str, Tensor]) -> str:
    """SHA-256 of the names, types, shapes and values of a state dict; its order and device have no effect."""
    digest = hashlib.sha256()
    for name in sorted(state):
        value = state[name].detach().cpu().contiguous()
        digest.update(f"{name}|{value.dtype}|{tuple(value.shape)}|".encode())
        digest.update(value.reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()
