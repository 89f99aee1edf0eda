"""Notices: texts are made from codes and data, and texts of earlier versions are recognised."""

from __future__ import annotations

import pytest

from promise.data.leaks import find_seen
from promise.runtime.notices import (
    OTHER_TUNING,
    SHARED,
    TEXT,
    Notice,
    describe,
    from_json,
    from_text,
    unique,
)

SEEN = find_seen("a: b", {"train": 2, "val": 0, "tune": 1, "other": 9}, 5)


def test_scored_images_that_were_used_before() -> None:
    assert [notice.as_dict() for notice in SEEN] == [
        {"code": "scored-images-trained-on", "data": {"dataset": "a: b", "split": "train", "images": 2, "of": 5}},
        {"code": "scored-images-tuned-on", "data": {"dataset": "a: b", "split": "tune", "images": 1, "of": 5}},
    ]


@pytest.mark.parametrize("notice", [*SEEN, Notice(SHARED, {"images": 1, "of": 3}), Notice(TEXT, {"text": "{odd}"})])
def test_a_text_leads_back_to_its_notice(notice: Notice) -> None:
    assert from_text(describe(notice)) == notice
    assert from_json(notice.as_dict()) == notice


def test_texts_of_earlier_versions_are_recognised() -> None:
    ending = "scored images; these scores are no test of it."
    assert from_text(f"a: b: the net was trained on 2 of the 5 {ending}") == SEEN[0]
    assert from_text(f"a: b: the postprocessing was chosen on 1 of the 5 {ending}") == SEEN[1]
    shared = "2 of the 3 validation images are also trained on, by content: the epoch with the best validation score"
    assert from_text(shared) == Notice(SHARED, {"images": 2, "of": 3})


def test_each_notice_is_kept_once() -> None:
    other = Notice(SEEN[0].code, {**SEEN[0].data, "images": 3})
    assert unique([*SEEN, other, from_json(SEEN[0].as_dict())]) == [*SEEN, other]


def test_unknown_codes_and_data_are_shown_as_they_are() -> None:
    assert describe(Notice("of-a-later-version", {"n": 1})) == 'of-a-later-version: {"n": 1}'
    assert describe(Notice(OTHER_TUNING, {"tuned": "gt"})) == 'tuned-with-other-prompts: {"tuned": "gt"}'
    assert from_json("a text") == Notice(TEXT, {"text": "a text"})
