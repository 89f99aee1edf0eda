"""Losses on mask logits, and the criterion that joins them with a prompter's own; knows no models and no data."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from promise.runtime.errors import unknown_name
from promise.types import Batch, Prediction

Loss = Callable[[Tensor, Tensor], Tensor]


def bce(logits: Tensor, target: Tensor) -> Tensor:
    """Mean binary cross-entropy of logits (B, 1, H, W) against a target of the same shape in [0, 1]."""
    return F.binary_cross_entropy_with_logits(logits, target)


def dice(logits: Tensor, target: Tensor) -> Tensor:
    """1 - mean over the batch of soft Dice ``(2·I + 1) / (ΣP + ΣT + 1)``; an empty target and prediction give 0."""
    probability = torch.sigmoid(logits).flatten(1)
    target = target.flatten(1)
    overlap = (probability * target).sum(1)
    return 1 - ((2 * overlap + 1) / (probability.sum(1) + target.sum(1) + 1)).mean()


def bce_dice(logits: Tensor, target: Tensor) -> Tensor:
    """Binary cross-entropy plus soft Dice loss; shapes as :func:`bce`."""
    return bce(logits, target) + dice(logits, target)


def reference(logits: Tensor, target: Tensor) -> Tensor:
    """The original's loss, quirks and all; shapes as :func:`bce`.

    The net's probabilities go through a second sigmoid, in both terms; Dice counts ``2·(I + 1)``, is averaged
    over the batch and then clamped to [0, 1].
    """
    probability = torch.sigmoid(logits)
    twice = torch.sigmoid(probability).flatten(1)
    flat = target.flatten(1)
    score = (2 * ((twice * flat).sum(1) + 1) / (twice.sum(1) + flat.sum(1) + 1)).mean().clamp(0, 1)
    return F.binary_cross_entropy_with_logits(probability, target) + (1 - score)


LOSSES: dict[str, Loss] = {"bce": bce, "bce_dice": bce_dice, "reference": reference}


def get_loss(name: str) -> Loss:
    """Look a loss up by name; an unknown name is an error with the list and the nearest."""
    if name not in LOSSES:
        raise unknown_name("loss", name, LOSSES)
    return LOSSES[name]


def resize_target(mask: Tensor, side: tuple[int, int]) -> Tensor:
    """Bring a mask (B, 1, S, S) to the logits' size bilinearly, as the original does; soft at the edges."""
    if tuple(mask.shape[-2:]) == tuple(side):
        return mask
    return F.interpolate(mask, size=side, mode="bilinear", align_corners=False)


@dataclass(frozen=True)
class LossTerms:
    """A loss and the terms that it is the sum of."""

    total: Tensor
    terms: Mapping[str, Tensor]

    def named(self) -> dict[str, Tensor]:
        """``loss``, and ``loss_<term>`` where there are several terms."""
        several = len(self.terms) > 1
        return {"loss": self.total, **{f"loss_{name}": term for name, term in self.terms.items() if several}}


PromptLoss = Callable[[Prediction, Batch], Tensor]


class Criterion:
    """The loss of a prediction: of its mask, and of its prompts where the prompter has a loss of its own."""

    def __init__(self, mask: Loss, prompts: PromptLoss | None = None) -> None:
        """Join the losses.

        Args:
            mask: of mask logits and a target of the same size.
            prompts: of a prediction and its batch, added to that of the mask.
        """
        self.mask = mask
        self.prompts = prompts

    @property
    def names(self) -> tuple[str, ...]:
        """What :meth:`LossTerms.named` will hold."""
        return ("loss",) if self.prompts is None else ("loss", "loss_mask", "loss_prompts")

    def __call__(self, prediction: Prediction, batch: Batch) -> LossTerms:
        """The loss of a batch whose masks (B, 1, S, S) are on the prediction's device."""
        height, width = prediction.mask_logits.shape[-2:]
        terms = {"mask": self.mask(prediction.mask_logits, resize_target(batch.mask, (height, width)))}
        if self.prompts is None:
            return LossTerms(terms["mask"], terms)
        terms["prompts"] = self.prompts(prediction, batch)
        return LossTerms(terms["mask"] + terms["prompts"], terms)
