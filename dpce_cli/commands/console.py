"""Drawing progress and results in a terminal or a log."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import typer
from rich.cells import cell_len
from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table

from dpce_cli.core.processes.environment import is_main_process
from dpce_cli.core.progress import Advance, Reporter, duration, visible

_LOG_SECONDS = 10.0


class ConsoleReporter(Reporter):
    """Draws on stderr: live bars in a terminal, one grep-able line per interval elsewhere."""

    def __init__(self) -> None:
        self._console = Console(stderr=True, highlight=False)
        self._bar: Progress | None = None

    def note(self, message: str) -> None:
        self._print(escape(visible(message)))

    def warn(self, message: str) -> None:
        self._print(f"[yellow]Warning:[/yellow] {escape(visible(message))}")

    def _print(self, text: str) -> None:
        (self._bar.console if self._bar else self._console).print(text, soft_wrap=True)

    @contextmanager
    def track(self, label: str, total: int, done: int = 0) -> Iterator[Advance]:
        yield from self._draw(label, total, done) if self._console.is_terminal else self._log(label, total, done)

    def _draw(self, label: str, total: int, done: int) -> Iterator[Advance]:
        columns = (
            TextColumn("{task.description}"),
            BarColumn(bar_width=20),
            MofNCompleteColumn(),
            TextColumn("{task.fields[values]}"),
            TimeRemainingColumn(compact=True),
        )
        with Progress(*columns, console=self._console, transient=True) as bar:
            task = bar.add_task(label, total=total, completed=done, values="")
            self._bar = bar

            def advance(count: int = 1, fields: Mapping[str, str] | None = None) -> None:
                bar.advance(task, count)
                if fields:
                    bar.update(task, values="  ".join(f"{name} {value}" for name, value in fields.items()))

            try:
                yield advance
            finally:
                self._bar = None

    def _log(self, label: str, total: int, done: int) -> Iterator[Advance]:
        start = logged = time.monotonic()
        finished = first = done

        def advance(count: int = 1, fields: Mapping[str, str] | None = None) -> None:
            nonlocal finished, logged
            finished += count
            now = time.monotonic()
            if fields:
                self.note(" | ".join([label, *(f"{name} {value}" for name, value in fields.items())]))
            elif count and (now - logged >= _LOG_SECONDS or finished == total):
                logged = now
                left = (total - finished) * (now - start) / max(1, finished - first)
                self.note(f"{label} | {finished}/{total} | eta {duration(left)}")

        yield advance


def build_reporter() -> Reporter:
    """A reporter that draws in the main process, and is silent in the others."""
    return ConsoleReporter() if is_main_process() else Reporter()


def print_table(title: str, columns: Sequence[str], rows: Sequence[Sequence[str]], *, text_columns: int = 1) -> None:
    """Print a title and a table on stdout; the last `text_columns` columns are left-aligned, as is the first.

    A terminal gets long texts folded in their columns, a pipe one line per row.
    """
    console = Console(highlight=False)
    table = Table(box=None, pad_edge=False)
    for index, column in enumerate(columns):
        text = index == 0 or index >= len(columns) - text_columns
        table.add_column(column, justify="left" if text else "right", overflow="fold")
    cells = [[visible(cell) for cell in row] for row in rows]
    for row in cells:
        table.add_row(*map(escape, row))
    console.print(escape(visible(title)), soft_wrap=True)
    if console.is_terminal:
        console.print(table)
        return
    console.width = sum(max(map(cell_len, column)) + 2 for column in zip(columns, *cells, strict=True))
    with console.capture() as printed:
        console.print(table)
    typer.echo("\n".join(line.rstrip() for line in printed.get().splitlines()))


def print_json(value: Any) -> None:
    """Print JSON on stdout; control characters and letters that the terminal cannot show are escaped."""
    encoding = getattr(sys.stdout, "encoding", None) or "utf-8"

    def is_plain(letter: str) -> bool:
        return letter == "\n" or (letter.isprintable() and letter.encode(encoding, "ignore") != b"")

    text = json.dumps(value, indent=2, ensure_ascii=False)
    typer.echo("".join(letter if is_plain(letter) else json.dumps(letter)[1:-1] for letter in text))
