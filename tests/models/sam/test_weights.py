"""Downloading, verifying and reading weight files, with a server on this machine."""

from __future__ import annotations

import hashlib
import pickle
import threading
from collections.abc import Iterator
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
import torch

from promise.models.sam.backbones import build_sam, get_backbone
from promise.models.sam.weights import Weights, check_weights, find_weights, read_state_dict, state_sha256
from promise.runtime.errors import MissingFileError

CONTENT = b"weights " * 999
SHA256 = hashlib.sha256(CONTENT).hexdigest()


class QuietHandler(SimpleHTTPRequestHandler):
    requests: list[str] = []  # noqa: RUF012

    def log_message(self, *_: object) -> None: ...

    def do_GET(self) -> None:
        self.requests.append(self.path)
        super().do_GET()


@pytest.fixture
def server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """The URL of a mirror that contains ``sam.pth``; the cache does not exist yet."""
    (tmp_path / "mirror").mkdir()
    (tmp_path / "mirror/sam.pth").write_bytes(CONTENT)
    monkeypatch.setenv("PROMISE_CACHE", str(tmp_path / "cache"))
    QuietHandler.requests = []
    with ThreadingHTTPServer(("127.0.0.1", 0), partial(QuietHandler, directory=str(tmp_path / "mirror"))) as http:
        thread = threading.Thread(target=http.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{http.server_address[1]}"
        http.shutdown()
        thread.join()


def test_weights_are_downloaded_once_and_verified(server: str, tmp_path: Path) -> None:
    weights = Weights("sam.pth", f"{server}/sam.pth", SHA256)
    for _ in range(2):
        assert find_weights(weights) == tmp_path / "cache/sam.pth"
    assert (tmp_path / "cache/sam.pth").read_bytes() == CONTENT
    assert QuietHandler.requests == ["/sam.pth"]
    assert [p.name for p in (tmp_path / "cache").iterdir()] == ["sam.pth"]


def test_a_mirror_takes_precedence_over_the_published_url(server: str, tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setenv("PROMISE_WEIGHTS_URL", f"{server}/")
    assert find_weights(Weights("sam.pth", "http://127.0.0.1:9/other/sam.pth", SHA256)).read_bytes() == CONTENT
    assert QuietHandler.requests == ["/sam.pth"]


def test_a_download_with_a_wrong_hash_leaves_no_file(server: str, tmp_path: Path) -> None:
    with pytest.raises(MissingFileError, match="invalid hash value") as caught:
        find_weights(Weights("sam.pth", f"{server}/sam.pth", "0" * 64))
    assert f"{server}/sam.pth" in str(caught.value)
    assert list((tmp_path / "cache").iterdir()) == []


def test_a_download_of_a_wrong_size_is_refused(server: str, user_error) -> None:
    find_weights(Weights("sam.pth", f"{server}/sam.pth", size=len(CONTENT)))
    with user_error("not-the-published-weights"):
        find_weights(Weights("sam.pth", f"{server}/sam.pth", size=5))


def test_a_cached_file_with_other_content_is_refused(server: str, tmp_path: Path, user_error) -> None:
    (tmp_path / "cache").mkdir()
    (tmp_path / "cache/sam.pth").write_bytes(CONTENT[:-1])
    with user_error("not-the-published-weights") as caught:
        find_weights(Weights("sam.pth", f"{server}/sam.pth", SHA256))
    assert all(part in str(caught.value) for part in ("sam.pth", SHA256, "--sam-checkpoint"))
    assert QuietHandler.requests == []


@pytest.mark.parametrize(
    "mirror", ["http://127.0.0.1:9", "missing", "nonsense", "http://a host"], ids=["closed", "404", "no-url", "space"]
)
def test_offline_the_error_contains_url_path_and_option(mirror: str, server: str, tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setenv("PROMISE_WEIGHTS_URL", f"{server}/missing" if mirror == "missing" else mirror)
    with pytest.raises(MissingFileError) as caught:
        find_weights(Weights("sam.pth", "https://example.org/sam.pth", SHA256))
    message = str(caught.value)
    for part in ("https://example.org/sam.pth", str(tmp_path / "cache/sam.pth"), "--sam-checkpoint"):
        assert part in message
    assert "\n" not in message
    assert not (tmp_path / "cache/sam.pth").exists()


def test_a_bundled_file_is_verified_too(tmp_path: Path, user_error) -> None:
    (tmp_path / "a.pth").write_bytes(CONTENT)
    bundled = lambda: str(tmp_path / "a.pth")  # noqa: E731
    assert find_weights(Weights("a.pth", sha256=SHA256, bundled=bundled)) == tmp_path / "a.pth"
    with user_error("not-the-published-weights"):
        find_weights(Weights("a.pth", sha256="0" * 64, bundled=bundled))
    check_weights(tmp_path / "a.pth", Weights("a.pth"))  # neither SHA-256 nor size: not verified


# --- reading --------------------------------------------------------------------------------------


@pytest.mark.parametrize("key", [None, "state_dict", "model"])
def test_a_state_dict_is_unwrapped(key: str | None, tmp_path: Path) -> None:
    state = {"module.a.weight": torch.arange(3.0), "b": torch.tensor(2)}
    torch.save(state if key is None else {key: state, "epoch": 3}, tmp_path / "a.pth")
    found = read_state_dict(tmp_path / "a.pth")
    assert {name: value.tolist() for name, value in found.items()} == {"a.weight": [0, 1, 2], "b": 2}


@pytest.mark.parametrize("content", [[1, 2], {}, {"a": "text"}, {"a": {"b": 1}}], ids=str)
def test_other_objects_are_refused(content: object, tmp_path: Path, user_error) -> None:
    torch.save(content, tmp_path / "a.pth")
    with user_error("not-a-state-dict"):
        read_state_dict(tmp_path / "a.pth")


@pytest.mark.parametrize("kept", [0, 10, -50])
def test_a_truncated_file_is_refused(kept: int, tmp_path: Path, user_error) -> None:
    torch.save({"a": torch.zeros(1000)}, tmp_path / "a.pth")
    (tmp_path / "a.pth").write_bytes((tmp_path / "a.pth").read_bytes()[:kept])
    with user_error("unreadable-weights") as caught:
        read_state_dict(tmp_path / "a.pth")
    assert "\n" not in str(caught.value)


class Evil:
    def __init__(self, path: str) -> None:
        self.path = path

    def __reduce__(self) -> object:
        return Path.touch, (Path(self.path),)


@pytest.mark.filterwarnings("ignore:Detected pickle protocol")
@pytest.mark.parametrize("zipped", [True, False])
def test_code_in_a_file_is_not_run(zipped: bool, tmp_path: Path, user_error) -> None:
    content = {"a": torch.zeros(1), "b": Evil(str(tmp_path / "was here"))}
    if zipped:
        torch.save(content, tmp_path / "a.pth")
    else:
        (tmp_path / "a.pth").write_bytes(pickle.dumps(content))
    with user_error("unreadable-weights"):
        read_state_dict(tmp_path / "a.pth")
    assert not (tmp_path / "was here").exists()


def test_a_missing_file_is_named(tmp_path: Path, user_error) -> None:
    with user_error("missing-weights"):
        read_state_dict(tmp_path / "a.pth")


# --- loading into a SAM ---------------------------------------------------------------------------


def test_a_file_of_another_architecture_is_refused(tiny_vit: str, tmp_path: Path, user_error) -> None:
    backbone = get_backbone(tiny_vit)
    state = backbone.build().state_dict()
    state["unexpected"] = state.pop("image_encoder.pos_embed")
    state["prompt_encoder.no_mask_embed.weight"] = torch.zeros(1, 5)
    torch.save(state, tmp_path / "a.pth")
    with user_error("weights-misfit") as caught:
        build_sam(backbone, tmp_path / "a.pth")
    assert all(name in str(caught.value) for name in ("image_encoder.pos_embed", "unexpected", "no_mask_embed"))


def test_a_file_is_loaded_and_random_weights_are_the_same_every_time(tiny_vit: str, tmp_path: Path) -> None:
    backbone = get_backbone(tiny_vit)
    with pytest.warns(RuntimeWarning, match="random weights"):
        first, again = (build_sam(backbone, None).state_dict() for _ in range(2))
    assert state_sha256(first) == state_sha256(again)
    changed = {name: value + 1 for name, value in first.items()}
    torch.save({"module." + name: value for name, value in changed.items()}, tmp_path / "a.pth")
    assert state_sha256(build_sam(backbone, tmp_path / "a.pth").state_dict()) == state_sha256(changed)


def test_the_hash_of_a_state_depends_on_names_types_shapes_and_values() -> None:
    state = {"a": torch.zeros(2, 3), "b": torch.ones(())}
    same = {"b": torch.ones(()), "a": torch.zeros(3, 2).t()}
    others = [
        {"a": torch.zeros(2, 3), "c": torch.ones(())},
        {"a": torch.zeros(3, 2), "b": torch.ones(())},
        {"a": torch.zeros(2, 3, dtype=torch.int32), "b": torch.ones(())},
        {"a": torch.full((2, 3), -0.0), "b": torch.ones(())},
    ]
    assert state_sha256(state) == state_sha256(same)
    assert len({state_sha256(s) for s in (state, *others)}) == 5


def test_without_a_home_no_folder_is_created(tmp_path: Path, monkeypatch, user_error) -> None:
    for name in ("HOME", "PROMISE_CACHE", "XDG_CACHE_HOME", "TORCH_HOME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr("pwd.getpwuid", lambda uid: {}[uid])  # an arbitrary uid of a container
    monkeypatch.chdir(tmp_path)
    with user_error("no-home"):
        find_weights(Weights("sam.pth", "http://127.0.0.1:9/sam.pth", SHA256))
    assert list(tmp_path.iterdir()) == []
