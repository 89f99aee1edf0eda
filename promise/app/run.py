"""Start the page: check the settings, open the port, load the net and serve."""

from __future__ import annotations

import ipaddress
import socket
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from promise import __version__
from promise.app.uploads import Limits
from promise.data.images import EXTENSIONS
from promise.data.inputs import read_input
from promise.models.bundled import NONE, read_cards
from promise.runtime.errors import MissingFileError, UserError
from promise.runtime.reading import list_folder

if TYPE_CHECKING:
    from promise.app.nets import Nets
    from promise.app.samples import Sample
    from promise.inference.segmenter import Segmenter

REQUIRED = ("starlette", "uvicorn")  # of the [app] extra
PHANTOMS, PHANTOM_SIDE, PHANTOM_SEED = 4, 256, 5  # the default samples of a checkpoint that is passed
MAX_CONNECTIONS = 256  # of browsers, which open several each
CHECKOUT = Path(__file__).parents[2]  # of the source; a wheel contains no samples


@dataclass(frozen=True)
class Serving:
    """Settings of the server."""

    ckpt: str | None = None  # None: the bundled checkpoints
    host: str = "127.0.0.1"
    port: int = 7860  # 0: any free port
    limits: Limits = field(default_factory=Limits)
    images_kept: int = 8  # largest number of open images, of all users together
    images_each: int = 4  # and of each user
    idle_minutes: float = 30.0  # without use, until an open image is removed
    samples: Path | None = None  # folder of images to list; None: the default samples


def serve(load: Callable[[str], Segmenter], serving: Serving, announce: Callable[[str], None]) -> None:
    """Serve the page until the process is interrupted.

    Args:
        load: returns the net of a checkpoint. Called after the port has been opened: at once for the checkpoint of the
            settings, on first use for bundled ones.
        serving: settings of the server.
        announce: called with the address of the page before requests are served.

    Raises:
        UserError: the extra is missing, a setting is invalid, the port is in use, samples cannot be read, or the
            checkpoint of the settings cannot be loaded.
    """
    missing = [name for name in REQUIRED if find_spec(name) is None]
    if missing:
        raise UserError(
            f"the page requires {' and '.join(missing)}. Install the extra: pip install 'promise-sam[app]'",
            code="missing-extra",
        )
    _check(serving)
    with bind(serving.host, serving.port) as listener:
        nets, samples = offer(load, serving)
        _listen(nets, listener, serving, samples, announce)


def offer(load: Callable[[str], Segmenter], serving: Serving) -> tuple[Nets, list[Sample]]:
    """The nets and the samples of the page.

    The checkpoint of the settings is loaded at once; without samples, synthetic images are listed. Without a
    checkpoint, the bundled ones are offered, and the samples are the images of ``data_format/<name>`` in the current
    folder or in the checkout; the net of this name then comes first.

    Raises:
        UserError: samples cannot be read, the checkpoint cannot be loaded, or there is none (``missing-checkpoint``).
    """
    from promise.app.nets import Net, Nets, Offer

    def load_net(ckpt: str) -> Net:
        segmenter = load(ckpt)
        return Net(segmenter.session, describe(segmenter))

    if serving.ckpt is not None:
        samples = make_samples() if serving.samples is None else read_samples(serving.samples)
        nets = Nets([Offer(Path(serving.ckpt).name, "", partial(load_net, serving.ckpt))])
        nets.load(nets.resolve(None))
        return nets, samples
    cards = read_cards()
    if not cards:
        raise UserError(f"--ckpt is missing, and there are {NONE}. Pass a checkpoint.", code="missing-checkpoint")
    first, folder = _find_samples(cards)
    folder = serving.samples or folder
    offers = [Offer(name, card.purpose, partial(load_net, name)) for name, card in cards.items()]
    nets = Nets(sorted(offers, key=lambda one: one.name != first))
    return nets, [] if folder is None else read_samples(folder)


def _find_samples(names: Iterable[str]) -> tuple[str | None, Path | None]:
    """The first name with a folder of samples, and the folder."""
    for name in names:
        for root in (Path(), CHECKOUT):
            folder = root / "data_format" / name / "images"
            if folder.is_dir():
                return name, folder
    return None, None


def _check(serving: Serving) -> None:
    errors = [
        UserError(f"{flag} must be positive, not {value:g}", code="setting-not-positive")
        for flag, value in (
            ("--max-megabytes", serving.limits.megabytes),
            ("--max-megapixels", serving.limits.megapixels),
            ("--images-kept", serving.images_kept),
            ("--images-each", serving.images_each),
            ("--idle-minutes", serving.idle_minutes),
        )
        if not value > 0
    ]
    if not 0 <= serving.port < 2**16:
        errors.append(UserError(f"--port must be in 0 to 65535, not {serving.port}", code="invalid-port"))
    if errors:
        raise UserError(f"{'; '.join(map(str, errors))}.", code="invalid-settings", errors=errors)


def bind(host: str, port: int) -> socket.socket:
    """Open a socket.

    Args:
        host: name or address of this machine.
        port: port number; 0: any free port.

    Raises:
        UserError: the port is in use, or the host is not this machine (``cannot-listen``).
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
            f"cannot listen on port {port} of {host} ({error.strerror}). Choose another --port (0: any free port) or "
            "--host.",
            code="cannot-listen",
        ) from error
    return listener


def is_private(host: str) -> bool:
    """Whether a server on this host can be reached from this machine only."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def make_samples() -> list[Sample]:
    """Synthetic images."""
    from promise.app.samples import Sample

    return [Sample(f"phantom_{i:04d}.png", partial(_make_sample, i)) for i in range(PHANTOMS)]


def read_samples(folder: Path) -> list[Sample]:
    """List the images of a folder by name.

    Raises:
        MissingFileError: the folder does not exist (``missing-samples``).
        UserError: the folder contains no images (``no-samples``).
    """
    from promise.app.samples import Sample

    if not folder.is_dir():
        raise MissingFileError(f"no folder of samples at {folder}. Check --samples.", code="missing-samples")
    paths = [path for path in list_folder(folder) if path.suffix.lower() in EXTENSIONS]
    if not paths:
        raise UserError(f"{folder} contains no images ({', '.join(EXTENSIONS)}). Check --samples.", code="no-samples")
    return [Sample(path.name, partial(_read_sample, path)) for path in paths]


def _make_sample(index: int) -> NDArray[np.uint8]:
    from promise.data.phantom import make_phantom

    return make_phantom(seed=PHANTOM_SEED, index=index, size=(PHANTOM_SIDE, PHANTOM_SIDE))[0]


def _read_sample(path: Path) -> NDArray[np.uint8]:
    """Read an image; messages name the file without its folder, which is no concern of visitors."""
    try:
        return read_input(path)
    except UserError as error:
        raise UserError(str(error).replace(str(path), path.name), code=error.code) from error


def _listen(
    nets: Nets,
    listener: socket.socket,
    serving: Serving,
    samples: Sequence[Sample],
    announce: Callable[[str], None],
) -> None:
    import uvicorn

    from promise.app.access import new_token
    from promise.app.open_images import OpenImages
    from promise.app.server import build_server

    private = is_private(serving.host)
    token = None if private else new_token()
    app = build_server(
        nets,
        samples=samples,
        limits=serving.limits,
        images=OpenImages(
            limit=serving.images_kept, limit_each=serving.images_each, idle_seconds=serving.idle_minutes * 60
        ),
        hosts=["127.0.0.1", "localhost", "[::1]", "::1"] if private else ["*"],
        token=token,
    )
    config = uvicorn.Config(
        app,
        log_level="warning",
        access_log=False,
        server_header=False,
        timeout_graceful_shutdown=3,
        limit_concurrency=MAX_CONNECTIONS,
        lifespan="on",
    )
    listener.listen(128)
    host = f"[{serving.host}]" if ":" in serving.host else serving.host
    announce(f"http://{host}:{listener.getsockname()[1]}/{'' if token is None else f'?token={token}'}")
    uvicorn.Server(config).run(sockets=[listener])


def describe(segmenter: Segmenter) -> dict[str, object]:
    """Properties of the net that the page shows or uses."""
    metadata = segmenter.metadata
    parts = (metadata.net, metadata.sam, segmenter.device, f"promise-sam {__version__}")
    return {
        "title": " · ".join(map(str, parts)),
        "automatic": not segmenter.needs_prompts,
        "lesions": segmenter.net.lesions is not None,
        "own_mask": segmenter.own_mask_index,
        "estimates": segmenter.net.quality is not None,
    }
