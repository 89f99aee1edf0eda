"""Signals that end a command, sent by a real process to itself."""

from __future__ import annotations

import os
import signal
import threading
import time

import pytest

from promise.cli.common import run
from promise.runtime import signals
from promise.runtime.signals import SIGNALS, SignalNote, ignore_signals

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="POSIX signals")


def send(number: int) -> None:
    os.kill(os.getpid(), number)


@pytest.mark.parametrize(("name", "status"), [("SIGINT", 130), ("SIGTERM", 143), ("SIGUSR1", 138)])
def test_a_command_ends_with_128_plus_the_signal(name: str, status: int) -> None:
    pid = os.fork()
    if pid == 0:
        code = 1
        try:
            code = run("promise-test", lambda: send(getattr(signal, name)) or time.sleep(60) or 0)
        except SystemExit as error:
            code = error.code
        finally:
            os._exit(code)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == status


@pytest.mark.parametrize("number", SIGNALS)
def test_a_noted_signal_does_nothing_else_and_the_handlers_return(number: int) -> None:
    before = [signal.getsignal(known) for known in SIGNALS]
    with SignalNote() as note:
        send(number)
        send(number)  # passed on by a launcher
        assert note.received == number
    assert [signal.getsignal(known) for known in SIGNALS] == before


def test_a_second_interrupt_by_hand_acts_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(signals, "_IMPATIENT", 0.01)
    with SignalNote():
        send(signal.SIGINT)
        time.sleep(0.02)
        with pytest.raises(KeyboardInterrupt):
            send(signal.SIGINT)


def test_an_ignored_signal_stays_ignored() -> None:
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        with SignalNote() as note:
            send(signal.SIGINT)
            assert note.received is None
    finally:
        signal.signal(signal.SIGINT, before)


def test_other_threads_set_no_handlers() -> None:
    found = []

    def work() -> None:
        with SignalNote():
            found.extend(signal.getsignal(number) for number in SIGNALS)

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert found == [signal.getsignal(number) for number in SIGNALS]


def test_worker_processes_ignore_signals() -> None:
    pid = os.fork()
    if pid == 0:
        ignore_signals()
        for number in SIGNALS:
            send(number)
        os._exit(7)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 7
