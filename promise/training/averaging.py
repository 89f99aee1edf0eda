"""An exponential moving average of weights, which is validated and saved in place of the weights."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor


class WeightAverage:
    """The moving average of the floating-point tensors of a state dict.

    After k steps the decay is at most ``(1 + k) / (10 + k)``, so that the first weights are soon forgotten.
    """

    def __init__(self, state: Mapping[str, Tensor], decay: float) -> None:
        """Start with the current weights.

        Args:
            state: the tensors of a net, which its optimiser changes in place.
            decay: weight of the average in each step, in (0, 1).
        """
        self.current = {name: value for name, value in state.items() if value.is_floating_point()}
        self.decay = decay
        self.steps = 0
        self.values = {name: value.clone() for name, value in self.current.items()}

    @torch.no_grad()
    def update(self) -> None:
        """Include the current weights, after a step of the optimiser."""
        self.steps += 1
        decay = min(self.decay, (1 + self.steps) / (10 + self.steps))
        torch._foreach_lerp_(list(self.values.values()), list(self.current.values()), 1 - decay)

    @contextmanager
    def applied(self) -> Iterator[None]:
        """Inside, the net has the average weights; afterwards, its own again."""
        own = {name: value.clone() for name, value in self.current.items()}
        _copy(self.values, self.current)
        try:
            yield
        finally:
            _copy(own, self.current)

    def state_dict(self) -> dict[str, Any]:
        """What is needed to resume."""
        return {"steps": self.steps, "values": self.values}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore what :meth:`state_dict` returned."""
        self.steps = state["steps"]
        _copy(state["values"], self.values)


@torch.no_grad()
def _copy(source: Mapping[str, Tensor], target: Mapping[str, Tensor]) -> None:
    for name, value in target.items():
        value.copy_(source[name])
