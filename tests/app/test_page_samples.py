"""The list of samples in Chromium: thumbnails, estimated quality, order and steps."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from promise.models.quality import describe_quality


@pytest.fixture(scope="module")
def found(estimating_segmenter: Any, phantoms: Path) -> dict[str, Any]:
    """File name → automatic mask of the net with an estimate."""
    paths = sorted((phantoms.parent / "images").glob("*.png"))
    return {path.name: estimating_segmenter.predict(path) for path in paths}


@pytest.fixture(scope="module")
def worst_first(found: dict[str, Any]) -> list[str]:
    """Images without a lesion, then by estimated IoU."""
    quality = [one.quality for one in found.values() if one.quality is not None]
    assert 2 < len(set(quality)) < len(found)
    return sorted(found, key=lambda name: -1 if found[name].quality is None else found[name].quality)


@pytest.fixture
def visit(browser: Any, open_page: Callable[..., Any], failures: list[str]) -> Iterator[Callable[..., Any]]:
    contexts = []

    def visit(address: str, **options: Any) -> Any:
        contexts.append(browser.new_context(**{"viewport": {"width": 1200, "height": 800}, **options}))
        return open_page(contexts[-1].new_page(), address, failures)

    yield visit
    for context in contexts:
        context.close()


@pytest.fixture
def page(visit: Callable[..., Any], served_estimates: tuple[str, Any]) -> Any:
    """A page on which all samples are estimated."""
    page = visit(served_estimates[0])
    wait_for_estimates(page)
    return page


def wait_for_estimates(page: Any) -> None:
    page.page.wait_for_selector("#thumbnails [data-estimate] >> nth=11")


def current(page: Any) -> str:
    """The file name of the marked sample, which is the open one."""
    page.ready()
    name = page.page.locator("#thumbnails [aria-current] img").get_attribute("alt")
    assert page.text("#status").startswith(f"{name}, ")
    return name


def test_thumbnails_show_the_estimate_as_number_and_in_words(page: Any, found: dict[str, Any]) -> None:
    assert page.samples == sorted(found)
    assert page.page.locator("#thumbnails img[loading=lazy]").count() == 12
    page.page.locator("#thumbnails img").first.evaluate("image => image.decode()")  # raises if it cannot be loaded
    shown = page.page.locator("#thumbnails button").all_inner_texts()
    expected = [
        "no lesion found" if one.quality is None else f"{one.quality:.3f} {describe_quality(one.quality)}"
        for one in found.values()
    ]
    assert [" ".join(text.split()) for text in shown] == expected
    assert {words.partition(" ")[2] for words in expected} >= {"likely good", "usable", "check this", "lesion found"}
    assert page.text("#estimated") == ""


def test_steps_follow_the_order_in_which_the_worst_are_first(
    page: Any, found: dict[str, Any], worst_first: list[str]
) -> None:
    assert page.text("#position") == "– / 12"
    page.page.click("#worst-first")
    assert page.samples == worst_first
    page.page.keyboard.press("PageDown")
    assert current(page) == worst_first[0]
    assert np.array_equal(page.mask, found[worst_first[0]].mask)
    assert page.page.is_disabled("#previous")
    for _ in range(5):  # opens the last of them only
        page.page.click("#next")
    assert current(page) == worst_first[5]
    assert np.array_equal(page.mask, found[worst_first[5]].mask)
    assert page.text("#position") == "6 / 12"
    page.page.keyboard.press("PageUp")
    assert current(page) == worst_first[4]
    page.page.click("#worst-first")  # by name
    assert page.samples == sorted(found)
    assert page.text("#position") == f"{sorted(found).index(worst_first[4]) + 1} / 12"
    page.page.click("#thumbnails button:last-child")
    assert current(page) == max(found)
    assert page.page.is_disabled("#next")
    page.page.keyboard.press("PageDown")  # there is no next image
    assert current(page) == max(found)


def test_no_thumbnail_moves_under_the_pointer(
    visit: Callable[..., Any], served_estimates: tuple[str, Any], worst_first: list[str]
) -> None:
    page = visit(served_estimates[0])
    page.page.route("**/api/estimates*", lambda route: route.fulfill(json=[]))
    page.page.reload()
    page.page.wait_for_selector("#stage[data-state=empty]")
    assert page.text("#estimated") == "0 of 12 estimated"
    page.page.click("#worst-first")
    page.page.hover("#thumbnails button:nth-child(2)")
    page.page.unroute("**/api/estimates*")
    wait_for_estimates(page)
    assert page.samples == sorted(worst_first)
    page.page.hover("#stage")
    assert page.samples == worst_first != sorted(worst_first)


@pytest.mark.parametrize("held", ["**/api/samples/2?*", "**/automatic"])
def test_an_image_that_opens_late_does_not_replace_a_later_one(
    page: Any, served_estimates: tuple[str, Any], found: dict[str, Any], held: str
) -> None:
    served_estimates[1].clear()
    routes: list[Any] = []
    page.page.route(held, lambda route: routes.append(route), times=1)  # noqa: PLW0108 (not a builtin)
    page.page.click("#thumbnails button:nth-child(3)")
    for _ in range(100):
        if routes:
            break
        page.page.wait_for_timeout(50)
    page.page.click("#thumbnails button:nth-child(5)")
    assert current(page) == "phantom_0004.png"
    with page.page.expect_response(held):
        routes[0].continue_()
    page.page.wait_for_timeout(300)
    assert current(page) == "phantom_0004.png"
    assert np.array_equal(page.mask, found["phantom_0004.png"].mask)
    assert not np.array_equal(page.mask, found["phantom_0002.png"].mask)
    assert page.page.locator("#notice").is_hidden()
    assert len(served_estimates[1]) == 1  # the other one is closed


def test_the_marked_thumbnail_is_scrolled_into_view(visit: Callable[..., Any], served: tuple[str, Any]) -> None:
    page = visit(served[0], viewport={"width": 390, "height": 844})
    page.page.locator("#thumbnails button:last-child").evaluate("button => button.click()")
    page.ready()
    outer, inner = (page.page.locator(name).bounding_box() for name in ("#thumbnails", "#thumbnails [aria-current]"))
    assert outer["x"] <= inner["x"] <= inner["x"] + inner["width"] <= outer["x"] + outer["width"]


def test_a_net_without_an_estimate_lists_its_samples_by_name(
    visit: Callable[..., Any], served: tuple[str, Any]
) -> None:
    page = visit(served[0])
    assert page.samples == [f"phantom_{i:04d}.png" for i in range(12)]
    assert page.page.locator("#worst-first").is_hidden()
    page.page.keyboard.press("PageDown")
    page.ready()
    assert page.page.locator("#thumbnails [data-estimate]").count() == 0
    assert page.text("#thumbnails") == ""
    page.page.focus("#opacity")
    page.page.keyboard.press("PageUp")  # belongs to the slider
    assert page.text("#opacity-value") != "40 %"
    assert current(page) == "phantom_0000.png"


def test_an_uploaded_image_is_not_marked(page: Any, phantoms: Path) -> None:
    page.page.click("#thumbnails button:nth-child(3)")
    assert current(page) == "phantom_0002.png"
    page.open(phantoms.parent / "images/phantom_0004.png")
    assert page.page.locator("#thumbnails [aria-current]").count() == 0
    assert page.text("#position") == "– / 12"


def test_steps_pass_a_sample_that_cannot_be_read(
    visit: Callable[..., Any], serve_folder: Callable[..., Any], phantoms: Path, tmp_path: Path
) -> None:
    for i in (0, 2):
        (tmp_path / f"{i}.png").write_bytes((phantoms.parent / f"images/phantom_000{i}.png").read_bytes())
    (tmp_path / "1.png").write_text("no image")
    with serve_folder(tmp_path) as (address, _):
        page = visit(address)
        page.page.keyboard.press("PageDown")
        assert current(page) == "0.png"
        page.page.keyboard.press("PageDown")
        page.page.wait_for_selector("#notice:not([hidden])")
        assert page.text("#notice p").startswith("1.png: ")  # without the folder
        assert current(page) == "0.png"
        page.page.keyboard.press("PageDown")
        assert current(page) == "2.png"


def test_the_panel_shows_the_estimate_of_automatic_masks_only(page: Any, found: dict[str, Any]) -> None:
    for words in ("likely good", "check this"):
        name = next(n for n, one in found.items() if one.quality and describe_quality(one.quality) == words)
        page.page.click(f"#thumbnails img[alt='{name}']")
        assert current(page) == name
        assert page.text("#iou-name") == "Estimated IoU"
        assert page.text("#iou") == f"{found[name].quality:.3f}"
        assert page.text("#iou-words") == words
    page.click(33, 33)  # a correction
    assert (page.text("#iou"), page.text("#iou-words")) == ("–", "no estimate after clicks")
    page.press("Control+z")
    assert page.text("#iou-words") == "check this"
    page.press("b")
    page.drag((8, 8), (50, 50))  # prompts of the user: SAM's estimate
    assert page.text("#iou-name") == "Predicted IoU"
    assert page.text("#iou-words") == ""
    assert page.text("#iou") != f"{found[name].quality:.3f}"


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("size", [(1200, 800), (800, 1100), (390, 844)])
def test_nothing_overflows(
    visit: Callable[..., Any], served_estimates: tuple[str, Any], size: tuple[int, int], scheme: Any
) -> None:
    page = visit(served_estimates[0], viewport={"width": size[0], "height": size[1]}, color_scheme=scheme)
    wait_for_estimates(page)
    assert page.overflowing() == []
    page.page.click("#worst-first")
    page.page.keyboard.press("PageDown")
    page.ready()
    assert page.overflowing() == []
    cut = (
        "all => all.filter((e) => e.scrollWidth > e.clientWidth || e.scrollHeight > e.clientHeight).map((e) => e.title)"
    )
    assert page.page.locator("#thumbnails button").evaluate_all(cut) == []
