"""What a page asks of an open image: checked prompts and which of three masks; knows no HTTP and no nets."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from promise.prompts.file import ImagePrompts, check_prompts
from promise.runtime.errors import UserError

MOST_POINTS = 512
MASKS = 3  # SAM's multimask output
COARSEST = 64  # a net's input is no smaller; its own points may lie one of its pixels outside the image


@dataclass(frozen=True)
class Asked:
    """Prompts in the image's pixels, and a mask's number."""

    prompts: ImagePrompts
    choice: int  # 0, 1, 2
    automatic: bool  # the prompts are the net's own, unchanged

    @property
    def empty(self) -> bool:
        """Whether there is nothing to prompt with."""
        return not len(self.prompts.xy) and self.prompts.box is None


def read_asked(given: Any, size: tuple[int, int]) -> Asked:
    """Check what a page sent for an image of ``size`` (width, height).

    Raises:
        UserError: every fault at once.
    """
    if not isinstance(given, dict):
        raise UserError("The request must be an object with points, labels, box and choice.")
    points, choice = given.get("points"), given.get("choice", 0)
    if isinstance(points, list) and len(points) > MOST_POINTS:
        raise UserError(f"{len(points)} points; at most {MOST_POINTS} are taken.")
    prompts, faults = check_prompts({**given, "size": list(size)}, size, COARSEST)
    if type(choice) is not int or choice not in range(MASKS):
        faults.append(f"choice must be 0, 1 or 2, not {choice!r}")
    if faults or prompts is None:
        raise UserError(f"The prompts cannot be used: {'; '.join(faults)}.")
    return Asked(prompts, choice, given.get("automatic") is True)
