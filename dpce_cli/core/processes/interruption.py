"""Stop signals: a run stops at a point where the same command can continue it."""

from __future__ import annotations

import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any

STOP_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
"""Sent by Ctrl-C, by a scheduler or `kill`, and by a terminal that is closed: each asks a run to stop."""

_SAME_REQUEST_SECONDS = 1.0
"""A launcher passes a signal on to processes that have received it already; within this time, it is the same one."""

_received = signal.SIGINT


class Interrupted(Exception):
    """The run was asked to stop. It is saved; the same command continues it."""

    @property
    def exit_code(self) -> int:
        """The usual exit code after this signal: 130 for Ctrl-C, 143 for SIGTERM."""
        return 128 + _received


class _Request:
    """Calls `first` at the first stop signal; raises `KeyboardInterrupt` at another one, a second later or more."""

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
    """Let `handler` receive the stop signals in the block. Ignored signals stay ignored, such as HUP under `nohup`."""
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
    """Let every stop signal in the block raise `KeyboardInterrupt`, as Ctrl-C does."""
    with _handling(_Request(_interrupt)):
        yield


@contextmanager
def interrupts_held_back() -> Iterator[None]:
    """Delay a stop signal until the end of the block; another one, a second later or more, is not delayed.

    For code that must not be interrupted by an exception: Python's queues, for example, could keep their lock forever.
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
    """Whether a run was asked to stop; the run looks at the end of each step."""

    def __init__(self) -> None:
        self.made = False

    @contextmanager
    def listening(self) -> Iterator[None]:
        """Take the first stop signal in the block as the request; a later one raises `KeyboardInterrupt`."""
        with _handling(_Request(self._make)):
            yield

    def _make(self) -> None:
        self.made = True
