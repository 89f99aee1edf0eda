"""What a prompter is: encoded images → prompts. And the frame that makes one of a head that regresses points."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from promise.runtime.errors import UserError
from promise.types import Encoded, Points, Prompted, Prompts


class Prompter(nn.Module):
    """The Auto-Prompting Module of a net: a module that places prompts.

    Its weights are in checkpoints under ``apm.``. Subclasses implement :meth:`forward` and may read the embedding and
    the taps; a class that does not read the taps sets ``needs_taps = False``, and none are computed for it.
    """

    needs_taps = True

    def forward(self, encoded: Encoded) -> Prompted:
        """Predict the prompts of B encoded images, in input pixels."""
        raise NotImplementedError

    def compiled_part(self) -> nn.Module:
        """What ``--compile`` compiles: the whole module, unless a part suits ``torch.compile`` better."""
        return self


class PointPrompter(Prompter):
    """A head that regresses relative positions, and labels that are fixed by position.

    Source: the ProMISe paper (arXiv 2403.04164), Auto-Prompting Module.
    """

    label: Tensor

    def __init__(self, head: nn.Module, *, labels: Sequence[int], image_size: int) -> None:
        """Join a head with its labels.

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
        """Place P points in each image."""
        xy = torch.sigmoid(self.head(encoded.taps)) * self.image_size
        return Prompted(Prompts(Points(xy, self.label.expand(xy.shape[0], -1))))

    def compiled_part(self) -> nn.Module:
        """The head."""
        return self.head


def fixed_labels(num_points: int, values: tuple[int, ...] | None = None) -> tuple[int, ...]:
    """Labels of automatic points, fixed by position: the first half positive, the rest negative; 1 point is positive.

    Args:
        num_points: 1 or any even number.
        values: other labels, one per point, each 0 or 1 (the reference implementation's ``point_value``).

    Raises:
        UserError: an odd count above 1, or values that do not fit.
    """
    if values is not None:
        if len(values) != num_points or not set(values) <= {0, 1}:
            raise UserError(
                f"--point-labels needs {num_points} values of 0 or 1, as many as --num-points; got {len(values)}: "
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
