"""Incremental Pattern Shifting (IPS): a token shift computed from the image embedding."""

from __future__ import annotations

import torch
from torch import Tensor, nn


class IncrementalPatternShifting(nn.Module):
    """Two linear layers that map the pooled embedding to a shift of each of SAM's mask tokens.

    Source: the ProMISe paper (arXiv 2403.04164), Incremental Pattern Shifting.
    """

    def __init__(self, *, channels: int = 256, tokens: int = 4) -> None:
        """Create the block with fresh weights.

        Args:
            channels: channels of the embedding and of a token, C.
            tokens: number of mask tokens of the decoder.
        """
        super().__init__()
        self.tokens = tokens
        self.lin1 = nn.Linear(channels, tokens * channels)
        self.lin2 = nn.Linear(tokens * channels, tokens * channels)

    def zero_(self) -> None:
        """Make the shift zero, so that training starts from SAM itself."""
        nn.init.zeros_(self.lin2.weight)
        nn.init.zeros_(self.lin2.bias)

    def forward(self, embedding: Tensor) -> Tensor:
        """Map an embedding (B, C, E, E) to a shift (B, tokens, C)."""
        pooled = embedding.mean(dim=(2, 3))
        shift: Tensor = self.lin2(torch.nn.functional.gelu(self.lin1(pooled)))
        return shift.view(shift.shape[0], self.tokens, -1)
