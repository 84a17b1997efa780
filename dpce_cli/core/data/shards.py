"""Photos in tar shards: files of a hundred megabytes or more instead of one file per photo.

A shard is neither unpacked nor streamed. `prepare-vocab` records the position of each photo, so photos can be read in
any order, like single files. Thus the batches of an epoch do not depend on the numbers of workers and processes, a run
that was stopped within an epoch continues with identical results, and evaluation and search open single photos. None of
this is possible with a stream through a shuffle buffer, as in the webdataset library.
"""

from __future__ import annotations

import io
import os
import tarfile
import zlib
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path, PurePosixPath
from typing import BinaryIO

from dpce_cli.core.errors import DataError

Extent = tuple[int, int, int]
"""The byte of the tar at which a member's content begins, its size, and a checksum of its header, to notice changes."""

_COMPRESSIONS = {b"\x1f\x8b": "gzip", b"BZh": "bzip2", b"\xfd7zXZ": "xz", b"\x28\xb5\x2f\xfd": "zstd"}
"""The compression by a file's first bytes."""


def members(file: BinaryIO) -> Iterator[tarfile.TarInfo]:
    """The members of a tar, in order; the caller may change the position in `file`.

    Raises:
        DataError: the file is compressed, damaged, cut off, or not a tar.
    """
    try:
        tar = tarfile.TarFile(fileobj=file, encoding="utf-8")
        while (member := tar.next()) is not None:
            if member.size < 0:
                raise tarfile.ReadError("a negative size")
            tar.members = []  # type: ignore[attr-defined]  # missing in the stubs; it would keep all members in memory
            yield member
        file.seek(tar.offset)
        if file.read(tarfile.BLOCKSIZE) != bytes(tarfile.BLOCKSIZE):  # tarfile also stops at a damaged header
            raise tarfile.ReadError(f"no header and no end at byte {tar.offset:,}")
    except Exception as error:  # tarfile raises nearly every built-in exception on damaged headers
        file.seek(0)
        begin = file.read(6)
        for magic, compression in _COMPRESSIONS.items():
            if begin.startswith(magic):
                raise DataError(
                    f"{file.name}: compressed with {compression}; decompress it: photos are read at their positions"
                ) from error
        raise DataError(
            f"{file.name}: not a tar, damaged or cut off ({str(error) or type(error).__name__}); write or copy it again"
        ) from error


def shard_of(path: Path) -> Path | None:
    """The tar in `path`, if there is one: `photos/train-0.tar` in `photos/train-0.tar/dogs/1.jpg`."""
    return next(
        (folder for folder in reversed(path.parents) if folder.name.lower().endswith(".tar") and folder.is_file()), None
    )


def shard_name(path: str) -> str:
    """The shard of a photo, from its `path` alone, without access to the disk."""
    return path.lower().partition(".tar/")[0]


def extent(file: BinaryIO, member: tarfile.TarInfo) -> Extent:
    """The position of a member's content in an open tar."""
    file.seek(member.offset_data - tarfile.BLOCKSIZE)
    return member.offset_data, member.size, _checksum(file.read(tarfile.BLOCKSIZE))


def check_inside(path: Path, root: str) -> None:
    """Check that a file is in the folder `root`, a real path, also if `path` contains links.

    Raises:
        DataError: the file is not in `root`.
    """
    if not Path(os.path.realpath(path)).is_relative_to(root):
        raise DataError(
            f"{path}: a link that leads out of the data set's folder; replace it with a copy of its target, or remove "
            "it"
        )


def open_photo(path: Path, extent: Extent | None = None) -> BinaryIO:
    """Open a photo's file, or a copy in memory of a member of a shard.

    Args:
        extent: the member's position in the shard; None searches for it.

    Raises:
        DataError: the photo is not in the shard, or not at `extent`.
        OSError: the file or the shard cannot be read.
    """
    shard = shard_of(path)
    if shard is None:
        return open(path, "rb")
    with open(shard, "rb") as file:
        start, size, checksum = extent or _look_up(file, path.relative_to(shard).as_posix()) or (0, 0, 0)
        if start:
            file.seek(start - tarfile.BLOCKSIZE)
            if _checksum(file.read(tarfile.BLOCKSIZE)) == checksum:
                return io.BytesIO(file.read(size))
    raise DataError(
        f"{path}: not found in its shard{f' at byte {start:,}' if start else ''}; "
        "if the shard was written again, run 'dpce prepare-vocab webdataset' again"
    )


def _look_up(file: BinaryIO, name: str) -> Extent | None:
    with suppress(DataError):
        for member in members(file):
            if member.isreg() and str(PurePosixPath(member.name)) == name:
                return extent(file, member)
    return None


def _checksum(header: bytes) -> int:
    """A checksum of the name and size in a member's header; the header has only a part of a long name."""
    return zlib.crc32(header[:100] + header[124:136] + header[345:500])
