"""Interactive correction, measured: simulated clicks in the errors of a mask, and the Dice after each of them.

The protocol is the usual one of interactive segmentation (Xu et al., "Deep interactive object selection", CVPR 2016;
Sofiiuk et al., "Reviving iterative training with mask guidance for interactive segmentation" (RITM), ICIP 2022,
arXiv:2102.06583). The mask is compared with the ground truth, at the size of the ground truth and after the
postprocessing of the native protocol. The next click is placed in the largest connected region of missed or of false
foreground, at the maximum of its distance transform: a positive click in a missed region, a negative one in a false
region. NoC, the number of clicks, counts the clicks until a Dice is reached; an image that does not reach it counts
with all clicks, and the fraction of such images is reported. Here an image may need no click at all, because it starts
with an automatic mask.

The clicks read the ground truth, the correction (:mod:`promise.inference.correction`) does not. The scores are those of
a user who corrects, not of automatic segmentation; results label them :data:`ORIGIN`.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

from promise.evaluation.scoring import native_dice
from promise.evaluation.statistics import bootstrap, column_means
from promise.inference.correction import (
    Click,
    Corrected,
    DecodeBoxes,
    apply_click,
    box_decoder,
    empty_logits,
)
from promise.inference.postprocess import Bools, Float32s, Postprocess, probability_at
from promise.models.promise import Promise
from promise.models.prompters.lesions import largest_error
from promise.types import Encoded

ORIGIN = "oracle-corrected"
TARGETS = (0.85, 0.9)  # Dice values whose number of clicks is reported
TOLERANCE = 0.01  # smaller losses of Dice do not count as a loss
FROZEN = "SAM"  # name of the baseline
STATEMENT = (
    "Clicks are placed at the centre of the largest error, which is found with the ground truth: scores after clicks "
    "are those of a corrected segmentation, not of an automatic one."
)


@dataclass(frozen=True)
class ClickResult:
    """The Dice of one image after 0 … N clicks."""

    dice: list[float]  # N + 1; NaN where an empty ground truth is skipped
    clicks: list[Click]  # in pixels of the image; fewer than N if the mask equals the ground truth

    def count(self, target: float) -> tuple[int, bool]:
        """The number of clicks until a Dice is reached, and whether it is; otherwise N."""
        reached = [number for number, dice in enumerate(self.dice) if dice >= target]
        return (reached[0], True) if reached else (len(self.dice) - 1, False)


def next_click(mask: Bools, target: Bools) -> Click | None:
    """The next click of the protocol, in pixels of the masks (H, W); ``None`` if they are equal."""
    error = largest_error(mask, target)
    return None if error is None else Click(error.x, error.y, error.missed)


def correct_with_clicks(
    logits: Float32s,
    target: Bools,
    decode: DecodeBoxes,
    *,
    clicks: int,
    side: int,
    postprocess: Postprocess,
    empty_rule: str = "one",
) -> ClickResult:
    """Correct the mask of one image click by click.

    Args:
        logits: (h, w) of the mask that is corrected.
        target: (H, W) the ground truth; only the protocol reads it.
        decode: decodes boxes of the image; see :func:`promise.inference.correction.box_decoder`.
        clicks: the number of clicks, N.
        side: side of the net's input, pixels.
        postprocess: from probabilities to the mask, as in the native protocol.
        empty_rule: how an empty ground truth is scored; see :func:`promise.evaluation.scoring.native_dice`.
    """
    state = Corrected(np.asarray(logits, np.float32))
    size = target.shape[1], target.shape[0]
    mask = postprocess(probability_at(state.logits, *target.shape))
    result = ClickResult([native_dice(mask, target, empty_rule)], [])
    for _ in range(clicks):
        click = next_click(mask, target)
        if click is not None:
            on_input = Click.on_image((click.x, click.y), click.positive, size=size, side=side)
            state = apply_click(state, on_input, decode, side=side)
            mask = postprocess(probability_at(state.logits, *target.shape))
            result.clicks.append(click)
        result.dice.append(native_dice(mask, target, empty_rule))
    return result


class ClickStudy:
    """Corrects the images of a data set: from the mask of the net, and with frozen SAM from an empty mask."""

    def __init__(
        self,
        net: Promise,
        *,
        clicks: int,
        postprocess: Postprocess,
        from_nothing: bool = False,
        empty_rule: str = "one",
    ) -> None:
        """Create an empty study.

        Args:
            net: the net. Without parts of SAM that were trained, its SAM is the baseline too.
            clicks: the number of clicks per image.
            postprocess: of the native protocol.
            from_nothing: whether the net starts with an empty mask too; it then is the baseline.
            empty_rule: as in :func:`correct_with_clicks`.
        """
        self.clicks = clicks
        self._net = net
        self._from_nothing = from_nothing
        self._options: dict[str, Any] = {"clicks": clicks, "postprocess": postprocess, "empty_rule": empty_rule}
        self._options["side"] = net.sam.backbone.image_size
        self._baseline = not from_nothing and not net.sam.trained_parts
        self._results: dict[int, tuple[str, ClickResult, ClickResult | None]] = {}

    def add(self, index: int, name: str, logits: Float32s, encoded: Encoded, target: Bools) -> None:
        """Correct one image.

        Args:
            index: the row of the image.
            name: its name.
            logits: (h, w) of the net's mask.
            encoded: its features.
            target: (H, W) the ground truth.
        """
        decode, empty = box_decoder(self._net, encoded), empty_logits(*logits.shape)
        own = correct_with_clicks(empty if self._from_nothing else logits, target, decode, **self._options)
        frozen = correct_with_clicks(empty, target, decode, **self._options) if self._baseline else None
        self._results[index] = name, own, frozen

    def lines(self, dataset: str, net: str, origin: str) -> Iterator[dict[str, Any]]:
        """The lines of clicks.csv: one per image and start, in the order of the rows.

        Args:
            dataset: name of the data set.
            net: name of the net.
            origin: of the prompts of the first mask.
        """
        for _, (name, own, frozen) in sorted(self._results.items()):
            for title, start, result in ((net, origin, own), (FROZEN, "none", frozen)):
                if result is None:
                    continue
                clicks = (f"{click.x:g} {click.y:g} {'+' if click.positive else '-'}" for click in result.clicks)
                yield {
                    "dataset": dataset,
                    "name": name,
                    "net": title,
                    "start": start,
                    "prompts": ORIGIN,
                    **{f"dice_{number}": value for number, value in enumerate(result.dice)},
                    **{f"noc_{target:g}": result.count(target)[0] for target in TARGETS},
                    **{f"reached_{target:g}": int(result.count(target)[1]) for target in TARGETS},
                    "clicks": "; ".join(clicks),
                }

    def summarise(self, origin: str) -> dict[str, Any]:
        """The entry of the data set in summary.json.

        Args:
            origin: of the prompts of the first mask.
        """
        results = [self._results[index] for index in sorted(self._results)]
        return {
            "prompts": ORIGIN,
            "clicks": self.clicks,
            "start": "empty mask" if self._from_nothing else origin,
            "net": _summarise([own for _, own, _ in results]),
            "frozen_sam": _summarise([one for _, _, one in results if one is not None]) if self._baseline else None,
        }


def _summarise(results: list[ClickResult]) -> dict[str, Any]:
    """Means over images after 0 … N clicks, and numbers of clicks; images whose Dice is NaN are excluded."""
    dice = np.array([one.dice for one in results], np.float64)
    scored = ~np.isnan(dice[:, 0])
    change = np.diff(dice[scored], axis=1)
    return {
        "dice": column_means(dice).tolist(),
        "intervals": bootstrap(dice).tolist(),
        "lowered": (change < -TOLERANCE).mean(axis=0).tolist() if scored.any() else [],  # fractions of the images
        "noc": {
            f"{target:g}": _count([one for one, keep in zip(results, scored, strict=True) if keep], target)
            for target in TARGETS
        },
    }


def _count(results: list[ClickResult], target: float) -> dict[str, float | None]:
    counts = [one.count(target) for one in results]
    if not counts:
        return {"mean": None, "unreached": None}
    return {
        "mean": float(np.mean([number for number, _ in counts])),
        "unreached": float(np.mean([not reached for _, reached in counts])),
    }
