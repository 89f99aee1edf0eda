"""Uploads are decoded within limits, and leave no file."""

from __future__ import annotations

import io
import struct
import tempfile
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from promise.app.uploads import Limits, TooLargeError, base_name, read_upload
from promise.data.images import read_image
from promise.runtime.errors import UserError


@pytest.fixture(autouse=True)
def own_temporary(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path / "temporary"
    folder.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(folder))
    return folder


def png(height: int, width: int) -> bytes:
    stream = io.BytesIO()
    Image.fromarray(np.arange(height * width * 3, dtype=np.uint32).astype(np.uint8).reshape(height, width, 3)).save(
        stream, "PNG"
    )
    return stream.getvalue()


def png_header(width: int, height: int) -> bytes:
    """A PNG whose header declares this many pixels, without any."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    head = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", zlib.compress(b"")) + chunk(b"IEND", b"")


def test_an_upload_is_read_like_a_file(tmp_path: Path, own_temporary: Path) -> None:
    (tmp_path / "a.png").write_bytes(png(5, 7))
    assert np.array_equal(read_upload(png(5, 7), "a.png", Limits()), read_image(tmp_path / "a.png"))
    assert list(own_temporary.iterdir()) == []


@pytest.mark.parametrize(
    ("content", "limits", "code", "facts"),
    [
        (png(50, 50), Limits(megabytes=0.0001), "file-too-large", ["0.0001 MB", "--max-megabytes"]),
        (png(50, 60), Limits(megapixels=0.0029), "image-too-large", ["60 × 50 pixels", "0.0029 million"]),
        (png_header(9000, 9000), Limits(), "image-too-large", ["9000 × 9000 pixels", "25 million"]),
        (png_header(60000, 60000), Limits(), "image-too-large", ["25 million"]),  # Pillow itself does not open it
    ],
    ids=["bytes", "pixels", "header", "bomb"],
)
def test_nothing_is_decoded_beyond_the_limits(
    content: bytes,
    limits: Limits,
    code: str,
    facts: list[str],
    own_temporary: Path,
    monkeypatch: pytest.MonkeyPatch,
    user_error: Callable[..., Any],
) -> None:
    monkeypatch.setattr("promise.app.uploads.read_input", lambda *_: pytest.fail("decoded"))
    with user_error(code) as caught:
        read_upload(content, "a.png", limits)
    assert isinstance(caught.value, TooLargeError)
    assert all(fact in str(caught.value) for fact in facts)
    assert list(own_temporary.iterdir()) == []


@pytest.mark.parametrize("content", [b"", b"text", png(40, 40)[:100]], ids=["empty", "text", "truncated"])
def test_an_unreadable_upload_is_reported_by_the_name_of_the_user(content: bytes, own_temporary: Path) -> None:
    with pytest.raises(UserError) as caught:
        read_upload(content, "scan one.png", Limits())
    assert str(caught.value).startswith("scan one.png: ")
    assert str(own_temporary) not in str(caught.value)
    assert list(own_temporary.iterdir()) == []


def test_the_reasons_of_unreadable_uploads_differ() -> None:
    reasons = set()
    for content in (b"", b"text", png(40, 40)[:100]):
        with pytest.raises(UserError) as caught:
            read_upload(content, "scan.png", Limits())
        reasons.add(str(caught.value))
    assert len(reasons) == 3


@pytest.mark.parametrize(
    ("sent", "name"),
    [
        ("a.png", "a.png"),
        ("C:\\fakepath\\a b.png", "a b.png"),
        ("../../etc/passwd", "passwd"),
        ("..", "image"),
        ("", "image"),
        ("/", "image"),
        ("a\n<b>.png", "ab.png"),
        ("π.tif", "π.tif"),
    ],
)
def test_names_are_reduced_to_their_last_component(sent: str, name: str) -> None:
    assert base_name(sent) == name
