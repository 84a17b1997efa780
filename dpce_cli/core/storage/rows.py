"""HDF5 files that are filled row by row over hours, and the resuming of one whose process was killed.

A store grows in `<name>.partial` and gets its own name when it is whole. HDF5 lays the file out, complete but
for the rows; the rows are then written in place with plain system calls, each array's count of finished rows
after the rows it counts. So a process killed at any moment leaves a partial file that is resumed at a row
boundary, and a full disk is a plain error (HDF5 cannot close a file that it fails to write). Power loss is
covered only once the store is whole.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import math
import os
import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from io import FileIO
from pathlib import Path
from typing import TYPE_CHECKING, Any

import h5py
import numpy as np
from numpy.typing import NDArray

from dpce_cli.core.errors import WorkspaceError
from dpce_cli.core.storage.files import replacing

if TYPE_CHECKING:
    from torch import Tensor

COUNTS = "rows_done"
SPARE_BYTES = 64 * 2**20
"""Room that must remain for ids, captions and the other files of a run."""

Array = NDArray[Any]


class StoreWriter:
    """Appends rows to the arrays of a partial store; made by `open_or_resume`."""

    def __init__(self, partial: Path, file: FileIO, path: Path) -> None:
        self._partial = partial
        self._file = file
        self._path = path
        with h5py.File(partial, "r", locking=False) as layout:
            self._arrays = {
                name: (layout[name].id.get_offset(), layout[name].shape, layout[name].dtype)
                for name in json.loads(layout.attrs["arrays"])
            }
            self._counts = layout[COUNTS][:]
            self._counts_offset = layout[COUNTS].id.get_offset()

    def done(self, name: str) -> int:
        """How many rows of the array are finished."""
        return int(self._counts[list(self._arrays).index(name)])

    def append(self, name: str, rows: Array | Tensor) -> None:
        """Write the next rows of the array; when this returns, they outlive the process.

        Raises:
            ValueError: the rows do not fit the array.
            WorkspaceError: the disk is full or the file cannot be written; what was appended before stays.
        """
        offset, shape, dtype = self._arrays[name]
        start = self.done(name)
        end = start + len(rows)
        if tuple(rows.shape[1:]) != shape[1:] or end > shape[0]:
            raise ValueError(f"{name}: rows {tuple(rows.shape)} at {start} do not fit {shape}")
        row_bytes = dtype.itemsize * math.prod(shape[1:])
        counts = self._counts.copy()
        counts[list(self._arrays).index(name)] = end
        self._write(np.asarray(rows).astype(dtype).tobytes(), offset + start * row_bytes)
        self._write(counts.tobytes(), self._counts_offset)
        self._counts = counts

    def _write(self, data: bytes, offset: int) -> None:
        with _reporting(self._path):
            while data:
                written = os.pwrite(self._file.fileno(), data, offset)
                data, offset = data[written:], offset + written

    def finish(self) -> None:
        """Give the whole store its name.

        Raises:
            ValueError: an array is not full.
            WorkspaceError: the file cannot be written.
        """
        self.check_full()
        with _reporting(self._path):
            os.replace(self._partial, self._path)

    def check_full(self) -> None:
        """Make sure that every row is on the disk.

        Raises:
            ValueError: an array is not full.
            WorkspaceError: the file cannot be written.
        """
        for name, (_, shape, _) in self._arrays.items():
            if self.done(name) != shape[0]:
                raise ValueError(f"{self._path}: {name} holds {self.done(name)} of {shape[0]} rows")
        with _reporting(self._path):
            os.fsync(self._file.fileno())


@contextmanager
def open_or_resume(
    path: Path,
    *,
    arrays: Mapping[str, tuple[tuple[int, ...], str]],
    constants: Mapping[str, Sequence[str] | Array],
    meta: Mapping[str, Any],
) -> Iterator[StoreWriter]:
    """Continue the partial store of `path` if it was begun with equal arguments, else begin it anew.

    Leaving the block without `finish()` keeps the partial file for the next time.

    Args:
        path: of the whole store.
        arrays: shape and dtype of what is to be filled along the first axis, by name.
        constants: what is known beforehand; texts are Unicode without NUL characters.
        meta: any JSON that says what the rows are and come from.

    Raises:
        WorkspaceError: another process writes the store, the folder cannot be written, or the disk is full.
    """
    partial = path.with_name(f"{path.name}.partial")
    signature = signature_of(arrays, constants, meta)
    with ExitStack() as stack:
        file = stack.enter_context(_open_locked(partial)) if partial.exists() else None
        if file is None or not _has_signature(partial, signature):
            _lay_out(partial, arrays, constants, meta, signature)
            file = stack.enter_context(_open_locked(partial))
        yield StoreWriter(partial, file, path)


def _open_locked(partial: Path) -> FileIO:
    with _reporting(partial):
        file = FileIO(partial, "rb+")
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            file.close()
            raise WorkspaceError(
                f"{partial}: another process is writing this file; wait for it, or stop it and run again"
            ) from error
        return file


def _has_signature(partial: Path, signature: str) -> bool:
    try:
        with h5py.File(partial, "r", locking=False) as file:
            return bool(file.attrs.get("signature") == signature)
    except (OSError, RuntimeError, KeyError):
        return False


def _lay_out(
    partial: Path,
    arrays: Mapping[str, tuple[tuple[int, ...], str]],
    constants: Mapping[str, Sequence[str] | Array],
    meta: Mapping[str, Any],
    signature: str,
) -> None:
    with replacing(partial) as temporary:
        needed = sum(math.prod(shape) * np.dtype(dtype).itemsize for shape, dtype in arrays.values())
        free = shutil.disk_usage(partial.parent).free
        if free < needed + SPARE_BYTES:
            raise WorkspaceError(
                f"{partial}: needs {needed / 1e9:.2f} GB and {free / 1e9:.2f} GB are free; free space or "
                "choose another --workspace, then run again"
            )
        with h5py.File(temporary, "w") as file:
            for name, (shape, dtype) in {**arrays, COUNTS: ((len(arrays),), "int64")}.items():
                at_fixed_place = h5py.h5p.create(h5py.h5p.DATASET_CREATE)
                at_fixed_place.set_alloc_time(h5py.h5d.ALLOC_TIME_EARLY)
                file.create_dataset(name, shape, dtype, dcpl=at_fixed_place)
            file[COUNTS][:] = 0
            for name, values in constants.items():
                if isinstance(values, np.ndarray):
                    file[name] = values
                else:
                    file.create_dataset(name, data=list(values), dtype=h5py.string_dtype())
            file.attrs.update(arrays=json.dumps(list(arrays)), meta=json.dumps(meta), signature=signature)


def signature_of(
    arrays: Mapping[str, tuple[tuple[int, ...], str]],
    constants: Mapping[str, Sequence[str] | Array],
    meta: Mapping[str, Any],
) -> str:
    """What tells apart stores that are begun with other arguments."""
    digests = {
        name: hashlib.sha256(
            values.tobytes() if isinstance(values, np.ndarray) else json.dumps(list(values)).encode()
        ).hexdigest()
        for name, values in constants.items()
    }
    return hashlib.sha256(json.dumps([arrays, digests, meta], sort_keys=True).encode()).hexdigest()


def _unfinished(file: h5py.File) -> str:
    counts = zip(json.loads(file.attrs["arrays"]), file[COUNTS][:], strict=True)
    return ", ".join(f"{name} {done}/{len(file[name])}" for name, done in counts if done != len(file[name]))


@contextmanager
def _reporting(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        reason = os.strerror(error.errno) if error.errno else str(error)
        raise WorkspaceError(
            f"{path}: cannot be written ({reason}); free space or choose another --workspace, then run again "
            "to continue where it stopped"
        ) from error


@dataclass(frozen=True, kw_only=True)
class Store:
    """A whole store."""

    arrays: dict[str, Array]
    """Read from the file when they are used; changes stay in memory."""
    texts: dict[str, tuple[str, ...]]
    meta: dict[str, Any]


def read_meta(path: Path) -> dict[str, Any] | None:
    """The `meta` of a whole store; None if there is none that can be read."""
    try:
        with h5py.File(path, "r") as file:
            return None if _unfinished(file) else dict(json.loads(file.attrs["meta"]))
    except (OSError, KeyError, ValueError, TypeError, RuntimeError, AttributeError):
        return None


def _mapped(path: Path, rows: h5py.Dataset) -> Array:
    offset = rows.id.get_offset()
    if offset is None:  # nothing is in it
        return np.asarray(rows[:])
    if offset + rows.nbytes > path.stat().st_size:
        raise ValueError("the file is cut short")
    return np.memmap(path, dtype=rows.dtype, mode="c", offset=offset, shape=rows.shape)


def read_store(path: Path, *, remedy: str) -> Store:
    """Read a whole store; `remedy` is the command that makes it.

    Raises:
        WorkspaceError: the store is missing, damaged, cut short or not whole.
    """
    try:
        with h5py.File(path, "r") as file:
            if missing := _unfinished(file):
                raise WorkspaceError(f"{path}: not whole ({missing}); run `{remedy}` again")
            texts = {name for name in file if h5py.check_string_dtype(file[name].dtype)}
            return Store(
                arrays={name: _mapped(path, file[name]) for name in file if name not in texts | {COUNTS}},
                texts={name: tuple(file[name].asstr()[:]) for name in texts},
                meta=dict(json.loads(file.attrs["meta"])),
            )
    except FileNotFoundError as error:
        raise WorkspaceError(f"{path}: not found; run `{remedy}`") from error
    except (OSError, KeyError, ValueError, TypeError, RuntimeError, AttributeError) as error:
        raise WorkspaceError(f"{path}: damaged ({error}); delete it and run `{remedy}` again") from error
