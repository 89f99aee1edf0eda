"""The store of features on disk."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
import torch

from promise.features import store
from promise.features.store import (
    CorruptEntry,
    FeatureSpace,
    cache_folder,
    entry_key,
    files,
    find_corruption,
    free_bytes,
    list_spaces,
    remove_space,
)
from promise.types import Encoded

KEY = entry_key("image", "mask", None)


def features(dtype: torch.dtype = torch.float32, seed: int = 0) -> tuple[Encoded, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    maps = [torch.randn(1, c, 4, 4, generator=generator).to(dtype) for c in (8, 3, 5)]
    return Encoded(maps[0], tuple(maps[1:])), (torch.rand(1, 7, 5, generator=generator) > 0.5).float()


def space(home: Path, *, taps: bool = True, tap_pooling: int = 1, **description: object) -> FeatureSpace:
    return FeatureSpace(home, {"sam": "tiny", **description}, taps=taps, tap_pooling=tap_pooling)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
def test_an_entry_is_read_back_exactly(dtype, tmp_path) -> None:
    encoded, mask = features(dtype)
    space(tmp_path).put(KEY, encoded, mask)
    entry = space(tmp_path).get(KEY)
    assert torch.equal(entry.embedding, encoded.embedding[0])
    assert entry.embedding.dtype == dtype
    assert [torch.equal(a, b[0]) for a, b in zip(entry.taps, encoded.taps, strict=True)] == [True, True]
    assert torch.equal(entry.mask, mask)


def test_channels_last_maps_are_stored_by_value(tmp_path) -> None:
    encoded, mask = features()
    space(tmp_path).put(KEY, encoded.map(lambda x: x.contiguous(memory_format=torch.channels_last)), mask)
    assert torch.equal(space(tmp_path).get(KEY).taps[1], encoded.taps[1][0])


def test_a_space_is_named_by_its_description(tmp_path) -> None:
    encoded, mask = features()
    space(tmp_path, sha="a").put(KEY, encoded, mask)
    assert space(tmp_path, sha="a").missing([KEY]) == []
    assert space(tmp_path, sha="b").missing([KEY, KEY]) == [KEY]
    (info,) = list_spaces(tmp_path)
    assert info.description == {"format": 1, "sam": "tiny", "sha": "a"}
    assert info.entries == 1
    assert info.size == sum(path.stat().st_size for path in files(info.folder)) > 0
    remove_space(info)
    assert list(tmp_path.iterdir()) == []


def test_taps_at_half_the_resolution_share_the_embedding_with_those_at_full_resolution(tmp_path) -> None:
    encoded, mask = features()
    full, half = space(tmp_path), space(tmp_path, tap_pooling=2)
    full.put(KEY, encoded, mask)
    assert half.folder == full.folder
    assert half.missing([KEY]) == [KEY]
    pooled = Encoded(encoded.embedding, tuple(tap[..., ::2, ::2] for tap in encoded.taps))
    half.put(KEY, pooled, mask)
    assert half.missing([KEY]) == []
    assert torch.equal(half.get(KEY).taps[0], pooled.taps[0][0])
    assert torch.equal(full.get(KEY).taps[0], encoded.taps[0][0])
    assert len(list(files(full.folder))) == 3


def test_without_taps_only_the_embedding_is_written_and_read(tmp_path) -> None:
    encoded, mask = features()
    space(tmp_path, taps=False).put(KEY, Encoded(encoded.embedding), mask)
    assert space(tmp_path, taps=False).get(KEY).taps == ()
    assert space(tmp_path).missing([KEY]) == [KEY]
    space(tmp_path).put(KEY, encoded, mask)
    assert space(tmp_path, taps=False).get(KEY).taps == ()
    assert len(space(tmp_path).get(KEY).taps) == 2


def test_keys_depend_on_every_part() -> None:
    parts = [("a", "b", None), ("ab", "", None), ("a", "b", 0), ("a", "b", (0, 0, "x")), ("a", "b", (0, 1, "x"))]
    assert len({entry_key(*p) for p in parts}) == len(parts)


def test_every_kind_of_corruption_is_found(tmp_path) -> None:
    encoded, mask = features()
    kept = space(tmp_path)
    kept.put(KEY, encoded, mask)
    for path in kept.paths(KEY):
        whole = path.read_bytes()
        assert find_corruption(path) is None
        for at in (len(whole) - 1, len(whole) - 40, 12):
            path.write_bytes(whole[:at] + bytes([whole[at] ^ 1]) + whole[at + 1 :])
            assert str(path) in (find_corruption(path) or "")
        path.write_bytes(whole[: len(whole) // 2])
        assert find_corruption(path) is not None
        with pytest.raises(CorruptEntry, match=path.name):
            kept.get(KEY)
        path.write_bytes(b"")
        assert find_corruption(path) is not None
        path.unlink()
        assert find_corruption(path) is not None
        path.write_bytes(whole)
    assert torch.equal(kept.get(KEY).mask, mask)


def test_a_failed_write_leaves_nothing(tmp_path, monkeypatch) -> None:
    encoded, mask = features()

    def full(*_: object, **__: object) -> None:
        raise OSError("No space left on device")

    monkeypatch.setattr("promise.features.store.save_file", full)
    with pytest.raises(OSError, match="No space"):
        space(tmp_path).put(KEY, encoded, mask)
    assert space(tmp_path).missing([KEY]) == [KEY]
    assert [p.name for p in tmp_path.rglob("*") if p.is_file()] == ["space.json"]
    json.loads(next(tmp_path.rglob("space.json")).read_text())


def test_the_folder_follows_the_environment(tmp_path, monkeypatch) -> None:
    monkeypatch.setenv("PROMISE_FEATURES", str(tmp_path / "mine"))
    assert cache_folder() == tmp_path / "mine"
    monkeypatch.delenv("PROMISE_FEATURES")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    assert cache_folder() == tmp_path / "xdg/promise/features"
    assert free_bytes(tmp_path / "not/yet/there") > 0


def test_prefetch_requests_every_byte_and_ignores_missing_files(tmp_path, monkeypatch) -> None:
    space = FeatureSpace(tmp_path, {"a": 1}, taps=True)
    space.put("ab12", *features())
    requested: dict[int, int] = {}

    def advise(file: int, start: int, size: int, _advice: int) -> None:
        inode = os.fstat(file).st_ino
        assert start == requested.get(inode, 0)
        requested[inode] = start + size

    monkeypatch.setattr(store, "READ_AHEAD", 100)
    monkeypatch.setattr(os, "posix_fadvise", advise, raising=False)
    monkeypatch.setattr(os, "POSIX_FADV_WILLNEED", 3, raising=False)
    space.prefetch("ab12")
    assert requested.keys() == {path.stat().st_ino for path in space.paths("ab12")}
    assert all(requested[path.stat().st_ino] >= path.stat().st_size > 100 for path in space.paths("ab12"))
    space.prefetch("gone")
    assert len(requested) == 2
