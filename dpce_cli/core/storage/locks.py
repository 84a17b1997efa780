"""Lock files, so that only one process at a time writes; no other module locks files."""

from __future__ import annotations

import errno
import fcntl
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from dpce_cli.core.errors import WorkspaceError, advice_on

_RETRY_SECONDS = 0.02


def is_held(path: Path) -> bool:
    """Whether another process holds the lock file `path`; also true if this cannot be found out."""
    try:
        file = os.open(path, os.O_WRONLY | os.O_CLOEXEC)
    except OSError as error:
        return error.errno != errno.ENOENT
    try:
        fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        return False
    except OSError:
        return True
    finally:
        os.close(file)


@contextmanager
def exclusive(path: Path, busy: str, *, patience: float = 0.0) -> Iterator[None]:
    """Hold the lock file `path` during the block; the empty file stays.

    This is a POSIX lock. Worker processes do not inherit it, so it is free as soon as this process is killed. On a file
    system without locks, such as some network disks, nothing is locked.

    Args:
        busy: the error message if another process holds the lock.
        patience: seconds to wait until the other process is done.

    Raises:
        WorkspaceError: another process holds the lock, or the folder cannot be written.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC, 0o666)
    except OSError as error:
        raise WorkspaceError(
            f"{path}: cannot be written ({error.strerror}); {advice_on(error)}, then run again"
        ) from error
    try:
        end = time.monotonic() + patience
        while not _lock(file, path, busy, gives_up=time.monotonic() >= end):
            time.sleep(_RETRY_SECONDS)
        yield
    finally:
        os.close(file)


def _lock(file: int, path: Path, busy: str, *, gives_up: bool) -> bool:
    """Lock the open file at `path`. Where another process holds the lock, this is False, or an error if `gives_up`."""
    try:
        fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        if error.errno in (errno.EACCES, errno.EAGAIN):
            if not gives_up:
                return False
            raise WorkspaceError(f"{path.parent}: {busy}") from error
        if error.errno not in (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP, errno.EINVAL):
            raise WorkspaceError(f"{path}: cannot be locked ({error.strerror})") from error
    return True
