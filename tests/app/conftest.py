"""A served page with a tiny net, and Chromium to test it."""

from __future__ import annotations

import shutil
import socket
import threading
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from promise.app.uploads import Limits

FLAGS = [
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]
LIMITS = Limits(megabytes=0.5, megapixels=0.04)  # far above a synthetic image of 64 pixels


@pytest.fixture(scope="session")
def ckpt(build: Callable[..., Any], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint of the tiny net."""
    from promise.models.checkpoint import Metadata, save

    net = build("APM_IPS_resnet", num_points=4)
    path = tmp_path_factory.mktemp("app") / "best.safetensors"
    save(net, path, Metadata("APM_IPS_resnet", "tiny_vit", 4, net.sam.weights_sha256(), seed=0))
    return path


@pytest.fixture(scope="session")
def segmenter(ckpt: Path) -> Any:
    """The tiny net, loaded with the public API."""
    import promise

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)  # its SAM is random
        return promise.load(ckpt, device="cpu", precision="fp32")


@pytest.fixture(scope="session")
def served(segmenter: Any, phantoms: Path) -> Iterator[tuple[str, Any]]:
    """The address of the page, and the open images of the server."""
    pytest.importorskip("starlette", reason="needs the [app] extra")
    uvicorn = pytest.importorskip("uvicorn", reason="needs the [app] extra")
    from promise.app.open_images import OpenImages
    from promise.app.run import bind, describe, read_samples
    from promise.app.server import build_server

    images = OpenImages(limit=8, idle_seconds=600)
    app = build_server(
        segmenter.session,
        about=describe(segmenter),
        samples=read_samples(phantoms.parent / "images"),
        limits=LIMITS,
        images=images,
        hosts=["127.0.0.1"],
    )
    server = uvicorn.Server(uvicorn.Config(app, log_level="warning", lifespan="on"))
    listener: socket.socket = bind("127.0.0.1", 0)
    listener.listen()
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]})
    thread.start()
    yield f"http://127.0.0.1:{listener.getsockname()[1]}", images
    server.should_exit = True
    thread.join(30)
    listener.close()
    assert len(images) == 0  # removed when the server stops


@pytest.fixture(scope="session")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    """Headless Chromium with a temporary profile."""
    playwright = pytest.importorskip("playwright.sync_api", reason="needs playwright, of the [dev] extra")
    program = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    if program is None:
        pytest.skip("no Chromium on this machine; on Debian: apt-get install chromium")
    with playwright.sync_playwright() as driver:  # launch() creates an empty profile
        chromium = driver.chromium.launch(executable_path=program, args=FLAGS)
        yield chromium
        chromium.close()
