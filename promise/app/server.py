"""The HTTP server of the page.

    GET    /                             the page; its files are /page/…, the samples /samples/<n>.jpg
    GET    /api/about                    the nets, limits, names of the samples
    GET    /api/estimates?after=<n>      estimated IoU of the samples' masks, without the first n; complete in the end
    POST   /api/images                   open an image: the body is the file, the header X-Name its percent-encoded name
    POST   /api/samples/<n>              open a sample
    GET    /api/images/<key>/picture     the image as a JPEG
    POST   /api/images/<key>/automatic   segment with the net's own prompts
    POST   /api/images/<key>/predict     segment with the prompts in the body, and correct the mask with its clicks
    POST   /api/images/<key>/mask        the same as a PNG; /overlay: drawn on the image; /prompts: a prompts file
    POST   /api/images/<key>/close       close the image

Estimates and opened images are those of the net of the query ``net``, or of the first one. A net is loaded when its
first image is opened. Every POST except close requires the header X-Promise, which pages of other sites cannot send.
Requests beyond a bounded number are answered with 503 and can be repeated. An error is JSON with ``error``, a message,
and ``codes``.
"""

from __future__ import annotations

import asyncio
import reprlib
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, TypeAlias, TypeVar
from urllib.parse import unquote

import numpy as np
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

from promise.app.access import Access, visitor_of
from promise.app.nets import Nets
from promise.app.open_images import OpenImage, OpenImages
from promise.app.prompt_request import PromptRequest, read_prompt_request
from promise.app.responses import (
    draw_result,
    encode_image,
    encode_mask,
    prompts_file,
    segmentation_to_dict,
)
from promise.app.samples import Sample, Samples
from promise.app.uploads import Limits, TooLargeError, base_name, read_upload
from promise.inference.segmentation import Segmentation
from promise.prompts.sets import ImagePrompts, PromptSet
from promise.runtime.errors import UserError
from promise.runtime.reading import parse_json

PAGE = Path(__file__).parent / "page"
SWEEP_SECONDS = 30.0  # between two removals of idle images
IDLE_SECONDS = 1.0  # without an image or prompts of a user, until the mask of a sample is estimated
MAX_JSON = 2**18  # bytes of a JSON request: MAX_IMAGE_POINTS fit
MAX_OPENING = 8  # images that are uploaded, decoded or encoded at a time
MAX_PROMPTING = 32  # prompts that are decoded or wait for it
READ_SECONDS = 120.0  # for the body of a request
T = TypeVar("T")
Endpoint: TypeAlias = Callable[[Request], Awaitable[Response]]


class GoneError(UserError):
    """The key is unknown, or its image has been removed."""


class ForbiddenError(UserError):
    """The request does not come from the page."""


class BusyError(UserError):
    """Too many requests are in progress."""


class SlowError(UserError):
    """The body of the request does not arrive."""


def build_server(
    nets: Nets,
    *,
    samples: Sequence[Sample],
    limits: Limits,
    images: OpenImages,
    hosts: Sequence[str],
    token: str | None = None,
) -> Starlette:
    """Build the application for the requests that the docstring of this module lists.

    Args:
        nets: the nets. If one has a learned estimate of the IoU, it is computed for all samples while no user works.
        samples: sample images.
        limits: limits of uploads.
        images: store of open images.
        hosts: accepted values of the header Host; ``*``: any.
        token: what every request must contain; ``None``: nothing. See :class:`promise.app.access.Access`.
    """
    opening, prompting = _Queue(MAX_OPENING), _Queue(MAX_PROMPTING)
    endpoints = _Endpoints(nets, samples=samples, limits=limits, images=images)
    return Starlette(
        routes=[
            Route("/", lambda _: FileResponse(PAGE / "index.html")),
            Mount("/page", StaticFiles(directory=PAGE)),
            Route("/samples/{number}.jpg", endpoints.thumbnail),
            Route("/api/about", endpoints.about),
            Route("/api/estimates", endpoints.estimates),
            Route("/api/images", opening(endpoints.upload), methods=["POST"]),
            Route("/api/samples/{number}", opening(endpoints.open_sample), methods=["POST"]),
            Route("/api/images/{key}/picture", endpoints.picture),
            Route("/api/images/{key}/automatic", prompting(endpoints.automatic), methods=["POST"]),
            Route("/api/images/{key}/predict", prompting(endpoints.predict), methods=["POST"]),
            Route("/api/images/{key}/mask", prompting(endpoints.mask), methods=["POST"]),
            Route("/api/images/{key}/overlay", prompting(endpoints.overlay), methods=["POST"]),
            Route("/api/images/{key}/prompts", prompting(endpoints.prompts), methods=["POST"]),
            Route("/api/images/{key}/close", endpoints.close, methods=["POST"]),
        ],
        middleware=[Middleware(TrustedHostMiddleware, allowed_hosts=list(hosts)), Middleware(Access, token)],
        exception_handlers={
            TooLargeError: partial(_error_response, 413),
            GoneError: partial(_error_response, 410),
            ForbiddenError: partial(_error_response, 403),
            SlowError: partial(_error_response, 408),
            BusyError: partial(_error_response, 503),
            UserError: partial(_error_response, 400),
            ClientDisconnect: partial(_error_response, 400),
        },
        lifespan=endpoints.lifespan,
    )


async def _error_response(status: int, _request: Request, error: Exception) -> Response:
    codes = list(error.codes) if isinstance(error, UserError) else []
    headers = {"retry-after": "1"} if status == 503 else None
    return JSONResponse({"error": str(error), "codes": codes}, status, headers)


class _Queue:
    """A bounded number of requests at a time; others are refused, so that neither memory nor waiting times grow."""

    def __init__(self, limit: int) -> None:
        self._free = limit

    def __call__(self, endpoint: Endpoint) -> Endpoint:
        async def handle(request: Request) -> Response:
            if not self._free:
                raise BusyError("The server is busy. Try again in a moment.", code="server-busy")
            self._free -= 1
            try:
                return await endpoint(request)
            finally:
                self._free += 1

        return handle


class _Endpoints:
    """One method per route.

    One image is encoded at a time and, concurrently, one prompt is decoded. Concurrently with both, but only started
    while no user works, one sample is segmented to estimate its quality: users do not wait for it.
    """

    def __init__(
        self,
        nets: Nets,
        *,
        samples: Sequence[Sample],
        limits: Limits,
        images: OpenImages,
    ) -> None:
        self._nets = nets
        self._samples = Samples(samples)
        self._limits = limits
        self._images = images
        self._encoding = CapacityLimiter(1)
        self._decoding = CapacityLimiter(1)
        self._reading = CapacityLimiter(1)  # of images to display
        self._working = 0  # users' images and prompts in progress
        self._last_work = time.monotonic()

    @asynccontextmanager
    async def lifespan(self, _app: Starlette) -> AsyncIterator[None]:
        """Remove idle images and estimate the samples while the server runs; remove all images when it stops."""

        async def sweep() -> None:
            while True:
                await asyncio.sleep(SWEEP_SECONDS)
                self._images.remove_idle()

        tasks = [asyncio.create_task(sweep()), asyncio.create_task(self._estimate_samples())]
        try:
            yield
        finally:
            for task in tasks:
                task.cancel()
            self._images.clear()

    async def _estimate_samples(self) -> None:
        while True:
            work = self._next_estimate()
            if work is None or self._working or time.monotonic() - self._last_work < IDLE_SECONDS:
                await asyncio.sleep(IDLE_SECONDS / 4)
            else:
                await to_thread.run_sync(work, abandon_on_cancel=True)

    def _next_estimate(self) -> Callable[[], None] | None:
        """The next estimate, first of the net that was used last; ``None``: all are complete."""
        for name, net in self._nets.loaded():
            done = len(self._samples.estimates(name))
            if net.about["estimates"] and done < len(self._samples):
                return partial(self._samples.estimate, done, name, net.encode)
        return None

    async def about(self, _request: Request) -> Response:
        limits = {"bytes": self._limits.bytes, "megabytes": self._limits.megabytes}
        return JSONResponse({"nets": self._nets.describe(), "samples": self._samples.names, "limits": limits})

    async def estimates(self, request: Request) -> Response:
        known = _to_int(request.query_params.get("after", "0")) or 0
        return JSONResponse(self._samples.estimates(self._net(request))[known:])

    async def thumbnail(self, request: Request) -> Response:
        number = self._sample(request)
        content = await to_thread.run_sync(self._samples.thumbnail, number, limiter=self._reading)
        return Response(content, media_type="image/jpeg")

    async def upload(self, request: Request) -> Response:
        _require_header(request)
        name = base_name(unquote(request.headers.get("x-name", "")))
        content = await _read_body(request, self._limits.check_bytes)
        return await self._open(request, name, partial(read_upload, content, name, self._limits))

    async def open_sample(self, request: Request) -> Response:
        _require_header(request)
        sample = self._samples[self._sample(request)]
        return await self._open(request, sample.name, sample.read)

    async def picture(self, request: Request) -> Response:
        image = self._image(request)
        return Response(
            await to_thread.run_sync(encode_image, image.pixels, limiter=self._reading), media_type="image/jpeg"
        )

    async def automatic(self, request: Request) -> Response:
        _require_header(request)
        image = self._image(request)
        return JSONResponse(await self._decode(lambda: segmentation_to_dict(image.session.automatic())))

    async def predict(self, request: Request) -> Response:
        image, prompts, _ = await self._read_prompts(request)
        return JSONResponse(await self._decode(lambda: segmentation_to_dict(_segment(image, prompts))))

    async def mask(self, request: Request) -> Response:
        image, prompts, _ = await self._read_prompts(request)
        content = await self._decode(lambda: encode_mask(_segment(image, prompts).mask))
        return Response(content, media_type="image/png")

    async def overlay(self, request: Request) -> Response:
        image, prompts, body = await self._read_prompts(request)
        opacity = body.get("opacity", 0.4)
        if not isinstance(opacity, int | float) or not 0 <= opacity <= 1:
            raise UserError(f"The opacity must be in [0, 1], not {opacity!r}.", code="invalid-opacity")
        content = await self._decode(lambda: draw_result(image.pixels, _segment(image, prompts), float(opacity)))
        return Response(content, media_type="image/png")

    async def prompts(self, request: Request) -> Response:
        image, prompts, _ = await self._read_prompts(request)
        if prompts.clicks is not None:
            raise UserError("A mask that was corrected with clicks has no prompts.", code="clicks-are-not-prompts")
        complete = await self._decode(lambda: _with_mask_prompts(image, prompts))
        content = prompts_file(image, complete, automatic=prompts.automatic)
        return Response(content, media_type="application/json")

    async def close(self, request: Request) -> Response:
        self._images.close(request.path_params["key"])
        return Response(status_code=204)

    async def _open(self, request: Request, name: str, read: Callable[[], NDArray[uint8]]) -> Response:
        net_name = self._net(request)
        pixels = await self._work(read, self._encoding)
        net = await self._work(partial(self._nets.load, net_name), self._encoding)
        session = await self._work(partial(net.encode, pixels), self._encoding)
        if await request.is_disconnected():  # the key would not reach a page that could close the image
            raise ClientDisconnect
        image = OpenImage(name, pixels, session)
        found = {"key": self._images.add(image, visitor_of(request)), "name": name, "size": list(image.size)}
        return JSONResponse({**found, "net": net.about})

    async def _decode(self, work: Callable[[], T]) -> T:
        return await self._work(work, self._decoding)

    async def _work(self, work: Callable[[], T], limiter: CapacityLimiter) -> T:
        """Work for a user in a thread; no estimate of a sample is started meanwhile."""
        self._working += 1
        try:
            return await to_thread.run_sync(work, limiter=limiter)
        finally:
            self._working -= 1
            self._last_work = time.monotonic()

    async def _read_prompts(self, request: Request) -> tuple[OpenImage, PromptRequest, dict[str, Any]]:
        """The image of a request, its prompts, and the whole body."""
        _require_header(request)
        image = self._image(request)
        content = await _read_body(request, _check_json)
        try:
            body = parse_json(content)
        except ValueError as error:
            raise UserError("The request is not JSON.", code="invalid-json") from error
        return image, read_prompt_request(body, image.size), body

    def _image(self, request: Request) -> OpenImage:
        image = self._images.get(request.path_params["key"])
        if image is None:
            raise GoneError("The image is no longer open on the server. Open it again.", code="image-not-open")
        return image

    def _net(self, request: Request) -> str:
        return self._nets.resolve(request.query_params.get("net"))

    def _sample(self, request: Request) -> int:
        text = request.path_params["number"]
        number = _to_int(text)
        if number is None:
            raise UserError(f"Sample {reprlib.repr(text)} does not exist.", code="unknown-sample")
        return number


def _segment(image: OpenImage, request: PromptRequest) -> Segmentation:
    if request.is_incomplete:
        raise UserError("A lesion has no prompts: add a point or a box.", code="no-prompts")
    prompts = _with_mask_prompts(image, request)
    found = image.session.predict(lesions=prompts.sets, mask_index=prompts.mask_index, fuse=prompts.fuse)
    clicks = request.clicks
    return found if clicks is None else image.session.correct(clicks.xy, clicks.label, before=found)


def _with_mask_prompts(image: OpenImage, request: PromptRequest) -> ImagePrompts:
    """The prompts of a request, with the net's mask prompts where the prompts are the net's own.

    Mask prompts are too large to be sent to the page and back.
    """
    prompts = request.prompts
    if not request.automatic:
        return prompts
    own = image.session.automatic().prompts.sets
    same = len(own) == len(prompts.sets) and all(map(_is_same, own, prompts.sets))
    return replace(prompts, sets=own) if same else prompts


def _is_same(one: PromptSet, other: PromptSet) -> bool:
    boxes = [np.zeros(0) if each.box is None else each.box for each in (one, other)]
    return all(map(np.array_equal, (one.xy, one.label, boxes[0]), (other.xy, other.label, boxes[1])))


def _to_int(text: str) -> int | None:
    """A number of a request, cut to 18 digits, which exceeds all limits too; ``None`` for other texts."""
    return int(text[:18]) if text.isascii() and text.isdigit() else None


def _require_header(request: Request) -> None:
    if "x-promise" not in request.headers:
        raise ForbiddenError("The header X-Promise is missing.", code="missing-header")


def _check_json(count: int) -> None:
    if count > MAX_JSON:
        raise TooLargeError(f"The request is larger than {MAX_JSON} bytes.", code="request-too-large")


async def _read_body(request: Request, check: Callable[[int], None]) -> bytes:
    """The body of a request. ``check`` is called with the number of bytes so far, and raises if there are too many."""
    declared = request.headers.get("content-length", "")
    check(_to_int(declared) or 0)
    content = bytearray()
    try:
        async with asyncio.timeout(READ_SECONDS):
            async for chunk in request.stream():
                content += chunk
                check(len(content))
    except TimeoutError as error:
        message = f"The request did not arrive within {READ_SECONDS:g} seconds."
        raise SlowError(message, code="request-timeout") from error
    return bytes(content)
