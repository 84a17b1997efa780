"""Read and write HDF5 files: without locks, and without following references to other files."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import h5py

from dpce_cli.core.errors import WorkspaceError
from dpce_cli.core.storage.files import replacing

_PERMISSIONS = "check the permissions of the file and its folders, then run again"
_OPEN_FILES = "allow more open files with `ulimit -n`, then run again"
_DISK = "check the disk, then run again"
_ADVICE = {
    errno.EACCES: _PERMISSIONS,
    errno.EPERM: _PERMISSIONS,
    errno.EMFILE: _OPEN_FILES,
    errno.ENFILE: _OPEN_FILES,
    errno.EIO: _DISK,
    errno.ESTALE: _DISK,
}
"""Advice for errors of the machine; the file itself may be good."""


@contextmanager
def reading_hdf5(path: Path) -> Iterator[h5py.File]:
    """Open a file whose datasets are all stored in the file itself.

    HDF5 can also store a dataset in other files, by links, virtual datasets or external storage. A file from a stranger
    could read any file of this machine in this way.

    Raises:
        ValueError: a dataset or link of the file refers to another file.
        OSError: the file is missing or cannot be read as HDF5.
        WorkspaceError: the machine cannot read the file now, for example because too many files are open.
    """
    try:
        with h5py.File(path, "r", locking=False) as file:
            _check_plain(file, set())
            yield file
    except OSError as error:
        if error.errno not in _ADVICE:
            raise
        raise WorkspaceError(f"{path}: cannot be read ({os.strerror(error.errno)}); {_ADVICE[error.errno]}") from error


def _check_plain(group: h5py.Group, seen: set[int]) -> None:
    for name in group:
        if not isinstance(group.get(name, getlink=True), h5py.HardLink):
            raise ValueError(f"'{name}' is a link to somewhere else")
        node = group[name]
        address = h5py.h5o.get_info(node.id).addr
        if address in seen:
            continue
        seen.add(address)
        if isinstance(node, h5py.Group):
            _check_plain(node, seen)
        elif isinstance(node, h5py.Dataset):
            layout = node.id.get_create_plist()
            if layout.get_layout() == h5py.h5d.VIRTUAL or (
                layout.get_layout() == h5py.h5d.CONTIGUOUS and layout.get_external_count()
            ):
                raise ValueError(f"'{name}' is stored in another file")


@contextmanager
def writing_hdf5(path: Path) -> Iterator[h5py.File]:
    """Build a small file in memory, and write it to the disk at the end of the block.

    If the disk is full, HDF5 cannot close a file and crashes the interpreter.

    Raises:
        WorkspaceError: the file cannot be written; an older file at `path` stays.
    """
    with h5py.File(path.name, "w", driver="core", backing_store=False) as file:
        yield file
        file.flush()
        image = file.id.get_file_image()
    with replacing(path) as temporary:
        temporary.write_bytes(image)
