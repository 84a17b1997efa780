"""Stopping a run at a point where the same command can continue it."""

from __future__ import annotations

import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any

STOP_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
"""Ctrl-C, a scheduler or `kill`, and a terminal that is closed: all of them ask a run to stop."""

_SAME_REQUEST_SECONDS = 1.0
"""A launcher passes on a signal that its processes have received already: within this time it is the same request."""

_received = signal.SIGINT


class Interrupted(Exception):
    """The run was asked to stop; it is saved, and the same command continues it."""

    @property
    def exit_code(self) -> int:
        """What a shell expects of a program that a signal stopped, such as 130 for Ctrl-C and 143 for SIGTERM."""
        return 128 + _received


class _Request:
    """Calls `first` at the first stop signal, and raises `KeyboardInterrupt` at one that comes a second later."""

    def __init__(self, first: Callable[[], None]) -> None:
        self.first, self.time = first, -1.0

    def __call__(self, number: int, frame: FrameType | None) -> None:
        global _received
        now = time.monotonic()
        if self.time < 0:
            self.time, _received = now, signal.Signals(number)
            self.first()
        elif now - self.time > _SAME_REQUEST_SECONDS:
            raise KeyboardInterrupt


@contextmanager
def _handling(handler: Callable[[int, FrameType | None], None]) -> Iterator[None]:
    """Have `handler` receive the stop signals in the block, but for those that are ignored, as `nohup` ignores HUP."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before: dict[signal.Signals, Any] = {}
    try:
        for number in STOP_SIGNALS:
            if signal.getsignal(number) not in (signal.SIG_IGN, None):
                before[number] = signal.signal(number, handler)
        yield
    finally:
        for number, old in before.items():
            signal.signal(number, old)


def _interrupt() -> None:
    raise KeyboardInterrupt


@contextmanager
def stop_signals_interrupt() -> Iterator[None]:
    """Have every stop signal in the block raise `KeyboardInterrupt`, as Ctrl-C does."""
    with _handling(_Request(_interrupt)):
        yield


@contextmanager
def interrupts_held_back() -> Iterator[None]:
    """Deliver a stop signal that comes in the block at its end, and one that comes a second later at once.

    For code that an exception in its midst would break: Python's queues, for one, can keep their lock for good.
    """
    received: list[int] = []
    request = _Request(lambda: None)

    def receive(number: int, frame: FrameType | None) -> None:
        received.append(number)
        request(number, frame)

    try:
        with _handling(receive):
            yield
    finally:
        if received:
            signal.raise_signal(received[0])


class StopRequest:
    """Whether a run was asked to stop, for the run to heed at the end of a step."""

    def __init__(self) -> None:
        self.made = False

    @contextmanager
    def listening(self) -> Iterator[None]:
        """Take the first stop signal in the block as the request; a second later, one is a `KeyboardInterrupt`."""
        with _handling(_Request(self._make)):
            yield

    def _make(self) -> None:
        self.made = True
