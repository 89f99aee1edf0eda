"""Prompt requests: the prompts that the page sends for an open image, checked."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from promise.prompts.entry import parse_prompts, parse_set
from promise.prompts.sets import ImagePrompts, PromptSet
from promise.runtime.errors import UserError

MAX_LESIONS = 64
MAX_CLICKS = 100  # as promise-eval --clicks: they are applied one after another
SMALLEST_INPUT = 64  # side of the smallest net input: points may be up to one of its pixels outside the image
ONE_LESION = ("points", "labels", "box")


@dataclass(frozen=True)
class PromptRequest:
    """The prompts of an image, in pixels of the image."""

    prompts: ImagePrompts
    automatic: bool  # the prompts are the net's own, unchanged
    clicks: PromptSet | None = None  # points that correct the mask of these prompts, in their order

    @property
    def is_incomplete(self) -> bool:
        """Whether a lesion has neither a point nor a box. No lesion at all is complete: the mask is empty."""
        return any(one.is_empty for one in self.prompts.sets)


def read_prompt_request(body: Any, size: tuple[int, int]) -> PromptRequest:
    """Check the JSON body of a request.

    Args:
        body: an object with ``lesions``, a list of objects with ``points``, ``labels`` and ``box``; or, for one lesion,
            with ``points``, ``labels`` and ``box``. Further keys are ``mask_index`` (0 to 2; ``null``: the net's own
            output; older name: ``choice``), ``fuse`` (whether the net's map of lesions is added to the mask),
            ``automatic``, and ``clicks``, an object with ``points`` and ``labels`` that correct the mask. Others are
            ignored.
        size: (width, height) of the image.

    Raises:
        UserError: invalid prompts; all faults are reported together.
    """
    if not isinstance(body, dict):
        raise UserError(
            "The request must be an object with lesions, or with points, labels and box.", code="request-not-an-object"
        )
    _check_count(body)
    entry = {"size": list(size), "fuse": body.get("fuse", False)}
    entry["mask_index"] = body.get("mask_index", body.get("choice"))
    entry |= {"lesions": _without_masks(body["lesions"])} if "lesions" in body else {n: body.get(n) for n in ONE_LESION}
    prompts, errors = parse_prompts(entry, size, SMALLEST_INPUT)
    clicks, faults = _read_clicks(body.get("clicks"), size)
    errors += faults
    if errors or prompts is None:
        message = f"The prompts are invalid: {'; '.join(map(str, errors))}."
        raise UserError(message, code="invalid-prompts", errors=errors)
    return PromptRequest(prompts, body.get("automatic") is True, clicks)


def _read_clicks(clicks: Any, size: tuple[int, int]) -> tuple[PromptSet | None, list[UserError]]:
    if clicks is None:
        return None, []
    if not isinstance(clicks, dict):
        return None, [UserError("clicks must be an object with points and labels", code="invalid-clicks")]
    points = clicks.get("points")
    if isinstance(points, list) and len(points) > MAX_CLICKS:
        return None, [UserError(f"{len(points)} clicks; at most {MAX_CLICKS} are accepted", code="too-many-clicks")]
    found, faults = parse_set({name: clicks.get(name) for name in ("points", "labels")}, size, SMALLEST_INPUT)
    return found if len(found.xy) else None, [UserError(f"clicks: {fault}", code=fault.code) for fault in faults]


def _without_masks(lesions: Any) -> Any:
    """The lesions without mask prompts, which requests do not contain. Invalid values are returned unchanged."""
    if not isinstance(lesions, list):
        return lesions
    return [
        {name: one[name] for name in ONE_LESION if name in one} if isinstance(one, dict) else one for one in lesions
    ]


def _check_count(body: dict[str, Any]) -> None:
    lesions = body.get("lesions", [body])
    if not isinstance(lesions, list):
        return  # reported by parse_prompts
    if len(lesions) > MAX_LESIONS:
        raise UserError(f"{len(lesions)} lesions; at most {MAX_LESIONS} are accepted.", code="too-many-lesions")
