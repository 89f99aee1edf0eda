"""A served page with a tiny net, and Chromium to test it."""

from __future__ import annotations

import contextlib
import json
import shutil
import socket
import threading
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
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
READY = "#stage[data-state=ready]"
LIMITS = Limits(megabytes=0.5, megapixels=0.04)  # far above a synthetic image of 64 pixels


class Page:
    """A page, with methods for the actions of a user."""

    def __init__(self, page: Any) -> None:
        self.page = page

    def open(self, path: Path) -> None:
        self.page.set_input_files("#file", path)
        self.ready()
        assert self.text("#status").startswith(path.name)

    def ready(self) -> None:
        self.page.wait_for_selector(READY)

    def position(self, x: float, y: float) -> tuple[float, float]:
        """The position of a pixel of the image in the window."""
        frame = self.page.locator("#image").bounding_box()
        zoom = frame["width"] / self.page.evaluate("document.querySelector('#image').naturalWidth")
        return frame["x"] + (x + 0.5) * zoom, frame["y"] + (y + 0.5) * zoom

    def click(self, x: float, y: float, **options: Any) -> None:
        self.page.mouse.move(*self.position(x, y))
        self.page.mouse.down(**options)
        self.page.mouse.up(**options)
        self.ready()

    def drag(self, start: tuple[float, float], end: tuple[float, float]) -> None:
        self.page.mouse.move(*self.position(*start))
        self.page.mouse.down()
        self.page.mouse.move(*self.position(*end), steps=4)
        self.page.mouse.up()
        self.ready()

    def press(self, keys: str) -> None:
        self.page.keyboard.press(keys)
        self.ready()

    def button(self, name: str) -> None:
        self.page.click(name)
        self.ready()

    @property
    def mask(self) -> np.ndarray:
        """The mask that the page shows, (H, W) bool."""
        height, width, alpha = self.page.evaluate(
            """() => {
                const canvas = document.querySelector("#mask");
                const { data } = canvas.getContext("2d").getImageData(0, 0, canvas.width, canvas.height);
                return [canvas.height, canvas.width, Array.from(data).filter((_, i) => i % 4 === 3)];
            }"""
        )
        return np.array(alpha, np.uint8).reshape(height, width) > 0

    @property
    def points(self) -> tuple[int, int]:
        """Number of positive and negative points."""
        return self.page.locator("#marks .positive").count(), self.page.locator("#marks .negative").count()

    def text(self, name: str) -> str:
        return self.page.locator(name).inner_text()

    def prompts(self) -> dict[str, Any]:
        """The entry of the image in the downloaded prompts file."""
        return next(
            iter(json.loads(self.download("#save-prompts").read_text())["draws"][0]["images"]["images"].values())
        )

    def download(self, button: str) -> Path:
        with self.page.expect_download() as waiting:
            self.page.click(button)
        self.name = waiting.value.suggested_filename
        return Path(waiting.value.path())

    def overflowing(self) -> list[str]:
        """Elements that reach out of the window or of their card."""
        return self.page.evaluate(
            """() => [...document.querySelectorAll("header *, .tools *, .steps *, .thumbnails, .side *")]
                .filter((e) => e.offsetParent && !e.closest(".unseen")).map((e) => [e, e.getBoundingClientRect()])
                .filter(([e, r]) => r.right > innerWidth + 0.5 || r.left < -0.5
                    || (e.closest(".card") && r.right > e.closest(".card").getBoundingClientRect().right + 0.5))
                .map(([e]) => e.outerHTML.slice(0, 80))"""
        )

    @property
    def samples(self) -> list[str]:
        """File names of the samples in the present order."""
        return self.page.locator("#thumbnails img").evaluate_all("all => all.map((image) => image.alt)")


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
    return _load(ckpt)


def _load(ckpt: Path) -> Any:
    import promise

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)  # its SAM is random
        return promise.load(ckpt, device="cpu", precision="fp32")


@pytest.fixture(scope="session")
def lesion_ckpt(save_lesion_net: Callable[..., Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint of a tiny net that finds 0 to 3 lesions; their prompts are a box and four points each."""
    return save_lesion_net(tmp_path_factory.mktemp("app") / "lesions.safetensors", prompts="box+points")


@pytest.fixture(scope="session")
def lesion_segmenter(lesion_ckpt: Path) -> Any:
    """The tiny net that finds lesions."""
    return _load(lesion_ckpt)


@pytest.fixture(scope="session")
def served(segmenter: Any, phantoms: Path) -> Iterator[tuple[str, Any]]:
    """The address of the page, and the open images of the server."""
    with _serve(segmenter, phantoms.parent / "images") as found:
        yield found


@pytest.fixture(scope="session")
def served_lesions(lesion_segmenter: Any, phantoms: Path) -> Iterator[tuple[str, Any]]:
    """The page of a net that finds lesions."""
    with _serve(lesion_segmenter, phantoms.parent / "images") as found:
        yield found


@pytest.fixture(scope="session")
def estimating_segmenter(save_lesion_net: Callable[..., Path], tmp_path_factory: pytest.TempPathFactory) -> Any:
    """The tiny net that finds lesions, with an estimate of its IoU that differs between the phantoms."""
    from promise.models.quality import FEATURES, QualityEstimate

    weights = {**dict.fromkeys(FEATURES, 0.0), "probability_inside": 4.0}
    path = tmp_path_factory.mktemp("app") / "estimates.safetensors"
    save_lesion_net(path, prompts="box+points", quality=QualityEstimate(weights, -2.26, 30, 0.5, 0.125))
    return _load(path)


@pytest.fixture(scope="session")
def served_estimates(estimating_segmenter: Any, phantoms: Path) -> Iterator[tuple[str, Any]]:
    """The page of a net with a learned estimate of its IoU."""
    with _serve(estimating_segmenter, phantoms.parent / "images") as found:
        yield found


@pytest.fixture
def serve_folder(segmenter: Any) -> Callable[..., Any]:
    """A context manager that serves the page of the tiny net with the samples of a folder."""
    return lambda folder: _serve(segmenter, folder)


@pytest.fixture
def serve_sessions() -> Callable[..., Any]:
    """A context manager that serves sessions of an encoder, properties of its net, and samples."""
    return _serve_sessions


@pytest.fixture(scope="session")
def serve_nets() -> Callable[..., Any]:
    """A context manager that serves nets and samples."""
    return _serve_nets


def _serve(segmenter: Any, folder: Path) -> Any:
    from promise.app.run import describe, read_samples

    return _serve_sessions(segmenter.session, describe(segmenter), read_samples(folder))


def _serve_sessions(encode: Callable[..., Any], about: dict[str, Any], samples: Any, **access: Any) -> Any:
    from promise.app.nets import Net, Nets, Offer

    nets = Nets([Offer("one", "", lambda: Net(encode, about))])
    nets.load("one")
    return _serve_nets(nets, samples, **access)


@contextlib.contextmanager
def _serve_nets(nets: Any, samples: Any, **access: Any) -> Iterator[tuple[str, Any]]:
    pytest.importorskip("starlette", reason="needs the [app] extra")
    uvicorn = pytest.importorskip("uvicorn", reason="needs the [app] extra")
    from promise.app.open_images import OpenImages
    from promise.app.run import bind
    from promise.app.server import build_server

    images = OpenImages(limit=8, limit_each=8, idle_seconds=600)
    app = build_server(
        nets,
        samples=samples,
        limits=LIMITS,
        images=images,
        hosts=["127.0.0.1"],
        **access,
    )
    server = uvicorn.Server(uvicorn.Config(app, log_level="warning", lifespan="on"))
    listener: socket.socket = bind("127.0.0.1", 0)
    listener.listen()
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]})
    thread.start()
    try:
        yield f"http://127.0.0.1:{listener.getsockname()[1]}", images
    finally:
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


@pytest.fixture
def failures() -> Iterator[list[str]]:
    """Script errors, and requests to other sites; there must be none at the end of a test."""
    found: list[str] = []
    yield found
    assert found == []


@pytest.fixture(scope="session")
def open_page() -> Callable[..., Page]:
    """A function that opens the page at an address in a tab, and records failures."""
    return _open_page


def _open_page(page: Any, address: str, failures: list[str]) -> Page:
    page.set_default_timeout(30_000)
    page.on("pageerror", lambda error: failures.append(str(error)))
    page.on("request", lambda r: None if r.url.startswith((address, f"blob:{address}")) else failures.append(r.url))
    page.goto(address)
    page.wait_for_selector("#stage[data-state=empty]")
    return Page(page)
