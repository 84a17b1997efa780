"""Telling photos apart by what they hold, without reading them whole."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from dpce_cli.core.data.records import CaptionedImage
from dpce_cli.core.data.shards import Extent, open_photo
from dpce_cli.core.errors import DataError
from dpce_cli.core.processes.collectives import decided_by_first
from dpce_cli.core.storage.rows import partial_path, read_meta

UNREADABLE = "unreadable"
_SAMPLE = 4096


def photo_content(path: Path, extent: Extent | None) -> str:
    """Tells a photo from another one: its size, and a hash of its first and last 4 KiB, which is quick to read.

    Modification times would not do, because copying a data set changes them.
    """
    try:
        with open_photo(path, extent) as file:
            head = file.read(_SAMPLE)
            size = file.seek(0, os.SEEK_END)
            file.seek(max(0, size - _SAMPLE))
            return f"{size} {hashlib.sha256(head + file.read(_SAMPLE)).hexdigest()[:16]}"
    except (OSError, DataError):
        return UNREADABLE


def photo_contents(root: Path, images: Iterable[CaptionedImage]) -> list[str]:
    """The content of each photo as process 0 finds it, on every process."""
    return decided_by_first(lambda: [photo_content(root / image.path, image.extent) for image in images])


def is_stored(path: Path, meta: Mapping[str, Any], contents: Sequence[str]) -> bool:
    """Whether a whole store at `path` was made as `meta` says from these photos (see `_is_current`)."""
    return decided_by_first(lambda: _is_current(read_meta(path), meta, contents))


def meta_to_fill(path: Path, meta: Mapping[str, Any], contents: Sequence[str]) -> dict[str, Any]:
    """The meta of the store to make at `path`: that of one that was begun from these photos, or a new one."""
    begun = decided_by_first(lambda: read_meta(partial_path(path), whole=False))
    return begun if begun and _is_current(begun, meta, contents) else {**meta, "contents": list(contents)}


def replaced_photos(then: Sequence[str], now: Sequence[str]) -> list[int]:
    """Which of the photos hold something else `now`.

    A photo that cannot be read, now or then, counts as the same one: a disk that is not mounted makes nothing outdated.

    Args:
        then: the content of each photo; `now` likewise, in the same order.
    """
    pairs = enumerate(zip(then, now, strict=True))
    return [index for index, (one, other) in pairs if one != other and UNREADABLE not in (one, other)]


def _is_current(stored: Mapping[str, Any] | None, meta: Mapping[str, Any], contents: Sequence[str]) -> bool:
    """Whether what is `stored` was made as `meta` says from these photos, of which none was replaced since.

    Args:
        stored: the meta of a store, with the photos' contents besides.
    """
    return (
        stored is not None
        and stored == {**meta, "contents": stored.get("contents")}
        and len(contents) == len(stored["contents"])
        and not replaced_photos(stored["contents"], contents)
    )
