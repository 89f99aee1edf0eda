"""Where a backbone's weights come from: a file, a cache, a download; knows no network architecture."""

from __future__ import annotations

import hashlib
import http.client
import logging
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from promise.runtime.errors import MissingFileError, UserError

log = logging.getLogger(__name__)

CACHE_VARIABLE = "PROMISE_CACHE"
MIRROR_VARIABLE = "PROMISE_WEIGHTS_URL"


@dataclass(frozen=True)
class Weights:
    """A published weight file.

    ``sha256`` is of the file; ``None`` where the publisher gives none, then ``size`` (bytes) is all that
    can be checked. ``bundled`` gives the path of a file that an installed package ships.
    """

    file_name: str
    url: str | None = None
    sha256: str | None = None
    size: int | None = None
    bundled: Callable[[], str] | None = None


def weights_setting(given: Path | str | None) -> Path | str | None:
    """``--sam-checkpoint`` as ``build_net`` takes it: nothing → ``"auto"``, ``random`` → ``None``, a path stays."""
    if given is None:
        return "auto"
    return None if given == "random" else given


def cache_folder() -> Path:
    """Folder of downloaded weights: ``$PROMISE_CACHE`` or ``checkpoints`` in torch.hub's folder."""
    given = os.environ.get(CACHE_VARIABLE)
    return Path(given).expanduser() if given else Path(torch.hub.get_dir()) / "checkpoints"


def find_weights(weights: Weights) -> Path:
    """The weight file on this disk: bundled, cached, or downloaded to the cache and checked.

    ``$PROMISE_WEIGHTS_URL`` names a mirror: the folder's URL, to which the official file name is added.

    Raises:
        MissingFileError: when it is nowhere and cannot be fetched; names the URL and where to put the file.
        UserError: when the file is there but is not the published one.
    """
    if weights.bundled is not None:
        path = Path(weights.bundled())
        check_weights(path, weights)
        return path
    path = cache_folder() / weights.file_name
    if not path.is_file():
        _download(weights, path)
    check_weights(path, weights)
    return path


def check_weights(path: Path, weights: Weights) -> None:
    """Raise ``UserError`` unless the file is the published one, by SHA-256 or, lacking that, by size."""
    if weights.sha256 is not None:
        found, wanted, kind = file_sha256(path), weights.sha256, "SHA-256"
    elif weights.size is not None:
        found, wanted, kind = str(path.stat().st_size), str(weights.size), "size"
    else:
        return
    if found != wanted:
        raise UserError(
            f"{path} is not the published {weights.file_name}: its {kind} is {found}, not {wanted}. "
            "Delete it to have it fetched again, or pass your own file with --sam-checkpoint.",
            code="not-the-published-weights",
        )


def _download(weights: Weights, path: Path) -> None:
    mirror = os.environ.get(MIRROR_VARIABLE)
    url = f"{mirror.rstrip('/')}/{weights.file_name}" if mirror else weights.url
    advice = f"Fetch {weights.url} by hand and save it as {path}, or pass a file with --sam-checkpoint."
    if url is None:
        raise MissingFileError(
            f"{weights.file_name} is not at {path} and has no download address. {advice}", code="missing-weights"
        )
    path.parent.mkdir(parents=True, exist_ok=True)
    log.info("downloading %s to %s", url, path)
    try:
        # Writes to a temporary name, checks the hash, then renames: an interrupted download leaves nothing.
        torch.hub.download_url_to_file(url, str(path), hash_prefix=weights.sha256)
    except (OSError, RuntimeError, ValueError, http.client.HTTPException) as error:
        raise MissingFileError(
            f"{weights.file_name} is not at {path} and {url} could not be fetched ({error}). {advice}",
            code="missing-weights",
        ) from error


def file_sha256(path: Path) -> str:
    """SHA-256 of a file's bytes, as hex digits."""
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def read_state_dict(path: Path) -> dict[str, Tensor]:
    """The state dict in a foreign ``.pt``/``.pth`` file, read with ``weights_only=True``.

    Unwraps ``{"state_dict": …}`` and ``{"model": …}`` and strips ``module.`` prefixes.

    Raises:
        MissingFileError: no such file.
        UserError: the file is no state dict, or holds more than tensors.
    """
    if not path.is_file():
        raise MissingFileError(f"no weight file at {path}. Is the path right?", code="missing-weights")
    try:
        loaded = torch.load(path, map_location="cpu", weights_only=True, mmap=False)
    except Exception as error:
        raise UserError(
            f"{path} cannot be read as PyTorch weights: it is cut off, of another kind, or holds more than tensors, "
            "which is not loaded since it could run any code.",
            code="unreadable-weights",
        ) from error
    for key in ("state_dict", "model"):
        if isinstance(loaded, dict) and isinstance(loaded.get(key), dict):
            loaded = loaded[key]
    if not isinstance(loaded, dict) or not loaded or not all(isinstance(v, Tensor) for v in loaded.values()):
        raise UserError(f"{path} holds no state dict (a mapping from names to tensors).", code="not-a-state-dict")
    return {str(name).removeprefix("module."): value for name, value in loaded.items()}


def state_sha256(state: dict[str, Tensor]) -> str:
    """SHA-256 over the names, types, shapes and bytes of a state dict, whatever its order or device."""
    digest = hashlib.sha256()
    for name in sorted(state):
        value = state[name].detach().cpu().contiguous()
        digest.update(f"{name}|{value.dtype}|{tuple(value.shape)}|".encode())
        digest.update(value.reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()
