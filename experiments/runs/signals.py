"""Signals that ask a run to end, which first saves what it needs to go on."""

import contextlib
import signal
import threading
from collections.abc import Callable, Iterator
from typing import Any

SIGNALS = [
    getattr(signal, name)
    for name in ("SIGINT", "SIGTERM", "SIGHUP", "SIGUSR1", "SIGUSR2", "SIGXCPU")
    if hasattr(signal, name)
]


class Interrupted(Exception):
    """A signal ended the run, and all that is needed to go on was saved."""

    def __init__(self, signal_number: int):
        super().__init__(signal.Signals(signal_number).name)
        self.exit_code = 128 + signal_number


@contextlib.contextmanager
def signals_noted() -> Iterator[Callable[[], int]]:
    """Notes Ctrl-C, SIGTERM and warnings of a scheduler, instead of ending the process.

    The function that it yields returns which signal came, or 0. A second Ctrl-C or SIGTERM ends the
    process, as usual.
    """
    came = 0
    usual: dict[int, Any] = {}

    def note(number, frame):
        nonlocal came
        came = number
        for each in (signal.SIGINT, signal.SIGTERM):
            signal.signal(each, usual[each])

    if threading.current_thread() is threading.main_thread():
        for each in SIGNALS:
            # None is of a handler that is not Python's.
            usual[each] = signal.signal(each, note) or signal.SIG_DFL
            # Of nohup, which is to be left alone.
            if usual[each] is signal.SIG_IGN and each not in (signal.SIGINT, signal.SIGTERM):
                signal.signal(each, signal.SIG_IGN)
    try:
        yield lambda: came
    finally:
        for each, handler in usual.items():
            signal.signal(each, handler)
