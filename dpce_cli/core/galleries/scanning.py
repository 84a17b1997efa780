"""Which photos lie below a folder, and which sentences are in a file."""

from __future__ import annotations

import fnmatch
import hashlib
import os
import re
import stat
import time
import warnings
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import BinaryIO

from PIL import Image

from dpce_cli.core.data.images import FORMATS
from dpce_cli.core.data.readers.reading import IMAGE_SUFFIXES, UNREAD_SUFFIXES, Skips, read_lines
from dpce_cli.core.data.readers.tables import Columns, table_rows
from dpce_cli.core.errors import DataError
from dpce_cli.core.galleries.catalogue import Found

_EXIF, _TAKEN, _MODIFIED = 0x8769, 0x9003, 0x0132
_READ = tuple(os.fsencode(suffix) for suffix in IMAGE_SUFFIXES)
_UNREAD = tuple(os.fsencode(suffix) for suffix in UNREAD_SUFFIXES)
_SETTLED_NS = 2 * 10**9
_TABLES = (".csv", ".tsv", ".jsonl", ".parquet")
SENTENCES = (".txt", *_TABLES)
"""Endings of files of sentences."""


@dataclass
class Scan:
    """What a root holds at present."""

    found: dict[bytes, Found] = field(default_factory=dict)
    """By path; in the order of the folders."""
    unreadable: list[tuple[bytes, str]] = field(default_factory=list)
    """Folders and files that could not be looked at, with the reason: nothing is known of what is there."""
    unread: Counter[str] = field(default_factory=Counter)
    """Photos of formats that are not read, by ending."""

    def may_hold(self, path: bytes) -> bool:
        """Whether `path` was not found because it could not be looked at."""
        return any(path == place or path.startswith(os.path.join(place, b"")) for place, _ in self.unreadable)


def identity(root: Path) -> tuple[int, int] | None:
    """Tells whether a disk was mounted or unmounted at `root` meanwhile; None where there is nothing."""
    try:
        status = root.stat()
    except OSError:
        return None
    return status.st_dev, status.st_ino


def scan_photos(root: Path, exclude: Sequence[str]) -> Scan:
    """The photos below `root` at any depth, without hidden files and folders; links are not followed.

    Args:
        exclude: patterns such as `thumbnails` or `*/raw/*`; what has such a name, or such a path relative to the root,
            is left out.

    Raises:
        DataError: the folder cannot be read, or its disk went away meanwhile.
    """
    scan, pending, base, before = Scan(), [b""], os.fsencode(root), identity(root)
    excluded = re.compile("|".join(fnmatch.translate(pattern) for pattern in exclude)) if exclude else None
    while pending:
        folder = pending.pop()
        try:
            with os.scandir(os.path.join(base, folder)) as listing:
                entries = sorted(listing, key=lambda entry: entry.name)
        except FileNotFoundError:  # deleted meanwhile
            continue
        except OSError as error:
            scan.unreadable.append((folder, error.strerror or str(error)))
            continue
        for entry in entries:
            name, path = entry.name, os.path.join(folder, entry.name)
            if name.startswith(b".") or (excluded and _matches(excluded, name, path)):
                continue
            try:
                if entry.is_dir(follow_symlinks=False):
                    pending.append(path)
                    continue
                suffix = os.path.splitext(name)[1].lower()
                if suffix in _READ:
                    status = entry.stat(follow_symlinks=False)
                    if stat.S_ISREG(status.st_mode):
                        scan.found[path] = Found(path, status.st_size, status.st_mtime_ns)
                elif suffix in _UNREAD:
                    scan.unread[suffix.decode()] += 1
            except FileNotFoundError:
                continue
            except OSError as error:
                scan.unreadable.append((path, error.strerror or str(error)))
    if scan.unreadable and scan.unreadable[0][0] == b"":
        raise DataError(f"{root}: cannot be read ({scan.unreadable[0][1]}); check its permissions, or mount its disk")
    if identity(root) != before:
        check_still_there(root, None)
    return scan


def check_still_there(root: Path, before: tuple[int, int] | None) -> None:
    """See that a root is the same folder as `before` (see `identity`).

    Raises:
        DataError: it is not.
    """
    if before is None or identity(root) != before or (root.is_dir() and not os.listdir(root)):
        raise DataError(
            f"{root}: disappeared while it was read, perhaps because its disk was unmounted; its items stay in the "
            "gallery. Mount the disk, then run the same command to continue"
        )


def _matches(excluded: re.Pattern[str], name: bytes, path: bytes) -> bool:
    return bool(excluded.match(os.fsdecode(name)) or excluded.match(os.fsdecode(path)))


def scan_sentences(path: Path) -> Scan:
    """The different sentences of a `.txt` file, one per line, or of the caption column of a table.

    Raises:
        DataError: the file cannot be read, or is not such a file.
    """
    if path.suffix.lower() in _TABLES:
        texts = [row.caption for row, _ in table_rows(path, Columns(), Skips())]
    else:
        texts = [line for _, line in read_lines(path)]
    scan = Scan()
    for number, text in enumerate(texts, 1):
        sentence = " ".join(text.split()).encode()
        if sentence and sentence not in scan.found:
            scan.found[sentence] = Found(sentence, 0, number)
    return scan


@dataclass(frozen=True)
class Content:
    """What a file holds, as far as it is known without decoding the photo."""

    digest: bytes
    """SHA-256 of its bytes."""
    date: str | None
    """When the photo was taken, by its EXIF data, as `2024-05-01T10:30:01`; None where it does not say."""
    item: Found
    """The file as it was after it was read."""
    is_settled: bool
    """False where the file changed so shortly before that it may change again within the resolution of its time."""


def read_content(root: Path, path: bytes) -> Content:
    """Read a photo file once, and its EXIF data.

    Raises:
        OSError: it cannot be read.
    """
    with open(root / os.fsdecode(path), "rb", opener=_open_without_waiting) as file:
        digest = hashlib.file_digest(file, "sha256").digest()
        file.seek(0)
        date, status = _date_taken(file), os.fstat(file.fileno())
    found = Found(path, status.st_size, status.st_mtime_ns)
    return Content(digest, date, found, is_settled=abs(time.time_ns() - found.changed) > _SETTLED_NS)


def _open_without_waiting(path: str, flags: int) -> int:
    return os.open(path, flags | os.O_NONBLOCK)  # where a pipe has taken the photo's place


def _date_taken(file: BinaryIO) -> str | None:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            with Image.open(file, formats=FORMATS) as photo:
                exif = photo.getexif()
                text = exif.get_ifd(_EXIF).get(_TAKEN) or exif.get(_MODIFIED)
    except Exception:  # Pillow's parsers raise nearly every built-in exception on damaged files
        return None
    match = re.match(r"(\d{4}):(\d\d):(\d\d) (\d\d):(\d\d):(\d\d)", str(text))
    if not match or not (match[1] > "0000" and "01" <= match[2] <= "12" and "01" <= match[3] <= "31"):
        return None
    return f"{match[1]}-{match[2]}-{match[3]}T{match[4]}:{match[5]}:{match[6]}"
