"""The server under load, in a process of its own: no crossed answers, bounded memory, waiting times.

The short form has four clients for a second. The long form prints its figures; its length can be set::

    pytest tests/app/test_load.py -m slow -s
    PROMISE_LOAD_CLIENTS=20 PROMISE_LOAD_SECONDS=300 pytest tests/app/test_load.py -m slow -s
"""

from __future__ import annotations

import base64
import collections
import contextlib
import http.client
import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest

from promise.data.phantom import make_phantom

COMMAND = """
import runpy, sys
runpy.run_path(sys.argv[1])["register_tiny_vit"]()
from promise.cli.app import main
sys.exit(main(sys.argv[2:]))
"""
FLAGS = ["--device", "cpu", "--precision", "fp32", "--port", "0", "--max-megabytes", "0.5", "--quiet"]
GROWTH = 64  # MB that the server may grow by after its first visits: eight open images need less
# Bodies of uploads and the status of the answer.
BAD_UPLOADS = [(b"", 400), (b"no image", 400), (b"x" * 600_000, 413), (b"GIF89a" + b"\0" * 40, 400)]


@dataclass
class Figures:
    """What the clients saw."""

    seconds: list[float] = field(default_factory=list)  # of each answered request
    statuses: collections.Counter[int] = field(default_factory=collections.Counter)
    faults: list[str] = field(default_factory=list)


class Client:
    """A visitor with an image and prompts of its own, who knows the right answers."""

    def __init__(self, host: str, number: int, segmenter: Any, figures: Figures) -> None:
        pixels, _ = make_phantom(seed=11, index=number, size=(64 + number, 80 + 2 * number))
        self.content = cv2.imencode(".png", pixels[:, :, ::-1])[1].tobytes()
        self.points = [[20.0 + number, 30.0], [5.0, 6.0 + number]]
        session = segmenter.session(pixels)
        self.automatic = session.automatic().mask
        self.prompted = session.predict(self.points, [1, 0]).mask
        self.host, self.number, self.figures = host, number, figures
        self.visits = 0

    def send(self, path: str, body: bytes = b"", *, known: tuple[int, ...] = (200,)) -> tuple[int, bytes]:
        """The answer to a POST; it is repeated while the server is busy."""
        while True:
            started = time.perf_counter()
            connection = http.client.HTTPConnection(self.host, timeout=120)
            connection.request(
                "POST", path, body, {"X-Promise": "1", "Cookie": f"promise-visitor=client-{self.number}"}
            )
            response = connection.getresponse()
            content = response.read()
            connection.close()
            self.figures.statuses[response.status] += 1
            if response.status != 503:
                break
            time.sleep(0.2)
        self.figures.seconds.append(time.perf_counter() - started)
        if response.status not in known:
            self.figures.faults.append(f"{path}: {response.status} {content[:200]!r}")
        return response.status, content

    def visit(self) -> None:
        """Open the image, segment it twice, download a mask, close it; between them, send what the server refuses."""
        self.visits += 1
        body, status = BAD_UPLOADS[(self.number + self.visits) % len(BAD_UPLOADS)]
        self.send("/api/images", body, known=(status,))
        cut = self.content[: len(self.content) // 2]
        self.send("/api/images", cut, known=(400,))
        status, content = self.send("/api/images", self.content)
        if status != 200:
            return
        opened = json.loads(content)
        path = f"/api/images/{opened['key']}"
        height, width = self.automatic.shape
        if opened["size"] != [width, height]:
            self.figures.faults.append(f"size {opened['size']} of another image")
        prompts = json.dumps({"points": self.points, "labels": [1, 0], "box": None, "mask_index": None}).encode()
        self.send(f"{path}/predict", b"{" * 999, known=(400, 410))
        for kind, sent, expected in (
            ("automatic", b"", self.automatic),
            ("predict", prompts, self.prompted),
            ("mask", prompts, self.prompted),
        ):
            status, content = self.send(f"{path}/{kind}", sent, known=(200, 410))  # 410: removed for other visitors
            if status != 200:
                continue
            coded = content if kind == "mask" else base64.b64decode(json.loads(content)["mask"])
            mask = cv2.imdecode(np.frombuffer(coded, np.uint8), cv2.IMREAD_UNCHANGED) > 0
            if not np.array_equal(mask, expected):
                self.figures.faults.append(f"{kind}: the mask is not that of the client's image {self.number}")
        self.send(f"{path}/close", known=(204,))


@contextlib.contextmanager
def serve_process(ckpt: Path) -> Iterator[tuple[str, int]]:
    """The host and the process of a server."""
    pytest.importorskip("uvicorn", reason="needs the [app] extra")
    conftest = str(Path(__file__).parents[1] / "conftest.py")
    command = [sys.executable, "-c", COMMAND, conftest, "--ckpt", str(ckpt), *FLAGS]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment) as process:
        try:
            assert process.stdout is not None
            yield process.stdout.readline().split()[1].removeprefix("http://").strip("/"), process.pid
            assert process.poll() is None  # it still runs
        finally:
            process.terminate()


def memory(process: int, name: str = "VmRSS") -> float:
    """Resident memory of a process in MB."""
    path = Path(f"/proc/{process}/status")
    if not path.is_file():
        pytest.skip("memory of other processes is only read on Linux")
    line = next(line for line in path.read_text().splitlines() if line.startswith(name))
    return int(line.split()[1]) / 1024


def load(ckpt: Path, segmenter: Any, *, count: int, seconds: float) -> tuple[Figures, dict[str, Any]]:
    """Let clients visit a server concurrently."""
    warm_up, figures = Figures(), Figures()
    with serve_process(ckpt) as (host, process):
        clients = [Client(host, number, segmenter, warm_up) for number in range(count)]
        for client in clients:
            client.visit()
            client.figures = figures
        before = memory(process)
        end = time.monotonic() + seconds

        def work(client: Client) -> None:
            try:
                while time.monotonic() < end:
                    client.visit()
            except Exception as error:
                figures.faults.append(f"client {client.number}: {error!r}")

        threads = [threading.Thread(target=work, args=(client,)) for client in clients]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        after, peak = memory(process), memory(process, "VmHWM")
    return figures, {
        "clients": count,
        "seconds": seconds,
        "requests": sum(figures.statuses.values()),
        "statuses": dict(sorted(figures.statuses.items())),
        "faults": len(figures.faults) + len(warm_up.faults),
        "median_ms": round(float(np.median(figures.seconds)) * 1000),
        "p95_ms": round(float(np.percentile(figures.seconds, 95)) * 1000),
        "longest_ms": round(max(figures.seconds) * 1000),
        "memory_before_mb": round(before),
        "memory_after_mb": round(after),
        "memory_peak_mb": round(peak),
    }


def check(figures: Figures, found: dict[str, Any]) -> None:
    assert figures.faults == []
    assert found["faults"] == 0
    assert {200, 204, 400, 413} <= set(found["statuses"]) <= {200, 204, 400, 410, 413, 503}
    assert found["memory_after_mb"] < found["memory_before_mb"] + GROWTH


def test_clients_receive_their_own_answers_among_bad_uploads(ckpt: Path, segmenter: Any) -> None:
    figures, found = load(ckpt, segmenter, count=4, seconds=1)
    check(figures, found)
    assert found["statuses"][204] >= 4


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_many_clients_for_minutes(ckpt: Path, segmenter: Any) -> None:
    count = int(os.environ.get("PROMISE_LOAD_CLIENTS", "20"))
    seconds = float(os.environ.get("PROMISE_LOAD_SECONDS", "60"))
    figures, found = load(ckpt, segmenter, count=count, seconds=seconds)
    print(json.dumps(found, indent=2))  # noqa: T201 (the figures)
    check(figures, found)
