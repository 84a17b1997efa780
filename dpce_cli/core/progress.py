"""How core code tells a person what it is doing, without printing."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Protocol


class Advance(Protocol):
    def __call__(self, count: int = 1, fields: Mapping[str, str] | None = None) -> None:
        """Report `count` more finished items and the newest values to show beside them."""


class Reporter:
    """Receives progress; this base class is silent, the command line draws it."""

    def note(self, message: str) -> None:
        """One line a person may want to know."""

    def warn(self, message: str) -> None:
        """One line a person should know: something was skipped or looks wrong."""

    @contextmanager
    def track(self, label: str, total: int, done: int = 0) -> Iterator[Advance]:
        """Follow `total` items of which `done` are finished already; yields the function to advance by."""

        def advance(count: int = 1, fields: Mapping[str, str] | None = None) -> None:
            pass

        yield advance


def visible(text: str) -> str:
    """Text for a terminal: control characters, which could change it or break a line, as escapes such as `\\x1b`.

    >>> visible("a\\x1b]0;title\\x07\\nb ä \\udcff")
    'a\\\\x1b]0;title\\\\x07\\\\nb ä \\\\udcff'
    """
    return "".join(
        letter if letter.isprintable() else letter.encode("unicode_escape", "surrogatepass").decode() for letter in text
    )


def duration(seconds: float) -> str:
    """A time span in its two largest units.

    >>> duration(4321), duration(65), duration(9)
    ('1h12m', '1m05s', '9s')
    """
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    if hours:
        return f"{hours}h{minutes:02}m"
    return f"{minutes}m{seconds:02}s" if minutes else f"{seconds}s"
