"""What is served, where, and what stops it before it begins."""

from __future__ import annotations

import socket
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from promise.app import run
from promise.app.run import Serving, bind, is_private, read_samples, serve
from promise.app.uploads import Limits
from promise.data.images import read_image
from promise.data.phantom import make_phantom
from promise.runtime.errors import MissingFileError, UserError


def never(*_: Any) -> Any:
    pytest.fail("nothing must be loaded or announced")


def test_a_taken_port_is_told_before_anything_is_loaded() -> None:
    pytest.importorskip("starlette", reason="needs the [app] extra")
    with bind("127.0.0.1", 0) as taken:
        taken.listen()
        port = taken.getsockname()[1]
        with pytest.raises(UserError, match=f"cannot listen on port {port} of 127.0.0.1 .*--port"):
            serve(never, Serving(port=port), never)
    with pytest.raises(UserError, match=r"of no\.such\.host\.invalid"):
        bind("no.such.host.invalid", 0)


def test_a_missing_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(run, "find_spec", lambda name: None)
    with pytest.raises(UserError, match=r"needs starlette and uvicorn.*pip install 'promise-sam\[app\]'"):
        serve(never, Serving(), never)


def test_limits_that_are_none_are_told_at_once() -> None:
    pytest.importorskip("starlette", reason="needs the [app] extra")
    serving = Serving(limits=Limits(0, -1), images_kept=0, idle_minutes=float("nan"), port=99_999)
    with pytest.raises(UserError) as caught:
        serve(never, serving, never)
    for flag in ("--max-megabytes", "--max-megapixels", "--images-kept", "--idle-minutes", "--port"):
        assert flag in str(caught.value)


def test_samples_are_pictures_of_a_folder_or_synthetic(phantoms: Path, tmp_path: Path) -> None:
    pytest.importorskip("starlette", reason="needs the [app] extra")
    samples = read_samples(phantoms.parent / "images")
    assert [sample.name for sample in samples] == [f"phantom_{i:04d}.png" for i in range(12)]
    assert np.array_equal(samples[3].picture, read_image(phantoms.parent / "images/phantom_0003.png"))
    drawn = read_samples(None)
    assert len(drawn) == 4
    assert np.array_equal(drawn[1].picture, make_phantom(seed=5, index=1, size=(256, 256))[0])
    with pytest.raises(MissingFileError, match="no folder of samples"):
        read_samples(tmp_path / "absent")
    with pytest.raises(UserError, match="holds no pictures"):
        read_samples(tmp_path)


@pytest.mark.parametrize(
    ("host", "private"),
    [("127.0.0.1", True), ("127.0.0.9", True), ("::1", True), ("localhost", True), ("0.0.0.0", False), ("a.b", False)],
)
def test_who_can_reach_a_host(host: str, private: bool) -> None:
    assert is_private(host) is private


def test_the_default_is_this_machine_alone() -> None:
    assert Serving().host == "127.0.0.1"
    with bind(Serving().host, 0) as listener:
        assert listener.family == socket.AF_INET
        assert listener.getsockname()[0] == "127.0.0.1"
