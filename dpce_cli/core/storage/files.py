"""Write files and folders so that they appear only when they are complete."""

from __future__ import annotations

import json
import os
import platform
import re
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from functools import cache
from pathlib import Path
from typing import Any

from dpce_cli.core.errors import WorkspaceError, advice_on

_HOST = f".{platform.node()}."
_SUFFIX = ".dpce.tmp"
_LONG = 3600
"""Seconds after which a temporary file of another machine or container counts as abandoned."""


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Yield a temporary path beside `path`; rename it to `path` at the end of the block, or delete it after an error.

    The first call per folder deletes the temporary files of processes that were killed.

    Raises:
        WorkspaceError: the folder cannot be written, or the disk is full.
    """
    temporary = path.with_name(f".{path.name}{_HOST}{os.getpid()}{_SUFFIX}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        _remove_leftovers(path.parent.resolve())
        yield temporary
        with open(temporary, "rb+") as file:
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except OSError as error:
        reason = error.strerror or str(error)
        raise WorkspaceError(f"{path}: cannot be written ({reason}); {advice_on(error)}, then run again") from error
    finally:
        with suppress(OSError):
            temporary.unlink()


@contextmanager
def replacing_folder(folder: Path) -> Iterator[Path]:
    """Yield an empty temporary folder beside `folder`; it replaces `folder` at the end of the block.

    The old content of `folder` is deleted. After an error, the temporary folder is deleted instead.

    Raises:
        WorkspaceError: the folder cannot be written, or the disk is full.
    """
    folder = folder.resolve()
    temporary, older = (
        folder.with_name(f".{folder.name}{kind}{_HOST}{os.getpid()}{_SUFFIX}") for kind in ("", ".older")
    )
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        _remove_leftovers(folder.parent)
        temporary.mkdir()
        yield temporary
        for path in temporary.rglob("*"):
            if path.is_file():
                with open(path, "rb+") as file:
                    os.fsync(file.fileno())
        with suppress(FileNotFoundError):
            os.replace(folder, older)
        try:
            os.replace(temporary, folder)
        except OSError:
            with suppress(FileNotFoundError):
                os.replace(older, folder)
            raise
    except OSError as error:
        reason = error.strerror or str(error)
        raise WorkspaceError(f"{folder}: cannot be written ({reason}); {advice_on(error)}, then run again") from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
        shutil.rmtree(older, ignore_errors=True)


@cache
def _remove_leftovers(folder: Path) -> None:
    """Delete the temporary files of ended processes in `folder`; once per process, because folders may be large."""
    with os.scandir(folder) as entries:
        leftovers = [entry for entry in entries if entry.name.startswith(".") and entry.name.endswith(_SUFFIX)]
    for entry in leftovers:
        with suppress(OSError):
            own = re.fullmatch(rf".+{re.escape(_HOST)}(\d+){re.escape(_SUFFIX)}", entry.name)
            if not _is_running(int(own[1])) if own else time.time() - entry.stat().st_mtime > _LONG:
                shutil.rmtree(entry) if entry.is_dir(follow_symlinks=False) else os.unlink(entry)


def _is_running(process: int) -> bool:
    """Whether another process has this id. This process's own id does not count: containers use the same ids again.

    A killed process whose parent has not asked for its end yet (Linux's state Z) runs no more.
    """
    if process == os.getpid():
        return False
    with suppress(OSError):
        if Path(f"/proc/{process}/stat").read_bytes().rpartition(b") ")[2].startswith(b"Z"):
            return False
    try:
        os.kill(process, 0)
    except (ProcessLookupError, OverflowError):
        return False
    except PermissionError:  # it belongs to another user
        pass
    return True


def is_remembered(path: Path, stamp: str) -> bool:
    """Whether `remember` was called last with this stamp."""
    try:
        return path.read_text(encoding="utf-8") == stamp
    except (OSError, UnicodeDecodeError):
        return False


def remember(path: Path, stamp: str) -> None:
    """Note in a small file that what `stamp` describes was checked.

    Where the folder is read-only, or this is cut off, it is checked again next time.
    """
    with suppress(OSError):
        path.write_text(stamp, encoding="utf-8")


def write_json(path: Path, value: Any) -> None:
    """Write `value` as indented UTF-8 JSON, by way of `replacing`."""
    with replacing(path) as temporary:
        temporary.write_text(json.dumps(value, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
