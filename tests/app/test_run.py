"""Start of the server: settings, port and samples."""

from __future__ import annotations

import json
import shutil
import socket
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from promise.app import run
from promise.app.run import Serving, bind, is_private, make_samples, offer, read_samples, serve
from promise.app.uploads import Limits
from promise.data.images import read_image
from promise.data.phantom import make_phantom
from promise.runtime.errors import MissingFileError


def never(*_: Any) -> Any:
    pytest.fail("called before all checks have passed")


def test_a_port_in_use_is_reported_before_the_net_is_loaded(user_error: Callable[..., Any]) -> None:
    pytest.importorskip("starlette", reason="needs the [app] extra")
    with bind("127.0.0.1", 0) as taken:
        taken.listen()
        port = taken.getsockname()[1]
        with user_error("cannot-listen") as caught:
            serve(never, Serving(port=port), never)
        for fact in (str(port), "127.0.0.1", "--port"):
            assert fact in str(caught.value)
    with user_error("cannot-listen") as caught:
        bind("no.such.host.invalid", 0)
    assert "no.such.host.invalid" in str(caught.value)


def test_a_missing_extra_is_reported(monkeypatch: pytest.MonkeyPatch, user_error: Callable[..., Any]) -> None:
    monkeypatch.setattr(run, "find_spec", lambda name: None)
    with user_error("missing-extra") as caught:
        serve(never, Serving(), never)
    for fact in ("starlette", "uvicorn", "pip install 'promise-sam[app]'"):
        assert fact in str(caught.value)


def test_invalid_settings_are_reported_together(user_error: Callable[..., Any]) -> None:
    pytest.importorskip("starlette", reason="needs the [app] extra")
    serving = Serving(limits=Limits(0, -1), images_kept=0, idle_minutes=float("nan"), port=99_999)
    with user_error("setting-not-positive", "invalid-port") as caught:
        serve(never, serving, never)
    assert len(caught.value.codes) == 5
    for flag in ("--max-megabytes", "--max-megapixels", "--images-kept", "--idle-minutes", "--port"):
        assert flag in str(caught.value)


def test_samples_are_the_images_of_a_folder_or_synthetic(
    phantoms: Path, tmp_path: Path, user_error: Callable[..., Any]
) -> None:
    pytest.importorskip("starlette", reason="needs the [app] extra")
    samples = read_samples(phantoms.parent / "images")
    assert [sample.name for sample in samples] == [f"phantom_{i:04d}.png" for i in range(12)]
    assert np.array_equal(samples[3].read(), read_image(phantoms.parent / "images/phantom_0003.png"))
    synthetic = make_samples()
    assert len(synthetic) == 4
    assert np.array_equal(synthetic[1].read(), make_phantom(seed=5, index=1, size=(256, 256))[0])
    with user_error("missing-samples") as caught:
        read_samples(tmp_path / "absent")
    assert isinstance(caught.value, MissingFileError)
    with user_error("no-samples") as caught:
        read_samples(tmp_path)
    assert str(tmp_path) in str(caught.value)


def test_without_a_checkpoint_the_bundled_ones_are_offered_and_loaded_on_first_use(
    bundled_net: Path,
    lesion_segmenter: Any,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    phantoms: Path,
    user_error: Callable[..., Any],
) -> None:
    pytest.importorskip("starlette", reason="needs the [app] extra")
    cards = bundled_net.parent / "cards.json"
    card = json.loads(cards.read_text())["tiny"]
    cards.write_text(json.dumps({"other": {**card, "purpose": "dots"}, "tiny": card}))
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(run, "CHECKOUT", tmp_path / "checkout")
    loaded: list[str] = []

    def load(ckpt: str) -> Any:
        loaded.append(ckpt)
        return lesion_segmenter

    nets, samples = offer(load, Serving())
    assert samples == []  # neither folder exists, and nobody asked for synthetic images
    assert [(one["name"], one["purpose"], one["about"]) for one in nets.describe()] == [
        ("other", "dots", None),
        ("tiny", "blobs", None),
    ]
    assert (nets.resolve(None), nets.resolve("tiny")) == ("other", "tiny")
    with user_error("unknown-net"):
        nets.resolve("none")
    assert loaded == []
    assert nets.load("tiny") is nets.load("tiny")
    assert loaded == ["tiny"]
    assert nets.describe()[1]["about"]["lesions"] is True
    assert [name for name, _ in nets.loaded()] == ["tiny"]

    folder = tmp_path / "checkout/data_format/tiny/images"
    shutil.copytree(phantoms.parent / "images", folder)
    nets, samples = offer(load, Serving())
    assert nets.resolve(None) == "tiny"  # the net of the samples
    assert len(samples) == 12
    shutil.copytree(folder, tmp_path / "data_format/other/images")  # in the current folder
    assert offer(load, Serving())[0].resolve(None) == "other"
    (folder / "one").mkdir()
    shutil.copy(folder / "phantom_0003.png", folder / "one")
    assert [sample.name for sample in offer(load, Serving(samples=folder / "one"))[1]] == ["phantom_0003.png"]
    cards.write_text("{}")
    with user_error("missing-checkpoint"):
        offer(load, Serving())


def test_a_checkpoint_that_is_passed_is_loaded_at_once(lesion_segmenter: Any) -> None:
    pytest.importorskip("starlette", reason="needs the [app] extra")
    loaded: list[str] = []
    nets, samples = offer(lambda ckpt: loaded.append(ckpt) or lesion_segmenter, Serving(ckpt="runs/a/best.safetensors"))
    assert loaded == ["runs/a/best.safetensors"]
    assert [one["name"] for one in nets.describe()] == ["best.safetensors"]
    assert len(samples) == 4  # synthetic


def test_a_net_that_could_not_be_loaded_is_tried_again(user_error: Callable[..., Any]) -> None:
    pytest.importorskip("starlette", reason="needs the [app] extra")
    from promise.app.nets import Net, Nets, Offer

    found = [Net(never, {})]

    def load() -> Net:
        if len(found) == 1:
            found.append(found[0])
            raise MissingFileError("absent", code="missing-weights")
        return found[0]

    nets = Nets([Offer("a", "", load)])
    with user_error("missing-weights"):
        nets.load("a")
    assert nets.loaded() == []
    assert nets.load("a") is found[0]


@pytest.mark.parametrize(
    ("host", "private"),
    [("127.0.0.1", True), ("127.0.0.9", True), ("::1", True), ("localhost", True), ("0.0.0.0", False), ("a.b", False)],
)
def test_loopback_hosts_are_private(host: str, private: bool) -> None:
    assert is_private(host) is private


def test_the_default_host_is_this_machine_only() -> None:
    assert Serving().host == "127.0.0.1"
    with bind(Serving().host, 0) as listener:
        assert listener.family == socket.AF_INET
        assert listener.getsockname()[0] == "127.0.0.1"
