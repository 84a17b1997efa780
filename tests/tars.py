"""Tar shards as `tar` and Python write them, and what a folder of the same files would be."""

from __future__ import annotations

import io
import tarfile
from collections.abc import Iterable
from pathlib import Path

Member = tuple[str, bytes]


def write_tar(path: Path, members: Iterable[Member | tarfile.TarInfo], **how: int) -> Path:
    """A tar of files, and of whatever else is described by a `TarInfo` alone."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.TarFile(path, "w", **how) as tar:  # type: ignore[arg-type]
        for member in members:
            if isinstance(member, tarfile.TarInfo):
                tar.addfile(member)
            else:
                about = tarfile.TarInfo(member[0])
                about.size = len(member[1])
                tar.addfile(about, io.BytesIO(member[1]))
    return path


def unpack(root: Path, target: Path) -> Path:
    """Each tar of `root` as a folder of its name in `target`."""
    for path in root.rglob("*.tar"):
        with tarfile.TarFile(path) as tar:
            for member in tar:
                file = target / path.relative_to(root) / member.name
                file.parent.mkdir(parents=True, exist_ok=True)
                content = tar.extractfile(member)
                assert content is not None
                file.write_bytes(content.read())
    return target
