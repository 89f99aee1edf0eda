"""Prompt requests: which bodies are accepted, and the codes of their faults."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from promise.app.prompt_request import read_prompt_request

VALID = {"points": [[1, 2], [3.5, 0]], "labels": [1, 0], "box": [0, 0, 5, 3], "mask_index": 2, "automatic": True}


def test_prompts_are_read() -> None:
    request = read_prompt_request(VALID, (6, 4))
    assert request.prompts.size == (6, 4)
    assert request.prompts.xy.tolist() == [[1, 2], [3.5, 0]]
    assert request.prompts.label.tolist() == [1, 0]
    assert request.prompts.box.tolist() == [0, 0, 5, 3]
    assert (request.prompts.mask_index, request.automatic, request.is_incomplete) == (2, True, False)
    empty = read_prompt_request({"points": [], "labels": [], "box": None}, (6, 4))
    assert empty.is_incomplete
    assert empty.prompts.mask_index is None


def test_choice_is_the_older_name_of_mask_index() -> None:
    body = {name: value for name, value in VALID.items() if name != "mask_index"}
    assert read_prompt_request({**body, "choice": 1}, (6, 4)).prompts.mask_index == 1
    assert read_prompt_request({**VALID, "choice": 1}, (6, 4)).prompts.mask_index == 2


def test_clicks_are_read() -> None:
    body = {**VALID, "clicks": {"points": [[5, 3]], "labels": [0], "box": [0, 0, 9, 9]}}
    clicks = read_prompt_request(body, (6, 4)).clicks
    assert clicks is not None
    assert (clicks.xy.tolist(), clicks.label.tolist(), clicks.box) == ([[5, 3]], [0], None)
    assert read_prompt_request({**body, "clicks": None}, (6, 4)).clicks is None


def test_lesions_are_read() -> None:
    lesions = [{"points": [[1, 2]], "labels": [0], "box": None}, {"box": [0, 0, 5, 3]}]
    request = read_prompt_request({"lesions": lesions, "mask_index": None, "fuse": True, "automatic": True}, (6, 4))
    first, second = request.prompts.sets
    assert (first.xy.tolist(), first.label.tolist(), first.box) == ([[1, 2]], [0], None)
    assert (second.xy.tolist(), second.label.tolist(), second.box.tolist()) == ([], [], [0, 0, 5, 3])
    assert (request.prompts.mask_index, request.prompts.fuse) == (None, True)
    assert (request.automatic, request.is_incomplete) == (True, False)
    none = read_prompt_request({"lesions": []}, (6, 4))
    assert (none.prompts.sets, none.is_incomplete) == ((), False)
    assert read_prompt_request({"lesions": [*lesions, {}]}, (6, 4)).is_incomplete


def test_mask_prompts_are_ignored() -> None:
    mask = {"shape": [4, 4]}
    assert read_prompt_request({**VALID, "mask": mask}, (6, 4)).prompts.sets[0].mask is None
    assert read_prompt_request({"lesions": [{"box": [0, 0, 5, 3], "mask": mask}]}, (6, 4)).prompts.sets[0].mask is None


@pytest.mark.parametrize(
    ("changed", "codes"),
    [
        ({"points": [[1, 2]]}, ["label-count-mismatch"]),
        ({"points": [[1, "2"], [1, 2]]}, ["invalid-points"]),
        ({"points": [[99, 2], [1, 2]]}, ["prompt-outside-image"]),
        ({"labels": [1, 7]}, ["invalid-labels"]),
        ({"box": [5, 3, 0, 0]}, ["invalid-box"]),
        ({"mask_index": 3}, ["invalid-mask-index"]),
        ({"mask_index": True}, ["invalid-mask-index"]),
        ({"points": [[1, 1]] * 1025}, ["too-many-points"]),
        ({"lesions": 3}, ["invalid-lesions"]),
        ({"lesions": [3]}, ["invalid-lesions"]),
        ({"lesions": [{"box": [1, 2]}, {"points": [[1, 2]]}]}, ["invalid-box", "label-count-mismatch"]),
        ({"lesions": [{"points": [[1, 1]] * 512, "labels": [1] * 512}] * 64}, ["too-many-points"]),
        ({"clicks": {"points": [[1, 1]] * 101, "labels": [1] * 101}}, ["too-many-clicks"]),
        ({"lesions": [{"box": [1, 1, 2, 2]}] * 100}, ["too-many-lesions"]),
        ({"fuse": 1}, ["invalid-fuse"]),
        ({"labels": [7, 7], "mask_index": "a"}, ["invalid-labels", "invalid-mask-index"]),  # all faults together
    ],
)
def test_faults_are_reported(changed: dict[str, Any], codes: list[str], user_error: Callable[..., Any]) -> None:
    with user_error(*codes) as caught:
        read_prompt_request({**VALID, **changed}, (6, 4))
    assert list(caught.value.codes) == codes


def test_messages_contain_the_rejected_values(user_error: Callable[..., Any]) -> None:
    with user_error("prompt-outside-image", "invalid-mask-index") as caught:
        read_prompt_request({**VALID, "points": [[99, 2], [1, 2]], "mask_index": 3}, (6, 4))
    assert "(99, 2)" in str(caught.value)
    assert "0, 1 or 2, not 3" in str(caught.value)
    with user_error("too-many-points") as caught:
        read_prompt_request({**VALID, "points": [[1, 1]] * 1025}, (6, 4))
    assert "1025 points; at most 1024" in str(caught.value)
    with user_error("too-many-points") as caught:
        read_prompt_request({"lesions": [{"points": [[1, 1]] * 512, "labels": [1] * 512}] * 9}, (6, 4))
    assert "4608 points on 9 lesions; at most 4096 are accepted per image" in str(caught.value)
    at_limit = {"lesions": [{"points": [[1, 1]] * 512, "labels": [1] * 512}] * 8}
    assert len(read_prompt_request(at_limit, (6, 4)).prompts.xy) == 4096


@pytest.mark.parametrize("body", [None, [], "a", 3])
def test_the_body_must_be_an_object(body: Any, user_error: Callable[..., Any]) -> None:
    with user_error("request-not-an-object"):
        read_prompt_request(body, (6, 4))
