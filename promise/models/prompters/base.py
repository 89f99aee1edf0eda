"""The base class of prompters, which map encoded images to prompts, and the prompter that wraps a point head."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from promise.models.prompters.lesions import LesionSettings
from promise.runtime.errors import UserError
from promise.runtime.settings import MAX_POINTS
from promise.types import Encoded, Points, Prompted, Prompts


class Prompter(nn.Module):
    """The Auto-Prompting Module of a net: a module that predicts prompts.

    Checkpoints contain its weights under ``apm.``. Subclasses implement :meth:`forward` and may read the embedding and
    the taps. A class that does not read the taps sets ``needs_taps = False``; then none are computed. A class that
    reads them at a lower resolution sets ``tap_pooling``, which makes its cached features smaller.
    """

    needs_taps = True
    needs_image = False  # whether it reads Encoded.image
    tap_pooling = 1  # taps are averaged over squares of so many pixels before they reach the prompter
    lesions: LesionSettings | None = None  # how lesions are found and decoded, if the prompter predicts a map of them
    # Whether it predicts points whose positions have a gradient, so that a loss of the positions can train it.
    regresses_points = False

    def forward(self, encoded: Encoded) -> Prompted:
        """Predict the prompts of B encoded images, in input pixels."""
        raise NotImplementedError

    def lesion_logits(self, encoded: Encoded) -> Tensor:
        """The map of lesions, logits (B, 1, h, w), of a prompter with :attr:`lesions`."""
        raise NotImplementedError

    def maps(self, encoded: Encoded) -> Tensor:
        """The K maps (B, K, h, w) whose mean is the map of lesions; each is trained by a loss of its own."""
        return self.lesion_logits(encoded)

    def load_pretrained(self) -> None:
        """Load the weights of a pretrained part, before training; by default there is none."""

    def slow_parameters(self) -> list[nn.Parameter]:
        """Parameters that are trained with a smaller learning rate, because they are pretrained; by default none."""
        return []

    def compiled_part(self) -> nn.Module:
        """The module that ``--compile`` compiles: by default the whole prompter; a subclass may return a part."""
        return self


class PointPrompter(Prompter):
    """A head that regresses the positions of points; the labels of the points are fixed.

    Source: the ProMISe paper (arXiv 2403.04164), Auto-Prompting Module.
    """

    regresses_points = True
    label: Tensor

    def __init__(self, head: nn.Module, *, labels: Sequence[int], image_size: int) -> None:
        """Combine a head with its labels.

        Args:
            head: taps, shallow to deep, each (B, C_i, E, E) → scores (B, P, 2), whose sigmoid is the position in the
                image, x before y.
            labels: P labels, 1 foreground, 0 background.
            image_size: side of the input, pixels.
        """
        super().__init__()
        self.head = head
        self.image_size = image_size
        self.register_buffer("label", torch.tensor(labels, dtype=torch.int64), persistent=False)

    def forward(self, encoded: Encoded) -> Prompted:
        """Predict P points in each image."""
        xy = torch.sigmoid(self.head(encoded.taps)) * self.image_size
        return Prompted(Prompts(Points(xy, self.label.expand(xy.shape[0], -1))))

    def compiled_part(self) -> nn.Module:
        """The head, without the conversion to pixels."""
        return self.head


def fixed_labels(num_points: int, values: tuple[int, ...] | None = None) -> tuple[int, ...]:
    """Labels of automatic points: the first half positive, the second half negative; a single point is positive.

    Args:
        num_points: 1 or any even number up to :data:`promise.runtime.settings.MAX_POINTS`.
        values: other labels, one per point, each 0 or 1 (the reference implementation's ``point_value``).

    Raises:
        UserError: an odd count above 1, or too many points (code ``number-of-points``), or values that do not match the
            count or are neither 0 nor 1 (code ``point-labels``).
    """
    if num_points > MAX_POINTS:
        raise UserError(f"--num-points must be at most {MAX_POINTS}, got {num_points}.", code="number-of-points")
    if values is not None:
        if len(values) != num_points or not set(values) <= {0, 1}:
            raise UserError(
                f"--point-labels must have {num_points} values of 0 or 1, as many as --num-points; got {len(values)}: "
                f"{'-'.join(map(str, values))}.",
                code="point-labels",
            )
        return tuple(values)
    if num_points != 1 and (num_points < 1 or num_points % 2):
        raise UserError(
            f"--num-points must be 1 or an even number (half positive, half negative), got {num_points}.",
            code="number-of-points",
        )
    positive = max(1, num_points // 2)
    return (1,) * positive + (0,) * (num_points - positive)
