"""Prompt requests: the prompts that the page sends for an open image, checked."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from promise.prompts.file import ImagePrompts, parse_prompts
from promise.runtime.errors import UserError

MAX_POINTS = 512
SMALLEST_INPUT = 64  # side of the smallest net input: points may be up to one of its pixels outside the image


@dataclass(frozen=True)
class PromptRequest:
    """The prompts of an image, in pixels of the image."""

    prompts: ImagePrompts
    automatic: bool  # the prompts are the net's own, unchanged

    @property
    def is_empty(self) -> bool:
        """Whether there is neither a point nor a box."""
        return not len(self.prompts.xy) and self.prompts.box is None


def read_prompt_request(body: Any, size: tuple[int, int]) -> PromptRequest:
    """Check the JSON body of a request.

    Args:
        body: an object with ``points``, ``labels``, ``box``, ``mask_index`` (0 to 2; older name: ``choice``) and
            ``automatic``. Other keys are ignored.
        size: (width, height) of the image.

    Raises:
        UserError: invalid prompts; all faults are reported together.
    """
    if not isinstance(body, dict):
        raise UserError(
            "The request must be an object with points, labels, box and mask_index.", code="request-not-an-object"
        )
    points = body.get("points")
    if isinstance(points, list) and len(points) > MAX_POINTS:
        raise UserError(f"{len(points)} points; at most {MAX_POINTS} are accepted.", code="too-many-points")
    entry = {name: body.get(name) for name in ("points", "labels", "box")}
    entry |= {"size": list(size), "mask_index": body.get("mask_index", body.get("choice", 0))}
    prompts, errors = parse_prompts(entry, size, SMALLEST_INPUT)
    if errors or prompts is None:
        message = f"The prompts are invalid: {'; '.join(map(str, errors))}."
        raise UserError(message, code="invalid-prompts", errors=errors)
    return PromptRequest(prompts, body.get("automatic") is True)
