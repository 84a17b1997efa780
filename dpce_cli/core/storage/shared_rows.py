"""A store that several processes fill together, each its share of the rows in a file of its own."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import h5py

from dpce_cli.core.processes.collectives import gather_objects, lengths, rank, wait_for_all, world_size
from dpce_cli.core.progress import Reporter
from dpce_cli.core.storage.rows import Array, StoreWriter, open_or_resume, signature_of

_ROWS_BYTES = 2**24


@contextmanager
def open_together(
    path: Path,
    *,
    arrays: Mapping[str, tuple[tuple[int, ...], str]],
    constants: Mapping[str, Sequence[str] | Array],
    meta: Mapping[str, Any],
) -> Iterator[StoreWriter]:
    """As `open_or_resume`; of several processes, each is given a store for `share` of every array's rows.

    When all have called `finish()`, the first process copies the rows, a few at a time, into the whole store, and the
    shares are deleted: meanwhile, the rows are on the disk twice. What was not finished is continued by as many
    processes as began it, and begun anew by another number of them, who delete what the others left.

    Args and raises: as `open_or_resume`.
    """
    if world_size() == 1:
        with open_or_resume(path, arrays=arrays, constants=constants, meta=meta) as store:
            yield store
        if path.is_file():
            _delete_shares(path)
        return
    parts = [path.with_name(f"{path.stem}-{number}of{world_size()}{path.suffix}") for number in range(world_size())]
    own = {name: ((lengths(shape[0])[rank()], *shape[1:]), dtype) for name, (shape, dtype) in arrays.items()}
    whole = {"share": [rank(), world_size()], "of": signature_of(arrays, constants, meta)}
    with open_or_resume(parts[rank()], arrays=own, constants={}, meta=whole) as store:

        def finish() -> None:
            store.check_full()
            wait_for_all()
            if not rank():
                with open_or_resume(path, arrays=arrays, constants=constants, meta=meta) as merged:
                    _merge(merged, [part.with_name(f"{part.name}.partial") for part in parts], list(arrays))
                    merged.finish()
                _delete_shares(path)
            wait_for_all()

        store.finish = finish  # type: ignore[method-assign]
        yield store


def _delete_shares(path: Path) -> None:
    for part in path.parent.glob(f"{path.stem}-*of*{path.suffix}.partial"):
        part.unlink()


def _merge(merged: StoreWriter, parts: Sequence[Path], names: Sequence[str]) -> None:
    for name in names:
        start = 0
        for part in parts:
            with h5py.File(part, "r", locking=False) as file:
                rows = file[name]
                size = max(1, _ROWS_BYTES // max(1, rows.nbytes // max(1, len(rows))))
                # An interrupted copy goes on after the rows that are there.
                for first in range(max(0, merged.done(name) - start), len(rows), size):
                    merged.append(name, rows[first : first + size])
                start += len(rows)


def warn_of_others(unread: list[str], reporter: Reporter) -> None:
    """Have the process that reports name what the others could not read, having named its own."""
    for problems in gather_objects(unread)[1:]:
        for problem in problems:
            reporter.warn(f"{problem}: skipped")
