"""Signals that end a command: at once, or, where its state can be saved, when it asks for them."""

from __future__ import annotations

import signal
import threading
import time
from collections.abc import Callable
from types import FrameType
from typing import Any, NoReturn

# SLURM sends SIGUSR1 some time before its time limit, if it is asked to. Windows has no SIGUSR1.
SIGNALS = tuple(getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGUSR1") if hasattr(signal, name))
_IMPATIENT = 1.0  # seconds between two SIGINT of a user; launchers pass one on that their processes got already


def leave(number: int) -> NoReturn:
    """End the process by an exception: ``KeyboardInterrupt`` for SIGINT, else ``SystemExit`` with 128 + the number."""
    if number == signal.SIGINT:
        raise KeyboardInterrupt
    raise SystemExit(128 + number)


def leave_at_once() -> None:
    """Let the signals raise the exceptions of :func:`leave` where they arrive, except for those that are ignored."""
    _handle(lambda number, _frame: leave(number))


def ignore_signals() -> None:
    """Ignore the signals, in a worker process: it must not end before the process that waits for its results."""
    for number in SIGNALS:
        signal.signal(number, signal.SIG_IGN)


class SignalNote:
    """Inside its context, the first signal is only noted; a second SIGINT by hand raises ``KeyboardInterrupt``.

    In other threads than the main one, it has no effect.
    """

    def __init__(self) -> None:
        self.received: int | None = None
        self._when = 0.0
        self._before: dict[int, Any] = {}

    def __enter__(self) -> SignalNote:
        self.received = None
        if threading.current_thread() is threading.main_thread():
            self._before = _handle(self._note)
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)
        self._before = {}

    def _note(self, number: int, _frame: FrameType | None) -> None:
        now = time.monotonic()
        if self.received is None:
            self.received, self._when = number, now
        elif number == signal.SIGINT and now - self._when > _IMPATIENT:
            raise KeyboardInterrupt


def _handle(handler: Callable[[int, FrameType | None], None]) -> dict[int, Any]:
    """Set a handler; returns those before. An ignored signal stays so, such as SIGINT in the background of a script."""
    numbers = [number for number in SIGNALS if signal.getsignal(number) is not signal.SIG_IGN]
    return {number: signal.signal(number, handler) or signal.SIG_DFL for number in numbers}
