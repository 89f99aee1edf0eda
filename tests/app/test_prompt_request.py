"""What a page may ask."""

from __future__ import annotations

from typing import Any

import pytest

from promise.app.prompt_request import read_asked
from promise.runtime.errors import UserError

GOOD = {"points": [[1, 2], [3.5, 0]], "labels": [1, 0], "box": [0, 0, 5, 3], "choice": 2, "automatic": True}


def test_prompts_are_read() -> None:
    asked = read_asked(GOOD, (6, 4))
    assert asked.prompts.size == (6, 4)
    assert asked.prompts.xy.tolist() == [[1, 2], [3.5, 0]]
    assert asked.prompts.label.tolist() == [1, 0]
    assert asked.prompts.box.tolist() == [0, 0, 5, 3]
    assert (asked.choice, asked.automatic, asked.empty) == (2, True, False)
    assert read_asked({"points": [], "labels": [], "box": None}, (6, 4)).empty


@pytest.mark.parametrize(
    ("changed", "words"),
    [
        ({"points": [[1, 2]]}, "1 points and 2 labels"),
        ({"points": [[1, "2"], [1, 2]]}, "points must be a list"),
        ({"points": [[99, 2], [1, 2]]}, r"\(99, 2\) lies outside"),
        ({"labels": [1, 7]}, "labels must be"),
        ({"box": [5, 3, 0, 0]}, "box must be"),
        ({"choice": 3}, "choice must be 0, 1 or 2, not 3"),
        ({"choice": True}, "choice must be"),
        ({"points": [[1, 1]] * 1000}, "1000 points; at most 512"),
        ({"labels": [7, 7], "choice": "a"}, "labels must be .*; choice must be"),  # all at once
    ],
)
def test_faults_are_told(changed: dict[str, Any], words: str) -> None:
    with pytest.raises(UserError, match=words):
        read_asked({**GOOD, **changed}, (6, 4))


@pytest.mark.parametrize("given", [None, [], "a", 3])
def test_it_wants_an_object(given: Any) -> None:
    with pytest.raises(UserError, match="must be an object"):
        read_asked(given, (6, 4))
