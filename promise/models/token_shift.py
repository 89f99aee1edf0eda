"""Incremental Pattern Shifting: image embedding → token shift; knows nothing of SAM's insides."""

from __future__ import annotations

import torch
from torch import Tensor, nn


class IncrementalPatternShifting(nn.Module):
    """Pooled embedding → two linear layers → one shift for each of SAM's mask tokens.

    Source: the ProMISe paper (arXiv 2403.04164), Incremental Pattern Shifting.
    """

    def __init__(self, *, channels: int = 256, tokens: int = 4) -> None:
        """Size the block: ``channels`` of the embedding and of a token, ``tokens`` mask tokens of the decoder."""
        super().__init__()
        self.tokens = tokens
        self.lin1 = nn.Linear(channels, tokens * channels)
        self.lin2 = nn.Linear(tokens * channels, tokens * channels)

    def forward(self, embedding: Tensor) -> Tensor:
        """Map an embedding (B, C, E, E) to a shift (B, tokens, C), one for each image."""
        pooled = embedding.mean(dim=(2, 3))
        shift: Tensor = self.lin2(torch.nn.functional.gelu(self.lin1(pooled)))
        return shift.view(shift.shape[0], self.tokens, -1)
