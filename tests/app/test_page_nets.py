"""The page with several nets in Chromium: which one is loaded, and switching between them."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from promise.runtime.errors import UserError

NAMES = ["points", "lesions", "absent"]


@pytest.fixture
def loaded() -> list[str]:
    """The nets that were loaded, in their order."""
    return []


@pytest.fixture
def address(
    serve_nets: Callable[..., Any],
    segmenter: Any,
    estimating_segmenter: Any,
    phantoms: Path,
    loaded: list[str],
) -> Iterator[str]:
    pytest.importorskip("starlette", reason="needs the [app] extra")
    from promise.app.nets import Net, Nets, Offer
    from promise.app.run import describe, read_samples

    def offer(name: str, purpose: str, found: Any) -> Offer:
        def load() -> Net:
            loaded.append(name)
            if found is None:
                raise UserError("its weights are missing", code="missing-weights")
            return Net(found.session, describe(found))

        return Offer(name, purpose, load)

    purposes = ["one blob in a synthetic image", "several blobs", "nothing"]
    offers = map(offer, NAMES, purposes, [segmenter, estimating_segmenter, None])
    with serve_nets(Nets(list(offers)), read_samples(phantoms.parent / "images")) as (address, _):
        yield address


@pytest.fixture
def page(browser: Any, address: str, open_page: Callable[..., Any], failures: list[str]) -> Iterator[Any]:
    context = browser.new_context(viewport={"width": 1200, "height": 800})
    yield open_page(context.new_page(), address, failures)
    context.close()


def test_nets_are_loaded_on_first_use_and_switched(
    page: Any, segmenter: Any, estimating_segmenter: Any, phantoms: Path, loaded: list[str]
) -> None:
    assert page.page.locator("#nets option").all_inner_texts() == NAMES
    assert page.text("#purpose").startswith("The net points segments one blob in a synthetic image.")
    assert page.page.locator("#thumbnails img").count() == 12
    assert page.page.locator("#no-samples").is_hidden()
    assert loaded == []

    path = phantoms.parent / "images/phantom_0003.png"
    page.page.click("#thumbnails button:nth-child(4)")
    page.ready()
    assert loaded == ["points"]
    assert np.array_equal(page.mask, segmenter.predict(path).mask)
    assert page.text("#net").startswith("APM_IPS_resnet")
    assert page.page.locator("#worst-first").is_hidden()

    page.page.select_option("#nets", "lesions")  # opens the image again
    page.page.wait_for_selector("#net:has-text('APM_IPS_dense')")
    page.ready()
    assert loaded == ["points", "lesions"]
    expected = estimating_segmenter.predict(path).mask
    assert np.array_equal(page.mask, expected)
    assert not np.array_equal(expected, segmenter.predict(path).mask)
    assert page.page.locator("#lesions-card").is_visible()
    page.page.wait_for_selector("#thumbnails [data-estimate] >> nth=11")  # of all samples

    page.page.select_option("#nets", "absent")
    page.page.wait_for_selector("#notice:not([hidden])")
    assert page.text("#notice p") == "its weights are missing"
    assert page.page.locator("#nets").input_value() == "lesions"  # the image is still open with it
    assert np.array_equal(page.mask, expected)

    page.page.select_option("#nets", "points")
    page.page.wait_for_selector("#net:has-text('APM_IPS_resnet')")
    page.ready()
    assert np.array_equal(page.mask, segmenter.predict(path).mask)
    assert page.page.locator("#thumbnails [data-estimate]").count() == 0
    assert loaded == ["points", "lesions", "absent"]


@pytest.mark.parametrize("width", [1200, 390])
def test_nothing_overflows_on_the_start_page(page: Any, width: int) -> None:
    page.page.set_viewport_size({"width": width, "height": 844})
    assert page.overflowing() == []
    page.page.wait_for_timeout(50)
    frame = page.page.locator("#nets").bounding_box()
    assert frame["width"] > 60
    assert page.page.locator("#purpose").is_visible()


def test_without_samples_the_page_says_how_to_list_images(
    browser: Any, serve_sessions: Callable[..., Any], segmenter: Any, open_page: Callable[..., Any], failures: list[str]
) -> None:
    from promise.app.run import describe

    with serve_sessions(segmenter.session, describe(segmenter), []) as (address, _):
        page = open_page(browser.new_page(), address, failures)
        assert "promise-app --samples FOLDER" in page.text("#no-samples")
        assert page.page.locator("#samples").is_hidden()
        assert page.page.locator("#choose-net").is_hidden()  # there is one net
        page.page.close()
