"""Binds, loads and serves: a checkpoint and settings → a page on a port; knows no flags and prints nothing."""

from __future__ import annotations

import ipaddress
import socket
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

from promise import __version__
from promise.app.uploads import Limits
from promise.data.images import EXTENSIONS
from promise.data.inputs import read_picture
from promise.runtime.errors import MissingFileError, UserError

if TYPE_CHECKING:
    from promise.app.server import Sample
    from promise.inference.segmenter import Segmenter

NEEDED = ("starlette", "uvicorn")  # of the [app] extra
MOST_SAMPLES = 12
PHANTOMS, PHANTOM_SIDE, PHANTOM_SEED = 4, 256, 5  # the samples where none are given


@dataclass(frozen=True)
class Serving:
    """How the page is served."""

    host: str = "127.0.0.1"
    port: int = 7860  # 0: a free one
    limits: Limits = field(default_factory=Limits)
    images_kept: int = 8  # open at once, over all users
    idle_minutes: float = 30.0  # until an image that nobody touches is dropped
    samples: Path | None = None  # folder of pictures; None: synthetic ones


def serve(load: Callable[[], Segmenter], serving: Serving, announce: Callable[[str], None]) -> None:
    """Serve until interrupted.

    Args:
        load: gives the net; called when the port is ours.
        serving: where and within which limits.
        announce: told the page's address when it can be opened.

    Raises:
        UserError: the extra is missing, the port is taken, a limit is no limit, samples that cannot be read.
    """
    missing = [name for name in NEEDED if find_spec(name) is None]
    if missing:
        raise UserError(f"the page needs {' and '.join(missing)}. Install the extra: pip install 'promise-sam[app]'")
    _check(serving)
    with bind(serving.host, serving.port) as listener:
        samples = read_samples(serving.samples)
        _listen(load(), listener, serving, samples, announce)


def _check(serving: Serving) -> None:
    faults = [
        f"{flag} must be positive, not {value:g}"
        for flag, value in (
            ("--max-megabytes", serving.limits.megabytes),
            ("--max-megapixels", serving.limits.megapixels),
            ("--images-kept", serving.images_kept),
            ("--idle-minutes", serving.idle_minutes),
        )
        if not value > 0
    ]
    faults += [] if 0 <= serving.port < 2**16 else [f"--port must lie in 0 to 65535, not at {serving.port}"]
    if faults:
        raise UserError(f"{'; '.join(faults)}.")


def bind(host: str, port: int) -> socket.socket:
    """A socket on a host's port.

    Raises:
        UserError: the port is taken, or the host is none of this machine's.
    """
    try:
        family = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0][0]
        listener = socket.socket(family, socket.SOCK_STREAM)
        try:
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            listener.bind((host, port))
        except OSError:
            listener.close()
            raise
    except OSError as error:
        raise UserError(
            f"cannot listen on port {port} of {host} ({error.strerror}). Give another --port (0: a free one) or --host."
        ) from error
    return listener


def is_private(host: str) -> bool:
    """Whether only this machine can reach what is served on a host."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def read_samples(folder: Path | None) -> list[Sample]:
    """The first pictures of a folder, or synthetic ones.

    Raises:
        MissingFileError: no such folder.
        UserError: a folder without pictures, or one that cannot be read.
    """
    from promise.app.server import Sample

    if folder is None:
        from promise.data.phantom import make_phantom

        size = (PHANTOM_SIDE, PHANTOM_SIDE)
        pictures = [make_phantom(seed=PHANTOM_SEED, index=i, size=size)[0] for i in range(PHANTOMS)]
        return [Sample(f"phantom_{i:04d}.png", picture) for i, picture in enumerate(pictures)]
    if not folder.is_dir():
        raise MissingFileError(f"no folder of samples at {folder}. Is --samples right?")
    paths = sorted(path for path in folder.iterdir() if path.suffix.lower() in EXTENSIONS)[:MOST_SAMPLES]
    if not paths:
        raise UserError(f"{folder} holds no pictures ({', '.join(EXTENSIONS)}). Is --samples right?")
    return [Sample(path.name, read_picture(path)) for path in paths]


def _listen(
    segmenter: Segmenter,
    listener: socket.socket,
    serving: Serving,
    samples: Sequence[Sample],
    announce: Callable[[str], None],
) -> None:
    import uvicorn

    from promise.app.open_images import OpenImages
    from promise.app.server import build_server

    private = is_private(serving.host)
    app = build_server(
        segmenter.session,
        about=describe(segmenter),
        samples=samples,
        limits=serving.limits,
        images=OpenImages(limit=serving.images_kept, idle_seconds=serving.idle_minutes * 60),
        hosts=["127.0.0.1", "localhost", "[::1]", "::1"] if private else ["*"],
    )
    config = uvicorn.Config(
        app, log_level="warning", access_log=False, server_header=False, timeout_graceful_shutdown=3, lifespan="on"
    )
    listener.listen(128)
    host = f"[{serving.host}]" if ":" in serving.host else serving.host
    announce(f"http://{host}:{listener.getsockname()[1]}/")
    uvicorn.Server(config).run(sockets=[listener])


def describe(segmenter: Segmenter) -> dict[str, object]:
    """What the page says of a net."""
    told = segmenter.metadata
    words = (told.net, told.sam, segmenter.device, f"promise-sam {__version__}")
    return {"title": " · ".join(str(word) for word in words), "automatic": not segmenter.needs_prompts}
