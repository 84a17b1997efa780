"""Photos in tar shards: files of a hundred megabytes or more instead of one file per photo.

A shard is never unpacked, and not streamed either. Photos are read at the places that prepare-vocab recorded, in any
order, like loose files: an epoch's batches do not depend on the numbers of workers and processes, an interrupted run
goes on within an epoch with the same bits, and evaluation and search open single photos. A stream through a shuffle
buffer, as the webdataset library reads shards, can do none of this.
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
"""Where a member's content begins in its tar, its size, and a mark of its header, by which a changed tar is noticed."""

_COMPRESSIONS = {b"\x1f\x8b": "gzip", b"BZh": "bzip2", b"\xfd7zXZ": "xz", b"\x28\xb5\x2f\xfd": "zstd"}
"""By a file's first bytes."""


def members(file: BinaryIO) -> Iterator[tarfile.TarInfo]:
    """What a tar holds, in order; `file` may be moved in between.

    Raises:
        DataError: the tar is compressed, damaged, cut off, or none.
    """
    try:
        tar = tarfile.TarFile(fileobj=file, encoding="utf-8")
        while (member := tar.next()) is not None:
            if member.size < 0:
                raise tarfile.ReadError("a negative size")
            tar.members = []  # type: ignore[attr-defined]  # or it would keep them all
            yield member
        file.seek(tar.offset)
        if file.read(tarfile.BLOCKSIZE) != bytes(tarfile.BLOCKSIZE):  # tarfile takes a damaged header for the end
            raise tarfile.ReadError(f"no header and no end at byte {tar.offset:,}")
    except Exception as error:  # tarfile raises nearly every built-in exception on damaged headers
        file.seek(0)
        begin = file.read(6)
        for magic, compression in _COMPRESSIONS.items():
            if begin.startswith(magic):
                raise DataError(
                    f"{file.name}: compressed with {compression}; decompress it: photos are read at their places in it"
                ) from error
        raise DataError(
            f"{file.name}: not a tar, damaged or cut off ({str(error) or type(error).__name__}); write or copy it again"
        ) from error


def shard_of(path: Path) -> Path | None:
    """The tar that `path` leads through, if any: `photos/train-0.tar` of `photos/train-0.tar/dogs/1.jpg`."""
    return next(
        (folder for folder in reversed(path.parents) if folder.name.lower().endswith(".tar") and folder.is_file()), None
    )


def shard_name(path: str) -> str:
    """Tells the shards of a data set apart by what `path` says alone, without a look at the disk."""
    return path.lower().partition(".tar/")[0]


def extent(file: BinaryIO, member: tarfile.TarInfo) -> Extent:
    """Where in an open tar the content of a member is."""
    file.seek(member.offset_data - tarfile.BLOCKSIZE)
    return member.offset_data, member.size, _mark(file.read(tarfile.BLOCKSIZE))


def check_inside(path: Path, root: str) -> None:
    """See that a file is below `root`, a real path, also where `path` leads through links.

    Raises:
        DataError: it is not.
    """
    if not Path(os.path.realpath(path)).is_relative_to(root):
        raise DataError(
            f"{path}: a link that leads out of the data set's folder; copy what it points to into the folder, or "
            "remove the link"
        )


def open_photo(path: Path, extent: Extent | None = None) -> BinaryIO:
    """A photo's file, or a copy in memory of a member of the shard that `path` leads through.

    Args:
        extent: where the member is in the shard; None looks for it.

    Raises:
        DataError: the shard does not hold the photo, or not there.
        OSError: the file, or the shard, cannot be read.
    """
    shard = shard_of(path)
    if shard is None:
        return open(path, "rb")
    with open(shard, "rb") as file:
        start, size, mark = extent or _look_up(file, path.relative_to(shard).as_posix()) or (0, 0, 0)
        if start:
            file.seek(start - tarfile.BLOCKSIZE)
            if _mark(file.read(tarfile.BLOCKSIZE)) == mark:
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


def _mark(header: bytes) -> int:
    """Of a member's name and size as its header has them: shorter than a long name, and in whatever encoding."""
    return zlib.crc32(header[:100] + header[124:136] + header[345:500])
