"""Samples: thumbnails and estimates, and when the server computes them."""

from __future__ import annotations

import http.client
import json
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import cv2
import numpy as np
import pytest

from promise.app.samples import Sample, Samples
from promise.runtime.errors import UserError


@dataclass
class FakeSession:
    """A session whose automatic mask has an estimated IoU."""

    quality: float | None

    def automatic(self) -> Any:
        return self


def sample(value: int, reads: list[int] | None = None) -> Sample:
    def read() -> np.ndarray:
        if reads is not None:
            reads.append(value)
        if value == 66:
            raise UserError("unreadable", code="unreadable-image")
        return np.full((30, 50, 3), value, np.uint8)

    return Sample(f"{value}.png", read)


def test_estimates_are_in_numbers_and_words(user_error: Callable[..., Any]) -> None:
    samples = Samples([sample(90), sample(0), sample(66), sample(20)])
    for number in (3, 0, 1, 2):
        samples.estimate(number, "a", lambda pixels: FakeSession(pixels[0, 0, 0] / 100 or None))
    assert samples.estimates("b") == []
    assert samples.estimates("a") == [
        {"number": 3, "estimated_iou": 0.2, "estimate": "check this"},
        {"number": 0, "estimated_iou": 0.9, "estimate": "likely good"},
        {"number": 1, "estimated_iou": None, "estimate": "no lesion found"},
        {"number": 2, "estimated_iou": None, "estimate": "not estimated"},
    ]
    with user_error("unknown-sample"):
        samples.thumbnail(4)


def test_a_sample_is_read_when_its_thumbnail_is_requested_first() -> None:
    reads: list[int] = []
    samples = Samples([sample(90, reads), sample(20, reads)])
    assert (samples.names, reads) == (["90.png", "20.png"], [])
    pixels = cv2.imdecode(np.frombuffer(samples.thumbnail(1), np.uint8), cv2.IMREAD_COLOR)
    assert pixels.shape == (192, 192, 3)
    assert np.abs(pixels.astype(int) - 20).max() < 3
    assert samples.thumbnail(1) == samples.thumbnail(1)
    assert reads == [20]


def send(address: str, path: str, method: str = "GET") -> Any:
    connection = http.client.HTTPConnection(address.removeprefix("http://"), timeout=30)
    connection.request(method, path, headers={"X-Promise": "1"})
    response = connection.getresponse()
    assert response.status == 200
    content = json.loads(response.read())
    connection.close()
    return content


def wait_until(condition: Callable[[], bool]) -> None:
    for _ in range(600):
        if condition():
            return
        time.sleep(0.05)
    pytest.fail("it did not happen within 30 seconds")


def test_users_do_not_wait_for_estimates(serve_sessions: Callable[..., Any], monkeypatch: pytest.MonkeyPatch) -> None:
    from promise.app import server

    monkeypatch.setattr(server, "IDLE_SECONDS", 0.2)
    started: list[int] = []
    gates = {value: threading.Event() for value in (10, 20, 30)}

    def encode(pixels: np.ndarray) -> FakeSession:
        value = int(pixels[0, 0, 0])
        started.append(value)
        assert gates[value].wait(30)
        return FakeSession(value / 100)

    gates[30].set()
    samples = [sample(10), sample(20), sample(30)]
    with serve_sessions(encode, {"estimates": True}, samples) as (address, _):
        wait_until(lambda: started == [10])
        assert send(address, "/api/estimates") == []
        assert send(address, "/api/samples/2", "POST")["name"] == "30.png"  # while the first estimate is computed
        assert started == [10, 30]
        user = threading.Thread(target=send, args=(address, "/api/samples/1", "POST"))
        user.start()
        wait_until(lambda: started == [10, 30, 20])
        gates[10].set()
        wait_until(lambda: len(send(address, "/api/estimates")) == 1)
        time.sleep(0.6)
        assert started == [10, 30, 20]  # a user works: the next estimate is not started
        gates[20].set()
        user.join(30)
        wait_until(lambda: len(send(address, "/api/estimates")) == 3)
        assert started == [10, 30, 20, 20, 30]
        assert [one["number"] for one in send(address, "/api/estimates?after=1")] == [1, 2]
        assert len(send(address, "/api/estimates?after=x")) == 3


def test_nets_without_an_estimate_segment_no_samples(
    serve_sessions: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    from promise.app import server

    monkeypatch.setattr(server, "IDLE_SECONDS", 0.05)
    with serve_sessions(lambda _: pytest.fail("segmented"), {"estimates": False}, [sample(10)]) as (address, _):
        time.sleep(0.5)
        assert send(address, "/api/estimates") == []
