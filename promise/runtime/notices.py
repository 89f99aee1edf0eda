"""Notices about results: a code and data for programs; :func:`describe` makes the text where a notice is shown.

summary.json stores them under ``notices``. Results of earlier versions hold only texts, under ``warnings``:
:func:`from_text` recognises them.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

TEXT = "text"  # code of a text that no other code represents

# Split of a checkpoint's record → use of its images, and the code of the notice where they are scored again.
USES = {
    "train": ("the net was trained on", "scored-images-trained-on"),
    "val": ("the net was selected on", "scored-images-selected-on"),
    "tune": ("the postprocessing was chosen on", "scored-images-tuned-on"),
}
SHARED = "validation-images-trained-on"
OTHER_TUNING = "tuned-with-other-prompts"

#: Code → text; the names in braces are the keys of the data.
TEXTS: dict[str, str] = {
    TEXT: "{text}",
    **{
        code: f"{{dataset}}: {use} {{images}} of the {{of}} scored images; the scores are biased."
        for use, code in USES.values()
    },
    SHARED: (
        "{images} of the {of} validation images are also in the training split (identical content): the validation "
        "score of the selected epoch is biased. Remove them from one of the two splits."
    ),
    OTHER_TUNING: (
        "the postprocessing {postprocess} of the checkpoint was chosen with {tuned} prompts, not with {source} "
        "prompts; --postprocess none disables it."
    ),
}
_SCORED = re.compile(rf"(.*): ({'|'.join(use for use, _ in USES.values())}) (\d+) of the (\d+) scored images;.*")
_SHARED = re.compile(r"(\d+) of the (\d+) validation images (?:is|are) also (?:trained on|in the training split).*")


@dataclass(frozen=True)
class Notice:
    """A fact that limits what scores mean."""

    code: str  # a key of TEXTS, or of the texts of the module that shows the notice
    data: Mapping[str, Any]  # values of JSON

    def as_dict(self) -> dict[str, Any]:
        """The entry of a JSON file."""
        return {"code": self.code, "data": dict(self.data)}


def describe(notice: Notice, texts: Mapping[str, str] = TEXTS) -> str:
    """The text of a notice; code and data where the code is unknown, as in results of a later version."""
    try:
        return texts[notice.code].format_map(notice.data)
    except (KeyError, IndexError, ValueError):
        return f"{notice.code}: {json.dumps(dict(notice.data), ensure_ascii=False, default=str)}"


def unique(notices: Iterable[Notice]) -> list[Notice]:
    """The notices in their order, each combination of code and data once."""
    return list({(n.code, json.dumps(dict(n.data), sort_keys=True, default=str)): n for n in notices}.values())


def from_json(entry: Any) -> Notice:
    """The notice of an entry of a JSON file; an entry of another form becomes a text."""
    if isinstance(entry, dict) and isinstance(entry.get("code"), str) and isinstance(entry.get("data"), dict):
        return Notice(entry["code"], entry["data"])
    return Notice(TEXT, {"text": str(entry)})


def from_text(text: str) -> Notice:
    """The notice that an earlier version wrote as a text; an unknown text is kept as it is."""
    if found := _SCORED.fullmatch(text):
        dataset, use, images, total = found.groups()
        split, code = next((split, code) for split, (known, code) in USES.items() if known == use)
        return Notice(code, {"dataset": dataset, "split": split, "images": int(images), "of": int(total)})
    if found := _SHARED.fullmatch(text):
        return Notice(SHARED, {"images": int(found[1]), "of": int(found[2])})
    return Notice(TEXT, {"text": text})
