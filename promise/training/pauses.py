"""When a training saves its state within an epoch, and when it ends early: the same step in all processes."""

from __future__ import annotations

import time

import torch
from accelerate import Accelerator

from promise.runtime.signals import SIGNALS, SignalNote

_BEFORE_VALIDATION = 1.0  # minutes of training that a validation may not put at risk


class Pauses(SignalNote):
    """Inside its context, signals are noted; the state is due after some minutes, or when a signal has arrived."""

    def __init__(self, accelerator: Accelerator, minutes: float) -> None:
        """Start the clock.

        Args:
            accelerator: devices and processes.
            minutes: between two savings of the state; 0: only signals are a reason.
        """
        super().__init__()
        self.accelerator = accelerator
        self.minutes = minutes
        self.restart()

    def restart(self) -> None:
        """Restart the clock: the state has been saved."""
        self._saved = time.monotonic()

    def ask(self, *, before_validation: bool = False) -> tuple[bool, int | None]:
        """Whether the state is due, and the signal that ends the training, if one has arrived in any process.

        Args:
            before_validation: the state is due earlier, so that a signal during the validation costs no training.
        """
        minutes = min(self.minutes, _BEFORE_VALIDATION) if before_validation else self.minutes
        due = 0 < minutes * 60 <= time.monotonic() - self._saved
        flags = [due, *(self.received == number for number in SIGNALS)]
        if self.accelerator.num_processes > 1:
            counts = torch.tensor(flags, dtype=torch.float32, device=self.accelerator.device)
            flags = self.accelerator.reduce(counts).bool().tolist()
        number = next((number for number, arrived in zip(SIGNALS, flags[1:], strict=True) if arrived), None)
        return flags[0] or number is not None, number
