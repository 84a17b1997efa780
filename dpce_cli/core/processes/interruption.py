"""Stopping a run that nothing is wrong with, where it can be continued."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager


class Interrupted(Exception):
    """A person stopped the run; it is saved, and the same command continues it."""


@contextmanager
def interrupts_held_back() -> Iterator[None]:
    """Deliver a SIGINT that comes in the block at its end, and a second one at once, as `KeyboardInterrupt`.

    For code that an exception in its midst would break: Python's queues, for one, can keep their lock for good.
    """
    before = signal.getsignal(signal.SIGINT)
    if before is None or threading.current_thread() is not threading.main_thread():
        yield
        return
    received = False

    def receive(signum: int, frame: object) -> None:
        nonlocal received
        if received:
            raise KeyboardInterrupt
        received = True

    signal.signal(signal.SIGINT, receive)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)
        if received:
            signal.raise_signal(signal.SIGINT)


class StopRequest:
    """Whether a person asked a run to stop, for the run to heed when it can."""

    def __init__(self) -> None:
        self.made = False

    @contextmanager
    def listening(self) -> Iterator[None]:
        """Take the first SIGINT or SIGTERM as the request, and a second one as `KeyboardInterrupt`, in the block."""
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        before = {number: signal.signal(number, self._receive) for number in (signal.SIGINT, signal.SIGTERM)}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    def _receive(self, signum: int, frame: object) -> None:
        if self.made:
            raise KeyboardInterrupt
        self.made = True
