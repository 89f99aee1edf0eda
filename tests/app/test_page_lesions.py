"""The page in Chromium with a net that finds several lesions, or none."""

from __future__ import annotations

import json
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest

from promise.prompts.file import PromptFile


@pytest.fixture(scope="module")
def paths(phantoms: Path, lesion_segmenter: Any) -> dict[int, Path]:
    """Number of lesions → an image in which the net finds so many."""
    images = sorted((phantoms.parent / "images").glob("*.png"), reverse=True)
    return {found.lesions: path for path, found in zip(images, lesion_segmenter.predict(images), strict=True)}


@pytest.fixture
def visit(
    browser: Any, served_lesions: tuple[str, Any], open_page: Callable[..., Any], failures: list[str]
) -> Iterator[Callable[..., Any]]:
    contexts = []

    def visit(**options: Any) -> Any:
        contexts.append(browser.new_context(**{"viewport": {"width": 1200, "height": 800}, **options}))
        return open_page(contexts[-1].new_page(), served_lesions[0], failures)

    yield visit
    for context in contexts:
        context.close()


@pytest.fixture
def page(visit: Callable[..., Any], paths: dict[int, Path]) -> Any:
    """A page with an image in which the net finds two lesions."""
    page = visit()
    page.open(paths[2])
    return page


def lesions_of(page: Any) -> list[dict[str, Any]]:
    return page.prompts()["lesions"]


def edit(page: Any) -> None:
    """Move the first box and back: the prompts are no longer the automatic ones, and clicks add points."""
    x, y, *_ = lesions_of(page)[0]["box"]
    page.drag((x, y), (x + 5, y + 5))
    page.drag((x + 5, y + 5), (x, y))
    assert not page.text("#counts").startswith("Automatic")


def as_sets(lesions: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [{name: value for name, value in one.items() if value} for one in lesions]


def test_each_lesion_has_its_own_box_and_points(page: Any, lesion_segmenter: Any, paths: dict[int, Path]) -> None:
    expected = lesion_segmenter.session(paths[2]).automatic()
    assert np.array_equal(page.mask, expected.mask)
    assert page.points == (4, 4)
    assert page.page.locator("#marks .box:not(.under)").count() == 2
    assert page.page.locator("#marks .number").all_text_contents() == ["1", "2"]
    assert page.text("#counts") == "Automatic prompts: 2 lesions, 4 inside, 4 outside, 2 boxes"
    assert page.page.locator("#lesions li").count() == 2
    assert page.text("#lesions li:first-child .choose") == "1 box, 4 points"
    entry = page.prompts()
    assert entry["fuse"] is True
    assert [one["box"] for one in entry["lesions"]] == expected.boxes.tolist()


def test_downloads_reproduce_the_automatic_mask(
    page: Any, lesion_ckpt: Path, paths: dict[int, Path], tmp_path: Path
) -> None:
    from promise.cli.predict import main

    def pixels(path: Path) -> np.ndarray:
        return cv2.imread(str(path), cv2.IMREAD_UNCHANGED)

    mask = pixels(page.download("#save-mask"))
    assert np.array_equal(mask > 0, page.mask)
    prompts = tmp_path / "prompts.json"
    prompts.write_bytes(page.download("#save-prompts").read_bytes())
    assert PromptFile(prompts).source == "auto"
    flags = ["--ckpt", str(lesion_ckpt), "--device", "cpu", "--precision", "fp32", "--quiet", str(paths[2])]
    assert main([*flags, "--output", str(tmp_path / "a")]) == 0
    assert main([*flags, "--output", str(tmp_path / "b"), "--prompts-from", str(prompts)]) == 0
    for folder in ("a", "b"):
        assert np.array_equal(pixels(tmp_path / folder / "masks" / paths[2].name), mask)
    assert pixels(page.download("#save-overlay")).shape == (64, 64, 3)


def test_a_point_is_added_to_the_lesion_that_was_touched_last(
    page: Any, lesion_segmenter: Any, paths: dict[int, Path]
) -> None:
    edit(page)
    before = lesions_of(page)
    page.click(3, 60)  # the first lesion is the active one
    assert [len(one["points"]) for one in lesions_of(page)] == [5, 4]
    page.page.click("#lesions li:nth-child(2) .choose")
    page.click(60, 60)
    after = lesions_of(page)
    assert [len(one["points"]) for one in after] == [5, 5]
    assert after[1]["points"][-1] == pytest.approx([60, 60], abs=0.2)
    x, y = after[0]["points"][-1]
    page.click(x, y)  # selects the point and its lesion
    page.press("Delete")
    assert [len(one["points"]) for one in lesions_of(page)] == [4, 5]
    assert lesions_of(page)[0] == before[0]
    # Corrected prompts are decoded without the map of lesions.
    assert "fuse" not in page.prompts()
    expected = lesion_segmenter.session(paths[2]).predict(lesions=as_sets(lesions_of(page)))
    assert np.array_equal(page.mask, expected.mask)


def test_clicks_correct_an_automatic_mask(page: Any, lesion_segmenter: Any, paths: dict[int, Path]) -> None:
    session = lesion_segmenter.session(paths[2])
    automatic = session.automatic()
    places = [(5, 57), (33, 33)]  # in the middle of a pixel of the logits
    first = session.correct(places[:1])
    both = session.correct(places, [1, 0])
    assert not np.array_equal(first.mask, automatic.mask)
    assert not np.array_equal(both.mask, first.mask)
    page.click(*places[0])
    assert np.array_equal(page.mask, first.mask)
    page.click(*places[1], button="right")
    assert np.array_equal(page.mask, both.mask)
    assert page.points == (5, 5)
    assert page.text("#counts") == ("Corrected by 2 clicks. Automatic prompts: 2 lesions, 4 inside, 4 outside, 2 boxes")
    assert page.text("#iou") == "–"
    assert page.page.is_disabled("#save-prompts")
    assert np.array_equal(cv2.imread(str(page.download("#save-mask")), cv2.IMREAD_UNCHANGED) > 0, both.mask)
    page.press("Control+z")
    assert np.array_equal(page.mask, first.mask)
    page.button("#reset")
    assert np.array_equal(page.mask, automatic.mask)
    assert page.prompts()["fuse"] is True
    page.press("Control+z")
    edit_box = automatic.boxes[0]
    page.drag((edit_box[0], edit_box[1]), (edit_box[0] + 5, edit_box[1] + 5))  # prompts of the user, without clicks
    expected = session.predict(lesions=as_sets(lesions_of(page)))
    assert np.array_equal(page.mask, expected.mask)


def test_boxes_are_moved_and_removed_one_by_one(page: Any) -> None:
    page.button("#clear")
    page.press("b")
    page.drag((6, 6), (24, 24))
    page.button("#new-lesion")
    page.drag((34, 34), (56, 56))
    assert [one["box"] for one in lesions_of(page)] == [
        pytest.approx([6, 6, 24, 24], abs=0.2), pytest.approx([34, 34, 56, 56], abs=0.2),
    ]  # fmt: skip
    page.drag((24, 24), (28, 20))  # a corner of the first
    page.drag((45, 34), (47, 30))  # an edge of the second
    assert [one["box"] for one in lesions_of(page)] == [
        pytest.approx([6, 6, 28, 20], abs=0.2), pytest.approx([36, 30, 58, 52], abs=0.2),
    ]  # fmt: skip
    page.drag((8, 30), (20, 50))  # replaces the box of the second, which was touched last
    assert [one["box"] for one in lesions_of(page)] == [
        pytest.approx([6, 6, 28, 20], abs=0.2), pytest.approx([8, 30, 20, 50], abs=0.2),
    ]  # fmt: skip
    page.page.locator("#lesions li:first-child .remove").click()
    page.ready()
    assert page.prompts()["box"] == pytest.approx([8, 30, 20, 50], abs=0.2)  # one lesion is left
    page.press("Control+z")
    assert len(lesions_of(page)) == 2


def test_a_new_lesion_starts_with_the_next_point(page: Any, lesion_segmenter: Any, paths: dict[int, Path]) -> None:
    pressed = lambda: page.page.get_attribute("#new-lesion", "aria-pressed")  # noqa: E731
    assert pressed() == "false"
    page.press("l")
    assert pressed() == "true"
    page.click(5, 58)
    assert pressed() == "false"
    page.click(8, 60)
    lesions = lesions_of(page)
    assert [len(one["points"]) for one in lesions] == [4, 4, 2]
    assert lesions[2]["box"] is None
    expected = lesion_segmenter.session(paths[2]).predict(lesions=as_sets(lesions))
    assert np.array_equal(page.mask, expected.mask)
    page.button("#new-lesion")
    page.button("#new-lesion")  # off again
    page.click(10, 60)
    assert [len(one["points"]) for one in lesions_of(page)] == [4, 4, 3]
    for _ in range(3):
        page.press("Control+z")
    assert len(lesions_of(page)) == 2
    assert page.prompts()["fuse"] is True


def test_no_lesion_found_is_said_in_words(
    visit: Callable[..., Any], paths: dict[int, Path], lesion_segmenter: Any
) -> None:
    page = visit()
    page.open(paths[0])
    assert page.text("#counts") == "No lesion found"
    assert page.text("#no-lesion") == "No lesion found."
    assert page.text("#status").endswith("No lesion found.")
    assert page.text("#area") == "0"
    assert not page.mask.any()
    mask = cv2.imread(str(page.download("#save-mask")), cv2.IMREAD_UNCHANGED)
    assert mask.shape == (64, 64)
    assert not mask.any()
    entry = page.prompts()
    assert (entry["lesions"], entry["fuse"]) == ([], True)
    page.click(33, 33)
    assert page.text("#counts") == "No lesion found, 1 click"
    assert np.array_equal(page.mask, lesion_segmenter.session(paths[0]).correct([[33, 33]]).mask)
    page.press("b")
    page.drag((20, 20), (40, 40))
    assert page.text("#counts") == "1 lesion, 1 box"
    assert "No lesion" not in page.text("#status")
    expected = lesion_segmenter.session(paths[0]).predict(box=page.prompts()["box"])
    assert np.array_equal(page.mask, expected.mask)
    page.button("#clear")  # by hand: there is no lesion
    assert page.text("#counts") == "No lesion"
    assert not page.mask.any()
    assert page.prompts()["lesions"] == []


def test_the_single_mask_and_the_three_masks_are_offered(
    page: Any, lesion_segmenter: Any, paths: dict[int, Path]
) -> None:
    session = lesion_segmenter.session(paths[2])
    auto = session.automatic()
    assert page.page.get_attribute("#own-mask", "aria-checked") == "true"
    assert page.text("#own-mask small") == f"{auto.iou:.2f}"
    page.press("1")
    first = session.predict(lesions=auto.prompts.sets, mask_index=0, fuse=True)
    assert np.array_equal(page.mask, first.mask)
    assert page.text("#iou") == f"{first.iou:.3f}"
    assert page.prompts()["mask_index"] == 0
    page.button("#own-mask")
    assert np.array_equal(page.mask, auto.mask)
    assert "mask_index" not in page.prompts()


@pytest.mark.parametrize("size", [(1200, 800), (820, 1180), (390, 844)])
@pytest.mark.parametrize("lesions", [0, 3])
def test_nothing_overflows(
    visit: Callable[..., Any], paths: dict[int, Path], size: tuple[int, int], lesions: int
) -> None:
    page = visit(viewport={"width": size[0], "height": size[1]})
    page.open(paths[lesions])
    assert page.overflowing() == []


# --- requests without a browser ------------------------------------------------------------------


@pytest.fixture
def request_json(served_lesions: tuple[str, Any], paths: dict[int, Path]) -> Callable[..., Any]:
    """A function that sends a request for an image in which the net finds some number of lesions."""

    def send(path: str, data: bytes = b"") -> Any:
        request = urllib.request.Request(f"{served_lesions[0]}{path}", data, {"X-Promise": "1", "X-Name": "a.png"})
        with urllib.request.urlopen(request) as response:
            return json.loads(response.read())

    def request_json(kind: str, lesions: int, body: Any = None) -> Any:
        key = send("/api/images", paths[lesions].read_bytes())["key"]
        return send(f"/api/images/{key}/{kind}", json.dumps(body).encode())

    return request_json


@pytest.mark.parametrize("lesions", [0, 1, 2, 3])
def test_automatic_prompts_are_sent_back_unchanged(request_json: Callable[..., Any], lesions: int) -> None:
    automatic = request_json("automatic", lesions)
    assert len(automatic["lesions"]) == lesions
    assert (automatic["mask_index"], automatic["fuse"]) == (None, True)
    body = {name: automatic[name] for name in ("lesions", "fuse", "mask_index")}
    for is_automatic in (True, False):
        again = request_json("predict", lesions, {**body, "automatic": is_automatic})
        assert {**again, "seconds": 0} == {**automatic, "seconds": 0}


def test_clicks_of_a_request_correct_the_mask_of_its_prompts(
    request_json: Callable[..., Any], lesion_segmenter: Any, paths: dict[int, Path]
) -> None:
    session = lesion_segmenter.session(paths[2])
    clicks = {"points": [[5, 57], [33, 33]], "labels": [1, 0]}
    body = {"points": [], "labels": [], "box": [4, 5, 50, 40], "clicks": clicks}
    found = request_json("predict", 2, body)
    expected = session.correct(clicks["points"], clicks["labels"], before=session.predict(box=body["box"]))
    assert found["area"] == expected.area
    outlines = [np.round(outline, 2).reshape(-1).tolist() for outline in expected.smooth_contours()]
    assert found["outlines"] == outlines
    assert (found["iou"], found["ious"]) == (None, [None] * 3)
    without = request_json("predict", 2, {**body, "clicks": {"points": [], "labels": []}})
    assert without["area"] == session.predict(box=body["box"]).area != found["area"]
    with pytest.raises(urllib.error.HTTPError) as caught:
        request_json("prompts", 2, body)
    assert json.loads(caught.value.read())["codes"] == ["clicks-are-not-prompts"]


def test_requests_of_earlier_pages_prompt_one_lesion(request_json: Callable[..., Any]) -> None:
    body = {"points": [[10, 20]], "labels": [1], "box": [4, 5, 50, 40]}
    found = request_json("predict", 2, {**body, "choice": 1})
    assert found["lesions"] == [body]
    assert {name: found[name] for name in body} == body
    assert (found["mask_index"], found["fuse"]) == (1, False)


def test_the_answer_has_the_estimate_of_an_automatic_mask(
    save_lesion_net: Callable[..., Path], paths: dict[int, Path], tmp_path: Path
) -> None:
    import promise
    from promise.app.responses import segmentation_to_dict
    from promise.models.quality import FEATURES, QualityEstimate

    estimate = QualityEstimate(dict.fromkeys(FEATURES, 0.0), 0.75, 30, 0.5, 0.125)
    with pytest.warns(RuntimeWarning, match="random weights"):
        segmenter = promise.load(
            save_lesion_net(tmp_path / "a.safetensors", quality=estimate), device="cpu", precision="fp32"
        )
    session = segmenter.session(paths[2])
    automatic = segmentation_to_dict(session.automatic())
    assert (automatic["estimated_iou"], automatic["estimate"]) == (0.75, "usable")
    for other in (session.predict(box=[4, 6, 40, 50]), segmenter.predict(paths[0])):
        answer = segmentation_to_dict(other)
        assert answer["estimated_iou"] is answer["estimate"] is None


def test_mask_prompts_of_the_net_are_in_the_prompts_file(
    save_lesion_net: Callable[..., Path], paths: dict[int, Path], tmp_path: Path
) -> None:
    """They are not sent to the page: the server adds them where the prompts are the net's own."""
    import promise
    from promise.app.open_images import OpenImage
    from promise.app.prompt_request import read_prompt_request
    from promise.app.responses import segmentation_to_dict
    from promise.app.server import _segment, _with_mask_prompts
    from promise.data.images import read_image

    with pytest.warns(RuntimeWarning, match="random weights"):
        segmenter = promise.load(
            save_lesion_net(tmp_path / "a.safetensors", mask_prompt=True), device="cpu", precision="fp32"
        )
    image = OpenImage("a.png", read_image(paths[2]), segmenter.session(paths[2]))
    automatic = image.session.automatic()
    body = {**segmentation_to_dict(automatic), "automatic": True}
    request = read_prompt_request(body, image.size)
    assert np.array_equal(_segment(image, request).logits, automatic.logits)
    assert [one.mask is None for one in _with_mask_prompts(image, request).sets] == [False, False]
    body["lesions"][0]["box"][0] += 1
    changed = read_prompt_request(body, image.size)
    assert [one.mask for one in _with_mask_prompts(image, changed).sets] == [None, None]
