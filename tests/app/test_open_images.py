"""Keys of open images, and when images are removed."""

from __future__ import annotations

import numpy as np

from promise.app.open_images import OpenImage, OpenImages


def image(name: str) -> OpenImage:
    return OpenImage(name, np.zeros((4, 6, 3), np.uint8), session=None)  # type: ignore[arg-type]


def test_a_key_opens_only_its_own_image() -> None:
    images = OpenImages(limit=4, limit_each=4, idle_seconds=10)
    a, b = images.add(image("a"), "x"), images.add(image("b"), "x")
    assert a != b
    assert min(len(a), len(b)) >= 32
    assert images.get(a).name == "a"
    assert images.get(b).name == "b"
    assert images.get("c") is None
    images.close(a)
    images.close("c")
    assert images.get(a) is None
    assert len(images) == 1
    assert images.get(b).size == (6, 4)


def test_the_least_recently_used_image_is_removed_first() -> None:
    images = OpenImages(limit=2, limit_each=2, idle_seconds=10)
    a, b = images.add(image("a"), "x"), images.add(image("b"), "x")
    images.get(a)
    c = images.add(image("c"), "x")
    assert [images.get(key) and images.get(key).name for key in (a, b, c)] == ["a", None, "c"]


def test_a_visitor_with_many_images_does_not_remove_those_of_others() -> None:
    images = OpenImages(limit=4, limit_each=2, idle_seconds=10)
    other = images.add(image("other"), "y")
    keys = [images.add(image(name), "x") for name in "abc"]
    assert [images.get(key) is not None for key in (other, *keys)] == [True, False, True, True]
    more = [images.add(image(name), name) for name in "de"]  # of further visitors: the oldest of all is removed
    assert [images.get(key) is not None for key in (other, *keys, *more)] == [False, False, True, True, True, True]


def test_idle_images_are_removed() -> None:
    now = 0.0
    images = OpenImages(limit=4, limit_each=4, idle_seconds=10, clock=lambda: now)
    a, b = images.add(image("a"), "x"), images.add(image("b"), "x")
    now = 8
    assert images.get(a) is not None
    now = 12
    images.remove_idle()
    assert len(images) == 1
    assert images.get(b) is None
    now = 30
    assert images.get(a) is None


def test_clear_removes_all_images() -> None:
    images = OpenImages(limit=4, limit_each=4, idle_seconds=10)
    images.add(image("a"), "x")
    images.clear()
    assert len(images) == 0
