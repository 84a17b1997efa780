"""Read MATLAB's .mat files, versions 5 to 7 and 7.3 (HDF5), as plain Python values; no file can run code."""

from __future__ import annotations

import itertools
import multiprocessing
import resource
import signal
from collections.abc import Collection, Iterator
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from dpce_cli.core.errors import DataError
from dpce_cli.core.storage.hdf5 import reading_hdf5

_SECONDS = 600
"""Limit of processor time per file; the authors' largest takes seconds."""
_MOST_VALUES = 200_000
_BYTES = 24 * 2**30
"""Limit of address space per file."""


def read_mat(path: Path, names: Collection[str]) -> dict[str, Any]:
    """The variables in `names` that are in the file.

    A struct becomes a dict, a struct array or cell array a list, text a str, and anything else an array of MATLAB's
    shape. A struct array of one element looks like a struct.

    Raises:
        DataError: the file is missing, damaged, not a MATLAB file, or exceeds the limits of time and memory.
    """
    try:
        path.stat()
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror}); check the path") from error
    spawn = multiprocessing.get_context("spawn")
    receiver, sender = spawn.Pipe(duplex=False)
    child = spawn.Process(target=_send, args=(sender, path, names), daemon=True)
    child.start()
    sender.close()
    try:
        outcome = receiver.recv()
    except EOFError:
        child.join()
        outcome = f"reading it was stopped by {_name(child.exitcode)}"
    finally:
        receiver.close()
        child.kill()
        child.join()
    if isinstance(outcome, str):
        raise DataError(f"{path}: cannot be read as a MATLAB file ({outcome}); check the file, or download it again")
    values: dict[str, Any] = outcome
    return values


def _send(sender: Connection, path: Path, names: Collection[str]) -> None:
    """Read a file and send its variables, or the reason why it cannot be read.

    This runs in a child process: SciPy's and HDF5's readers crash on some damaged files, and never end on others.
    """
    resource.setrlimit(resource.RLIMIT_CPU, (_SECONDS, _SECONDS))
    resource.setrlimit(resource.RLIMIT_AS, (_BYTES, _BYTES))
    try:
        sender.send(_read_hdf5(path, names) if h5py.is_hdf5(path) else _read_v5(path, names))
    except Exception as error:  # SciPy and h5py raise nearly every built-in exception on damaged files
        sender.send(str(error).splitlines()[0] if str(error) else type(error).__name__)


def _name(code: int | None) -> str:
    """What stopped a process with this exit code."""
    if code == -signal.SIGXCPU or code == -signal.SIGKILL:
        return "its limit of time or memory"
    return signal.Signals(-code).name if code is not None and code < 0 else f"exit code {code}"


def _read_v5(path: Path, names: Collection[str]) -> dict[str, Any]:
    from scipy.io import loadmat

    variables = loadmat(path, variable_names=list(names))
    return {name: _from_v5(value) for name, value in variables.items() if name in names}


def _from_v5(value: Any) -> Any:
    if value.dtype.names:
        items = [{name: _from_v5(item[name]) for name in value.dtype.names} for item in value.ravel(order="F")]
        return items[0] if len(items) == 1 else items
    if value.dtype == object:
        return [_from_v5(item) for item in value.ravel(order="F")]
    if value.dtype.kind == "U":
        return "".join(value.ravel())
    return value


def _read_hdf5(path: Path, names: Collection[str]) -> dict[str, Any]:
    with reading_hdf5(path) as file:
        seen = itertools.count()
        return {name: _from_hdf5(file[name], file, seen) for name in names if name in file}


def _from_hdf5(node: h5py.Group | h5py.Dataset, file: h5py.File, seen: Iterator[int]) -> Any:
    if next(seen) > _MOST_VALUES:  # references can point to the same cell again and again
        raise ValueError(f"it has more than {_MOST_VALUES:,} values")
    if isinstance(node, h5py.Group):
        if any(_is_field_of_array(member) for member in node.values()):
            columns = {name: [_from_hdf5(file[item], file, seen) for item in _items(node[name])] for name in node}
            return [dict(zip(columns, row, strict=True)) for row in zip(*columns.values(), strict=True)]
        return {name: _from_hdf5(node[name], file, seen) for name in node}
    kind = _class(node)
    if node.attrs.get("MATLAB_empty", 0):
        return {"char": "", "cell": [], "struct": []}.get(kind, np.empty(node[()].astype(int)))
    if h5py.check_ref_dtype(node.dtype):
        return [_from_hdf5(file[item], file, seen) for item in _items(node)]
    if kind == "char":
        return node[()].astype("<u2").tobytes().decode("utf-16-le", "surrogatepass")
    return node[()].T


def _class(node: h5py.Group | h5py.Dataset) -> str:
    return bytes(node.attrs.get("MATLAB_class", b"")).decode("ascii", "replace")


def _is_field_of_array(node: h5py.Group | h5py.Dataset) -> bool:
    """Whether `node` is a field of a struct array: a list of references, as a cell array is, but without a class."""
    return isinstance(node, h5py.Dataset) and h5py.check_ref_dtype(node.dtype) is not None and not _class(node)


def _items(node: h5py.Dataset) -> list[h5py.Reference]:
    """The references of an array in MATLAB's order, which is transposed in HDF5."""
    return list(node[()].ravel())
