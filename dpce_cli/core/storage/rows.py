"""Stores: HDF5 files that one or more processes fill row by row over hours, and continue after they were killed.

A store is written to `<name>.partial`, which is renamed when it is complete. HDF5 creates the file with everything but
the rows. Each process then writes the rows of its share with plain system calls, and after them its number of finished
rows. A process can be killed at any moment: the partial file continues after the last finished row. A full disk is an
ordinary error; HDF5 would crash when it closes the file. Only a complete store survives a power failure.

A complete store has a SHA-256 of each array and of everything else in it. `read_store` checks them, which takes as long
as reading the file once.
"""

from __future__ import annotations

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
from dpce_cli.core.processes.collectives import decided_by_first, rank, share, wait_for_all, world_size
from dpce_cli.core.storage.files import replacing
from dpce_cli.core.storage.hdf5 import reading_hdf5
from dpce_cli.core.storage.locks import exclusive

if TYPE_CHECKING:
    from torch import Tensor

COUNTS, DIGESTS = "rows_done", "digests"
SPARE_BYTES = 64 * 2**20
"""Bytes that must stay free for ids, captions and the other files of a run."""

_COUNTS_OF_A_PROCESS = 512
"""Numbers of finished rows per process, most of them unused. With 4 KiB per process, processes on several machines
write to different pages of a network disk."""
_BLOCK = 2**24

Array = NDArray[Any]


class StoreWriter:
    """Appends rows to this process's share of the arrays of a partial store; see `open_or_resume`."""

    def __init__(self, partial: Path, file: FileIO, path: Path) -> None:
        self._partial, self._file, self._path = partial, file, path
        with h5py.File(partial, "r", locking=False) as layout:
            self._arrays = {
                name: (layout[name].id.get_offset(), layout[name].shape, layout[name].dtype)
                for name in json.loads(layout.attrs["arrays"])
            }
            self._counts = layout[COUNTS][rank()]
            self._counts_offset = layout[COUNTS].id.get_offset() + rank() * self._counts.nbytes
            self._digests_offset = layout[DIGESTS].id.get_offset()

    def done(self, name: str) -> int:
        """The number of finished rows in this process's share of the array."""
        return int(self._counts[list(self._arrays).index(name)])

    def append(self, **arrays: Array | Tensor) -> None:
        """Write the next rows of this process's share of some arrays.

        If the process is killed during this call, the rows of all these arrays count as written, or of none.

        Raises:
            ValueError: the rows do not fit the array.
            WorkspaceError: the disk is full or the file cannot be written; earlier rows stay.
        """
        counts = self._counts.copy()
        for name, rows in arrays.items():
            offset, shape, dtype = self._arrays[name]
            own = share(shape[0])
            start = own.start + self.done(name)
            if tuple(rows.shape[1:]) != shape[1:] or start + len(rows) > own.stop:
                raise ValueError(f"{name}: rows {tuple(rows.shape)} at {start} do not fit {shape}")
            row_bytes = dtype.itemsize * math.prod(shape[1:])
            counts[list(self._arrays).index(name)] += len(rows)
            self._write(np.asarray(rows).astype(dtype).tobytes(), offset + start * row_bytes)
        self._write(counts.tobytes(), self._counts_offset)
        self._counts = counts

    def _write(self, data: bytes, offset: int) -> None:
        with _reporting(self._path):
            while data:
                written = os.pwrite(self._file.fileno(), data, offset)
                data, offset = data[written:], offset + written

    def finish(self) -> None:
        """Rename the complete store, after all processes have called this.

        Raises:
            ValueError: rows of this process's share are missing.
            WorkspaceError: the file cannot be written.
        """
        for name, (_, shape, _) in self._arrays.items():
            own = share(shape[0])
            if self.done(name) != own.stop - own.start:
                raise ValueError(f"{self._path}: {name} has {self.done(name)} of {own.stop - own.start} rows")
        with _reporting(self._path):
            os.fsync(self._file.fileno())
        wait_for_all()
        decided_by_first(self._seal)

    def _seal(self) -> None:
        digests = b""
        for offset, shape, dtype in self._arrays.values():
            length = dtype.itemsize * math.prod(shape)
            with _reporting(self._path):
                digests += _digest_of_part(self._file, offset or 0, length)
        self._write(digests, self._digests_offset)
        with _reporting(self._path):
            os.fsync(self._file.fileno())
            os.replace(self._partial, self._path)


def _digest_of_part(file: FileIO, offset: int, length: int) -> bytes:
    digest = hashlib.sha256()
    while length:
        block = os.pread(file.fileno(), min(length, _BLOCK), offset)
        if not block:
            raise OSError(0, "the file is cut short")
        digest.update(block)
        offset, length = offset + len(block), length - len(block)
    return digest.digest()


@contextmanager
def open_or_resume(
    path: Path,
    *,
    arrays: Mapping[str, tuple[tuple[int, ...], str]],
    constants: Mapping[str, Sequence[str] | Array],
    meta: Mapping[str, Any],
) -> Iterator[StoreWriter]:
    """Continue the partial store of `path`, or begin a new one.

    A partial store is continued if the arguments and the number of processes are the same. Each process fills its
    `share` of the rows. If the block ends without `finish()`, the partial file stays for the next time.

    Args:
        path: file of the complete store.
        arrays: shape and dtype of the arrays that are filled along the first axis, by name.
        constants: arrays and texts that are known beforehand; texts are Unicode without NUL characters.
        meta: any JSON; it says what the rows are and how they were made.

    Raises:
        WorkspaceError: another process writes the store, the folder cannot be written, or the disk is full.
    """
    partial = partial_path(path)
    signature = signature_of(arrays, constants, meta)
    with ExitStack() as stack:

        def begin() -> None:
            busy = f"another process is writing {path.name}; wait for it, or stop it and run again"
            stack.enter_context(exclusive(path.with_name(f".{path.name}.lock"), busy))
            if not _was_begun(partial, signature):
                _lay_out(partial, arrays, constants, meta, signature)

        decided_by_first(begin)
        with _reporting(partial):
            file = stack.enter_context(FileIO(partial, "rb+"))
        yield StoreWriter(partial, file, path)


def _was_begun(partial: Path, signature: str) -> bool:
    try:
        with reading_hdf5(partial) as file:
            return bool(file.attrs.get("signature") == signature and len(file[COUNTS]) == world_size())
    except (OSError, RuntimeError, KeyError, ValueError):
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
                f"{partial}: needs {needed / 1e9:.2f} GB, but {free / 1e9:.2f} GB are free; free space or "
                "choose another --workspace, then run again"
            )
        with h5py.File(temporary, "w", locking=False) as file:
            kept = {
                COUNTS: ((world_size(), _COUNTS_OF_A_PROCESS), "int64"),
                DIGESTS: ((len(arrays), hashlib.sha256().digest_size), "uint8"),
            }
            for name, (shape, dtype) in {**arrays, **kept}.items():
                at_fixed_place = h5py.h5p.create(h5py.h5p.DATASET_CREATE)
                at_fixed_place.set_alloc_time(h5py.h5d.ALLOC_TIME_EARLY)
                file.create_dataset(name, shape, dtype, dcpl=at_fixed_place)
            file[COUNTS][:] = 0
            file[DIGESTS][:] = 0
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
    """A SHA-256 of the arguments of `open_or_resume`."""
    layout = {name: [list(shape), dtype] for name, (shape, dtype) in arrays.items()}
    digests = {
        name: hashlib.sha256(
            values.tobytes() if isinstance(values, np.ndarray) else json.dumps(list(values)).encode()
        ).hexdigest()
        for name, values in constants.items()
    }
    return hashlib.sha256(json.dumps([layout, digests, meta], sort_keys=True).encode()).hexdigest()


def _unfinished(file: h5py.File) -> str:
    counts = dict(zip(json.loads(file.attrs["arrays"]), file[COUNTS][:].sum(0).tolist(), strict=False))
    return ", ".join(f"{name} {done}/{len(file[name])}" for name, done in counts.items() if done != len(file[name]))


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
    """A complete store."""

    arrays: dict[str, Array]
    """Mapped from the file; changes stay in memory."""
    texts: dict[str, tuple[str, ...]]
    meta: dict[str, Any]


def partial_path(path: Path) -> Path:
    """The file to which the store is written until it is complete."""
    return path.with_name(f"{path.name}.partial")


def read_meta(path: Path, *, whole: bool = True) -> dict[str, Any] | None:
    """The `meta` of a store; None if the store is missing or damaged, or incomplete and `whole` is true.

    Raises:
        WorkspaceError: the machine cannot read the file now.
    """
    try:
        with reading_hdf5(path) as file:
            return None if whole and _unfinished(file) else dict(json.loads(file.attrs["meta"]))
    except (OSError, KeyError, ValueError, TypeError, RuntimeError, AttributeError):
        return None


def _mapped(path: Path, rows: h5py.Dataset) -> Array:
    offset = rows.id.get_offset()
    if offset is None:  # the array is empty
        return np.asarray(rows[:])
    if offset + rows.nbytes > path.stat().st_size:
        raise ValueError("the file is cut short")
    return np.memmap(path, dtype=rows.dtype, mode="c", offset=offset, shape=rows.shape)


def read_store(path: Path, *, remedy: str) -> Store:
    """Read a complete store and check its SHA-256; `remedy` is the command that makes the store.

    Raises:
        WorkspaceError: the store is missing, damaged or incomplete, or the machine cannot read it now.
    """
    try:
        with reading_hdf5(path) as file:
            if missing := _unfinished(file):
                raise WorkspaceError(f"{path}: incomplete ({missing}); run `{remedy}` again")
            names = json.loads(file.attrs["arrays"])
            layout = {name: (file[name].shape, file[name].dtype.name) for name in names}
            constants = [name for name in file if name not in {*names, COUNTS, DIGESTS}]
            texts = {
                name: tuple(file[name].asstr()[:]) for name in constants if h5py.check_string_dtype(file[name].dtype)
            }
            numbers = {name: file[name][:] for name in constants if name not in texts}
            meta = dict(json.loads(file.attrs["meta"]))
            if signature_of(layout, {**texts, **numbers}, meta) != file.attrs["signature"]:
                raise ValueError("its description has changed")
            arrays = {name: _mapped(path, file[name]) for name in names}
            for name, digest in zip(names, file[DIGESTS][:], strict=True):
                if hashlib.sha256(np.ascontiguousarray(arrays[name]).data).digest() != digest.tobytes():
                    raise ValueError(f"the rows of {name} have changed")
            return Store(arrays={**arrays, **numbers}, texts=texts, meta=meta)
    except FileNotFoundError as error:
        raise WorkspaceError(f"{path}: not found; run `{remedy}`") from error
    except (OSError, KeyError, ValueError, TypeError, RuntimeError, AttributeError) as error:
        raise WorkspaceError(f"{path}: damaged ({error}); delete it and run `{remedy}` again") from error
