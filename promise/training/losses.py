"""Losses of mask logits, and the criterion that adds the loss of a prompter; knows no models and no data."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from promise.models.registry import PromptLoss
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
    """The loss of the reference implementation, which differs from its formula; shapes as :func:`bce`.

    Both terms apply a second sigmoid to the probabilities; the Dice term counts ``2·(I + 1)``, is averaged over the
    batch and then clamped to [0, 1].
    """
    probability = torch.sigmoid(logits)
    twice = torch.sigmoid(probability).flatten(1)
    flat = target.flatten(1)
    score = (2 * ((twice * flat).sum(1) + 1) / (twice.sum(1) + flat.sum(1) + 1)).mean().clamp(0, 1)
    return F.binary_cross_entropy_with_logits(probability, target) + (1 - score)


LOSSES: dict[str, Loss] = {"bce": bce, "bce_dice": bce_dice, "reference": reference}


def get_loss(name: str) -> Loss:
    """Look up a loss by name.

    Raises:
        UserError: unknown name, code ``unknown-loss``; lists the known ones and the nearest.
    """
    if name not in LOSSES:
        raise unknown_name("loss", name, LOSSES)
    return LOSSES[name]


def resize_target(mask: Tensor, side: tuple[int, int]) -> Tensor:
    """Resize a mask (B, 1, S, S) to ``side`` bilinearly, as the reference implementation does; edges become soft."""
    if tuple(mask.shape[-2:]) == tuple(side):
        return mask
    return F.interpolate(mask, size=side, mode="bilinear", align_corners=False)


def score_names(terms: Sequence[str]) -> tuple[str, ...]:
    """Names under which a loss with these terms is logged: ``loss``, and ``loss_<term>`` if there are several."""
    return ("loss", *(f"loss_{term}" for term in terms if len(terms) > 1))


@dataclass(frozen=True)
class LossTerms:
    """A loss and its terms, scalars."""

    total: Tensor
    terms: Mapping[str, Tensor]

    def named(self) -> dict[str, Tensor]:
        """The values by the names of :func:`score_names`."""
        several = self.terms if len(self.terms) > 1 else {}
        return dict(zip(score_names(tuple(self.terms)), (self.total, *several.values()), strict=True))


class Criterion:
    """The loss of a prediction: of its mask and, if there is one, of its prompts.

    For another loss, override :attr:`terms` and :meth:`__call__`.

    Attributes:
        decodes: whether the loss reads the decoded mask; if not, training decodes no mask.
    """

    def __init__(self, mask: Loss | None, prompts: PromptLoss | None = None) -> None:
        """Combine the losses, at least one of which must be given.

        Args:
            mask: of mask logits and a target of the same size; ``None``: masks have no loss.
            prompts: of a prediction and its batch; added to the loss of the mask.
        """
        self.mask = mask
        self.prompts = prompts
        self.decodes = mask is not None

    @property
    def terms(self) -> tuple[str, ...]:
        """Names of the terms, in the order of :class:`LossTerms`."""
        losses = {"mask": self.mask, "prompts": self.prompts}
        return tuple(name for name, loss in losses.items() if loss is not None)

    @property
    def names(self) -> tuple[str, ...]:
        """Names under which the loss is logged."""
        return score_names(self.terms)

    def __call__(self, prediction: Prediction, batch: Batch) -> LossTerms:
        """The loss of a batch whose masks (B, 1, S, S) are on the device of the prediction."""
        terms = {}
        if self.mask is not None:
            height, width = prediction.mask_logits.shape[-2:]
            terms["mask"] = self.mask(prediction.mask_logits, resize_target(batch.mask, (height, width)))
        if self.prompts is not None:
            terms["prompts"] = self.prompts(prediction, batch)
        first, *others = terms.values()
        return LossTerms(sum(others, first), terms)
