"""Access to a public server: token, cookies, bounded queues."""

from __future__ import annotations

import http.client
import json
import socket
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

TOKEN = "a-token-of-this-test"
ABOUT = {"estimates": False, "automatic": False, "lesions": False, "own_mask": 0, "title": "a net"}


@pytest.fixture
def protected(serve_sessions: Callable[..., Any]) -> Iterator[str]:
    with serve_sessions(lambda pixels: None, ABOUT, [], token=TOKEN) as (address, _):
        yield address


def request(
    address: str, path: str, *, method: str = "GET", body: bytes | None = None, **headers: str
) -> tuple[int, bytes, Any]:
    connection = http.client.HTTPConnection(address.removeprefix("http://"), timeout=60)
    connection.request(method, path, body, {name.replace("_", "-"): value for name, value in headers.items()})
    response = connection.getresponse()
    content = response.read()
    connection.close()
    return response.status, content, response.headers


def cookies_of(headers: Any) -> str:
    return "; ".join(value.partition(";")[0] for value in headers.get_all("set-cookie"))


@pytest.mark.parametrize("path", ["/", "/page/main.js", "/api/about", "/api/estimates", "/samples/0.jpg", "/absent"])
def test_every_request_needs_the_token(protected: str, path: str) -> None:
    wrong = [path, f"{path}?token=", f"{path}?token={TOKEN[:-1]}", f"{path}?token={TOKEN}x", f"{path}?token=%C3%A4"]
    for address in wrong:
        status, content, headers = request(protected, address)
        assert (status, json.loads(content)["codes"]) == (401, ["missing-token"])
        assert "promise-app" in json.loads(content)["error"]
        assert len(content.splitlines()) == 1
        assert headers.get_all("set-cookie") is None
        assert "default-src 'self'" in headers["content-security-policy"]
    assert request(protected, f"{path}?token={TOKEN}")[0] != 401


def test_posts_need_the_token_too(protected: str) -> None:
    for path in ("/api/images", "/api/samples/0", "/api/images/x/predict", "/api/images/x/close"):
        assert request(protected, path, method="POST", body=b"{}", x_promise="1")[0] == 401
        assert request(protected, f"{path}?token={TOKEN}", method="POST", body=b"{}", x_promise="1")[0] != 401


def test_the_browser_keeps_the_token_in_a_cookie(protected: str) -> None:
    status, _, headers = request(protected, f"/?token={TOKEN}")
    assert (status, headers["location"]) == (303, "/")  # the address bar does not show it
    assert all("HttpOnly; SameSite=Lax" in value for value in headers.get_all("set-cookie"))
    cookies = cookies_of(headers)
    assert request(protected, "/", cookie=cookies)[0] == 200
    assert request(protected, "/api/about", cookie=cookies)[0] == 200
    assert request(protected, "/api/about", cookie=cookies.replace(TOKEN, "b-token-of-this-test"))[0] == 401


def test_the_page_opens_with_the_printed_address(
    protected: str, browser: Any, open_page: Callable[..., Any], failures: list[str]
) -> None:
    context = browser.new_context()
    page = context.new_page()
    failures_before = len(failures)
    page.goto(f"{protected}/?token={TOKEN}")
    page.wait_for_selector("#stage[data-state=empty]")
    assert page.url == f"{protected}/"
    open_page(context.new_page(), protected, failures)  # a second tab
    assert len(failures) == failures_before
    context.close()


def test_a_public_server_prints_an_address_with_a_new_token(monkeypatch: pytest.MonkeyPatch, segmenter: Any) -> None:
    uvicorn = pytest.importorskip("uvicorn", reason="needs the [app] extra")
    from promise.app.run import Serving, serve

    monkeypatch.setattr(uvicorn.Server, "run", lambda self, sockets: None)
    printed: list[str] = []
    for host in ("0.0.0.0", "0.0.0.0", "127.0.0.1"):
        serve(lambda _: segmenter, Serving(ckpt="a.safetensors", host=host, port=0), printed.append)
    first, second, private = printed
    tokens = [address.partition("/?token=")[2] for address in (first, second)]
    assert min(map(len, tokens)) >= 32
    assert tokens[0] != tokens[1]
    assert private.startswith("http://127.0.0.1:")
    assert "token" not in private


def test_each_browser_has_a_limit_of_its_own(serve_sessions: Callable[..., Any], phantoms: Path) -> None:
    content = (phantoms.parent / "images/phantom_0001.png").read_bytes()
    with serve_sessions(lambda pixels: None, ABOUT, []) as (address, images):
        visitors = [cookies_of(request(address, "/")[2]) for _ in range(2)]
        assert visitors[0] != visitors[1]
        assert request(address, "/", cookie=visitors[0])[2].get_all("set-cookie") is None

        def open_image(cookie: str) -> str:
            status, answer, _ = request(
                address, "/api/images", method="POST", body=content, x_promise="1", cookie=cookie
            )
            assert status == 200
            return json.loads(answer)["key"]

        images._limit_each = 2
        other = open_image(visitors[1])
        keys = [open_image(visitors[0]) for _ in range(4)]
        found = [request(address, f"/api/images/{key}/picture")[0] for key in (other, *keys)]
        assert found == [200, 410, 410, 200, 200]


def test_requests_beyond_the_queue_are_told_to_try_again(
    serve_sessions: Callable[..., Any], monkeypatch: pytest.MonkeyPatch, phantoms: Path
) -> None:
    pytest.importorskip("starlette", reason="needs the [app] extra")
    from promise.app import server

    monkeypatch.setattr(server, "MAX_OPENING", 3)
    content = (phantoms.parent / "images/phantom_0001.png").read_bytes()
    gate, started = threading.Event(), threading.Event()
    statuses: list[int] = []

    def encode(pixels: np.ndarray) -> None:
        started.set()
        assert gate.wait(60)

    with serve_sessions(encode, ABOUT, []) as (address, _):

        def post() -> tuple[int, bytes, Any]:
            return request(address, "/api/images", method="POST", body=content, x_promise="1")

        threads = [threading.Thread(target=lambda: statuses.append(post()[0])) for _ in range(8)]
        for thread in threads:
            thread.start()
        assert started.wait(60)
        for _ in range(600):
            if len(statuses) == 5:  # three of eight wait
                break
            time.sleep(0.05)
        assert statuses == [503] * 5
        status, answer, headers = post()
        assert (status, headers["retry-after"]) == (503, "1")
        assert json.loads(answer)["codes"] == ["server-busy"]
        assert "Try again" in json.loads(answer)["error"]
        assert request(address, "/api/about")[0] == 200  # others are answered
        gate.set()
        for thread in threads:
            thread.join(60)
        assert statuses == [503] * 5 + [200] * 3
        assert post()[0] == 200  # the places are free again


def test_a_body_that_does_not_arrive_ends_the_request(
    serve_sessions: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("starlette", reason="needs the [app] extra")
    from promise.app import server

    monkeypatch.setattr(server, "READ_SECONDS", 0.2)
    with serve_sessions(lambda pixels: None, ABOUT, []) as (address, _):
        host, port = address.removeprefix("http://").split(":")
        with socket.create_connection((host, int(port)), timeout=60) as connection:
            connection.sendall(
                f"POST /api/images HTTP/1.1\r\nHost: {host}\r\nX-Promise: 1\r\nContent-Length: 900\r\n\r\nabc".encode()
            )
            answer = b""
            while b"request-timeout" not in answer:
                received = connection.recv(4096)
                assert received, answer
                answer += received
        assert answer.startswith(b"HTTP/1.1 408")
