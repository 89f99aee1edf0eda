"""The HTTP responses of the server, without a browser."""

from __future__ import annotations

import base64
import http.client
import io
import json
import re
from pathlib import Path
from typing import Any
from urllib.parse import quote

import cv2
import numpy as np
import pytest
from PIL import Image

from promise.data.images import read_image
from promise.prompts.file import PromptFile

HEADERS = {"X-Promise": "1"}


class Client:
    def __init__(self, address: str) -> None:
        self.host = address.removeprefix("http://")

    def __call__(
        self, path: str, body: Any = None, *, method: str = "POST", headers: dict[str, str] = HEADERS
    ) -> tuple[int, bytes]:
        connection = http.client.HTTPConnection(self.host, timeout=60)
        sent = body if isinstance(body, bytes) else json.dumps(body).encode()
        connection.request(method, path, sent if method == "POST" else None, headers)
        response = connection.getresponse()
        self.headers = response.headers
        content = response.read()
        connection.close()
        return response.status, content

    def open(self, path: Path) -> str:
        status, content = self("/api/images", path.read_bytes(), headers={**HEADERS, "X-Name": quote(path.name)})
        assert status == 200, content
        return json.loads(content)["key"]


@pytest.fixture
def client(served: tuple[str, Any]) -> Client:
    return Client(served[0])


@pytest.fixture(scope="module")
def image(phantoms: Path) -> Path:
    return phantoms.parent / "images/phantom_0002.png"


def mask_of(content: bytes) -> np.ndarray:
    return cv2.imdecode(np.frombuffer(content, np.uint8), cv2.IMREAD_UNCHANGED)


def prompts_of(result: dict[str, Any]) -> dict[str, Any]:
    return {name: result[name] for name in ("points", "labels", "box", "mask_index")}


def test_the_automatic_mask_is_that_of_predict(client: Client, segmenter: Any, image: Path) -> None:
    expected = segmenter.predict(image)
    key = client.open(image)
    result = json.loads(client(f"/api/images/{key}/automatic")[1])
    mask = mask_of(base64.b64decode(result["mask"]))
    assert set(np.unique(mask)) <= {0, 255}
    assert np.array_equal(mask > 0, expected.mask)
    assert result["points"] == expected.points.tolist()
    assert result["labels"] == expected.labels.tolist()
    assert (result["area"], result["iou"]) == (expected.area, expected.iou)
    assert len(result["ious"]) == 3
    assert result["fraction"] == expected.fraction
    assert result["mask_index"] == 0

    written = mask_of(client(f"/api/images/{key}/mask", prompts_of(result))[1])
    assert written.dtype == np.uint8
    assert np.array_equal(written, expected.mask * np.uint8(255))
    again = json.loads(client(f"/api/images/{key}/predict", prompts_of(result))[1])
    assert again["mask"] == result["mask"]


def test_prompts_and_mask_index_reach_the_net(client: Client, segmenter: Any, image: Path) -> None:
    key, session = client.open(image), segmenter.session(image)
    prompts = {"points": [[10, 20], [40.25, 30]], "labels": [1, 0], "box": [4, 5, 50, 40], "mask_index": 2}
    result = json.loads(client(f"/api/images/{key}/predict", prompts)[1])
    expected = session.predict(prompts["points"], prompts["labels"], prompts["box"], mask_index=2)
    assert np.array_equal(mask_of(base64.b64decode(result["mask"])) > 0, expected.mask)
    assert result["iou"] == pytest.approx(expected.iou)
    assert result["ious"][2] == pytest.approx(expected.iou)
    assert result["mask_index"] == 2
    older = {name: value for name, value in prompts.items() if name != "mask_index"} | {"choice": 2}
    assert json.loads(client(f"/api/images/{key}/predict", older)[1])["mask"] == result["mask"]
    outlines = [np.round(outline, 2).reshape(-1).tolist() for outline in expected.smooth_contours()]
    assert result["outlines"] == outlines != []


@pytest.mark.parametrize("mask_index", [0, 1])
def test_prompts_are_downloaded_as_a_prompts_file(client: Client, image: Path, tmp_path: Path, mask_index: int) -> None:
    key = client.open(image)
    body = {"points": [[10, 20.125]], "labels": [0], "box": [4, 5, 50, 40], "mask_index": mask_index}
    (tmp_path / "prompts.json").write_bytes(client(f"/api/images/{key}/prompts", {**body, "automatic": False})[1])
    file = PromptFile(tmp_path / "prompts.json")
    assert file.source == "clicks"
    (draw,) = file.select({"any": {"phantom_0002": (64, 64)}}, side=64)
    prompts = draw.images["any"]["phantom_0002"]
    assert prompts.xy.tolist() == [[10, 20.125]]
    assert prompts.label.tolist() == [0]
    assert prompts.box.tolist() == [4, 5, 50, 40]
    assert prompts.mask_index == mask_index


def test_the_overlay_shows_mask_and_prompts_on_the_image(client: Client, segmenter: Any, image: Path) -> None:
    key = client.open(image)
    prompts = {"points": [[32, 32]], "labels": [1], "box": None, "mask_index": 0}
    drawn = {
        opacity: mask_of(client(f"/api/images/{key}/overlay", {**prompts, "opacity": opacity})[1])[:, :, ::-1]
        for opacity in (0, 1)
    }
    mask = segmenter.session(image).predict([[32, 32]], [1]).mask
    pixels = read_image(image)
    away = np.hypot(*(np.mgrid[:64, :64] - 32)) > 6
    # Outlines also run along the border of the image.
    inside = cv2.erode(np.pad(mask, 1).astype(np.uint8), np.ones((5, 5), np.uint8))[1:-1, 1:-1] > 0
    outside = cv2.dilate(mask.astype(np.uint8), np.ones((5, 5), np.uint8)) == 0
    assert (inside & away).any()
    assert (drawn[1][inside & away] == (255, 208, 32)).all()
    assert np.array_equal(drawn[0][inside & away], pixels[inside & away])
    assert np.array_equal(drawn[1][outside & away], pixels[outside & away])
    assert tuple(drawn[0][32, 32]) == (40, 200, 60)
    status, content = client(f"/api/images/{key}/overlay", {**prompts, "opacity": 2})
    assert (status, json.loads(content)["codes"]) == (400, ["invalid-opacity"])


def test_a_closed_image_is_removed(client: Client, served: tuple[str, Any], image: Path) -> None:
    before = len(served[1])
    key = client.open(image)
    assert len(served[1]) == before + 1
    assert client(f"/api/images/{key}/close", headers={})[0] == 204
    assert len(served[1]) == before
    status, content = client(f"/api/images/{key}/automatic")
    assert status == 410
    assert json.loads(content)["codes"] == ["image-not-open"]
    assert "Open it again" in json.loads(content)["error"]
    assert client("/api/images/unknown/picture", method="GET")[0] == 410


@pytest.mark.parametrize(
    ("path", "body", "status", "code", "fact"),
    [
        ("/api/images", b"x" * 600_000, 413, "file-too-large", "0.5 MB"),
        ("/api/images", b"no image", 400, None, "image"),
        ("/api/images/{key}/predict", b"{", 400, "invalid-json", "JSON"),
        ("/api/images/{key}/predict", b"\xff", 400, "invalid-json", "JSON"),
        ("/api/images/{key}/predict", {"points": [], "labels": [], "box": None}, 400, "no-prompts", "a point or a box"),
        (
            "/api/images/{key}/predict",
            {"points": [[900, 1]], "labels": [1], "box": None},
            400,
            "prompt-outside-image",
            "(900, 1)",
        ),
        ("/api/images/{key}/predict", b" " * 300_000, 413, "request-too-large", "262144 bytes"),
        ("/api/samples/99", None, 400, "unknown-sample", "99"),
        ("/api/samples/" + "9" * 5000, None, 400, "unknown-sample", "Sample 99999"),
        ("/api/samples/-1", None, 400, "unknown-sample", "'-1'"),
        ("/api/images/{key}/predict", b"[" * 60_000, 400, "invalid-json", "not JSON"),
        ("/api/images/{key}/overlay", b'{"opacity": ' + b"9" * 5000 + b"}", 400, "invalid-json", "not JSON"),
        (
            "/api/images/{key}/predict",
            {"points": [[10**400, 1]], "labels": [1], "box": None},
            400,
            "invalid-points",
            "a list of [x, y]",
        ),
        (
            "/api/images/{key}/predict",
            {"points": [], "labels": [], "box": [0, 0, 10**400, 1]},
            400,
            "invalid-box",
            "x0 ≤ x1",
        ),
        (
            "/api/images/{key}/predict",
            {"points": [[1, 1]] * 1100, "labels": [1] * 1100, "box": None},
            400,
            "too-many-points",
            "at most 1024",
        ),
        (
            "/api/images/{key}/predict",
            {"lesions": [{"points": [[1, 1]] * 100, "labels": [1] * 100}] * 64},
            400,
            "too-many-points",
            "at most 4096 are accepted per image",
        ),
    ],
)
def test_an_invalid_request_is_one_message_with_a_code(
    client: Client, image: Path, path: str, body: Any, status: int, code: str | None, fact: str
) -> None:
    found, content = client(path.format(key=client.open(image)), body)
    assert found == status
    error = json.loads(content)
    assert len(error["codes"]) == 1
    assert code in (None, *error["codes"])
    assert fact in error["error"]


@pytest.mark.parametrize("name", ["a." + "x" * 118, "ä" * 5000, "a." + "𝄞" * 118, "." * 5000, "%00" * 100])
def test_a_long_name_is_cut(client: Client, image: Path, name: str) -> None:
    status, content = client("/api/images", image.read_bytes(), headers={**HEADERS, "X-Name": quote(name)})
    assert status == 200, content
    assert 0 < len(json.loads(content)["name"]) <= 120
    status, content = client("/api/images", b"no image", headers={**HEADERS, "X-Name": quote(name)})
    assert status == 400
    assert json.loads(content)["codes"] == ["not-an-image"]


def test_a_long_number_of_a_query_is_accepted(client: Client) -> None:
    status, content = client(f"/api/estimates?after={'9' * 5000}", method="GET")
    assert (status, json.loads(content)) == (200, [])
    status, content = client(f"/samples/{'9' * 5000}.jpg", method="GET")
    assert (status, json.loads(content)["codes"]) == (400, ["unknown-sample"])


@pytest.mark.parametrize("length", ["9" * 5000, "-1", "1e3"])
def test_a_header_of_wrong_length_is_refused(client: Client, length: str) -> None:
    connection = http.client.HTTPConnection(client.host, timeout=60)
    connection.putrequest("POST", "/api/images")
    for name, value in {**HEADERS, "Content-Length": length}.items():
        connection.putheader(name, value)
    connection.endheaders()
    assert 400 <= connection.getresponse().status < 500
    connection.close()


@pytest.mark.parametrize("kind", ["GIF", "PNG", "WEBP", "TIFF"])
def test_an_animation_is_refused(client: Client, kind: str) -> None:
    content = io.BytesIO()
    first, second = (Image.new("RGB", (32, 32), colour) for colour in ("red", "blue"))
    first.save(content, kind, save_all=True, append_images=[second])
    status, answer = client("/api/images", content.getvalue(), headers={**HEADERS, "X-Name": "scan.png"})
    assert status == 400
    assert json.loads(answer)["codes"] == ["multi-page-image"]
    assert "scan.png" in json.loads(answer)["error"]


def test_an_image_with_too_many_pixels_is_rejected(client: Client, tmp_path: Path) -> None:
    cv2.imwrite(str(tmp_path / "wide.png"), np.zeros((150, 300, 3), np.uint8))
    status, content = client("/api/images", (tmp_path / "wide.png").read_bytes())
    assert status == 413
    assert json.loads(content)["codes"] == ["image-too-large"]
    for fact in ("300 × 150 pixels", "0.04 million", "--max-megapixels"):
        assert fact in json.loads(content)["error"]


def test_other_sites_cannot_use_it(client: Client, image: Path) -> None:
    key = client.open(image)
    for path in ("/api/images", "/api/samples/0", f"/api/images/{key}/automatic", f"/api/images/{key}/predict"):
        assert client(path, headers={})[0] == 403
    assert client("/api/about", method="GET", headers={"Host": "evil.example"})[0] == 400
    assert client("/", method="GET")[0] == 200
    assert "default-src 'self'" in client.headers["content-security-policy"]
    assert "access-control-allow-origin" not in client.headers


def test_the_page_refers_to_no_other_site(client: Client) -> None:
    for file in sorted((Path(__file__).parents[2] / "promise/app/page").iterdir()):
        status, content = client(f"/page/{file.name}", method="GET")
        assert status == 200
        assert re.findall(r"\b(?:https?:)?//[\w.-]+", content.decode()) in ([], ["http://www.w3.org"]), file.name


def test_samples_open_like_files(client: Client, segmenter: Any, phantoms: Path) -> None:
    names = json.loads(client("/api/about", method="GET")[1])["samples"]
    assert names[:2] == ["phantom_0000.png", "phantom_0001.png"]
    assert client("/samples/1.jpg", method="GET")[1][:2] == b"\xff\xd8"
    opened = json.loads(client("/api/samples/1")[1])
    result = json.loads(client(f"/api/images/{opened['key']}/automatic")[1])
    expected = segmenter.predict(phantoms.parent / "images" / names[1])
    assert np.array_equal(mask_of(base64.b64decode(result["mask"])) > 0, expected.mask)
