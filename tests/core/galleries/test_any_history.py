"""Whatever happened to the photos, and wherever indexing was killed, the gallery is the one made from scratch."""

from __future__ import annotations

import itertools
import os
import shutil
import sqlite3
import tempfile
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from functools import partial
from pathlib import Path
from typing import Any
from unittest.mock import patch

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, precondition, rule

from tests.core.galleries.conftest import LONG_AGO, Place

NAMES = ("a.png", "b.png", "deep/c.png", "deep/er/d.png")
COLOURS = ((255, 0, 0), (0, 255, 0), (9, 9, 255), None)
"""None: a file that is no photo."""


class Killed(BaseException):
    """Stands for the end of the process."""


class _Connection(sqlite3.Connection):
    write: Callable[[], None]

    def execute(self, sql: str, *values: Any) -> sqlite3.Cursor:
        if not sql.startswith(("SELECT", "PRAGMA", "ROLLBACK")):
            type(self).write()
        return super().execute(sql, *values)

    def executemany(self, sql: str, values: Any) -> sqlite3.Cursor:
        type(self).write()
        return super().executemany(sql, values)


@contextmanager
def killed_at(write: int) -> Iterator[None]:
    """End what runs in the block just before its `write`-th change to a file or to the catalogue."""
    left = itertools.count(write, -1)

    def change() -> None:
        if next(left) == 0:
            raise Killed

    def before(function: Callable[..., Any]) -> Callable[..., Any]:
        def changing(*arguments: Any, **how: Any) -> Any:
            change()
            return function(*arguments, **how)

        return changing

    pwrite = os.pwrite

    def half(file: int, data: bytes, offset: int) -> int:
        try:
            change()
        except Killed:
            pwrite(file, data[: len(data) // 2], offset)
            raise
        return pwrite(file, data, offset)

    with ExitStack() as stack:
        _Connection.write = staticmethod(change)
        stack.enter_context(patch.object(sqlite3, "connect", partial(sqlite3.connect, factory=_Connection)))
        stack.enter_context(patch.object(os, "pwrite", half))
        for module, name in ((os, "fsync"), (os, "replace"), (shutil, "rmtree")):
            stack.enter_context(patch.object(module, name, before(getattr(module, name))))
        with suppress(Killed):
            yield


class History(RuleBasedStateMachine):
    def __init__(self) -> None:
        super().__init__()
        self.folder = Path(tempfile.mkdtemp())
        self.place = Place(self.folder)
        self.ages = itertools.count()

    def teardown(self) -> None:
        shutil.rmtree(self.folder)

    @property
    def here(self) -> list[Path]:
        return [path for path in self.place.photos.rglob("*.png") if path.is_file()]

    @rule(name=st.sampled_from(NAMES), colour=st.sampled_from(COLOURS))
    def add_or_edit(self, name: str, colour: tuple[int, int, int] | None) -> None:
        path = self.place.add(name, colour or (0, 0, 0))
        if colour is None:
            path.write_bytes(b"no photo")
        os.utime(path, (LONG_AGO + next(self.ages),) * 2)

    @precondition(lambda self: self.here)
    @rule(source=st.integers(0, 9), name=st.sampled_from(NAMES), is_copy=st.booleans())
    def move_or_copy(self, source: int, name: str, is_copy: bool) -> None:
        path, target = self.here[source % len(self.here)], self.place.photos / name
        if path != target:
            target.parent.mkdir(parents=True, exist_ok=True)
            (shutil.copy2 if is_copy else shutil.move)(path, target)

    @precondition(lambda self: self.here)
    @rule(which=st.integers(0, 9))
    def delete(self, which: int) -> None:
        self.here[which % len(self.here)].unlink()

    @precondition(lambda self: self.here)
    @rule(write=st.integers(0, 25), rebuild=st.booleans())
    def be_killed(self, write: int, rebuild: bool) -> None:
        with killed_at(write):
            self.place.index(prune=True, rebuild=rebuild)
        if (self.place.gallery / "current").exists():
            self.place.content()

    @rule(rebuild=st.sampled_from([False, False, True]))
    def index(self, rebuild: bool) -> None:
        scratch = self.folder / "galleries" / "scratch"
        if not self.here:
            return
        self.place.index(prune=True, rebuild=rebuild)
        gallery = self.place.gallery
        self.place.gallery = scratch
        try:
            self.place.index()
            expected = self.place.content()
        finally:
            shutil.rmtree(scratch, ignore_errors=True)
            self.place.gallery = gallery
        assert self.place.content() == expected
        assert "to embed" not in expected.values()


TestHistory = History.TestCase
TestHistory.settings = settings(
    max_examples=20, stateful_step_count=12, deadline=None, suppress_health_check=list(HealthCheck)
)
