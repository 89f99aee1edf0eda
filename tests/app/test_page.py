"""The page in Chromium: user actions and their effect on the mask."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest

from promise.prompts.file import PromptFile

Page = Any  # of conftest.py


@pytest.fixture
def visit(
    browser: Any, served: tuple[str, Any], open_page: Callable[..., Page], failures: list[str]
) -> Iterator[Callable[..., Page]]:
    """A function that opens the page for another visitor."""
    contexts = []

    def visit(**options: Any) -> Page:
        contexts.append(browser.new_context(**{"viewport": {"width": 1280, "height": 800}, **options}))
        return open_page(contexts[-1].new_page(), served[0], failures)

    yield visit
    for context in contexts:
        context.close()


@pytest.fixture(scope="module")
def window(browser: Any) -> Iterator[Any]:
    """A browser window that tests share, one tab each: a new window takes a second."""
    context = browser.new_context(viewport={"width": 1280, "height": 800})
    yield context
    context.close()


@pytest.fixture
def image(phantoms: Path) -> Path:
    return phantoms.parent / "images/phantom_0002.png"


@pytest.fixture
def page(
    window: Any, served: tuple[str, Any], open_page: Callable[..., Page], failures: list[str], image: Path
) -> Iterator[Page]:
    """A page with an open image."""
    tab = window.new_page()
    page = open_page(tab, served[0], failures)
    page.open(image)
    yield page
    tab.close()


def test_an_upload_shows_automatic_prompts_and_the_mask_of_predict(page: Page, segmenter: Any, image: Path) -> None:
    expected = segmenter.predict(image)
    assert np.array_equal(page.mask, expected.mask)
    assert page.points == (2, 2)
    assert page.text("#area") == f"{expected.area:,}"
    assert page.text("#fraction") == f"{expected.fraction * 100:.2f} %"
    assert page.text("#iou") == f"{expected.iou:.3f}"
    assert page.text("#counts") == "Automatic prompts: 2 inside, 2 outside"
    assert (page.page.locator("#marks .outline").get_attribute("d") != "") == bool(expected.contours())


def test_a_click_changes_the_mask_and_undo_restores_it_bit_for_bit(page: Page, segmenter: Any, image: Path) -> None:
    before, auto = page.mask, segmenter.predict(image)
    page.click(20, 44)
    assert page.points == (3, 2)
    after = page.mask
    assert not np.array_equal(after, before)
    xy = page.prompts()["points"]
    assert xy[:-1] == auto.points.tolist()
    assert xy[-1] == pytest.approx([20, 44], abs=0.1)
    expected = segmenter.session(image).predict(xy, [*auto.labels, 1])
    assert np.array_equal(after, expected.mask)

    page.press("Control+z")
    assert page.points == (2, 2)
    assert np.array_equal(page.mask, before)
    page.press("Control+Shift+z")
    assert page.points == (3, 2)
    assert np.array_equal(page.mask, after)
    page.button("#undo")
    assert np.array_equal(page.mask, before)


def test_shift_the_switch_and_the_right_button_make_negative_points(page: Page) -> None:
    page.page.keyboard.down("Shift")
    page.click(8, 8)
    page.page.keyboard.up("Shift")
    assert page.points == (2, 3)
    page.click(50, 8, button="right")
    assert page.points == (2, 4)
    page.button("[data-tool=exclude]")
    page.click(8, 50)
    assert page.points == (2, 5)
    page.press("p")
    page.click(30, 58)
    assert page.points == (3, 5)
    assert page.prompts()["labels"][-4:] == [0, 0, 0, 1]


def test_a_drag_moves_a_point(page: Page) -> None:
    page.button("#clear")
    assert page.points == (0, 0)
    assert not page.mask.any()
    assert page.page.locator("#save-mask").is_disabled()
    page.click(20, 20)
    first = page.mask
    page.drag((20, 20), (45, 40))
    assert page.points == (1, 0)
    assert page.prompts()["points"][0] == pytest.approx([45, 40], abs=0.1)
    assert not np.array_equal(page.mask, first)
    page.press("ArrowRight")
    page.press("Shift+ArrowUp")
    assert page.prompts()["points"][0] == pytest.approx([46, 30], abs=0.1)
    for _ in range(3):
        page.press("Control+z")
    assert np.array_equal(page.mask, first)


def test_points_are_removed_by_key_and_by_click(page: Page) -> None:
    page.button("#clear")
    page.click(20, 20)
    page.click(40, 40)
    assert page.points == (2, 0)
    page.click(20, 20)  # selects
    assert page.points == (2, 0)
    page.press("Delete")
    assert page.prompts()["points"][0] == pytest.approx([40, 40], abs=0.1)
    page.button("[data-tool=remove]")
    page.click(40, 40)
    assert page.points == (0, 0)
    assert page.text("#counts") == "No prompts"


def test_a_box_is_drawn_changed_and_removed(page: Page, segmenter: Any, image: Path) -> None:
    page.press("c")
    page.press("b")
    page.drag((12, 14), (50, 44))
    box = page.prompts()["box"]
    assert box == pytest.approx([12, 14, 50, 44], abs=0.1)
    assert np.array_equal(page.mask, segmenter.session(image).predict(box=box).mask)
    page.drag((50, 44), (40, 34))  # its corner
    assert page.prompts()["box"] == pytest.approx([12, 14, 40, 34], abs=0.1)
    page.drag((26, 14), (30, 20))  # its edge
    assert page.prompts()["box"] == pytest.approx([16, 20, 44, 40], abs=0.1)
    page.press("Delete")
    assert page.page.locator("#marks .box").count() == 0


def test_reset_brings_the_automatic_prompts_back(page: Page) -> None:
    before = page.mask
    page.click(8, 50)
    page.click(50, 8)
    page.button("#reset")
    assert page.points == (2, 2)
    assert np.array_equal(page.mask, before)
    page.press("Control+z")
    assert page.points == (4, 2)


def test_one_of_three_masks_is_selected(page: Page, segmenter: Any, image: Path) -> None:
    session = segmenter.session(image)
    auto = session.automatic()
    for key, mask_index in (("2", 1), ("3", 2)):
        page.press(key)
        expected = session.predict(auto.points, auto.labels, mask_index=mask_index)
        assert np.array_equal(page.mask, expected.mask)
        assert page.text("#iou") == f"{expected.iou:.3f}"
        assert page.page.locator(f"[data-mask-index='{mask_index}']").get_attribute("aria-checked") == "true"
    page.button("[data-mask-index='0']")
    assert np.array_equal(page.mask, auto.mask)


def test_downloads_are_the_mask_the_overlay_and_the_prompts(page: Page, segmenter: Any, image: Path) -> None:
    expected = segmenter.predict(image)
    mask = cv2.imread(str(page.download("#save-mask")), cv2.IMREAD_UNCHANGED)
    assert page.name == "phantom_0002.png"
    assert mask.dtype == np.uint8
    assert np.array_equal(mask, expected.mask * np.uint8(255))

    overlay = cv2.imread(str(page.download("#save-overlay")))
    assert page.name == "phantom_0002_overlay.png"
    assert overlay.shape == (64, 64, 3)

    file = PromptFile(page.download("#save-prompts"))
    assert page.name == "phantom_0002_prompts.json"
    assert file.source == "auto"
    (draw,) = file.select({"any": {"phantom_0002": (64, 64)}}, side=64)
    assert draw.images["any"]["phantom_0002"].xy.tolist() == expected.points.tolist()


def test_downloads_equal_the_output_of_promise_predict(page: Page, ckpt: Path, image: Path, tmp_path: Path) -> None:
    from promise.cli.predict import main

    def command(folder: str, *more: str) -> bytes:
        flags = ["--ckpt", str(ckpt), "--device", "cpu", "--precision", "fp32", "--quiet", *more]
        assert main([str(image), "--output", str(tmp_path / folder), *flags]) == 0
        return (tmp_path / folder / "masks/phantom_0002.png").read_bytes()

    def pixels(content: bytes) -> np.ndarray:
        return cv2.imdecode(np.frombuffer(content, np.uint8), cv2.IMREAD_UNCHANGED)

    automatic = page.download("#save-mask").read_bytes()
    assert np.array_equal(pixels(automatic), pixels(command("automatic")))
    page.click(20, 44)
    corrected = page.download("#save-mask").read_bytes()
    clicks = tmp_path / "clicks.json"
    clicks.write_bytes(page.download("#save-prompts").read_bytes())
    assert not np.array_equal(pixels(corrected), pixels(automatic))
    assert np.array_equal(pixels(corrected), pixels(command("corrected", "--prompts-from", str(clicks))))


def test_two_visitors_do_not_see_each_others_image(visit: Callable[..., Page], segmenter: Any, phantoms: Path) -> None:
    paths = [phantoms.parent / f"images/phantom_000{i}.png" for i in (1, 4)]
    masks = [segmenter.predict(path).mask for path in paths]
    assert not np.array_equal(*masks)
    one, two = visit(), visit()
    one.open(paths[0])
    assert two.page.locator("#stage").get_attribute("data-state") == "empty"
    two.open(paths[1])
    assert np.array_equal(one.mask, masks[0])
    assert np.array_equal(two.mask, masks[1])
    one.click(20, 20)
    one.press("Control+z")
    assert np.array_equal(one.mask, masks[0])
    shown = [p.page.locator("#image").get_attribute("src") for p in (one, two)]
    assert shown[0] != shown[1]
    assert two.text("#status").startswith("phantom_0004.png")


def test_images_are_removed_when_the_visitor_leaves(
    visit: Callable[..., Page], served: tuple[str, Any], image: Path
) -> None:
    served[1].clear()
    page = visit()
    page.open(image)
    page.open(image)  # closes the first
    assert len(served[1]) == 1
    page.page.goto("about:blank")
    for _ in range(100):
        if not len(served[1]):
            break
        page.page.wait_for_timeout(50)
    assert len(served[1]) == 0


def test_an_image_that_the_server_removed_is_opened_again(page: Page, served: tuple[str, Any]) -> None:
    served[1].clear()
    before = page.mask
    page.click(20, 44)
    assert page.points == (3, 2)
    assert not np.array_equal(page.mask, before)
    assert len(served[1]) == 1


def test_rejected_files_are_reported(visit: Callable[..., Page], image: Path, tmp_path: Path) -> None:
    page = visit()
    (tmp_path / "heavy.png").write_bytes(b"x" * 600_000)
    cv2.imwrite(str(tmp_path / "wide.png"), np.zeros((150, 300, 3), np.uint8))
    (tmp_path / "text.png").write_text("no image")
    for name, facts in (
        ("heavy.png", ["heavy.png has 0.6 MB", "0.5 MB"]),
        ("wide.png", ["300 × 150 pixels", "0.04 million"]),
        ("text.png", ["text.png: "]),
    ):
        page.page.set_input_files("#file", tmp_path / name)
        page.page.wait_for_function(
            "facts => facts.every((fact) => document.querySelector('#notice p').textContent.includes(fact))", arg=facts
        )
        assert page.page.locator("#notice").is_visible()
        assert page.page.locator("#busy").is_hidden()
    page.open(image)
    assert page.points == (2, 2)


def test_images_can_be_dropped_and_samples_opened(visit: Callable[..., Page], segmenter: Any, image: Path) -> None:
    page = visit()
    page.page.evaluate(
        """bytes => {
            const data = new DataTransfer();
            data.items.add(new File([new Uint8Array(bytes)], "dropped.png", { type: "image/png" }));
            const options = { dataTransfer: data, bubbles: true, cancelable: true };
            for (const kind of ["dragenter", "drop"])
                document.querySelector("#stage").dispatchEvent(new DragEvent(kind, options));
        }""",
        list(image.read_bytes()),
    )
    page.ready()
    assert np.array_equal(page.mask, segmenter.predict(image).mask)
    assert page.text("#status").startswith("dropped.png, 64 × 64 pixels")

    other = visit()
    other.page.click("#thumbnails button:nth-child(3)")
    other.ready()
    assert np.array_equal(other.mask, segmenter.predict(image).mask)


def test_touch_taps_drags_and_pinches(visit: Callable[..., Page], image: Path) -> None:
    page = visit(viewport={"width": 820, "height": 1180}, has_touch=True, is_mobile=True)
    page.open(image)
    page.page.touchscreen.tap(*page.position(50, 58))
    page.ready()
    assert page.points == (3, 2)

    session = page.page.context.new_cdp_session(page.page)

    def touch(kind: str, *places: tuple[float, float]) -> None:
        points = [{"x": x, "y": y, "id": i} for i, (x, y) in enumerate(places)]
        session.send("Input.dispatchTouchEvent", {"type": kind, "touchPoints": points})

    (x, y), end = page.position(50, 58), page.position(40, 50)
    touch("touchStart", (x, y))
    touch("touchMove", ((x + end[0]) / 2, (y + end[1]) / 2))
    touch("touchMove", end)
    touch("touchEnd")
    page.ready()
    assert page.points == (3, 2)
    assert page.prompts()["points"][-1] == pytest.approx([40, 50], abs=0.5)

    wide = page.page.locator("#image").bounding_box()["width"]
    (x, y) = page.position(32, 32)
    touch("touchStart", (x - 40, y), (x + 40, y))
    touch("touchMove", (x - 80, y), (x + 80, y))
    touch("touchEnd")
    assert page.page.locator("#image").bounding_box()["width"] == pytest.approx(2 * wide, rel=0.05)
    assert page.points == (3, 2)  # two fingers add no point
    sizes = page.page.locator(".tool:visible, .button:visible").evaluate_all("all => all.map(b => b.offsetHeight)")
    assert min(sizes) >= 44


def test_opacity_switches_and_the_list_of_shortcuts(page: Page) -> None:
    opacity = "getComputedStyle(document.querySelector('#mask')).opacity"
    assert float(page.page.evaluate(opacity)) == pytest.approx(0.4)
    page.press("]")
    page.press("]")
    assert float(page.page.evaluate(opacity)) == pytest.approx(0.5)
    page.page.uncheck("#show-marks")
    assert page.page.locator("#marks .positive").first.is_hidden()
    page.page.check("#show-marks")
    page.page.keyboard.down("h")
    assert page.page.locator("#mask").is_hidden()
    page.page.keyboard.up("h")
    assert page.page.locator("#mask").is_visible()
    page.press("?")
    assert page.page.locator("#keys").is_visible()
    page.press("Escape")
    assert page.page.locator("#keys").is_hidden()


def test_light_and_dark(visit: Callable[..., Page]) -> None:
    paper = "getComputedStyle(document.body).backgroundColor"
    light, dark = visit(color_scheme="light"), visit(color_scheme="dark")
    colours = [light.page.evaluate(paper), dark.page.evaluate(paper)]
    assert colours[0] != colours[1]
    light.page.click("#theme")
    assert light.page.evaluate(paper) == colours[1]
    light.page.reload()
    light.page.wait_for_selector("#stage[data-state=empty]")
    assert light.page.evaluate(paper) == colours[1]


@pytest.mark.parametrize("size", [(1280, 800), (820, 1180), (390, 844)])
def test_nothing_overflows(visit: Callable[..., Page], image: Path, size: tuple[int, int]) -> None:
    page = visit(viewport={"width": size[0], "height": size[1]})
    page.open(image)
    assert page.overflowing() == []


def test_changes_are_lost_only_after_a_question(page: Page, phantoms: Path) -> None:
    tab, other = page.page, phantoms.parent / "images/phantom_0004.png"

    def leave(answer: str) -> None:
        tab.set_input_files("#file", other)
        tab.wait_for_selector("#leave[open]")
        assert page.text("#leave-name") in ("phantom_0002.png", "phantom_0004.png")
        if answer == "Escape":
            tab.keyboard.press("Escape")
        else:
            tab.click(f"#leave [value={answer}]")
        tab.wait_for_selector("#leave", state="hidden")

    page.click(20, 44)
    edited = page.mask
    for answer in ("Escape", "stay"):
        leave(answer)
        page.ready()
        assert page.text("#status").startswith("phantom_0002.png")
        assert page.points == (3, 2)
        assert np.array_equal(page.mask, edited)
    with tab.expect_download() as waiting:
        leave("save")
    assert waiting.value.suggested_filename == "phantom_0002.png"
    saved = cv2.imread(str(waiting.value.path()), cv2.IMREAD_UNCHANGED)
    assert np.array_equal(saved > 0, edited)
    tab.wait_for_selector("#status:has-text('phantom_0004')")
    page.ready()

    page.click(20, 44)
    page.press("Control+z")
    page.open(other)  # nothing is changed: no question
    page.click(20, 44)
    page.download("#save-prompts")
    page.open(other)  # the prompts are saved
    assert page.points == (2, 2)
    page.click(20, 44)
    page.download("#save-overlay")  # from which they cannot be read again
    leave("discard")
    page.ready()
    assert page.points == (2, 2)


def test_prompts_that_are_changed_while_another_image_opens_are_not_lost(page: Page, phantoms: Path) -> None:
    tab, held = page.page, []
    tab.route("**/api/samples/4*", lambda route: held.append(route), times=1)  # noqa: PLW0108 (not a builtin)
    tab.click("#thumbnails button:nth-child(5)")
    for _ in range(100):
        if held:
            break
        tab.wait_for_timeout(50)
    tab.mouse.click(*page.position(20, 44))
    held[0].continue_()
    tab.wait_for_selector("#leave[open]")
    tab.click("#leave [value=stay]")
    page.ready()
    assert page.points == (3, 2)
    assert tab.locator("#thumbnails [aria-current]").count() == 0


def test_leaving_the_page_asks_before_changes_are_lost(page: Page) -> None:
    page.click(20, 44)
    with page.page.expect_event("dialog") as waiting:
        page.page.evaluate("setTimeout(() => location.reload())")
    assert waiting.value.type == "beforeunload"
    waiting.value.dismiss()
    assert page.points == (3, 2)
