"""The page over HTTP: an image comes in, prompts are answered, files go out; knows no flags and no nets.

    GET    /                             the page; /page/… its files, /samples/<n>.jpg the samples
    GET    /api/about                    the net, the limits, the samples
    POST   /api/images                   open an image: the body is the file, X-Name its name in percent code
    POST   /api/samples/<n>              open a sample
    GET    /api/images/<key>/picture     as the net sees it, to look at
    POST   /api/images/<key>/automatic   what the net's own prompts give
    POST   /api/images/<key>/predict     what these prompts give; /mask, /overlay, /prompts: the same as a file
    POST   /api/images/<key>/close       drop it

Whoever asks for anything but to look or to close must send X-Promise, which no other site's page can.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, TypeVar
from urllib.parse import unquote

from anyio import CapacityLimiter, to_thread
from numpy import uint8
from numpy.typing import NDArray
from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.middleware.trustedhost import TrustedHostMiddleware
from starlette.requests import ClientDisconnect, Request
from starlette.responses import FileResponse, JSONResponse, Response
from starlette.routing import Mount, Route
from starlette.staticfiles import StaticFiles
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from promise.app.open_images import OpenImage, OpenImages, Session
from promise.app.prompt_request import Asked, read_asked
from promise.app.responses import draw_result, encode_mask, encode_picture, encode_thumbnail, tell, write_out
from promise.app.uploads import Limits, TooLargeError, base_name, read_upload
from promise.inference.segmenter import Segmentation
from promise.runtime.errors import UserError

PAGE = Path(__file__).parent / "page"
SWEEP_SECONDS = 30.0  # between two looks for idle images
MOST_JSON = 2**16  # bytes of a request that is no file
HEADERS = {
    # The page needs nothing from elsewhere, and the browser holds it to that.
    "content-security-policy": "default-src 'self'; img-src 'self' blob: data:; object-src 'none'; base-uri 'none'; "
    "form-action 'none'; frame-ancestors 'none'",
    "x-content-type-options": "nosniff",
    "referrer-policy": "no-referrer",
    "cache-control": "no-store",
}
T = TypeVar("T")


class GoneError(UserError):
    """A key that is unknown, or whose image was dropped."""


class StrangerError(UserError):
    """A request that no page of ours sends."""


@dataclass(frozen=True)
class Sample:
    """A picture to try."""

    name: str
    picture: NDArray[uint8]  # (H, W, 3) RGB


def build_server(
    encode: Callable[[NDArray[uint8]], Session],
    *,
    about: Mapping[str, Any],
    samples: Sequence[Sample],
    limits: Limits,
    images: OpenImages,
    hosts: Sequence[str],
) -> Starlette:
    """The application that answers the requests in this file's head.

    Args:
        encode: a picture (H, W, 3) uint8 RGB → what answers prompts on it.
        about: what the page says of the net; ``automatic``: whether it prompts itself.
        samples: pictures to try.
        limits: of uploads.
        images: where open images are kept.
        hosts: names that the server is called by; ``*``: any.
    """
    desk = _Desk(encode, about=about, samples=samples, limits=limits, images=images)
    return Starlette(
        routes=[
            Route("/", lambda _: FileResponse(PAGE / "index.html")),
            Mount("/page", StaticFiles(directory=PAGE)),
            Route("/samples/{number:int}.jpg", desk.thumbnail),
            Route("/api/about", desk.about),
            Route("/api/images", desk.upload, methods=["POST"]),
            Route("/api/samples/{number:int}", desk.open_sample, methods=["POST"]),
            Route("/api/images/{key}/picture", desk.picture),
            Route("/api/images/{key}/automatic", desk.automatic, methods=["POST"]),
            Route("/api/images/{key}/predict", desk.predict, methods=["POST"]),
            Route("/api/images/{key}/mask", desk.mask, methods=["POST"]),
            Route("/api/images/{key}/overlay", desk.overlay, methods=["POST"]),
            Route("/api/images/{key}/prompts", desk.prompts, methods=["POST"]),
            Route("/api/images/{key}/close", desk.close, methods=["POST"]),
        ],
        middleware=[Middleware(TrustedHostMiddleware, allowed_hosts=list(hosts)), Middleware(_Headers)],
        exception_handlers={
            TooLargeError: partial(_refuse, 413),
            GoneError: partial(_refuse, 410),
            StrangerError: partial(_refuse, 403),
            UserError: partial(_refuse, 400),
            ClientDisconnect: partial(_refuse, 400),
        },
        lifespan=desk.lifespan,
    )


async def _refuse(status: int, _request: Request, error: Exception) -> Response:
    return JSONResponse({"error": str(error)}, status)


class _Headers:
    """Puts HEADERS on every answer."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async def with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                ours = [(name.encode(), value.encode()) for name, value in HEADERS.items()]
                message["headers"] = [*message.get("headers", []), *ours]
            await send(message)

        await self.app(scope, receive, with_headers if scope["type"] == "http" else send)


class _Desk:
    """A method a request. One image is encoded at a time and one prompt decoded, beside each other."""

    def __init__(
        self,
        encode: Callable[[NDArray[uint8]], Session],
        *,
        about: Mapping[str, Any],
        samples: Sequence[Sample],
        limits: Limits,
        images: OpenImages,
    ) -> None:
        self._encode = encode
        self._about = about
        self._samples = samples
        self._thumbnails = [encode_thumbnail(sample.picture) for sample in samples]
        self._limits = limits
        self._images = images
        self._encoding = CapacityLimiter(1)
        self._decoding = CapacityLimiter(1)

    @asynccontextmanager
    async def lifespan(self, _app: Starlette) -> AsyncIterator[None]:
        """Look for idle images as long as the server runs; at its end drop all."""

        async def sweep() -> None:
            while True:
                await asyncio.sleep(SWEEP_SECONDS)
                self._images.drop_idle()

        task = asyncio.create_task(sweep())
        try:
            yield
        finally:
            task.cancel()
            self._images.clear()

    async def about(self, _request: Request) -> Response:
        names = [sample.name for sample in self._samples]
        limits = {"bytes": self._limits.bytes, "megabytes": self._limits.megabytes}
        return JSONResponse({**self._about, "samples": names, "limits": limits})

    async def thumbnail(self, request: Request) -> Response:
        return Response(self._thumbnails[self._sample(request)], media_type="image/jpeg")

    async def upload(self, request: Request) -> Response:
        _know(request)
        name = base_name(unquote(request.headers.get("x-name", "")))
        content = await _read_body(request, self._limits.check_bytes)
        picture = await to_thread.run_sync(read_upload, content, name, self._limits, limiter=self._encoding)
        return await self._open(request, name, picture)

    async def open_sample(self, request: Request) -> Response:
        _know(request)
        sample = self._samples[self._sample(request)]
        return await self._open(request, sample.name, sample.picture)

    async def picture(self, request: Request) -> Response:
        image = self._image(request)
        return Response(await to_thread.run_sync(encode_picture, image.picture), media_type="image/jpeg")

    async def automatic(self, request: Request) -> Response:
        _know(request)
        image = self._image(request)
        return JSONResponse(await self._decode(lambda: tell(image.session.automatic())))

    async def predict(self, request: Request) -> Response:
        image, asked, _ = await self._asked(request)
        return JSONResponse(await self._decode(lambda: tell(_answer(image, asked))))

    async def mask(self, request: Request) -> Response:
        image, asked, _ = await self._asked(request)
        content = await self._decode(lambda: encode_mask(_answer(image, asked).mask))
        return Response(content, media_type="image/png")

    async def overlay(self, request: Request) -> Response:
        image, asked, given = await self._asked(request)
        opacity = given.get("opacity", 0.4)
        if not isinstance(opacity, int | float) or not 0 <= opacity <= 1:
            raise UserError(f"The opacity must lie in [0, 1], not at {opacity!r}.")
        content = await self._decode(lambda: draw_result(image.picture, _answer(image, asked), float(opacity)))
        return Response(content, media_type="image/png")

    async def prompts(self, request: Request) -> Response:
        image, asked, _ = await self._asked(request)
        return Response(write_out(image, asked.prompts, automatic=asked.automatic), media_type="application/json")

    async def close(self, request: Request) -> Response:
        self._images.close(request.path_params["key"])
        return Response(status_code=204)

    async def _open(self, request: Request, name: str, picture: NDArray[uint8]) -> Response:
        session = await to_thread.run_sync(self._encode, picture, limiter=self._encoding)
        if await request.is_disconnected():  # nobody would learn the key
            raise ClientDisconnect
        image = OpenImage(name, picture, session)
        return JSONResponse({"key": self._images.add(image), "name": name, "size": list(image.size)})

    async def _decode(self, work: Callable[[], T]) -> T:
        return await to_thread.run_sync(work, limiter=self._decoding)

    async def _asked(self, request: Request) -> tuple[OpenImage, Asked, dict[str, Any]]:
        _know(request)
        image = self._image(request)
        try:
            given = json.loads(await _read_body(request, _check_json))
        except ValueError as error:
            raise error if isinstance(error, UserError) else UserError("The request is not JSON.") from error
        return image, read_asked(given, image.size), given

    def _image(self, request: Request) -> OpenImage:
        image = self._images.get(request.path_params["key"])
        if image is None:
            raise GoneError("This image is no longer open on the server. Open it again.")
        return image

    def _sample(self, request: Request) -> int:
        number = int(request.path_params["number"])
        if number >= len(self._samples):
            raise UserError(f"There is no sample {number}.")
        return number


def _answer(image: OpenImage, asked: Asked) -> Segmentation:
    if asked.empty:
        raise UserError("There are no prompts: give a point or a box.")
    prompts = asked.prompts
    return image.session.predict(points=prompts.xy, labels=prompts.label, box=prompts.box, choice=asked.choice)


def _know(request: Request) -> None:
    if "x-promise" not in request.headers:
        raise StrangerError("The request lacks the header X-Promise.")


def _check_json(count: int) -> None:
    if count > MOST_JSON:
        raise TooLargeError(f"The request is larger than {MOST_JSON} bytes.")


async def _read_body(request: Request, check: Callable[[int], None]) -> bytes:
    """The body, given up as soon as it is too large: ``check`` is told its bytes so far and raises."""
    declared = request.headers.get("content-length", "")
    check(int(declared) if declared.isascii() and declared.isdigit() else 0)
    content = bytearray()
    async for chunk in request.stream():
        content += chunk
        check(len(content))
    return bytes(content)
