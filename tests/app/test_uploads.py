"""Uploads become pictures within limits, and leave no file."""

from __future__ import annotations

import io
import struct
import tempfile
import zlib
from pathlib import Path

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


def claims(width: int, height: int) -> bytes:
    """A PNG that says it has this many pixels, and holds none."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    head = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", zlib.compress(b"")) + chunk(b"IEND", b"")


def test_a_picture_is_what_its_file_is(tmp_path: Path, own_temporary: Path) -> None:
    (tmp_path / "a.png").write_bytes(png(5, 7))
    assert np.array_equal(read_upload(png(5, 7), "a.png", Limits()), read_image(tmp_path / "a.png"))
    assert list(own_temporary.iterdir()) == []


@pytest.mark.parametrize(
    ("content", "limits", "words"),
    [
        (png(50, 50), Limits(megabytes=0.0001), "larger than 0.0001 MB"),
        (png(50, 60), Limits(megapixels=0.0029), "60 × 50 pixels, more than the 0.0029 million"),
        (claims(9000, 9000), Limits(), "9000 × 9000 pixels, more than the 25 million"),
        (claims(60000, 60000), Limits(), "more than the 25 million"),  # Pillow itself refuses to open it
    ],
    ids=["bytes", "pixels", "claimed", "bomb"],
)
def test_beyond_the_limits_nothing_is_decoded(
    content: bytes, limits: Limits, words: str, own_temporary: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("promise.app.uploads.read_picture", lambda path: pytest.fail("decoded"))
    with pytest.raises(TooLargeError, match=words):
        read_upload(content, "a.png", limits)
    assert list(own_temporary.iterdir()) == []


@pytest.mark.parametrize(
    ("content", "words"),
    [(b"", "empty"), (b"text", "not a picture"), (png(40, 40)[:100], "truncated")],
    ids=["empty", "text", "truncated"],
)
def test_what_is_no_picture_is_named_as_the_user_knows_it(content: bytes, words: str, own_temporary: Path) -> None:
    with pytest.raises(UserError, match=words) as caught:
        read_upload(content, "scan one.png", Limits())
    assert str(caught.value).startswith("scan one.png: ")
    assert str(own_temporary) not in str(caught.value)
    assert list(own_temporary.iterdir()) == []


@pytest.mark.parametrize(
    ("given", "name"),
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
def test_a_name_is_a_name_and_no_path(given: str, name: str) -> None:
    assert base_name(given) == name
