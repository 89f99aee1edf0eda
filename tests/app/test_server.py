"""The server's answers, without a browser."""

from __future__ import annotations

import base64
import http.client
import json
import re
from pathlib import Path
from typing import Any
from urllib.parse import quote

import cv2
import numpy as np
import pytest

from promise.data.images import read_image
from promise.prompts.file import PromptFile

OURS = {"X-Promise": "1"}


class Client:
    def __init__(self, address: str) -> None:
        self.host = address.removeprefix("http://")

    def __call__(
        self, path: str, body: Any = None, *, method: str = "POST", headers: dict[str, str] = OURS
    ) -> tuple[int, bytes]:
        connection = http.client.HTTPConnection(self.host, timeout=60)
        sent = body if isinstance(body, bytes) else json.dumps(body).encode()
        connection.request(method, path, sent if method == "POST" else None, headers)
        answer = connection.getresponse()
        self.headers = answer.headers
        content = answer.read()
        connection.close()
        return answer.status, content

    def open(self, path: Path) -> str:
        status, content = self("/api/images", path.read_bytes(), headers={**OURS, "X-Name": quote(path.name)})
        assert status == 200, content
        return json.loads(content)["key"]


@pytest.fixture
def ask(served: tuple[str, Any]) -> Client:
    return Client(served[0])


@pytest.fixture(scope="module")
def picture(phantoms: Path) -> Path:
    return phantoms.parent / "images/phantom_0002.png"


def mask_of(content: bytes) -> np.ndarray:
    return cv2.imdecode(np.frombuffer(content, np.uint8), cv2.IMREAD_UNCHANGED)


def plain(answer: dict[str, Any], **changed: Any) -> dict[str, Any]:
    return {name: answer[name] for name in ("points", "labels", "box", "choice")} | changed


def test_the_automatic_mask_is_that_of_predict(ask: Client, segmenter: Any, picture: Path) -> None:
    expected = segmenter.predict(picture)
    key = ask.open(picture)
    answer = json.loads(ask(f"/api/images/{key}/automatic")[1])
    mask = mask_of(base64.b64decode(answer["mask"]))
    assert set(np.unique(mask)) <= {0, 255}
    assert np.array_equal(mask > 0, expected.mask)
    assert answer["points"] == expected.points.tolist()
    assert answer["labels"] == expected.labels.tolist()
    assert (answer["area"], answer["iou"]) == (expected.area, expected.iou)
    assert len(answer["ious"]) == 3

    written = mask_of(ask(f"/api/images/{key}/mask", plain(answer))[1])
    assert written.dtype == np.uint8
    assert np.array_equal(written, expected.mask * np.uint8(255))
    again = json.loads(ask(f"/api/images/{key}/predict", plain(answer))[1])
    assert again["mask"] == answer["mask"]


def test_prompts_and_the_choice_reach_the_net(ask: Client, segmenter: Any, picture: Path) -> None:
    key, session = ask.open(picture), segmenter.session(picture)
    asked = {"points": [[10, 20], [40.25, 30]], "labels": [1, 0], "box": [4, 5, 50, 40], "choice": 2}
    answer = json.loads(ask(f"/api/images/{key}/predict", asked)[1])
    expected = session.predict(asked["points"], asked["labels"], asked["box"], choice=2)
    assert np.array_equal(mask_of(base64.b64decode(answer["mask"])) > 0, expected.mask)
    assert answer["iou"] == pytest.approx(expected.iou)
    assert answer["ious"][2] == pytest.approx(expected.iou)
    assert answer["outlines"] == [outline.reshape(-1).tolist() for outline in expected.contours()]


def test_prompts_go_out_as_a_prompts_file(ask: Client, picture: Path, tmp_path: Path) -> None:
    key = ask.open(picture)
    asked = {"points": [[10, 20.125]], "labels": [0], "box": [4, 5, 50, 40], "choice": 0, "automatic": False}
    (tmp_path / "prompts.json").write_bytes(ask(f"/api/images/{key}/prompts", asked)[1])
    read = PromptFile(tmp_path / "prompts.json")
    assert read.source == "clicks"
    (draw,) = read.choose({"any": {"phantom_0002": (64, 64)}}, side=64)
    prompts = draw.images["any"]["phantom_0002"]
    assert prompts.xy.tolist() == [[10, 20.125]]
    assert prompts.label.tolist() == [0]
    assert prompts.box.tolist() == [4, 5, 50, 40]


def test_the_overlay_shows_mask_and_prompts_on_the_image(ask: Client, segmenter: Any, picture: Path) -> None:
    key = ask.open(picture)
    asked = {"points": [[32, 32]], "labels": [1], "box": None, "choice": 0}
    drawn = {
        opacity: mask_of(ask(f"/api/images/{key}/overlay", {**asked, "opacity": opacity})[1])[:, :, ::-1]
        for opacity in (0, 1)
    }
    mask = segmenter.session(picture).predict([[32, 32]], [1]).mask
    image = read_image(picture)
    away = np.hypot(*(np.mgrid[:64, :64] - 32)) > 6
    # Outlines also run along the image's border.
    inside = cv2.erode(np.pad(mask, 1).astype(np.uint8), np.ones((5, 5), np.uint8))[1:-1, 1:-1] > 0
    outside = cv2.dilate(mask.astype(np.uint8), np.ones((5, 5), np.uint8)) == 0
    assert (inside & away).any()
    assert (drawn[1][inside & away] == (255, 208, 32)).all()
    assert np.array_equal(drawn[0][inside & away], image[inside & away])
    assert np.array_equal(drawn[1][outside & away], image[outside & away])
    assert tuple(drawn[0][32, 32]) == (40, 200, 60)
    assert ask(f"/api/images/{key}/overlay", {**asked, "opacity": 2})[0] == 400


def test_a_closed_image_is_gone(ask: Client, served: tuple[str, Any], picture: Path) -> None:
    before = len(served[1])
    key = ask.open(picture)
    assert len(served[1]) == before + 1
    assert ask(f"/api/images/{key}/close", headers={})[0] == 204
    assert len(served[1]) == before
    status, content = ask(f"/api/images/{key}/automatic")
    assert status == 410
    assert "Open it again" in json.loads(content)["error"]
    assert ask("/api/images/unknown/picture", method="GET")[0] == 410


@pytest.mark.parametrize(
    ("path", "body", "status", "words"),
    [
        ("/api/images", b"x" * 600_000, 413, "larger than 0.5 MB"),
        ("/api/images", b"no picture", 400, "not a picture"),
        ("/api/images/{key}/predict", b"{", 400, "not JSON"),
        ("/api/images/{key}/predict", b"\xff", 400, "not JSON"),
        ("/api/images/{key}/predict", {"points": [], "labels": [], "box": None}, 400, "no prompts"),
        ("/api/images/{key}/predict", {"points": [[900, 1]], "labels": [1], "box": None}, 400, "lies outside"),
        ("/api/images/{key}/predict", b" " * 70_000, 413, "larger than 65536 bytes"),
        ("/api/samples/99", None, 400, "no sample 99"),
    ],
)
def test_a_mistake_is_one_clear_sentence(
    ask: Client, picture: Path, path: str, body: Any, status: int, words: str
) -> None:
    found, content = ask(path.format(key=ask.open(picture)), body)
    assert found == status
    assert words in json.loads(content)["error"]


def test_too_many_pixels_are_refused(ask: Client, tmp_path: Path) -> None:
    cv2.imwrite(str(tmp_path / "wide.png"), np.zeros((150, 300, 3), np.uint8))
    status, content = ask("/api/images", (tmp_path / "wide.png").read_bytes())
    assert status == 413
    assert "300 × 150 pixels, more than the 0.04 million" in json.loads(content)["error"]


def test_other_sites_cannot_use_it(ask: Client, picture: Path) -> None:
    key = ask.open(picture)
    for path in ("/api/images", "/api/samples/0", f"/api/images/{key}/automatic", f"/api/images/{key}/predict"):
        assert ask(path, headers={})[0] == 403
    assert ask("/api/about", method="GET", headers={"Host": "evil.example"})[0] == 400
    assert ask("/", method="GET")[0] == 200
    assert "default-src 'self'" in ask.headers["content-security-policy"]
    assert "access-control-allow-origin" not in ask.headers


def test_the_page_names_nothing_elsewhere(ask: Client) -> None:
    for file in sorted((Path(__file__).parents[2] / "promise/app/page").iterdir()):
        status, content = ask(f"/page/{file.name}", method="GET")
        assert status == 200
        assert re.findall(r"\b(?:https?:)?//[\w.-]+", content.decode()) in ([], ["http://www.w3.org"]), file.name


def test_samples_open_like_files(ask: Client, segmenter: Any, phantoms: Path) -> None:
    names = json.loads(ask("/api/about", method="GET")[1])["samples"]
    assert names[:2] == ["phantom_0000.png", "phantom_0001.png"]
    assert ask("/samples/1.jpg", method="GET")[1][:2] == b"\xff\xd8"
    opened = json.loads(ask("/api/samples/1")[1])
    answer = json.loads(ask(f"/api/images/{opened['key']}/automatic")[1])
    expected = segmenter.predict(phantoms.parent / "images" / names[1])
    assert np.array_equal(mask_of(base64.b64decode(answer["mask"])) > 0, expected.mask)
